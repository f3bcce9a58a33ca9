"""Checks of what a package declares to Core ML, to Xcode and in its record, against its checkpoint."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mobilevit_coreml.config import SEGMENTATION
from mobilevit_coreml.package.interface import (
    CLASS_LABEL,
    CLASS_PROBABILITIES,
    IMAGE,
    LABELS,
    MASK,
    names_classes,
    output_names,
)
from mobilevit_coreml.package.metadata import METADATA_PREFIX, PREVIEW_PREFIX, PackageRecord
from mobilevit_coreml.preprocessing import GRAY, Preprocessing
from mobilevit_coreml.reference.reader import Feature, Function, Package, Ref
from mobilevit_coreml.validation.original import Original


@dataclasses.dataclass(frozen=True)
class Check:
    """A check by name; `detail` is the value that is there and, if it failed, the expected one.

    `passed` is None where it was not run; `detail` is then the reason.
    """

    name: str
    passed: bool | None
    detail: str


def declared(package: Package, record: PackageRecord, original: Original, function: str) -> Iterator[Check]:
    """Check the record, input, outputs, class names and Xcode's preview of one function of a package."""
    made = dataclasses.replace(  # with what another conversion of the same weights may have otherwise
        original.record, version=record.version, weights=record.weights, compression=record.compression
    )
    yield _check("record", _record(package.metadata), _record(made.to_metadata()))
    preprocessing = original.preprocessing[function]
    yield _check(
        "input",
        {name: _declared_input(feature) for name, feature in package.inputs.items()},
        _expected_inputs(preprocessing),
    )
    outputs = {name: _declared_output(feature) for name, feature in package.outputs.items()}
    yield _check("outputs", {**outputs, "predicted class": package.predicted}, _expected_outputs(original.record))
    if names_classes(record.task, record.outputs):
        names = class_names(package.function)
        yield _check("labels", dict(enumerate(names)), dict(enumerate(original.classes)))
    preview = json.loads(package.metadata.get(f"{PREVIEW_PREFIX}params", "{}"))
    if record.task == SEGMENTATION and record.outputs.type != MASK:
        expected = {"labels": list(original.record.labels), "colors": list(original.record.colors)}
        yield _check("preview", _numbered(preview), _numbered(expected))


def class_names(function: Function) -> list[str]:
    """A classifier's class names in the order of its probabilities; [] where the program names none."""
    classes = function.operations[-1].inputs.get("classes") if function.operations else None
    classes = function.constants.get(classes.name) if isinstance(classes, Ref) else classes
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The texts of a record, structures flattened, so that each difference has a name."""
    flat: dict[str, Any] = {}
    for name, text in metadata.items():
        if name.startswith(METADATA_PREFIX):
            name = name.removeprefix(METADATA_PREFIX)
            value = json.loads(text) if text[:1] in ("{", "[") else text
            items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            flat |= {f"{name}.{key}": entry for key, entry in items} or {name: text}
    return flat


def _declared_input(feature: Feature) -> str:
    return f"{feature.color_layout} {feature.kind} of {'x'.join(map(str, feature.shape))}"


def _expected_inputs(preprocessing: Preprocessing) -> dict[str, str]:
    height, width = preprocessing.input_size
    layout = "GRAYSCALE" if preprocessing.channel_order == GRAY else preprocessing.channel_order
    return {IMAGE: f"{layout} image of {height}x{width}"}


def _declared_output(feature: Feature) -> str:
    return f"{feature.color_layout or feature.dtype} {feature.kind}"


def _expected_outputs(record: PackageRecord) -> dict[str, str]:
    if names_classes(record.task, record.outputs):
        return {CLASS_LABEL: "str label", CLASS_PROBABILITIES: "str probabilities", "predicted class": CLASS_LABEL}
    kinds = {MASK: "GRAYSCALE image", LABELS: "int32 array"} if record.task == SEGMENTATION else {}
    kind = kinds.get(record.outputs.type, f"{record.outputs.dtype} array")
    return {**dict.fromkeys(output_names(record.task, record.outputs), kind), "predicted class": ""}


def _numbered(values: Mapping[str, list[str]]) -> dict[str, str]:
    return {f"{name}[{index}]": one for name, entries in values.items() for index, one in enumerate(entries)}


def _check(name: str, got: Mapping[Any, Any], expected: Mapping[Any, Any]) -> Check:
    different = [key for key in {**expected, **got} if got.get(key) != expected.get(key)]
    if not different:
        return Check(name, True, "as the checkpoint has it")
    first = different[0]
    others = f" ({len(different) - 1} more)" if len(different) > 1 else ""
    return Check(name, False, f"{first}: expected {expected.get(first)!r:.50}, got {got.get(first)!r:.50}{others}")
