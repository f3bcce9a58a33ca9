"""The workflow for a Mac says things that are so: it is YAML, and our commands take what it types."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.cli.convert import parser as convert_parser
from mobilevit_coreml.cli.validate import parser as validate_parser
from mobilevit_coreml.validation.core_ml import UNITS

WORKFLOW = Path(__file__).parents[1] / ".github" / "workflows" / "macos.yml"
PARSERS = {"mobilevit_coreml.convert": convert_parser, "validate": validate_parser}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The workflow's only job."""
    yaml = importlib.import_module("yaml")  # a dependency of the hub's client
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    return job


def commands(job: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each of our commands: the module and its arguments, with what stands for a variable filled in."""
    found = []
    for arguments in (row["arguments"] for row in job["strategy"]["matrix"]["include"]):
        for script in (step.get("run", "") for step in job["steps"]):
            filled = script.replace("\\\n", " ").replace("${{ matrix.arguments }}", arguments)
            for variable, value in (("$units", "cpuAndNeuralEngine"), ("$REQUIRED", "cpuOnly")):
                filled = filled.replace(variable, value)
            for module, rest in re.findall(r"python -m (\S+)(.*)", filled):
                found.append((module, shlex.split(re.split(r"[|>]", rest)[0])))
    return found


def test_our_parsers_take_what_is_typed(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    typed = [command for command in commands(job) if command[0] != "pip"]
    assert {module for module, _ in typed} == set(PARSERS)
    refused = []
    for module, arguments in typed:
        try:
            PARSERS[module]().parse_args(arguments)
        except SystemExit:
            refused.append((module, arguments, capsys.readouterr().err))
    assert refused == []


def test_every_compute_unit_has_its_turn(job: dict[str, Any]) -> None:
    (script,) = (step["run"] for step in job["steps"] if "for units in" in step.get("run", ""))
    match = re.search(r"for units in (.*);", script)
    assert match is not None
    assert match[1].split() == list(UNITS)


def test_reports_are_kept_whatever_happens(job: dict[str, Any]) -> None:
    last = job["steps"][-1]
    assert (last["if"], last["with"]["path"]) == ("always()", "reports/")
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
