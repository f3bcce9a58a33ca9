"""What a recipe asks `convert` for, and the verdict by its gates."""

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.metrics import Fidelity, SignalFidelity, SignalMeter
from mobilevit_coreml.release.build import build, missed_gates, plain
from mobilevit_coreml.release.recipe import Recipe
from mobilevit_coreml.release.workers import error_of

RECIPE = Recipe("mine", "Mine", "features", "xxs", "iOS18", image_sizes=((64, 96),), output={"hidden_states": True})
BUDGET = dataclasses.replace(RECIPE, budget=Budget(min_snr=20), gates={"snr": 40.0, "cosine": 0.9})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that `convert` got."""
    got: dict[str, Any] = {}

    def convert(weights: str, variant: str, **arguments: Any) -> None:
        got.update(arguments, weights=weights, variant=variant)
        raise ConversionError("no\npackage")

    monkeypatch.setattr("mobilevit_coreml.release.build.convert", convert)
    return got


def test_what_is_asked_for(asked: dict[str, Any], tmp_path: Path) -> None:
    error = error_of((RECIPE, "untrained", "", Path("photographs"), {}, tmp_path))
    assert error == r"no\npackage"
    assert (asked["weights"], asked["variant"], asked["task"]) == ("untrained", "xxs", "features")
    assert (asked["target"], asked["image_sizes"], asked["hidden_states"]) == ("iOS18", ((64, 96),), True)
    assert asked["output"] == tmp_path / "Mine.mlpackage"
    assert (asked["images"], asked["report"]) == (None, None)  # the photographs are for budgets


@pytest.mark.parametrize("drawable", [True, False])
def test_a_budget_has_a_report_of_its_own(
    asked: dict[str, Any], tmp_path: Path, drawable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if drawable else None)
    with pytest.raises(ConversionError):
        build(BUDGET, "untrained", "", Path("photographs"), {}, tmp_path)
    assert asked["report"] == tmp_path / ("compression.html" if drawable else "compression.json")
    assert (asked["images"], asked["min_snr"], asked["max_size"]) == (Path("photographs"), 20, None)


def signal(snr: float) -> SignalFidelity:
    return dataclasses.replace(SignalMeter().result(), snr=snr, worst_snr=snr, cosine=0.99)


def conversion(fidelity: float, quality: float) -> Any:
    return SimpleNamespace(
        fidelity={"main": Fidelity(8, {"snr": 30}, {"logits": signal(fidelity)})},
        quality={"main": Fidelity(8, {}, {"logits": signal(quality)})},
    )


def test_gates_of_a_budget_are_on_its_quality() -> None:
    assert missed_gates(BUDGET, conversion(35, 45)) == ""
    assert missed_gates(BUDGET, conversion(35, 39)) == "quality, main: snr: expected at least 40 dB, got 39"
    assert missed_gates(BUDGET, conversion(29, 45)) == "main: snr: expected at least 30 dB, got 29"


def test_other_gates_are_on_the_fidelity() -> None:
    recipe = dataclasses.replace(RECIPE, gates={"snr": 40.0, "cosine": 0.995, "top1": 1.0})
    assert missed_gates(recipe, conversion(39, 10)) == (
        "main: snr: expected at least 40 dB, got 39; main: cosine: expected at least 0.995, got 0.99; "
        "main: top1: expected at least 1 share, got nothing measured"
    )


def test_what_is_no_number_in_json_is_a_text() -> None:
    assert plain({"a": [1.5, float("inf")], "b": {"c": (float("nan"), None, True)}}) == {
        "a": [1.5, "inf"],
        "b": {"c": ["nan", None, True]},
    }
