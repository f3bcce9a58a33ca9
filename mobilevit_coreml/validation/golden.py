"""Write a golden directory: a test for devices, where there is no Python, with images and PyTorch's outputs for them.

`manifest` describes its files, `device` evaluates the results. Nothing of it has run on a device yet.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import InputError, OutputError
from mobilevit_coreml.metrics import BOUNDS, computation_gates
from mobilevit_coreml.mil.export import CLASSIFIER_OUTPUTS, segmentation_output
from mobilevit_coreml.model import Model
from mobilevit_coreml.package.files import digest_of
from mobilevit_coreml.package.interface import (
    CLASS_PROBABILITIES,
    IMAGE,
    LABELS,
    MASK,
    OutputOptions,
    names_classes,
    output_names,
)
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import GRAY
from mobilevit_coreml.publish import publish, staging, writing
from mobilevit_coreml.shipped import shipped
from mobilevit_coreml.strict_json import JsonError, read_json, to_json
from mobilevit_coreml.validation.core_ml import TIMED, UNITS, WARM_UP
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.manifest import (
    EXPECTED,
    FORMAT,
    IMAGES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PACKAGE,
    REFERENCE,
    SCHEMA,
    SUFFIXES,
    SWIFT,
    GoldenFunction,
    GoldenGate,
    GoldenImage,
    GoldenOutput,
    Manifest,
)
from mobilevit_coreml.validation.original import Original
from mobilevit_coreml.verification import MIN_SIGNIFICANT_PROBABILITY

WRITTEN = {MANIFEST, SWIFT, PACKAGE, IMAGES, EXPECTED, REFERENCE, ".DS_Store"}  # the last by the Finder
MAX_INLINE_BYTES = {"float32": 2**20, "int32": 2**24}  # before DEFLATE, which makes little of class maps
COUNT = 8  # images of each function

Values = npt.NDArray[np.float32] | npt.NDArray[np.int32]
Kind = Literal["probabilities", "array", "image"]


def check_place(directory: Path, force: bool) -> None:
    """Raise OutputError where no golden directory can go; with `force` an older one is replaced, and nothing else."""
    if not directory.parent.is_dir():
        raise OutputError(
            f"golden {directory}: expected {directory.parent} to be a directory, got none there; create it first"
        )
    if not directory.is_dir():
        if directory.exists() or directory.is_symlink():
            raise OutputError(f"golden {directory}: expected a free name, got something else; move it away")
        return
    if not _is_golden(directory):
        raise OutputError(f"golden {directory}: expected a free name, got another directory; choose another")
    if not force:
        raise OutputError(f"golden {directory}: expected a free name, got an older one; add --force to replace it")
    others = sorted({path.name for path in directory.iterdir()} - WRITTEN)
    if others:
        raise OutputError(f"golden {directory}: expected only what --golden wrote, got {others[0]!r}; move it away")


def write_golden(
    directory: Path,
    package: Path,
    record: PackageRecord,
    original: Original,
    images: Mapping[str, Sequence[LabelledImage]],
    gates: Mapping[str, float],
    digest: str,
    count: int = COUNT,
    force: bool = False,
) -> Manifest:
    """Write a golden directory of a package, whole or not at all.

    `images` are those of each function to test, of which the first `count` are written; `gates` are figures by
    name, `digest` is the package's `digest_of`.

    Raises OutputError for a place where it cannot go, InputError for a package that has changed.
    """
    if record.preprocessing.channel_order == GRAY:
        raise InputError(
            "golden: expected a package that takes colour images, got gray ones; the test has none of these"
        )
    directory = directory.resolve()
    check_place(directory, force)
    if count < 1:
        raise InputError(f"images: expected 1 at least, got {count}; {COUNT} are usual")
    with staging(directory) as staged, writing(directory):
        staged.mkdir()
        name = package.name or package.resolve().name
        shutil.copytree(package, staged / PACKAGE / name)
        if digest_of(staged / PACKAGE / name) != digest:
            raise InputError(f"package {package}: expected it to stay as it is, got another meanwhile; start again")
        functions = [
            _write_function(staged, function, record, original, some[:count]) for function, some in images.items()
        ]
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
                GoldenGate(gate, bound, BOUNDS[gate].at_least, BOUNDS[gate].unit) for gate, bound in gates.items()
            ),
            tolerance=computation_gates(record),
            warm_up=WARM_UP,
            predictions=TIMED,
            least_probability=MIN_SIGNIFICANT_PROBABILITY,
            functions=tuple(functions),
            record=record.to_metadata(),
        )
        (staged / MANIFEST).write_bytes(to_json(manifest))
        (staged / SWIFT).write_text(swift_test(directory.name, name, digest), encoding="utf-8")
        publish(staged, directory, force)
    return manifest


def swift_test(directory: str, package: str, digest: str) -> str:
    """The XCTest of a golden directory."""
    values = {"directory": directory, "package": package, "digest": digest}
    template = (shipped("validation/swift", "validate/swift") / SWIFT).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: _swift_literal(values[match[1]]), template)


def _write_function(
    staged: Path, function: str, record: PackageRecord, original: Original, images: Sequence[LabelledImage]
) -> GoldenFunction:
    if not (function.isascii() and function.isidentifier()):
        raise InputError(f"function: expected a name of letters, digits and _, got {function!r:.60}; convert again")
    for kind in (IMAGES, EXPECTED, REFERENCE):
        (staged / kind / function).mkdir(parents=True)
    model, preprocessing = original.models[function], original.preprocessing[function]
    height, width = preprocessing.input_size
    written = []
    for index, one in enumerate(images):
        image = one.prepared()
        with torch.inference_mode():
            result = model(torch.from_numpy(preprocessing.pixels(image)))
            values = _expected_outputs(record, model, result)
        logits = None if record.task == FEATURES else result.logits.numpy()
        written.append(_write_image(staged, f"{function}/{index:03d}", one.name, image, values, logits, original))
    outputs = tuple(_golden_output(record, name, array) for name, array in values.items())
    shape = None if logits is None else logits.shape
    named = function if record.sizes else None
    return GoldenFunction(function, named, height, width, outputs, shape, tuple(written))


def _write_image(
    staged: Path,
    place: str,
    name: str,
    image: Image.Image,
    values: Mapping[str, Values],
    logits: npt.NDArray[np.float32] | None,
    original: Original,
) -> GoldenImage:
    file = f"{IMAGES}/{place}.png"
    Image.fromarray(np.asarray(image)).save(staged / file)  # without the colour profile a photograph may have
    expected = {output: f"{EXPECTED}/{place}-{output}{SUFFIXES[array.dtype.name]}" for output, array in values.items()}
    for output, array in values.items():
        _write_values(staged / expected[output], array)
    reference = None
    if logits is not None:
        reference = f"{REFERENCE}/{place}.f32"
        _write_values(staged / reference, logits)
    probabilities = values.get(CLASS_PROBABILITIES)
    label = None if probabilities is None else original.classes[int(probabilities.argmax())]
    return GoldenImage(name, file, hashlib.sha256(image.tobytes()).hexdigest(), label, expected, reference)


def _expected_outputs(record: PackageRecord, model: Model, result: Any) -> dict[str, Values]:
    """PyTorch's result as the package's outputs, by name: float32, or int32 of class indices.

    A classifier's probabilities are (classes,), in their order; maps of classes (rows, columns).
    """
    if record.task == CLASSIFICATION:
        output = CLASSIFIER_OUTPUTS[record.outputs.type](result.logits)
        if names_classes(record.task, record.outputs):
            return {CLASS_PROBABILITIES: output[0].numpy()}
        (name,) = output_names(record.task, record.outputs)
        return {name: output.numpy()}
    if record.task == SEGMENTATION:
        (name,) = output_names(SEGMENTATION, record.outputs)
        output = segmentation_output(result.logits, record.outputs, model.config)
        if record.outputs.type in (LABELS, MASK):
            return {name: output.reshape(output.shape[-2:]).to(torch.int32).numpy()}
        return {name: output.numpy()}
    values = (result.pooled, result.feature_map, *result.hidden_states)
    names = output_names(FEATURES, record.outputs)
    return {name: value.numpy() for name, value in zip(names, values, strict=False)}  # the stages may be left out


def _golden_output(record: PackageRecord, name: str, values: Values) -> GoldenOutput:
    kind, dtype = _kind_and_dtype(record.task, record.outputs)
    stored: Literal["float32", "int32"] = "int32" if values.dtype == np.int32 else "float32"
    return GoldenOutput(name, kind, dtype, stored, values.shape, values.nbytes <= MAX_INLINE_BYTES[stored])


def _kind_and_dtype(task: str, options: OutputOptions) -> tuple[Kind, str]:
    """`GoldenOutput.kind` and `GoldenOutput.dtype` of a task's outputs."""
    if names_classes(task, options):
        return "probabilities", "float32"
    if task == SEGMENTATION and options.type in (LABELS, MASK):
        return ("array", "int32") if options.type == LABELS else ("image", "uint8")
    return "array", options.dtype


def _write_values(path: Path, values: Values) -> None:
    path.write_bytes(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def _swift_literal(text: str) -> str:
    """A text as it stands in a string of Swift, without its quotes."""
    escapes = {'"': '\\"', "\\": "\\\\"}
    return "".join(escapes.get(c) or (c if " " <= c <= "~" else f"\\u{{{ord(c):x}}}") for c in text)


def _is_golden(directory: Path) -> bool:
    try:
        values = read_json(directory / MANIFEST, MAX_MANIFEST_BYTES)
    except JsonError:
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT
