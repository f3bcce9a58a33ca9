"""The packages that setuptools is told of."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("mobilevit_coreml/**/__init__.py")}
    assert sorted(setuptools["packages"]) == sorted(there | set(setuptools["package-dir"]))
    assert all((ROOT / folder).is_dir() for folder in setuptools["package-dir"].values())
