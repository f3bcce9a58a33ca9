"""What Xcode shows of a package: texts, the preview, and the record of its making."""

import json
from typing import Any

from mobilevit_coreml.checkpoints.download import PUBLISHED
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.interface import IMAGE, MASK, output_descriptions
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.record import PackageRecord

PREVIEW_PREFIX = "com.apple.coreml.model.preview."
KINDS = {
    CLASSIFICATION: "image classifier",
    SEGMENTATION: "semantic segmenter with DeepLabV3's head",
    FEATURES: "feature extractor",
}


def describe_interface(program: Any, record: PackageRecord, preprocessing: Preprocessing) -> None:
    """Say what the input and the outputs of a function are; `program` is a ct.models.MLModel of it alone."""
    program.input_description[IMAGE] = _input_text(preprocessing)
    for name, text in output_descriptions(record.task, record.outputs).items():
        program.output_description[name] = text


def _input_text(pixels: Preprocessing) -> str:
    height, width = pixels.input_size
    to = "fill that and a margin" if pixels.fill else f"a shorter edge of {pixels.resize}"
    resize = f"Resize to {to} ({pixels.interpolation})"
    cut = f"cut {width}x{height} from the centre"
    inside = f"cropping to {pixels.crop[1]}x{pixels.crop[0]}, scaling" if pixels.include_crop else "scaling"
    return f"The picture, {width}x{height} pixels. {resize} and {cut}; {inside} and channel order are done inside."


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
    if record.task == SEGMENTATION and record.outputs.type != MASK:  # the preview wants an array
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
