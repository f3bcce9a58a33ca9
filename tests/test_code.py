"""The packages that setuptools is told of."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [
        path.relative_to(ROOT) for path in ROOT.glob("mobilevit_coreml/**/*") if path.suffix in (".py", ".html", ".md")
    ]
    there = {".".join(path.parent.parts) for path in files}
    assert sorted(setuptools["packages"]) == sorted(there | set(setuptools["package-dir"]))
    assert all((ROOT / folder).is_dir() for folder in setuptools["package-dir"].values())
