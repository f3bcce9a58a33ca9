"""The verdict over a device, from the results.json that the test of a golden directory wrote: measured again here.

The device's own figures are only compared with these. Names in results.json are looked up in the manifest and never
made into paths, and nothing is read that is larger than the manifest allows.
Nothing here has read the results of a real device yet.
"""

import base64
import dataclasses
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, MobileViTConfig
from mobilevit_coreml.errors import InputError, MobileViTError, os_error_text
from mobilevit_coreml.metrics import (
    BOUNDS,
    FAIL,
    NOT_RUN,
    PASS,
    Fidelity,
    GateResult,
    Meters,
    gate_results,
    overall,
    verdict_of,
)
from mobilevit_coreml.model import ClassifierOutput, FeatureExtractorOutput, Model, SegmenterOutput, model_for
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.strict_json import JsonError
from mobilevit_coreml.validation.manifest import (
    MANIFEST,
    SUFFIXES,
    Device,
    FunctionAnswer,
    GoldenFunction,
    GoldenImage,
    GoldenOutput,
    ImageAnswer,
    Latency,
    Manifest,
    Results,
    read_manifest,
    read_results,
)
from mobilevit_coreml.verification import compare

MAX_TEXT = 300  # characters that are kept of one of the device's texts
CPU_ONLY = "cpuOnly"
NEEDED = {"cpuAndGPU": ("gpu", "GPU"), "cpuAndNeuralEngine": ("neuralEngine", "Neural Engine")}
# The device sums the same values in another order; beyond MAX_COMPARED_DB the rounding of its logarithms dominates.
SAME_FIGURE, SAME_FIGURE_DB, MAX_COMPARED_DB = 1e-3, 0.1, 100.0

Outputs = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class DeviceRun:
    """One function on one compute unit of a device.

    `reason` says why nothing, or not all, was measured, or what is wrong beside the gates. `notes` are figures
    of the device that differ from these.
    """

    units: str
    function: str
    verdict: str
    reason: str
    fidelity: Fidelity | None = None
    results: tuple[GateResult, ...] = ()
    latency: Latency | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DeviceResults:
    """All runs that were asked for, by compute unit and function."""

    path: Path
    golden: Path
    manifest: Manifest
    results: Results
    runs: tuple[DeviceRun, ...]

    @property
    def units(self) -> dict[str, str]:
        """The verdict of each compute unit."""
        names = dict.fromkeys(run.units for run in self.runs)
        return {name: overall([run.verdict for run in self.runs if run.units == name]) for name in names}

    @property
    def verdict(self) -> str:
        """The verdict of all compute units that were asked for."""
        return overall(list(self.units.values()))


def evaluate_device_results(
    results: str | os.PathLike[str], golden: str | os.PathLike[str] | None = None, units: Sequence[str] = ()
) -> DeviceResults:
    """Measure a device's results against the golden directory of its test.

    That is `golden`, or the directory `results` is in, or the one above it. `units` of core_ml.UNITS are asked
    for, by default all of them: one that is not in the results is NOT_RUN.

    Raises InputError for results that are damaged, or of another package or golden directory.
    """
    results = Path(results)
    directory = _golden_of(results) if golden is None else Path(golden)
    manifest, digest = read_manifest(directory)
    try:
        found = read_results(results, manifest, digest)
        subjects = [_subject(manifest, function, directory) for function in manifest.functions]
        answers = {(answer.units, answer.function): answer for answer in found.runs}
        runs = [
            _evaluate(unit, subject, answers.get((unit, subject.function.name)), found.device, results.parent)
            for unit in units or manifest.compute_units
            for subject in subjects
        ]
    except JsonError as error:
        raise InputError(f"results {results}: {error}; run the test on the device again") from None
    return DeviceResults(results, directory, manifest, found, tuple(runs))


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A function of a golden directory; `model` has its configuration but no weights, whose results are there."""

    manifest: Manifest
    function: GoldenFunction
    directory: Path
    record: PackageRecord
    model: Model


def _subject(manifest: Manifest, function: GoldenFunction, directory: Path) -> _Subject:
    try:
        record = PackageRecord.from_metadata(manifest.record)
        crop = record.by_function()[function.name].crop
        named = {"id2label": manifest.classes} if manifest.classes else {}
        config = MobileViTConfig(**{**record.config, **named, "image_size": crop})
        with torch.device("meta"):
            model = model_for(record.task, config, expand=record.expand)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MobileViTError) as error:
        raise _bad_golden(f"expected a manifest with a package's record, got {str(error)!r:.100}") from None
    return _Subject(manifest, function, directory, record, model)


def _bad_golden(reason: str) -> InputError:
    return InputError(f"golden directory: {reason}; write it again with --golden")


def _evaluate(units: str, subject: _Subject, answer: FunctionAnswer | None, device: Device, place: Path) -> DeviceRun:
    """One function on one compute unit; `place` is the directory of results.json."""
    function, manifest = subject.function, subject.manifest
    not_run = _not_run(units, answer, device)
    if answer is None or not_run:
        return DeviceRun(units, function.name, NOT_RUN, not_run)
    if answer.error is not None:
        return DeviceRun(units, function.name, FAIL, f"the device says: {answer.error:.{MAX_TEXT}}")
    meters = Meters()
    problems: list[str] = []
    for image in sorted(answer.pictures, key=lambda image: image.index):
        where = f"{units}, {function.name}, image {image.index}"
        outputs = _read_outputs(function, image, place / "outputs" / units / function.name, where)
        meters.merge(_compare(subject, image.index, outputs, where))
        problems += _wrong_label(manifest, image, outputs)
    if not answer.pictures:
        return DeviceRun(units, function.name, NOT_RUN, "no images in the results", latency=answer.latency)
    fidelity = meters.fidelity({})
    figures = {**fidelity.figures, **({"latency": answer.latency.median_ms} if answer.latency else {})}
    results = gate_results({gate.name: gate.bound for gate in manifest.gates}, figures)
    verdicts = [verdict_of(results), FAIL if problems else PASS]
    if len(answer.pictures) < len(function.pictures):
        verdicts.append(NOT_RUN)
        problems.append(f"only {len(answer.pictures)} of {len(function.pictures)} images in the results")
    if verdicts[0] == NOT_RUN:
        problems.append(f"none of the gates {', '.join(gate.name for gate in manifest.gates)} could be measured")
    notes = tuple(_other_figures(answer.figures, figures))
    reason = next(iter(problems), "")
    return DeviceRun(units, function.name, overall(verdicts), reason, fidelity, results, answer.latency, notes)


def _not_run(units: str, answer: FunctionAnswer | None, device: Device) -> str:
    """The reason why there are no results of a compute unit; empty where there are."""
    if answer is None:
        return "not in the results"
    if answer.not_run is not None:
        return f"the device says: {answer.not_run:.{MAX_TEXT}}"
    if device.simulator and units != CPU_ONLY:
        return "a simulator has neither the GPU nor the Neural Engine of a device"
    needed, name = NEEDED.get(units, (None, ""))
    if needed is not None and device.compute_devices is not None and needed not in device.compute_devices:
        return f"this device has no {name}"
    return ""


def _compare(subject: _Subject, index: int, outputs: Outputs, where: str) -> Meters:
    """One image by `verification.compare`, with PyTorch's side from the golden directory."""
    try:
        result = _read_expected(subject, subject.function.pictures[index])
    except JsonError as error:
        raise _bad_golden(str(error)) from None
    given: dict[str, Any] = dict(outputs)
    if CLASS_PROBABILITIES in outputs:
        probabilities = outputs[CLASS_PROBABILITIES].tolist()
        given[CLASS_PROBABILITIES] = dict(zip(subject.manifest.classes, probabilities, strict=True))
    try:
        with torch.inference_mode():
            return compare(subject.record, subject.model, result, given)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise JsonError(f"{where}: expected outputs that can be compared, got {reason}") from None


def _read_expected(subject: _Subject, image: GoldenImage) -> Any:
    """PyTorch's result for an image."""
    function, directory = subject.function, subject.directory
    if subject.record.task == FEATURES:
        arrays = [
            torch.from_numpy(_read_values(directory / image.expected[output.name], output.stored, output.shape))
            for output in function.outputs
        ]
        return FeatureExtractorOutput(arrays[0], arrays[1], tuple(arrays[2:]))
    if image.logits is None or function.logits is None:
        raise JsonError(f"expected the logits of {image.file} in the golden directory, got none")
    logits = torch.from_numpy(_read_values(directory / image.logits, "float32", function.logits))
    if subject.record.task == CLASSIFICATION:
        return ClassifierOutput(logits, logits, (), None)
    return SegmenterOutput(logits, (), None)


def _wrong_label(manifest: Manifest, image: ImageAnswer, outputs: Outputs) -> Iterator[str]:
    """A classifier's class that is another than its own probabilities say."""
    if CLASS_PROBABILITIES in outputs:
        probabilities = outputs[CLASS_PROBABILITIES]
        best = np.flatnonzero(probabilities >= probabilities.max())
        # probabilities that are not finite pass no gate
        if np.isfinite(probabilities).all() and image.label not in {manifest.classes[index] for index in best}:
            yield f"image {image.index}: classLabel is {image.label!r:.40}, the largest probability is of another class"


def _other_figures(theirs: Mapping[str, float], ours: Mapping[str, float]) -> Iterator[str]:
    """The device's figures that are not ours: one of the two computes them wrongly."""
    for name in (name for name in theirs if name in ours):
        a, b = theirs[name], ours[name]
        tolerance = SAME_FIGURE_DB if BOUNDS[name].unit == "dB" else SAME_FIGURE
        if not (math.isnan(b) or a == b or abs(a - b) <= tolerance or min(a, b) > MAX_COMPARED_DB):
            yield f"the device has {name} {a:.4g}, measured here {b:.4g}: one of the two is wrong"


# Files


def _golden_of(results: Path) -> Path:
    for directory in (results.parent, results.parent.parent):
        if (directory / MANIFEST).is_file():
            return directory
    raise InputError(
        f"results {results}: expected {MANIFEST} beside it or in the directory above, got none; "
        "copy the results into the golden directory"
    )


def _read_outputs(function: GoldenFunction, image: ImageAnswer, files: Path, where: str) -> Outputs:
    """The outputs of an image as arrays of the manifest's shapes."""
    return {
        output.name: _inflate(image.outputs.get(output.name, ""), output, f"{where}, {output.name}")
        if output.inline
        else _read_values(
            files / f"{image.index:03d}-{output.name}{SUFFIXES[output.stored]}", output.stored, output.shape
        )
        for output in function.outputs
    }


def _inflate(text: str, output: GoldenOutput, where: str) -> npt.NDArray[Any]:
    size = 4 * math.prod(output.shape)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)  # raw DEFLATE
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise JsonError(f"{where}: expected base64 of a DEFLATE stream, got {error!s:.60}") from None
    if len(data) != size or not stream.eof:
        got = f"{len(data)} or more" if len(data) > size else f"{len(data)}"
        raise JsonError(f"{where}: expected {size} bytes, got {got}")
    return _array(data, output.stored, output.shape)


def _read_values(path: Path, stored: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    size = 4 * math.prod(shape)
    try:
        got = path.stat().st_size if path.is_file() else None
        if got != size:
            raise JsonError(f"expected {size} bytes in {path}, got {'no file' if got is None else got}")
        return _array(path.read_bytes(), stored, shape)
    except OSError as error:
        raise JsonError(f"expected {size} bytes in {path}, got {os_error_text(error)}") from None


def _array(data: bytes, stored: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    array = np.frombuffer(data, np.dtype(stored).newbyteorder("<"))
    return array.astype(stored).reshape(tuple(shape))  # a copy, which torch can write to
