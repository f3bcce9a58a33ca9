"""Core ML's side of a validation, on coremltools' own Python and a stand-in for its native library."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.report.text import summary
from mobilevit_coreml.validation.core_ml import TIMED, UNITS, open_core_ml
from mobilevit_coreml.validation.run import Validation, validate
from tests.validation.native import Mac

IMAGE = synthetic_images(64, 64, 1)[0]
Validate = Callable[..., Validation]


@pytest.fixture
def sizes(shallow: None, converted: Callable[..., Conversion]) -> Path:
    """Features of two sizes, the first the default."""
    return converted("untrained", "xxs", task="features", image_sizes=((64, 64), (64, 96))).path


@pytest.fixture
def on_a_mac(classifier: Path, one_image: Path, no_worker: None, monkeypatch: pytest.MonkeyPatch) -> Validate:
    """`validate` with Core ML on some Mac, in this process."""

    def run(mac: Mac, units: str = "cpuAndNeuralEngine", **options: Any) -> Validation:
        mac.install(monkeypatch.setattr)
        monkeypatch.setattr("mobilevit_coreml.validation.backends.core_ml_is_here", lambda: True)
        return validate(classifier, images=one_image, backend="coreml", compute_units=[units], **options)

    return run


def test_outputs_are_plain_values(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mac().install(monkeypatch.setattr)
    outputs = open_core_ml(str(classifier), "cpuOnly", None)["run"](IMAGE)
    expected = ReferenceEvaluator(classifier).run({"image": IMAGE})
    assert outputs == expected
    assert list(outputs["classLabel_probs"]) != list(expected["classLabel_probs"])  # as a dictionary of Core ML's


@pytest.mark.parametrize("units", UNITS)
def test_each_unit_is_coremltools_own(classifier: Path, monkeypatch: pytest.MonkeyPatch, units: str) -> None:
    Mac(on_cpu=()).install(monkeypatch.setattr)
    rows = open_core_ml(str(classifier), units, None)["plan"](None)
    devices = {device for _, kind, device, _ in rows if kind != "const"}
    assert devices == {{"cpuOnly": "cpu", "cpuAndGPU": "gpu"}.get(units, "neuralEngine")}


def test_a_plan_has_the_programs_operations(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mac().install(monkeypatch.setattr)
    rows = open_core_ml(str(classifier), "all", None)["plan"](None)
    program = ReferenceEvaluator(classifier).function
    placed = [(name, kind) for name, kind, device, _ in rows if device is not None]
    assert placed == [(operation.outputs[0], operation.type) for operation in program.operations]
    unplaced = [(kind, cost) for _, kind, device, cost in rows if device is None]
    assert unplaced == [("const", 0.0)] * len(program.constants)
    assert {device for _, kind, device, _ in rows if kind == "softmax"} == {"cpu"}


def test_latency_is_core_mls_own(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mac(milliseconds={"packed space_to_batch": 1.25}).install(monkeypatch.setattr)
    latency = open_core_ml(str(classifier), "all", None)["latency"](IMAGE)
    assert (latency["median_ms"], latency["p95_ms"], latency["load_seconds"]) == (1.25, 1.25, 0.001)
    assert latency["predictions"] == TIMED
    assert latency["compile_seconds"] > 0
    assert latency["with_python_ms"] > 0
    assert all(type(value) in (int, float) for value in latency.values())


def test_a_function_is_loaded_by_its_name(sizes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mac().install(monkeypatch.setattr)
    image = synthetic_images(64, 96, 1)[0]
    handlers = open_core_ml(str(sizes), "all", "size_64x96")
    outputs, expected = handlers["run"](image), ReferenceEvaluator(sizes, "fp16", "size_64x96").run({"image": image})
    assert {name: value.dtype for name, value in outputs.items()} == dict.fromkeys(expected, np.dtype(np.float32))
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
    assert {device for _, _, device, _ in handlers["plan"](None)} == {None}  # the plan is of the other function


def test_a_package_that_does_not_load_is_an_error(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mac(refuses=("all",)).install(monkeypatch.setattr)
    with pytest.raises(RuntimeWarning, match="Failed to build the model execution plan"):
        open_core_ml(str(classifier), "all", None)


def test_core_ml_passes(on_a_mac: Validate) -> None:
    result = on_a_mac(Mac(), gates={"neural-engine": 0.85, "latency": 3.0})
    (run,) = result.runs
    assert (result.verdict, run.verdict, str(run.backend)) == (PASS, PASS, "coreml cpuAndNeuralEngine")
    figures = {one.name: one.figure for one in run.results}
    assert figures["latency"] == 2.0
    placed = [one for one in run.plan if one.device is not None]
    assert figures["neural-engine"] == 1 - sum(one.type == "softmax" for one in placed) / len(placed)
    text = summary(result)
    assert "outside the Neural Engine: softmax stage3_1_layers_0_attention_softmax" in " ".join(text.split())
    assert max(map(len, text.splitlines()[1:])) <= 80


@pytest.mark.parametrize(("gate", "value"), [("neural-engine", 0.99), ("latency", 1.5)])
def test_gates_of_a_mac(on_a_mac: Validate, gate: str, value: float) -> None:
    (run,) = on_a_mac(Mac(), gates={gate: value}).runs
    assert run.verdict == FAIL
    assert [one.name for one in run.results if one.passed is False] == [gate]


def test_wrong_outputs_fail(on_a_mac: Validate) -> None:
    (run,) = on_a_mac(Mac(wrong=("packed space_to_batch",))).runs
    assert run.verdict == FAIL
    assert "snr" in [one.name for one in run.results if one.passed is False]


def test_without_a_plan_everything_else_is_measured(on_a_mac: Validate) -> None:
    """As before macOS 14.4."""
    (run,) = on_a_mac(Mac(planned=False), gates={"neural-engine": 0.9}).runs
    assert (run.verdict, run.plan) == (PASS, ())
    assert run.latency["median_ms"] == 2.0
    assert {one.name: one.passed for one in run.results}["neural-engine"] is None


def test_a_refused_package_fails_with_core_mls_words(on_a_mac: Validate) -> None:
    (run,) = on_a_mac(Mac(refuses=("cpuAndNeuralEngine",))).runs
    assert run.verdict == FAIL
    assert "Failed to build the model execution plan" in run.reason


def test_a_package_for_a_later_system_fails(on_a_mac: Validate) -> None:
    """coremltools loads it without a word, and says why at the first prediction."""
    (run,) = on_a_mac(Mac(newest=6)).runs
    assert run.verdict == FAIL
    assert "The specification has version 7 but the Core ML framework version installed only supports" in run.reason


def test_off_a_mac_core_ml_is_not_run(classifier: Path, one_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilevit_coreml.validation.backends.core_ml_is_here", lambda: False)
    asked = validate(classifier, images=one_image, backend="coreml")
    assert asked.verdict == NOT_RUN
    assert [run.verdict for run in asked.runs] == [NOT_RUN] * len(UNITS)
    auto = validate(classifier, images=one_image)
    assert auto.verdict == PASS
    assert [(str(run.backend), run.verdict) for run in auto.runs] == [("reference", PASS), ("coreml", NOT_RUN)]
    assert dataclasses.asdict(auto.runs[1])["reason"] == "Core ML is on a Mac only"
