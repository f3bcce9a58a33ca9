"""What a test on a device needs, where there is no Python: pictures, PyTorch's outputs for them, and the test itself.

Written on any machine; nothing of it has run on a device yet. `against` reads what the device answers.

A golden directory has

    manifest.json                           all that follows, `Manifest` as JSON: floats that are not finite as texts
    MobileViTGoldenTests.swift              an XCTest, of the template beside this file
    package/NAME.mlpackage                  the package, which the test itself compiles, so that it can check the digest
    pictures/FUNCTION/000.png               RGB of exactly the input's size: nothing is resized or cropped on the device
    expected/FUNCTION/000-OUTPUT.f32, .i32  PyTorch's outputs in fp32: little-endian, the last axis fastest, no header
    reference/FUNCTION/000.f32              the network's own logits: with them `against` measures as `validate` does

The test writes results.json, and beside it `outputs/UNITS/FUNCTION/000-OUTPUT.f32` or `.i32` for outputs that are too
large to stand in it. The form of results.json:

    schema        1
    package       sha256 of the package as the device has it, made as `validation.digest_of` does
    manifest      sha256 of the manifest.json the device read
    device        {model, system, chip, simulator: true or false, compute_devices: [cpu, gpu, neuralEngine] or null}
    date          ISO 8601
    runs          a list, one for each of the manifest's compute units and functions:
      units, function     by name
      error               what went wrong, or null; a run that crashes leaves the text that stands here before it starts
      not_run             why this device cannot do it, or null
      latency             {load_seconds, median_ms, p95_ms, predictions} or null
      figures             what the device itself made of it, by the names of gates; `against` measures again
      pictures            a list: {index, label: a classifier's class or null, figures, outputs}; outputs has, by name,
                          base64 of the raw DEFLATE stream of the values as in expected/, for outputs that are `inline`
"""

import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import InputError, OutputError
from mobilevit_coreml.mil.export import segmentation_output
from mobilevit_coreml.model import Model
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES, IMAGE, LABELS, MASK, OutputForm, output_names
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.publish import publish, staging, writing
from mobilevit_coreml.shipped import shipped
from mobilevit_coreml.validation.core_ml import TIMED, UNITS, WARM_UP
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.gates import ALL_BOUNDS
from mobilevit_coreml.validation.original import Original
from mobilevit_coreml.validation.run import digest_of
from mobilevit_coreml.verification import LEAST_SIGNIFICANT, default_gates

FORMAT, SCHEMA = "mobilevit_coreml.golden", 1
MANIFEST, RESULTS, SWIFT = "manifest.json", "results.json", "MobileViTGoldenTests.swift"
PACKAGE, PICTURES, EXPECTED, REFERENCE = "package", "pictures", "expected", "reference"
OURS = {MANIFEST, SWIFT, PACKAGE, PICTURES, EXPECTED, REFERENCE, ".DS_Store"}  # the last is the Finder's
SUFFIXES = {"float32": ".f32", "int32": ".i32"}
INLINE = {"float32": 2**20, "int32": 2**24}  # bytes before DEFLATE, which makes little of class maps
COUNT = 8  # pictures of each function

Values = npt.NDArray[np.float32] | npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Output:
    """An output of a function.

    `kind` is how Core ML hands it over: probabilities (a dictionary by class name), array, or image (grayscale).
    `dtype` is what the package declares, `stored` what files and results have: float32 or int32, of `shape`.
    `inline` says whether the device puts it into results.json or into a file beside it.
    """

    name: str
    kind: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    inline: bool


@dataclasses.dataclass(frozen=True)
class GoldenPicture:
    """A picture: where it comes from, its file, sha256 of its pixels (rows of R, G, B bytes), and what is expected.

    `label` is PyTorch's first class, of classifiers. `expected` are files by output, `logits` is the file in
    reference/, of classifiers and segmenters.
    """

    name: str
    file: str
    rgb: str
    label: str | None
    expected: Mapping[str, str]
    logits: str | None


@dataclasses.dataclass(frozen=True)
class GoldenFunction:
    """A function: `function_name` is what Core ML calls it, None in a package with one; `logits` their shape."""

    name: str
    function_name: str | None
    height: int
    width: int
    outputs: tuple[Output, ...]
    logits: tuple[int, ...] | None
    pictures: tuple[GoldenPicture, ...]


@dataclasses.dataclass(frozen=True)
class Gate:
    """A figure to reach, at least or at most, in a unit as in `gates.ALL_BOUNDS`."""

    name: str
    bound: float
    at_least: bool
    unit: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that is in a golden directory.

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
    gates: tuple[Gate, ...]
    tolerance: Mapping[str, float]
    warm_up: int
    predictions: int
    least_probability: float
    functions: tuple[GoldenFunction, ...]
    record: Mapping[str, str]


def check_place(directory: Path, force: bool) -> None:
    """Raise OutputError where no golden directory can go; with `force` one of ours is replaced, and nothing else."""
    if not directory.parent.is_dir():
        raise OutputError(
            f"golden {directory}: expected {directory.parent} to be a directory, got none there; create it first"
        )
    if not directory.is_dir():
        if directory.exists() or directory.is_symlink():
            raise OutputError(f"golden {directory}: expected a free name, got something else; move it away")
        return
    if not _is_ours(directory):
        raise OutputError(f"golden {directory}: expected a free name, got another directory; choose another")
    if not force:
        raise OutputError(f"golden {directory}: expected a free name, got an older one; add --force to replace it")
    others = sorted({path.name for path in directory.iterdir()} - OURS)
    if others:
        raise OutputError(f"golden {directory}: expected only what --golden wrote, got {others[0]!r}; move it away")


def write_golden(
    directory: Path,
    package: Path,
    record: PackageRecord,
    original: Original,
    shown: Mapping[str, Sequence[LabelledImage]],
    gates: Mapping[str, float],
    digest: str,
    count: int = COUNT,
    force: bool = False,
) -> Manifest:
    """Write a golden directory of a package, whole or not at all, with the first `count` pictures of each function.

    `shown` has the pictures of each function that is to be tested, `gates` figures as in `gates.ALL_BOUNDS`,
    `digest` is the package's as `validation.digest_of` gives it.

    Raises OutputError for a place where it cannot go, InputError for a package that has changed.
    """
    directory = directory.resolve()
    check_place(directory, force)
    if count < 1:
        raise InputError(f"pictures: expected 1 at least, got {count}; {COUNT} are usual")
    with staging(directory) as staged, writing(directory):
        staged.mkdir()
        name = package.name or package.resolve().name
        shutil.copytree(package, staged / PACKAGE / name)
        if digest_of(staged / PACKAGE / name) != digest:
            raise InputError(f"package {package}: expected it to stay as it is, got another meanwhile; start again")
        functions = tuple(
            _write_function(staged, function, record, original, pictures[:count])
            for function, pictures in shown.items()
        )
        manifest = Manifest(
            format=FORMAT,
            schema=SCHEMA,
            package=name,
            sha256=digest,
            task=record.task,
            input=IMAGE,
            classes=original.classes,
            compute_units=tuple(UNITS),
            gates=tuple(
                Gate(one, bound, ALL_BOUNDS[one].at_least, ALL_BOUNDS[one].unit) for one, bound in gates.items()
            ),
            tolerance=default_gates(record),
            warm_up=WARM_UP,
            predictions=TIMED,
            least_probability=LEAST_SIGNIFICANT,
            functions=functions,
            record=record.to_metadata(),
        )
        text = json.dumps(_plain(dataclasses.asdict(manifest)), indent=1, ensure_ascii=False, allow_nan=False)
        (staged / MANIFEST).write_text(text + "\n", encoding="utf-8")
        (staged / SWIFT).write_text(swift_test(directory.name, name, digest), encoding="utf-8")
        publish(staged, directory, force)
    return manifest


def swift_test(directory: str, package: str, digest: str) -> str:
    """The XCTest of a golden directory."""
    values = {"directory": directory, "package": package, "digest": digest}
    template = (shipped("validation/swift", "validate/swift") / SWIFT).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: _swift_text(values[match[1]]), template)


def expected_outputs(record: PackageRecord, model: Model, result: Any) -> dict[str, Values]:
    """What a package should put out for a model's result, by output, as float32, or int32 of class indices.

    A classifier's probabilities are (classes,), in their order; maps of classes (rows, columns).
    """
    if record.task == CLASSIFICATION:
        return {CLASS_PROBABILITIES: result.logits.softmax(1)[0].numpy()}
    if record.task == SEGMENTATION:
        (name,) = output_names(SEGMENTATION, record.outputs)
        output = segmentation_output(result.logits, record.outputs, model.config)
        if record.outputs.type in (LABELS, MASK):
            return {name: output.reshape(output.shape[-2:]).to(torch.int32).numpy()}
        return {name: output.numpy()}
    values = (result.pooled, result.feature_map, *result.hidden_states)
    names = output_names(FEATURES, record.outputs)
    return {name: value.numpy() for name, value in zip(names, values, strict=False)}  # the stages may be left out


def kind_and_dtype(task: str, form: OutputForm) -> tuple[str, str]:
    """How Core ML hands over the outputs of a task: `Output.kind` and `Output.dtype`."""
    if task == CLASSIFICATION:
        return "probabilities", "float32"
    if task == SEGMENTATION and form.type in (LABELS, MASK):
        return ("array", "int32") if form.type == LABELS else ("image", "uint8")
    return "array", form.dtype


def _write_function(
    staged: Path, function: str, record: PackageRecord, original: Original, pictures: Sequence[LabelledImage]
) -> GoldenFunction:
    if not re.fullmatch(r"\w+", function, re.ASCII):
        raise InputError(f"function: expected a name of letters, digits and _, got {function!r:.60}; convert again")
    for kind in (PICTURES, EXPECTED, REFERENCE):
        (staged / kind / function).mkdir(parents=True)
    model, contract = original.models[function], original.contracts[function]
    height, width = contract.input_size
    written = []
    outputs: tuple[Output, ...] = ()
    shape = None
    for index, picture in enumerate(pictures):
        image = picture.prepared()
        with torch.inference_mode():
            result = model(torch.from_numpy(contract.pixels(image)))
            values = expected_outputs(record, model, result)
        outputs = tuple(_output(record, name, array) for name, array in values.items())
        logits = None if record.task == FEATURES else result.logits.numpy()
        shape = None if logits is None else logits.shape
        written.append(_write_picture(staged, f"{function}/{index:03d}", picture.name, image, values, logits, original))
    named = function if record.sizes else None
    return GoldenFunction(function, named, height, width, outputs, shape, tuple(written))


def _write_picture(
    staged: Path,
    place: str,
    name: str,
    image: Image.Image,
    values: Mapping[str, Values],
    logits: npt.NDArray[np.float32] | None,
    original: Original,
) -> GoldenPicture:
    file = f"{PICTURES}/{place}.png"
    Image.fromarray(np.asarray(image)).save(staged / file)  # without the profile a photograph may have
    expected = {output: f"{EXPECTED}/{place}-{output}{SUFFIXES[array.dtype.name]}" for output, array in values.items()}
    for output, array in values.items():
        _write_values(staged / expected[output], array)
    reference = None if logits is None else f"{REFERENCE}/{place}.f32"
    if logits is not None and reference is not None:
        _write_values(staged / reference, logits)
    probabilities = values.get(CLASS_PROBABILITIES)
    label = None if probabilities is None else original.classes[int(probabilities.argmax())]
    return GoldenPicture(name, file, hashlib.sha256(image.tobytes()).hexdigest(), label, expected, reference)


def _output(record: PackageRecord, name: str, values: Values) -> Output:
    kind, dtype = kind_and_dtype(record.task, record.outputs)
    stored = values.dtype.name
    return Output(name, kind, dtype, stored, values.shape, values.nbytes <= INLINE[stored])


def _write_values(path: Path, values: Values) -> None:
    path.write_bytes(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def _plain(value: Any) -> Any:
    """As JSON takes it: floats that are not finite as the texts inf, -inf and nan."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _swift_text(text: str) -> str:
    """A text as it stands in a string of Swift, without its quotes."""
    plain = {'"': '\\"', "\\": "\\\\"}
    return "".join(plain.get(c) or (c if " " <= c <= "~" else f"\\u{{{ord(c):x}}}") for c in text)


def _is_ours(directory: Path) -> bool:
    try:
        values = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT
