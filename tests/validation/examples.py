"""Validations of small packages, each made once, and one with Core ML runs as a Mac would have them, made up."""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.metrics import FAIL, gate_results, verdict_of
from mobilevit_coreml.validation.backends import CORE_ML, REFERENCE, Backend
from mobilevit_coreml.validation.dataset import LabelledImage, load_images
from mobilevit_coreml.validation.run import PlannedOperation, Run, Validation, validate
from tests.validation.fault_injection import FAULTS, SIDE, good_package_of

FUNCTION = "main"
LABELLED = ("0", "1")  # directories of images, called after the index of their class
LATENCY = {
    "compile_seconds": 0.5,
    "load_seconds": 2.5,
    "median_ms": 1.25,
    "p95_ms": 1.5,
    "with_python_ms": 2.0,
    "predictions": 100,
}
factory: pytest.TempPathFactory = None  # type: ignore[assignment]  # set by tests/report/conftest.py


@cache
def directory() -> Path:
    """The directory of `labelled`, images in directories by class."""
    path = factory.mktemp("examples")
    for name, image in zip(LABELLED, synthetic_images(SIDE, SIDE, 2), strict=True):
        (path / "labelled" / name).mkdir(parents=True)
        image.save(path / "labelled" / name / "a & b.png")
    return path


def package(kind: str) -> Path:
    """A good package by its name in PACKAGES."""
    return good_package_of(factory, kind)


@cache
def good(kind: str) -> Validation:
    """Of a package by its name in PACKAGES; a classifier's with labelled images."""
    images = directory() / "labelled" if kind == "classifier" else None
    validation = validate(package(kind), images=images, backend=REFERENCE, gates={"latency": 5.0})
    return dataclasses.replace(validation, gates=())  # latency is reported, and decides nothing


@cache
def faulty() -> Validation:
    """Of a classifier one of whose activations is another function."""
    path = directory() / "faulty.mlpackage"
    shutil.copytree(package("classifier"), path)
    next(one for one in FAULTS if one.name == "gelu for silu").apply(path)
    return validate(path, backend=REFERENCE)


def images_for(validation: Validation, kind: str) -> dict[str, Sequence[LabelledImage]]:
    """Images of its function."""
    images = directory() / "labelled" if kind == "classifier" else None
    preprocessing = validation.original.preprocessing[FUNCTION]
    return {FUNCTION: load_images(images, validation.record.task, validation.original.classes, preprocessing)}


def reference_run(validation: Validation) -> Run:
    """The run that really was."""
    return next(run for run in validation.runs if run.backend.name == REFERENCE)


def with_core_ml(validation: Validation) -> Validation:
    """With one Core ML run that measured as the reference did, with a plan and times, and one that crashed."""
    real = reference_run(validation)
    assert real.fidelity is not None
    results = gate_results({"snr": 20.0, "latency": 5.0, "top5": 0.5}, {**real.fidelity.figures, "latency": 1.25})
    ran = dataclasses.replace(
        real,
        backend=Backend(CORE_ML, "all"),
        verdict=verdict_of(results),
        results=results,
        latency=LATENCY,
        plan=plan(validation),
    )
    crashed = Run(Backend(CORE_ML, "cpuOnly"), FUNCTION, FAIL, "crashed with SIGABRT", 1.5)
    runs = (real, ran, crashed)
    return dataclasses.replace(validation, runs=runs, asked=tuple(run.backend for run in runs))


def plan(validation: Validation) -> tuple[PlannedOperation, ...]:
    """A constant without a device, the first step on the CPU, half of the cost, and the rest on the Neural Engine."""
    first, *others = validation.programs[FUNCTION].steps
    return (
        PlannedOperation("constant", "const", None, 0.0),
        PlannedOperation(first.operation, first.type, "cpu", 0.5),
        *(PlannedOperation(step.operation, step.type, "neuralEngine", 0.5 / len(others)) for step in others),
    )


def with_curve(validation: Validation, curve: Any) -> Validation:
    """As if the package were one on the way to a budget."""
    compression = {"scheme": "1MB", "pictures": 24, "layers": {}, "left": {}, "curve": curve}
    return dataclasses.replace(validation, record=dataclasses.replace(validation.record, compression=compression))
