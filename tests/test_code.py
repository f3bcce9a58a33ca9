"""The checks that are no tests of behaviour: formatter, linter, type checker, and what the README says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("tool", [["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]], ids=" ".join)
def test_code_style_and_types(tool: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tests,) = (command.strip() for command in commands if "pytest" in command)
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
