"""The files that a test on a device reads and writes, manifest.json and results.json; their keys are the fields here.

A golden directory has

    manifest.json                           `Manifest`
    MobileViTGoldenTests.swift              the XCTest, from the template in validate/swift
    package/NAME.mlpackage                  the package, which the test compiles itself, so that it can check its digest
    pictures/FUNCTION/000.png               RGB of exactly the input's size: nothing is resized or cropped on the device
    expected/FUNCTION/000-OUTPUT.f32, .i32  PyTorch's outputs in fp32: little-endian, the last axis fastest, no header
    reference/FUNCTION/000.f32              the network's logits, which `device` measures with as `validate` does
    results.json                            `Results`, written by the test
    outputs/UNITS/FUNCTION/000-OUTPUT.f32   outputs, also .i32, that are too large to be inline in results.json

The dataclasses check themselves as far as one of them can be checked alone.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, TASKS
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.metrics import BOUNDS
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES, LOGITS, VALUES
from mobilevit_coreml.strict_json import JsonError, load, read_json
from mobilevit_coreml.validation.core_ml import UNITS

FORMAT, SCHEMA = "mobilevit_coreml.golden", 1
MANIFEST, RESULTS, SWIFT = "manifest.json", "results.json", "MobileViTGoldenTests.swift"
PACKAGE, IMAGES, EXPECTED, REFERENCE = "package", "pictures", "expected", "reference"
SUFFIXES = {"float32": ".f32", "int32": ".i32"}  # of files of values, by their type
MAX_VALUES = 2**28  # of one output
MAX_PREDICTIONS = 10**6
MAX_MANIFEST_BYTES = 64 * 2**20
RESULTS_BYTES, IMAGE_BYTES = 2**20, 2**12  # of results.json beside the outputs: in all, and for each image


@dataclasses.dataclass(frozen=True)
class GoldenOutput:
    """An output of a function.

    `kind` is how Core ML returns it: probabilities (a dictionary by class name), array, or image (grayscale).
    `dtype` is what the package declares, `stored` the type in files and results, of `shape`. An `inline` output
    is in results.json, another in a file beside it.
    """

    name: str
    kind: Literal["probabilities", "array", "image"]
    dtype: str
    stored: Literal["float32", "int32"]
    shape: tuple[int, ...]
    inline: bool

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_shape(self.shape)


@dataclasses.dataclass(frozen=True)
class GoldenImage:
    """An image and what is expected of it.

    `name` says where it comes from, `rgb` is the sha256 of its pixels (rows of R, G, B bytes), `label` PyTorch's
    first class, of classifiers. `expected` are files by output, `logits` a file, of classifiers and segmenters.
    """

    name: str
    file: str
    rgb: str
    label: str | None
    expected: Mapping[str, str]
    logits: str | None


@dataclasses.dataclass(frozen=True)
class GoldenFunction:
    """A function of the package; `function_name` is Core ML's, None in a package with one; `logits` their shape."""

    name: str
    function_name: str | None
    height: int
    width: int
    outputs: tuple[GoldenOutput, ...]
    logits: tuple[int, ...] | None
    pictures: tuple[GoldenImage, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_shape((self.height, self.width))
        if self.logits is not None:
            _check_shape(self.logits)
        for image in self.pictures:
            _check_file(image.file, IMAGES, self.name)
            for output in self.outputs:
                _check_file(image.expected.get(output.name), EXPECTED, self.name)
            if image.logits is not None:
                _check_file(image.logits, REFERENCE, self.name)


@dataclasses.dataclass(frozen=True)
class GoldenGate:
    """A figure to reach, at least or at most."""

    name: str
    bound: float
    at_least: bool
    unit: str

    def __post_init__(self) -> None:
        known = BOUNDS.get(self.name)
        if known is None or (known.at_least, known.unit) != (self.at_least, self.unit):
            raise ValueError(f"gate: expected one of {', '.join(BOUNDS)} with its unit, got {self.name!r:.40}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a golden directory.

    `classes` are in the order of a classifier's probabilities, or of a segmenter's indices. `gates` are those
    of the verdict, `tolerance` what the package's precision allows by default. Each latency is of
    `predictions` after `warm_up`. Probabilities below `least_probability` count as that much in an SNR.
    `record` is the package's metadata.
    """

    format: str
    schema: int
    package: str
    sha256: str
    task: str
    input: str
    classes: tuple[str, ...]
    compute_units: tuple[str, ...]
    gates: tuple[GoldenGate, ...]
    tolerance: Mapping[str, float]
    warm_up: int
    predictions: int
    least_probability: float
    functions: tuple[GoldenFunction, ...]
    record: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r:.40}")
        if not set(self.compute_units) <= set(UNITS):
            raise ValueError(f"compute_units: expected some of {', '.join(UNITS)}, got {self.compute_units!r:.60}")
        names = [function.name for function in self.functions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"functions: expected one or more, each once, got {names!r:.60}")
        if not (0 <= self.warm_up <= MAX_PREDICTIONS and 0 <= self.predictions <= MAX_PREDICTIONS):
            raise ValueError(f"predictions: expected 0 to {MAX_PREDICTIONS}, got another number")
        for function in self.functions:
            self._check_outputs(function)

    def _check_outputs(self, function: GoldenFunction) -> None:
        """The outputs that the metrics rely on."""
        shapes, count = [(output.name, output.shape) for output in function.outputs], len(self.classes)
        whole = [(CLASS_PROBABILITIES, (count,))], [(LOGITS, (1, count))], [(VALUES, (1, count))]
        wrong = self.task == CLASSIFICATION and (not count or shapes not in whole or function.logits != (1, count))
        if wrong or len(shapes) < (2 if self.task == FEATURES else 1):
            raise ValueError(f"{function.name}: expected the outputs of {self.task}, got others")


@dataclasses.dataclass(frozen=True)
class Device:
    """A device; `compute_devices` are cpu, gpu and neuralEngine, None where its system does not say."""

    model: str
    system: str
    chip: str
    simulator: bool
    compute_devices: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of loading and of `predictions` on a device, after its warm-up."""

    load_seconds: float
    median_ms: float
    p95_ms: float
    predictions: float

    def __post_init__(self) -> None:
        for value in dataclasses.astuple(self):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"expected times of 0 or more, got {value:g}")


@dataclasses.dataclass(frozen=True)
class ImageAnswer:
    """Results of the image at `index` of the manifest: a classifier's class, the device's own figures, and outputs.

    `outputs` are, by name, base64 of the raw DEFLATE stream of the values as in expected/, of those that are inline.
    """

    index: int
    label: str | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FunctionAnswer:
    """Results of one of the manifest's functions on one of its compute units.

    `error` is also what remains of a run that crashed; `not_run` is the reason where this device cannot do it.
    `figures` are the device's own, by the names of gates.
    """

    units: str
    function: str
    error: str | None = None
    not_run: str | None = None
    latency: Latency | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pictures: tuple[ImageAnswer, ...] = ()


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a device.

    `package` and `manifest` are the sha256 of the package (as `digest_of` computes it) and of the manifest.json
    that the device read, `date` is in ISO 8601.
    """

    schema: int
    package: str
    manifest: str
    device: Device
    date: str
    runs: tuple[FunctionAnswer, ...]


def read_manifest(directory: Path) -> tuple[Manifest, str]:
    """The manifest of a golden directory, and the sha256 of its file; raises InputError where there is none."""
    path = directory / MANIFEST
    try:
        values = read_json(path, MAX_MANIFEST_BYTES)
        found = (values.get("format"), values.get("schema")) if isinstance(values, dict) else (None, None)
        if found != (FORMAT, SCHEMA):
            raise JsonError(f"expected {FORMAT} of schema {SCHEMA}, got {found[0]!r:.40} {found[1]!r:.40}")
        return load(Manifest, values, "manifest"), hashlib.sha256(path.read_bytes()).hexdigest()
    except JsonError as error:
        raise InputError(f"golden {path}: {error}; write it again with --golden") from None


def read_results(path: Path, manifest: Manifest, digest: str) -> Results:
    """The results of a device; JsonError for those of another package or golden directory."""
    values = read_json(path, _max_bytes(manifest))
    if isinstance(values, dict) and values.get("schema") != SCHEMA:
        raise JsonError(f"expected schema {SCHEMA}, got {values.get('schema')!r:.40}")
    results = load(Results, values, "results")
    for got, expected, subject in (
        (results.package, manifest.sha256, "the package in the golden directory"),
        (results.manifest, digest, "this golden directory"),
    ):
        if got != expected:
            raise JsonError(f"expected results of {subject}, {expected:.12}…, got those of another, {got:.12}…")
    functions = {function.name: len(function.pictures) for function in manifest.functions}
    known: set[tuple[str, str]] = set()
    for index, answer in enumerate(results.runs):
        where = f"results.runs[{index}]"
        _check_one_of(answer.units, manifest.compute_units, f"{where}.units")
        _check_one_of(answer.function, list(functions), f"{where}.function")
        if (answer.units, answer.function) in known:
            raise JsonError(f"{where}: expected one run of {answer.function} on {answer.units}, got two")
        known.add((answer.units, answer.function))
        images: set[int] = set()
        for image in answer.pictures:
            if not 0 <= image.index < functions[answer.function]:
                expected = f"index 0 to {functions[answer.function] - 1}"
                raise JsonError(f"{where}.pictures: expected {expected}, got {image.index!r:.40}")
            if image.index in images:
                raise JsonError(f"{where}.pictures: expected image {image.index} once, got it twice")
            images.add(image.index)
    return results


def _check_one_of(value: str, choices: Sequence[str], where: str) -> None:
    if value not in choices:
        raise JsonError(f"{where}: expected one of {', '.join(choices):.100}, got {value!r:.40}")


def _max_bytes(manifest: Manifest) -> int:
    """The size results.json may have: base64 takes 4 bytes for 3, DEFLATE of noise hardly more than it is given."""
    total = RESULTS_BYTES
    for function in manifest.functions:
        values = sum(math.prod(output.shape) for output in function.outputs if output.inline)
        each = IMAGE_BYTES * (1 + 4 * len(function.outputs)) + 6 * values
        total += len(manifest.compute_units) * len(function.pictures) * each
    return total


def _check_name(name: str) -> None:
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(f"expected a name of letters, digits and _, got {name!r:.40}")


def _check_shape(shape: tuple[int, ...]) -> None:
    if not shape or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise ValueError(f"shape: expected 1 to {MAX_VALUES} values, got {shape!r:.40}")


def _check_file(path: str | None, kind: str, function: str) -> None:
    """The file has to be where `write_golden` puts such files."""
    parts = (path or "").split("/")
    if len(parts) != 3 or parts[:2] != [kind, function] or not parts[2].isprintable() or parts[2] in ("", ".", ".."):
        raise ValueError(f"expected a file in {kind}/{function}, got {path!r:.60}")
