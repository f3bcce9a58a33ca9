"""Core ML's runs on all compute units, in workers that may crash and hang."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.metrics import FAIL, PASS
from mobilevit_coreml.report.text import summary
from mobilevit_coreml.validation import backends
from mobilevit_coreml.validation.core_ml import UNITS
from mobilevit_coreml.validation.run import Validation, validate
from mobilevit_coreml.validation.worker import BackendError, in_this_process
from tests.validation.native import Mac


def core_ml(classifier: Path, monkeypatch: pytest.MonkeyPatch, mac: Mac, **options: Any) -> Validation:
    monkeypatch.setattr(backends, "open_core_ml", mac)
    monkeypatch.setattr(backends, "core_ml_is_here", lambda: True)
    return validate(classifier, backend="coreml", **options)


@pytest.mark.slow
def test_all_units_pass(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = core_ml(classifier, monkeypatch, Mac())
    assert result.verdict == PASS
    assert [str(run.backend) for run in result.runs] == [f"coreml {unit}" for unit in UNITS]
    assert [run.latency["median_ms"] for run in result.runs] == [2.0] * len(UNITS)
    placed = [{one.device for one in run.plan} - {None} for run in result.runs]
    assert placed == [{"cpu"}, {"gpu"}, {"neuralEngine", "cpu"}, {"neuralEngine", "cpu"}]


@pytest.mark.slow
def test_a_real_crash_on_one_unit_hides_no_other(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = core_ml(classifier, monkeypatch, Mac(aborts=("cpuAndGPU",)), compute_units=["cpuAndGPU", "all"])
    crashed, other = result.runs
    assert (result.verdict, crashed.verdict, crashed.reason) == (FAIL, FAIL, "crashed with SIGABRT")
    assert (crashed.fidelity, crashed.latency, other.verdict) == (None, {}, PASS)
    assert "FAIL, crashed with SIGABRT" in summary(result)


def test_a_crash_on_one_unit_hides_no_other(classifier: Path, one_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_worker(_timeout: float, open_: Any, package: str, units: str, function: str | None) -> Any:
        @contextlib.contextmanager
        def crashed() -> Any:
            def ask(request: str, _argument: Any = None) -> Any:
                raise BackendError(f"crashed with SIGABRT at {request}")

            yield ask

        return crashed() if units == "cpuAndGPU" else in_this_process(open_, package, units, function)

    monkeypatch.setattr(backends, "in_worker", in_worker)
    Mac().install(monkeypatch.setattr)
    monkeypatch.setattr(backends, "core_ml_is_here", lambda: True)
    result = validate(classifier, images=one_image, backend="coreml", compute_units=["cpuAndGPU", "all"])
    crashed, other = result.runs
    assert (result.verdict, crashed.verdict, crashed.reason) == (FAIL, FAIL, "crashed with SIGABRT at run")
    assert (crashed.fidelity, crashed.latency, other.verdict) == (None, {}, PASS)
    assert "FAIL, crashed with SIGABRT at run" in summary(result)


@pytest.mark.slow
def test_a_unit_that_hangs_is_given_up(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mac = Mac(hangs=("cpuAndNeuralEngine",))
    (run,) = core_ml(classifier, monkeypatch, mac, compute_units=["cpuAndNeuralEngine"], timeout=4).runs
    assert (run.verdict, run.reason) == (FAIL, "no answer within 4 seconds")
