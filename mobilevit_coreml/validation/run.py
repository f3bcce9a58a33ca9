"""A package from its record to its verdict: what it declares, what its program does, what each backend computes."""

import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mobilevit_coreml import __version__
from mobilevit_coreml.config import SEGMENTATION
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.inference import StrPath, read_record
from mobilevit_coreml.metrics import (
    FAIL,
    NOT_RUN,
    PASS,
    Fidelity,
    GateResult,
    default_gates,
    gate_results,
    overall,
    verdict_of,
)
from mobilevit_coreml.package.files import digest_of, size_of
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.reference.reader import read_package
from mobilevit_coreml.strict_json import to_json
from mobilevit_coreml.validation.backends import CORE_ML, Backend, backends_for, open_backend
from mobilevit_coreml.validation.checks import Check, class_names, declared
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE, WITH_NEURAL_ENGINE
from mobilevit_coreml.validation.dataset import LabelledImage, load_images
from mobilevit_coreml.validation.framework import Reading, check_framework
from mobilevit_coreml.validation.journal import Journal, open_journal
from mobilevit_coreml.validation.measure import ORIGINAL, PACKAGE, ImageResult, Measured, compare_image
from mobilevit_coreml.validation.original import Original, load_original
from mobilevit_coreml.validation.program import ProgramReport, check_program
from mobilevit_coreml.validation.worker import BackendError

TIMEOUT = 600.0  # seconds without an answer of Core ML, which may compile for minutes


@dataclasses.dataclass(frozen=True)
class PlannedOperation:
    """The device Core ML plans for an operation, neuralEngine, gpu, cpu or None where it does not say, and its cost."""

    operation: str
    type: str
    device: str | None
    cost: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One function of a package on one backend.

    `reason` is why nothing, or not all, was measured. `accuracy` has both sides' top-1 accuracy or mean
    IoU against labels, where there are some. `latency` and `plan` are Core ML's, of a Mac.
    """

    backend: Backend
    function: str
    verdict: str
    reason: str
    seconds: float = 0.0
    fidelity: Fidelity | None = None
    results: tuple[GateResult, ...] = ()
    accuracy: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    measured: Measured = dataclasses.field(default_factory=Measured)
    latency: Mapping[str, float] = dataclasses.field(default_factory=dict)
    plan: tuple[PlannedOperation, ...] = ()


@dataclasses.dataclass(frozen=True)
class Validation:
    """The result of a validation.

    `declared` and `programs` are by function. `asked` are the backends the verdict depends on; runs of
    others are there to say that they were not run. `gates` are the names of those the user asked for.
    """

    package: Path
    bytes: int
    digest: str
    record: PackageRecord
    original: Original
    source: str
    images: int
    labelled: bool
    declared: Mapping[str, tuple[Check, ...]]
    programs: Mapping[str, ProgramReport]
    framework: Check
    runs: tuple[Run, ...]
    asked: tuple[Backend, ...]
    gates: tuple[str, ...]
    seconds: float

    @property
    def checks(self) -> list[tuple[str, Check]]:
        """The checks of each function, in the order of the report."""
        return [
            (function, check)
            for function, checks in self.declared.items()
            for check in (*checks, *self.programs[function].checks)
        ] + [(next(iter(self.declared)), self.framework)]

    @property
    def verdict(self) -> str:
        """The verdict over the package itself, and all backends and gates that were asked for."""
        own = [PASS if check.passed else FAIL for _, check in self.checks if check.passed is not None]
        runs = [run.verdict for run in self.runs if run.backend in self.asked]
        return overall([*own, *runs, *(NOT_RUN for _ in self.unmeasured)])

    @property
    def unmeasured(self) -> list[str]:
        """The gates asked for that no backend could measure."""
        measured = {result.name for run in self.runs for result in run.results if result.passed is not None}
        return [name for name in self.gates if name not in measured]


def validate(
    package: StrPath,
    weights: StrPath | None = None,
    *,
    images: StrPath | None = None,
    labels: StrPath | None = None,
    channel_order: str | None = None,
    backend: str = "auto",
    compute_units: Sequence[str] = (),
    gates: Mapping[str, float] | None = None,
    function: str | None = None,
    journal: StrPath | None = None,
    expected: StrPath | None = None,
    timeout: float = TIMEOUT,
    progress: Progress = silent,
) -> Validation:
    """Compare a package with the PyTorch model it was made of, on any number of images and backends.

    `weights` are those the package records unless they are somewhere else now; `labels` and
    `channel_order` are what its conversion was given. `images` is a directory as in `load_images`; without
    one they are synthetic. `backend` is reference, coreml or auto, `compute_units` of core_ml.UNITS, `gates`
    figures by name, in place of the default ones. `journal` keeps the figures of each image, for a run that
    goes on. `expected` is a .npz file of the framework's outputs, as in `check_framework`.
    `timeout` is in seconds, for each answer of Core ML.

    Raises MobileViTError for a package, weights or images that cannot be read.
    """
    start = time.perf_counter()
    package = Path(package)
    progress("read")
    record = read_record(package)
    functions = _functions(record, function)
    read = {name: read_package(package, name) for name in functions}
    progress("weights")
    original = load_original(record, None if weights is None else str(weights), labels, channel_order)
    asked_gates = tuple(gates or ())
    gates = {**default_gates(record), **(gates or {})}
    inputs = _images(record, original, functions, images)
    progress("program")
    checks = {name: tuple(declared(read[name], record, original, name)) for name in functions}
    programs = {
        name: check_program(
            package,
            record,
            original.models[name],
            original.preprocessing[name],
            name,
            (image.prepared() for image in inputs[name]),
        )
        for name in functions
    }
    progress("framework")
    name, first = functions[0], inputs[functions[0]]
    reading = Reading(
        original.models[name], original.preprocessing[name], original.classes, original.record, original.weights
    )
    files = [image.path for image in first if image.path is not None]
    framework = check_framework(reading, files, None if expected is None else Path(expected))
    asked = [one for one in backends_for(backend, list(compute_units)) if backend != "auto" or one.is_here]
    others = [] if any(one.name == CORE_ML for one in asked) else [Backend(CORE_ML)]
    digest = digest_of(package)
    runs = []
    for one, name in itertools.product([*asked, *others], functions):
        if not one.is_here or one not in asked:
            reason = "not asked for" if one.is_here else "Core ML is on a Mac only"
            runs.append(Run(one, name, NOT_RUN, reason))
            continue
        stage = str(one) if len(functions) == 1 else f"{one} {name}"
        classes = class_names(read[name].function) or list(original.classes)
        path = None if journal is None else _journal_path(Path(journal), one, name, functions)
        with _journal(path, _subject(digest, original, one, name)) as kept:
            run = _run(
                one,
                package,
                record,
                original,
                name,
                inputs[name],
                classes,
                gates,
                kept,
                timeout,
                partial(progress, stage),
            )
        runs.append(run)
    return Validation(
        package,
        size_of(package),
        digest,
        record,
        original,
        "synthetic" if images is None else str(images),
        len(first),
        any(image.truth is not None for image in first),
        checks,
        programs,
        framework,
        tuple(runs),
        tuple(asked),
        asked_gates,
        time.perf_counter() - start,
    )


def images_of(validation: Validation, images: StrPath | None) -> dict[str, list[LabelledImage]]:
    """The images of each function."""
    return _images(validation.record, validation.original, list(validation.programs), images)


def _images(
    record: PackageRecord, original: Original, functions: Sequence[str], images: StrPath | None
) -> dict[str, list[LabelledImage]]:
    directory = None if images is None else Path(images)
    return {
        name: load_images(directory, record.task, original.classes, original.preprocessing[name]) for name in functions
    }


def _functions(record: PackageRecord, function: str | None) -> list[str]:
    functions = list(record.by_function())
    if function is None:
        return functions
    if function not in functions:
        raise InputError(f"function: expected one of {', '.join(functions)}, got {function!r}; choose one of these")
    return [function]


def _journal_path(journal: Path, backend: Backend, function: str, functions: Sequence[str]) -> Path:
    """A file for each backend and function; of the plain name where there is one of each."""
    parts = [part for part in (backend.units, function if len(functions) > 1 else None) if part]
    return journal.with_name("-".join([journal.stem, *parts]) + journal.suffix)


def _journal(path: Path | None, subject: Mapping[str, str]) -> contextlib.AbstractContextManager[Journal | None]:
    return contextlib.nullcontext() if path is None else open_journal(path, subject)


def _subject(digest: str, original: Original, backend: Backend, function: str) -> dict[str, str]:
    """All that the figures of an image depend on, but for the image: the record has weights and preprocessing."""
    made_of = to_json({"record": original.record, "classes": original.classes})
    return {
        "mobilevit_coreml": __version__,
        "package": digest,
        "original": hashlib.sha256(made_of).hexdigest(),
        "backend": str(backend),
        "function": function,
    }


def _run(
    backend: Backend,
    package: Path,
    record: PackageRecord,
    original: Original,
    function: str,
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    gates: Mapping[str, float],
    journal: Journal | None,
    timeout: float,
    progress: Callable[[int, int], None],
) -> Run:
    """A function on a backend, from loading to verdict; `progress` is called with the images done, of so many."""
    start = time.perf_counter()
    extras: dict[str, Any] = {}
    reason = ""
    progress(0, len(images))
    try:
        with open_backend(backend, package, record, function, timeout) as ask:
            model, preprocessing = original.models[function], original.preprocessing[function]

            def compare(image: LabelledImage) -> ImageResult:
                return compare_image(image, partial(ask, "run"), model, record, preprocessing, classes)

            measured = Measured()
            for done, image in enumerate(images, 1):
                result = None if journal is None else journal.known(image)
                if result is None:
                    result = compare(image)
                    if journal is not None:
                        journal.write(image, result)
                measured.add(result)
                progress(done, len(images))
            lacking = {one.name for one in measured.worst if one.masks is None and record.task == SEGMENTATION}
            again = {image.name: compare(image) for image in images if image.name in lacking}  # a journal has no masks
            measured.worst = [again.get(one.name, one) for one in measured.worst]
            if backend.name == CORE_ML:
                extras["latency"] = ask("latency", images[0].prepared())
                try:
                    extras["plan"] = tuple(PlannedOperation(*row) for row in ask("plan"))
                except BackendError as error:  # before macOS 14.4 there is none to be had
                    reason = f"no compute plan: {error}"
    except BackendError as error:
        return Run(backend, function, FAIL, str(error), time.perf_counter() - start)
    fidelity = measured.meters.fidelity({})
    accuracy = {side: _accuracy(meter) for side, meter in measured.truths.items()}
    figures = {**fidelity.figures, **_further_figures(backend, accuracy, extras)}
    results = gate_results(gates, figures)
    verdict = verdict_of(results)
    if verdict == NOT_RUN:
        reason = f"none of the gates {', '.join(gates)} could be measured"
    seconds = time.perf_counter() - start
    return Run(backend, function, verdict, reason, seconds, fidelity, results, accuracy, measured, **extras)


def _accuracy(meter: Any) -> dict[str, float]:
    result = dataclasses.asdict(meter.result())
    return {name: result[name] for name in ("top1", "top5", "mean_iou", "pixel_agreement") if name in result}


def _further_figures(
    backend: Backend, accuracy: Mapping[str, Mapping[str, float]], extras: Mapping[str, Any]
) -> dict[str, float]:
    """The figures that only a validation has, by the names of their gates."""
    figures = {}
    if accuracy:
        name = "top1" if "top1" in accuracy[ORIGINAL] else "mean_iou"
        figures["accuracy-loss"] = accuracy[ORIGINAL][name] - accuracy[PACKAGE][name]
    placed = [one for one in extras.get("plan", ()) if one.device is not None]
    if placed and backend.units in WITH_NEURAL_ENGINE:
        figures["neural-engine"] = sum(one.device == NEURAL_ENGINE for one in placed) / len(placed)
    if extras.get("latency"):
        figures["latency"] = extras["latency"]["median_ms"]
    return figures
