"""The checks that are no tests of behaviour: formatter, linter, type checker."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("tool", [["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]], ids=" ".join)
def test_code_style_and_types(tool: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_every_package_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("mobilevit_coreml/**/__init__.py")}
    assert sorted(setuptools["packages"]) == sorted(there | set(setuptools["package-dir"]))
    assert all((ROOT / folder).is_dir() for folder in setuptools["package-dir"].values())
