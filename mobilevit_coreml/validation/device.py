"""The verdict over a device, from the results.json a test of `golden` wrote there: measured again, with this code.

The device's own figures are only compared with these. Names in results.json are looked up in the manifest, and never
made into paths, and nothing is read that is larger than the manifest allows.
Nothing here has seen the results of a real device yet.
"""

import base64
import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, TASKS, MobileViTConfig
from mobilevit_coreml.errors import InputError, MobileViTError
from mobilevit_coreml.model import ClassifierOutput, FeatureExtractorOutput, Model, SegmenterOutput, model_for
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.report.formatting import table
from mobilevit_coreml.validation.core_ml import UNITS
from mobilevit_coreml.validation.gates import ALL_BOUNDS, FAIL, NOT_RUN, PASS, gate_results, overall, verdict_of
from mobilevit_coreml.validation.golden import (
    EXPECTED,
    FORMAT,
    MANIFEST,
    PICTURES,
    REFERENCE,
    SCHEMA,
    SUFFIXES,
    Gate,
    GoldenFunction,
    GoldenPicture,
    Manifest,
    Output,
)
from mobilevit_coreml.verification import Fidelity, GateResult, Meters, compare, figure_lines

MAX_MANIFEST = 64 * 2**20  # bytes
MAX_VALUES = 2**28  # of one output
MAX_TEXT = 300  # characters of the device's that are printed
SLACK = 2**20, 2**12  # bytes of results.json beside the outputs: in all, and for each picture
CPU_ONLY = "cpuOnly"
NEEDED = {"cpuAndGPU": ("gpu", "GPU"), "cpuAndNeuralEngine": ("neuralEngine", "Neural Engine")}
SHORT = {"cpuOnly": "CPU only", "cpuAndGPU": "CPU, GPU", "cpuAndNeuralEngine": "CPU, Engine", "all": "all"}
APART = {"dB": 0.1}  # what the device's sums may make of the same values otherwise; 0.001 of what is not in dB
ALIKE = 100.0  # dB: beyond it the roundings of the two sides' logarithms show


@dataclasses.dataclass(frozen=True)
class Device:
    """What wrote the results; `compute_devices` are cpu, gpu and neuralEngine, None where its system does not say."""

    model: str
    system: str
    chip: str
    simulator: bool
    compute_devices: tuple[str, ...] | None
    date: str


@dataclasses.dataclass(frozen=True)
class DeviceRun:
    """One function on one compute unit of a device.

    `reason` says why nothing, or not all, was measured, or what is wrong beside the gates. `latency` has
    load_seconds, median_ms, p95_ms and predictions. `notes` are figures of the device that differ from these.
    """

    units: str
    function: str
    verdict: str
    reason: str
    fidelity: Fidelity | None = None
    results: tuple[GateResult, ...] = ()
    latency: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DeviceResults:
    """All runs that were asked for, by compute unit and function."""

    results: Path
    golden: Path
    manifest: Manifest
    device: Device
    runs: tuple[DeviceRun, ...]

    @property
    def units(self) -> dict[str, str]:
        """The verdict of each compute unit."""
        names = dict.fromkeys(run.units for run in self.runs)
        return {name: overall([run.verdict for run in self.runs if run.units == name]) for name in names}

    @property
    def verdict(self) -> str:
        """Of all compute units that were asked for."""
        return overall(list(self.units.values()))


class _MalformedError(ValueError):
    """What is wrong in a file, without its name."""


def evaluate_device_results(results: Path, golden: Path | None = None, units: Sequence[str] = ()) -> DeviceResults:
    """Measure what a device wrote against the golden directory it was asked with.

    That is `golden`, or the directory `results` is in, or the one above it. `units` of core_ml.UNITS are asked
    for, by default all of them: one that is not in the results is NOT_RUN.

    Raises InputError for results that are damaged, or of another package or golden directory.
    """
    directory = golden or _golden_of(results)
    manifest, digest = read_manifest(directory)
    try:
        values = _object(_json(results, _limit(manifest)), "results")
        device = _device(values)
        _check_subject(values, manifest, digest)
        entries = _runs(values, manifest)
        runs = []
        for unit in units or manifest.compute_units:
            for function in manifest.functions:
                entry = entries.get((unit, function.name))
                runs.append(_judged(unit, function, entry, device, manifest, directory, results.parent))
    except _MalformedError as error:
        raise InputError(f"results {results}: {error}; run the test on the device again") from None
    return DeviceResults(results, directory, manifest, device, tuple(runs))


def read_manifest(directory: Path) -> tuple[Manifest, str]:
    """What a golden directory says of itself, and the sha256 of that file; InputError where it is none."""
    path = directory / MANIFEST
    try:
        values = _object(_json(path, MAX_MANIFEST), "manifest")
        if (values.get("format"), values.get("schema")) != (FORMAT, SCHEMA):
            got = f"{values.get('format')!r:.40} {values.get('schema')!r:.40}"
            raise _MalformedError(f"expected {FORMAT} of schema {SCHEMA}, got {got}")
        manifest = _manifest(values)
        return manifest, hashlib.sha256(path.read_bytes()).hexdigest()
    except _MalformedError as error:
        raise InputError(f"golden {path}: {error}; write it again with --golden") from None


def summary(found: DeviceResults) -> str:
    """The verdict for a person at a terminal, 80 columns wide."""
    manifest, device = found.manifest, found.device
    pictures = sum(len(function.pictures) for function in manifest.functions)
    rows: list[tuple[str, list[str]]] = [
        ("package", [manifest.package, f"sha256 {manifest.sha256:.12}…"]),
        ("device", [f"{device.model}, {device.chip}", f"{device.system}, {device.date}"]),
        ("images", [f"{pictures} of {found.golden}"]),
    ]
    for run in found.runs:
        several = f"{run.function}: " if len(manifest.functions) > 1 else ""
        first, *others = _run_lines(run)
        rows.append((SHORT[run.units], [several + first, *others]))
    return table(f"{found.results}: {found.verdict}", rows)


def _run_lines(run: DeviceRun) -> Iterator[str]:
    if run.fidelity is None:
        yield f"{run.verdict}, {run.reason}"
        return
    gates = {result.name: result.gate for result in run.results if result.figure is not None}
    first, *others = figure_lines(run.fidelity.with_gates(gates), "PyTorch fp32")
    yield f"{run.verdict}, {first}"
    if run.reason:
        yield run.reason
    yield from others
    if run.latency:
        yield (
            f"loaded in {run.latency['load_seconds']:.1f} s; a prediction {run.latency['median_ms']:.2f} ms in the "
            f"median, {run.latency['p95_ms']:.2f} ms at the 95th percentile of {run.latency['predictions']:.0f}"
        )
    for result in run.results:
        if result.passed is False:
            side = "at least" if result.bound.at_least else "at most"
            yield f"gate {result.name}: expected {side} {result.gate:g} {result.bound.unit}, got {result.figure:.4g}"
    unmeasured = [result.name for result in run.results if result.passed is None]
    if unmeasured:
        yield f"{NOT_RUN} here: gate {', '.join(unmeasured)}"
    yield from run.notes


# The verdict over a run.


def _judged(
    units: str,
    function: GoldenFunction,
    entry: Mapping[str, Any] | None,
    device: Device,
    manifest: Manifest,
    golden: Path,
    answers: Path,
) -> DeviceRun:
    reason = _not_run(units, entry, device)
    if reason is not None or entry is None:
        return DeviceRun(units, function.name, NOT_RUN, reason or "")
    where = f"{units}, {function.name}"
    error = _optional_text(entry, "error", where)
    if error is not None:
        return DeviceRun(units, function.name, FAIL, f"the device says: {error}")
    latency = _latency(entry, where)
    pictures = _pictures(entry, function, where)
    meters, wrong = Meters(), ""
    with torch.inference_mode():
        record, model = _original(manifest, function)
        for index, picture in sorted(pictures.items()):
            at = f"{where}, picture {index}"
            outputs = _outputs(picture, function, index, answers / "outputs" / units / function.name, at)
            meters.merge(_measured(record, model, manifest, function, index, golden, outputs, at))
            wrong = wrong or _label_problem(picture, manifest, outputs, at)
    if not pictures:
        return DeviceRun(units, function.name, NOT_RUN, "no pictures in the results", latency=latency)
    fidelity = meters.fidelity({})
    figures = {**fidelity.figures, **({"latency": latency["median_ms"]} if latency else {})}
    results = gate_results({gate.name: gate.bound for gate in manifest.gates}, figures)
    verdicts = [verdict_of(results), FAIL if wrong else PASS]
    if len(pictures) < len(function.pictures):
        verdicts.append(NOT_RUN)
        wrong = wrong or f"only {len(pictures)} of {len(function.pictures)} pictures in the results"
    if verdicts[0] == NOT_RUN and not wrong:
        wrong = f"none of the gates {', '.join(gate.name for gate in manifest.gates)} could be measured"
    notes = tuple(_differences(entry, figures, where))
    return DeviceRun(units, function.name, overall(verdicts), wrong, fidelity, results, latency, notes)


def _not_run(units: str, entry: Mapping[str, Any] | None, device: Device) -> str | None:
    """Why a device has nothing to say of a compute unit, if it has not."""
    if entry is None:
        return "not in the results"
    said = _optional_text(entry, "not_run", units)
    if said is not None:
        return f"the device says: {said}"
    if device.simulator and units != CPU_ONLY:
        return "a simulator has neither the GPU nor the Neural Engine of a device"
    needed, name = NEEDED.get(units, (None, ""))
    if needed is not None and device.compute_devices is not None and needed not in device.compute_devices:
        return f"this device has no {name}"
    return None


def _measured(
    record: PackageRecord,
    model: Model,
    manifest: Manifest,
    function: GoldenFunction,
    index: int,
    golden: Path,
    outputs: Mapping[str, npt.NDArray[Any]],
    where: str,
) -> Meters:
    """One picture by `verification.compare`, with PyTorch's side as the golden directory has it."""
    result = _expected(record, function, function.pictures[index], golden)
    given: dict[str, Any] = dict(outputs)
    if record.task == CLASSIFICATION:
        probabilities = outputs[CLASS_PROBABILITIES].tolist()
        given[CLASS_PROBABILITIES] = dict(zip(manifest.classes, probabilities, strict=True))
    try:
        return compare(record, model, result, given)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise _MalformedError(f"{where}: expected outputs that can be compared, got {reason}") from None


def _original(manifest: Manifest, function: GoldenFunction) -> tuple[PackageRecord, Model]:
    """The record, and a model that has its configuration but no weights, since its results are there already."""
    try:
        record = PackageRecord.from_metadata(manifest.record)
        crop = record.by_function()[function.name].crop
        named = {"id2label": manifest.classes} if manifest.classes else {}
        config = MobileViTConfig(**{**record.config, **named, "image_size": crop})
        with torch.device("meta"):
            return record, model_for(record.task, config, expand=record.expand)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MobileViTError) as error:
        raise _no_golden(f"expected a manifest with a package's record, got {str(error)!r:.100}") from None


def _expected(record: PackageRecord, function: GoldenFunction, picture: GoldenPicture, golden: Path) -> Any:
    """What the model made of a picture, read back."""
    try:
        return _read_result(record, function, picture, golden)
    except _MalformedError as error:
        raise _no_golden(str(error)) from None


def _no_golden(reason: str) -> InputError:
    return InputError(f"golden directory: {reason}; write it again with --golden")


def _read_result(record: PackageRecord, function: GoldenFunction, picture: GoldenPicture, golden: Path) -> Any:
    if record.task == FEATURES:
        arrays = [
            torch.from_numpy(_file(golden / picture.expected[output.name], output.stored, output.shape))
            for output in function.outputs
        ]
        return FeatureExtractorOutput(arrays[0], arrays[1], tuple(arrays[2:]))
    if picture.logits is None or function.logits is None:
        raise _MalformedError(f"expected the logits of {picture.file} in the golden directory, got none")
    logits = torch.from_numpy(_file(golden / picture.logits, "float32", function.logits))
    if record.task == CLASSIFICATION:
        return ClassifierOutput(logits, logits, (), None)
    return SegmenterOutput(logits, (), None)


def _label_problem(
    picture: Mapping[str, Any], manifest: Manifest, outputs: Mapping[str, npt.NDArray[Any]], where: str
) -> str:
    """Whether a classifier's class is another than its own probabilities say."""
    if manifest.task != CLASSIFICATION:
        return ""
    label = _optional_text(picture, "label", where)
    probabilities = outputs[CLASS_PROBABILITIES]
    best = {
        _printable(name)
        for name, value in zip(manifest.classes, probabilities, strict=True)
        if value >= probabilities.max()
    }
    if label in best or not np.isfinite(probabilities).all():  # the latter no gate lets pass
        return ""
    return f"picture {picture['index']}: classLabel is {label!r:.40}, the largest probability is of another class"


def _differences(entry: Mapping[str, Any], figures: Mapping[str, float], where: str) -> Iterator[str]:
    """The device's figures that are not ours: one of the two computes them wrongly."""
    for name, value in _object(entry.get("figures", {}), f"{where}, figures").items():
        if name not in ALL_BOUNDS:
            continue
        theirs, ours = _float(value, f"{where}, figure {name}"), figures.get(name, math.nan)
        apart = APART.get(ALL_BOUNDS[name].unit, 1e-3)
        if not (math.isnan(ours) or theirs == ours or abs(theirs - ours) <= apart or min(theirs, ours) > ALIKE):
            yield f"the device has {name} {theirs:.4g}, measured here {ours:.4g}: one of the two is wrong"


# results.json, checked by hand: whoever wrote it, the answer to what does not fit is one line.


def _golden_of(results: Path) -> Path:
    for directory in (results.parent, results.parent.parent):
        if (directory / MANIFEST).is_file():
            return directory
    raise InputError(
        f"results {results}: expected {MANIFEST} beside it or in the directory above, got none; "
        "copy the results into the golden directory"
    )


def _limit(manifest: Manifest) -> int:
    """Bytes that results.json may have: base64 takes 4 for 3, DEFLATE of noise hardly more than it is given."""
    whole, each = SLACK
    total = whole
    for function in manifest.functions:
        values = sum(math.prod(output.shape) for output in function.outputs if output.inline)
        names = 4 * len(function.outputs) * each
        total += len(manifest.compute_units) * len(function.pictures) * (each + names + 6 * values)
    return total


def _check_subject(values: Mapping[str, Any], manifest: Manifest, digest: str) -> None:
    if values.get("schema") != SCHEMA:
        raise _MalformedError(f"expected schema {SCHEMA}, got {values.get('schema')!r:.40}")
    for name, expected, what in (
        ("package", manifest.sha256, "the package in the golden directory"),
        ("manifest", digest, "this golden directory"),
    ):
        got = _text(values, name, "results")
        if got != expected:
            raise _MalformedError(f"expected results of {what}, {expected:.12}…, got those of another, {got:.12}…")


def _device(values: Mapping[str, Any]) -> Device:
    device = _object(values.get("device"), "device")
    there = device.get("compute_devices")
    simulator = device.get("simulator")
    if not isinstance(simulator, bool):
        raise _MalformedError(f"device: expected simulator to be true or false, got {simulator!r:.40}")
    names = None if there is None else tuple(_texts(there, "device, compute_devices"))
    model, system, chip = (_text(device, name, "device") for name in ("model", "system", "chip"))
    return Device(model, system, chip, simulator, names, _text(values, "date", "results"))


def _runs(values: Mapping[str, Any], manifest: Manifest) -> dict[tuple[str, str], Mapping[str, Any]]:
    functions = [function.name for function in manifest.functions]
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for place, value in enumerate(_list(values.get("runs"), "runs")):
        run = _object(value, f"run {place}")
        units = _one_of(run.get("units"), manifest.compute_units, f"run {place}, units")
        function = _one_of(run.get("function"), functions, f"run {place}, function")
        if (units, function) in found:
            raise _MalformedError(f"expected one run of {function} on {units}, got two")
        found[units, function] = run
    return found


def _latency(run: Mapping[str, Any], where: str) -> dict[str, float]:
    if run.get("latency") is None:
        return {}
    values = _object(run["latency"], f"{where}, latency")
    found = {
        name: _float(values.get(name), f"{where}, latency, {name}")
        for name in ("load_seconds", "median_ms", "p95_ms", "predictions")
    }
    if not all(math.isfinite(value) and value >= 0 for value in found.values()):
        raise _MalformedError(f"{where}, latency: expected times of 0 or more, got {sorted(found.values())[0]:g}")
    return found


def _pictures(run: Mapping[str, Any], function: GoldenFunction, where: str) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for value in _list(run.get("pictures"), f"{where}, pictures"):
        picture = _object(value, f"{where}, pictures")
        index = _int(picture.get("index"), 0, len(function.pictures) - 1, f"{where}, pictures, index")
        if index in found:
            raise _MalformedError(f"{where}: expected picture {index} once, got it twice")
        found[index] = picture
    return found


def _outputs(
    picture: Mapping[str, Any], function: GoldenFunction, index: int, files: Path, where: str
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a picture as arrays of the shapes in the manifest."""
    inline = _object(picture.get("outputs"), f"{where}, outputs")
    found = {}
    for output in function.outputs:
        if output.inline:
            found[output.name] = _values(inline.get(output.name), output, f"{where}, {output.name}")
        else:
            path = files / f"{index:03d}-{output.name}{SUFFIXES[output.stored]}"
            found[output.name] = _file(path, output.stored, output.shape)
    return found


def _values(text: Any, output: Output, where: str) -> npt.NDArray[Any]:
    size = 4 * math.prod(output.shape)
    if not isinstance(text, str):
        raise _MalformedError(f"{where}: expected base64 of {size} bytes, got {text!r:.40}")
    stream = zlib.decompressobj(-zlib.MAX_WBITS)  # raw DEFLATE
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise _MalformedError(f"{where}: expected base64 of a DEFLATE stream, got {error!s:.60}") from None
    if len(data) != size or not stream.eof:
        got = f"{len(data)} or more" if len(data) > size else f"{len(data)}"
        raise _MalformedError(f"{where}: expected {size} bytes, got {got}")
    return _array(data, output.stored, output.shape)


def _file(path: Path, stored: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    size = 4 * math.prod(shape)
    try:
        got = path.stat().st_size if path.is_file() else None
        if got != size:
            raise _MalformedError(f"expected {size} bytes in {path}, got {'no file' if got is None else got}")
        return _array(path.read_bytes(), stored, shape)
    except OSError as error:
        raise _MalformedError(f"expected {size} bytes in {path}, got {error.strerror}") from None


def _array(data: bytes, stored: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    array = np.frombuffer(data, np.dtype(stored).newbyteorder("<"))
    return array.astype(stored).reshape(tuple(shape))  # a copy of one's own, which torch takes


def _json(path: Path, limit: int) -> Any:
    try:
        if not path.is_file():
            raise _MalformedError("expected a file, got none")
        size = path.stat().st_size
        if size > limit:
            raise _MalformedError(f"expected at most {limit} bytes, got {size}")
        return json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise _MalformedError(f"expected a file to read, got {error.strerror}") from None
    except _MalformedError:
        raise
    except RecursionError:
        raise _MalformedError("expected JSON, got brackets nested too deep") from None
    except ValueError as error:
        raise _MalformedError(f"expected JSON, got {' '.join(str(error).split()):.80}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no JSON")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _MalformedError(f"{where}: expected an object, got {value!r:.40}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _MalformedError(f"{where}: expected a list, got {value!r:.40}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    entries = _list(value, where)
    if not all(isinstance(entry, str) for entry in entries):
        raise _MalformedError(f"{where}: expected texts, got {entries!r:.40}")
    return [str(entry) for entry in entries]


def _text(values: Mapping[str, Any], name: str, where: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise _MalformedError(f"{where}: expected {name} to be a text, got {value!r:.40}")
    return _printable(value)


def _printable(text: str) -> str:
    """A text that does nothing to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:MAX_TEXT]


def _optional_text(values: Mapping[str, Any], name: str, where: str) -> str | None:
    return None if values.get(name) is None else _text(values, name, where)


def _one_of(value: Any, choices: Sequence[str], where: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise _MalformedError(f"{where}: expected one of {', '.join(choices):.100}, got {value!r:.40}")
    return value


def _int(value: Any, least: int, greatest: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
        raise _MalformedError(f"{where}: expected {least} to {greatest}, got {value!r:.40}")
    return value


def _float(value: Any, where: str) -> float:
    """A number, or one of the texts inf, -inf and nan."""
    if value in ("inf", "-inf", "nan") or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _MalformedError(f"{where}: expected a number, got {value!r:.40}")


# manifest.json, likewise: it may be damaged, or somebody else's.


def _manifest(values: Mapping[str, Any]) -> Manifest:
    functions = tuple(_function(value) for value in _list(values.get("functions"), "functions"))
    names = [function.name for function in functions]
    if not functions or len(set(names)) < len(names):
        raise _MalformedError(f"functions: expected each once, and one at least, got {names!r:.60}")
    record = _object(values.get("record"), "record")
    _texts(list(record.values()), "record")
    tolerance = _object(values.get("tolerance"), "tolerance")
    units = _texts(values.get("compute_units"), "compute_units")
    task = _one_of(values.get("task"), TASKS, "task")
    classes = tuple(_texts(values.get("classes"), "classes"))
    for function in functions:
        _check_function(function, task, classes)
    return Manifest(
        format=FORMAT,
        schema=SCHEMA,
        package=_text(values, "package", "manifest"),
        sha256=_text(values, "sha256", "manifest"),
        task=task,
        input=_text(values, "input", "manifest"),
        classes=classes,
        compute_units=tuple(_one_of(unit, list(UNITS), "compute_units") for unit in units),
        gates=tuple(_gate(value) for value in _list(values.get("gates"), "gates")),
        tolerance={name: _float(value, f"tolerance {name}") for name, value in tolerance.items()},
        warm_up=_int(values.get("warm_up"), 0, 10**6, "warm_up"),
        predictions=_int(values.get("predictions"), 0, 10**6, "predictions"),
        least_probability=_float(values.get("least_probability"), "least_probability"),
        functions=functions,
        record={name: str(text) for name, text in record.items()},
    )


def _check_function(function: GoldenFunction, task: str, classes: Sequence[str]) -> None:
    """What the metrics take for granted."""
    wrong = task == CLASSIFICATION and (
        len(classes) < 2
        or [(output.name, output.shape) for output in function.outputs] != [(CLASS_PROBABILITIES, (len(classes),))]
        or function.logits != (1, len(classes))
    )
    if wrong or (task == FEATURES and len(function.outputs) < 2) or not function.outputs:
        raise _MalformedError(f"{function.name}: expected the outputs of {task}, got others")


def _function(value: Any) -> GoldenFunction:
    values = _object(value, "functions")
    name = _text(values, "name", "function")
    if not (name.isascii() and name.isidentifier()):
        raise _MalformedError(f"function: expected a name of letters, digits and _, got {name!r:.40}")
    outputs = tuple(_output(one, name) for one in _list(values.get("outputs"), f"{name}, outputs"))
    pictures = [_picture(one, name, outputs) for one in _list(values.get("pictures"), f"{name}, pictures")]
    return GoldenFunction(
        name=name,
        function_name=_optional_text(values, "function_name", name),
        height=_int(values.get("height"), 1, MAX_VALUES, f"{name}, height"),
        width=_int(values.get("width"), 1, MAX_VALUES, f"{name}, width"),
        outputs=outputs,
        logits=None if values.get("logits") is None else _shape(values["logits"], f"{name}, logits"),
        pictures=tuple(pictures),
    )


def _output(value: Any, where: str) -> Output:
    values = _object(value, f"{where}, outputs")
    name = _text(values, "name", f"{where}, output")
    inline = values.get("inline")
    if not (name.isascii() and name.isidentifier()) or not isinstance(inline, bool):
        raise _MalformedError(f"{where}, output: expected a name of letters, digits and _, got {name!r:.40}")
    return Output(
        name=name,
        kind=_text(values, "kind", name),
        dtype=_text(values, "dtype", name),
        stored=_one_of(values.get("stored"), list(SUFFIXES), f"{name}, stored"),
        shape=_shape(values.get("shape"), f"{name}, shape"),
        inline=inline,
    )


def _picture(value: Any, function: str, outputs: Sequence[Output]) -> GoldenPicture:
    values = _object(value, f"{function}, pictures")
    expected = _object(values.get("expected"), f"{function}, expected")
    logits = values.get("logits")
    return GoldenPicture(
        name=_text(values, "name", f"{function}, picture"),
        file=_place(values.get("file"), PICTURES, function),
        rgb=_text(values, "rgb", f"{function}, picture"),
        label=_optional_text(values, "label", f"{function}, picture"),
        expected={output.name: _place(expected.get(output.name), EXPECTED, function) for output in outputs},
        logits=None if logits is None else _place(logits, REFERENCE, function),
    )


def _place(value: Any, kind: str, function: str) -> str:
    """The path of a file, which lies where write_golden puts such files."""
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) != 3 or parts[:2] != [kind, function] or not parts[2].isprintable() or parts[2] in ("", ".", ".."):
        raise _MalformedError(f"expected a file in {kind}/{function}, got {value!r:.60}")
    return str(value)


def _gate(value: Any) -> Gate:
    values = _object(value, "gates")
    name = _one_of(values.get("name"), list(ALL_BOUNDS), "gates, name")
    bound = ALL_BOUNDS[name]
    return Gate(name, _float(values.get("bound"), f"gate {name}"), bound.at_least, bound.unit)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    shape = tuple(_int(side, 1, MAX_VALUES, where) for side in _list(value, where))
    if not shape or math.prod(shape) > MAX_VALUES:
        raise _MalformedError(f"{where}: expected at most {MAX_VALUES} values, got {shape!r:.40}")
    return shape
