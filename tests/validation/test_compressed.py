"""Compressed packages: gates of their own, which each backend can measure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml.compression.schemes import Palettize
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.metrics import FAIL, PASS
from mobilevit_coreml.package.interface import SEMANTIC_PREDICTIONS
from mobilevit_coreml.validation import backends
from mobilevit_coreml.validation.core_ml import open_core_ml
from mobilevit_coreml.validation.run import Run, validate
from tests.validation.native import Mac


@pytest.fixture
def package(shallow: None, converted: Callable[..., Conversion]) -> Path:
    """A segmenter with class indices as its only output, and 8-bit weights."""
    options = {"task": "segmentation", "image_sizes": ((96, 96),), "attention": "packed", "compression": Palettize(8)}
    return converted("untrained", "xxs", **options).path


def figures(run: Run) -> dict[str, bool | None]:
    return {result.name: result.passed for result in run.results}


def test_the_gates_are_those_of_compressed_weights(package: Path, one_image: Path) -> None:
    (run, _) = validate(package, images=one_image).runs
    assert (run.verdict, figures(run)) == (PASS, {"snr": True, "pixels": True})
    assert [result.gate for result in run.results] == [20.0, 0.9]
    assert validate(package, images=one_image, gates={"snr": 60}).verdict == FAIL


@pytest.mark.parametrize(("shift", "verdict"), [(0, PASS), (1, FAIL)])
def test_class_indices_pass_and_fail_on_core_ml(
    package: Path, one_image: Path, no_worker: None, monkeypatch: pytest.MonkeyPatch, shift: int, verdict: str
) -> None:
    """Core ML returns class indices alone, of which there is no SNR."""
    Mac().install(monkeypatch.setattr)
    monkeypatch.setattr(backends, "core_ml_is_here", lambda: True)

    def opened(*arguments: Any) -> Any:
        handlers = open_core_ml(*arguments)

        def run(image: Any) -> dict[str, Any]:
            outputs = handlers["run"](image)
            return {**outputs, SEMANTIC_PREDICTIONS: np.roll(outputs[SEMANTIC_PREDICTIONS] + shift, 8 * shift, 0)}

        return {**handlers, "run": run}

    monkeypatch.setattr(backends, "open_core_ml", opened)
    validation = validate(package, images=one_image, backend="coreml", compute_units=["all"])
    (run,) = validation.runs
    assert (run.verdict, validation.verdict) == (verdict, verdict)
    assert figures(run) == {"snr": None, "pixels": verdict == PASS}
