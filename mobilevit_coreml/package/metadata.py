"""A package's metadata: the record of its conversion, enough to rebuild the PyTorch side, and the texts Xcode shows."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mobilevit_coreml.checkpoints.hub import PUBLISHED
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import Task
from mobilevit_coreml.package.interface import IMAGE, MASK, OutputOptions, output_descriptions
from mobilevit_coreml.preprocessing import GRAY, Preprocessing

METADATA_PREFIX = "mobilevit_coreml."
PREVIEW_PREFIX = "com.apple.coreml.model.preview."
KINDS: Mapping[str, str] = {
    Task.CLASSIFICATION: "image classifier",
    Task.SEGMENTATION: "semantic segmenter with DeepLabV3's head",
    Task.FEATURES: "feature extractor",
}
FUNCTION = "main"  # of a package with one size


@dataclasses.dataclass(frozen=True)
class PackageRecord:
    """The record of a conversion, under `mobilevit_coreml.*` in a package's user-defined metadata.

    `config` is the network's configuration without the labels, `expand` whether its backbone has the
    final expansion. `labels` and `colors` are a segmenter's, and `labels` a classifier's that returns logits or
    values; others have their labels in the program. `labels_renamed` maps the index of a class to the name it had
    before the names were made unique. `compression` says how weights are stored: the scheme, how many images it was
    calibrated with, the modules by format and, of those kept in full precision, by reason, and for a budget the
    curve of all packages built, [bytes, dB, agreement]. `sizes` has (height, width) of the crop of each
    function in a package of several sizes; `preprocessing` and `config` are those of the first. `given` are the
    CheckpointOverrides of the conversion, `assumed` is what neither these nor the checkpoint's files say.
    """

    version: str
    variant: str
    task: Task
    attention: str
    unfold: str
    precision: str
    weights: WeightsSource
    preprocessing: Preprocessing
    outputs: OutputOptions
    config: Mapping[str, Any]
    expand: bool
    labels: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    labels_renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compression: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in self.labels) or len(self.colors) not in (0, len(self.labels)):
            raise ValueError("labels and colours that do not belong together")
        if not all(re.fullmatch("#[0-9A-Fa-f]{6}", color) for color in self.colors):
            raise ValueError("colours that are not #RRGGBB")
        self.by_function()  # raises where a size cannot be

    def by_function(self) -> dict[str, Preprocessing]:
        """Preprocessing of each of the program's functions."""
        if not self.sizes:
            return {FUNCTION: self.preprocessing}
        return {name: self.preprocessing.with_crop(size) for name, size in self.sizes.items()}

    def to_metadata(self) -> dict[str, str]:
        """As user-defined metadata, whose values are texts: JSON where there is a structure."""
        texts = {name: getattr(self, name) for name in _TEXT_FIELDS}
        texts["channel_order"] = self.preprocessing.channel_order  # again, for people who read it in Xcode
        if self.weights.untrained:
            texts["untrained"] = "true"
        values = dataclasses.asdict(self)
        values["weights"] = {key: value for key, value in values["weights"].items() if value is not None}
        texts |= {name: json.dumps(values[name]) for name in _JSON_FIELDS}
        return {METADATA_PREFIX + name: text for name, text in texts.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "PackageRecord":
        """From a package's user-defined metadata; KeyError, ValueError or TypeError where that is no record.

        MobileViTError, OverflowError or RecursionError where a value in it cannot be.
        """
        values: dict[str, Any] = {name: metadata[METADATA_PREFIX + name] for name in _TEXT_FIELDS}
        for name in _JSON_FIELDS:
            if METADATA_PREFIX + name in metadata or name not in LATER_FIELDS:
                values[name] = json.loads(metadata[METADATA_PREFIX + name])
        pixels = values.pop("preprocessing")
        return cls(
            task=Task(values.pop("task")),
            weights=WeightsSource(**values.pop("weights")),
            preprocessing=Preprocessing(**pixels),
            assumed=tuple(values.pop("assumed", ())),
            outputs=OutputOptions(**values.pop("outputs")),
            labels=tuple(values.pop("labels")),
            colors=tuple(values.pop("colors")),
            sizes={name: (int(height), int(width)) for name, (height, width) in values.pop("sizes").items()},
            **values,
        )


_TEXT_FIELDS = ("version", "variant", "task", "attention", "unfold", "precision")
_JSON_FIELDS = tuple(field.name for field in dataclasses.fields(PackageRecord) if field.name not in _TEXT_FIELDS)
LATER_FIELDS = ("given", "assumed")  # not in a record of version 0.1.0


def describe_interface(program: Any, record: PackageRecord, preprocessing: Preprocessing) -> None:
    """Say what the input and the outputs of a function are; `program` is a ct.models.MLModel of it alone."""
    program.input_description[IMAGE] = _input_text(preprocessing)
    for name, text in output_descriptions(record.task, record.outputs).items():
        program.output_description[name] = text


def _input_text(pixels: Preprocessing) -> str:
    height, width = pixels.input_size
    if pixels.fill:
        to = "Resize to fill that and a margin"
    elif isinstance(pixels.resize, tuple):
        to = f"Stretch to {pixels.resize[1]}x{pixels.resize[0]}"
    else:
        to = f"Resize to a shorter edge of {pixels.resize}"
    resize = "Without resizing it" if pixels.resize is None else f"{to} ({pixels.interpolation}) and"
    cut = f"cut {width}x{height} from the centre"
    inside = [f"cropping to {pixels.crop[1]}x{pixels.crop[0]}"] if pixels.include_crop else []
    inside += ["scaling", "normalization"] if pixels.normalizes else ["scaling"]
    last = "" if pixels.channel_order == GRAY else " and channel order"
    return f"The image, {width}x{height} pixels. {resize} {cut}; {', '.join(inside)}{last} are done inside."


def describe(program: Any, record: PackageRecord) -> None:
    """Fill in what concerns the package as a whole."""
    program.author = "MobileViT by Sachin Mehta and Mohammad Rastegari (Apple)"
    program.license = _license(record)
    program.version = record.version
    program.short_description = (
        f"{'UNTRAINED, recognizes nothing. ' if record.weights.untrained else ''}"
        f"MobileViT-{record.variant.upper()} {KINDS[record.task]}, converted by mobilevit_coreml {record.version}."
    )
    program.user_defined_metadata.update(record.to_metadata())
    if record.task == Task.SEGMENTATION and record.outputs.type != MASK:  # the preview wants an array
        program.user_defined_metadata[f"{PREVIEW_PREFIX}type"] = "imageSegmenter"
        parameters = {"labels": record.labels, "colors": record.colors}
        program.user_defined_metadata[f"{PREVIEW_PREFIX}params"] = json.dumps(parameters)


def _license(record: PackageRecord) -> str:
    if record.weights.untrained:
        return "None needed: the weights are random numbers"
    published = {hub_id for variants in PUBLISHED.values() for hub_id in variants.values()}
    if record.weights.name.split("@")[0] in published:
        return "Weights: Apple sample code license, see the LICENSE of apple/ml-cvnets"
    return "Weights: as their source says, which this package does not know"
