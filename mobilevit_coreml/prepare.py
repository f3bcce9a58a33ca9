"""A checkpoint under the options of a conversion, and the record of what the package is going to be."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobilevit_coreml import __version__
from mobilevit_coreml.checkpoints.overrides import Size
from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.labels import placeholder_labels, unique_labels
from mobilevit_coreml.labels.colors import class_colors
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package.interface import MASK, MAX_MASK_CLASSES, names_classes
from mobilevit_coreml.package.metadata import PackageRecord

if TYPE_CHECKING:
    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.config import MobileViTConfig

MAX_ATTENTION_BYTES = 5 * 10**9  # of one layer's scores in single precision


def with_crop_inside(checkpoint: "Checkpoint", include_crop: bool) -> "Checkpoint":
    """The checkpoint for a package that crops, or does not.

    Raises ConversionError for a network that no image package can hold.
    """
    config = checkpoint.config
    if config.num_channels not in (1, 3):
        raise ConversionError(
            f"num_channels: expected 1 or 3, as an image input has, got {config.num_channels}; "
            "retrain on gray or colour images"
        )
    if config.num_labels < 2 and checkpoint.task == Task.SEGMENTATION:
        raise ConversionError("classes: expected at least 2 to choose among, got 1; give the head one output a class")
    preprocessing = dataclasses.replace(checkpoint.preprocessing, include_crop=include_crop)
    return dataclasses.replace(checkpoint, preprocessing=preprocessing)


def with_image_size(checkpoint: "Checkpoint", size: Size) -> "Checkpoint":
    """The checkpoint for another image size."""
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, image_size=size))


def make_record(checkpoint: "Checkpoint", options: ConversionOptions) -> tuple[PackageRecord, tuple[str, ...]]:
    """The record of a package of this checkpoint, and its class names, made unique; () of features.

    Raises ConversionError for outputs, or sizes of image, that this checkpoint cannot have.
    """
    options.check_task(Task(checkpoint.task))
    outputs = options.outputs(checkpoint.task, checkpoint.config.problem_type, checkpoint.expand)
    if outputs.type == MASK and checkpoint.config.num_labels > MAX_MASK_CLASSES:
        raise ConversionError(
            f"output_type image: expected at most {MAX_MASK_CLASSES} classes, the values of a gray pixel, "
            f"got {checkpoint.config.num_labels}; use output_type labels"
        )
    sizes = options.image_sizes or (checkpoint.config.image_hw,)
    for size in sizes:
        check_memory(with_image_size(checkpoint, size).config)
    config = dataclasses.asdict(with_image_size(checkpoint, sizes[0]).config)
    del config["id2label"]  # the package has them as its class labels
    class_names, renamed = ((), {}) if checkpoint.task == Task.FEATURES else unique_labels(checkpoint.config.id2label)
    in_program = checkpoint.task == Task.FEATURES or names_classes(checkpoint.task, outputs)
    labels = () if in_program else class_names
    preprocessing = checkpoint.preprocessing
    record = PackageRecord(
        version=__version__,
        variant=checkpoint.variant,
        task=checkpoint.task,
        attention=options.attention,
        unfold=options.unfold,
        precision=options.precision,
        weights=checkpoint.source,
        preprocessing=preprocessing.with_crop(sizes[0]) if options.image_sizes else preprocessing,
        outputs=outputs,
        config=config,
        expand=checkpoint.expand,
        labels=labels,
        colors=class_colors(labels) if checkpoint.task == Task.SEGMENTATION else (),
        labels_renamed={str(index): name for index, name in renamed.items()},
        given=options.recorded(),
        assumed=checkpoint.assumed,
        sizes={_function_name(size): size for size in sizes} if len(sizes) > 1 else {},
    )
    return record, class_names


def check_memory(config: "MobileViTConfig") -> None:
    """Raise ConversionError where attention at this size would take more memory than a machine has to spare."""
    rows, columns = config.stage_sizes()[2]  # stage 3 has the most tokens
    tokens = math.ceil(rows / config.patch_hw[0]) * math.ceil(columns / config.patch_hw[1])
    needed = 4 * math.prod(config.patch_hw) * config.num_attention_heads * tokens**2
    if needed > MAX_ATTENTION_BYTES:
        height, width = config.image_hw
        raise ConversionError(
            f"image size: expected attention to take at most {MAX_ATTENTION_BYTES / 1e9:g} GB, "
            f"got {needed / 1e9:.0f} GB for {height}x{width} pixels; choose a smaller size"
        )


def _function_name(size: Size) -> str:
    height, width = size
    return f"size_{height}" if height == width else f"size_{height}x{width}"


def notices_of(checkpoint: "Checkpoint") -> tuple[str, ...]:
    """Sentences that the user should read about the checkpoint."""
    labels: Sequence[str] = checkpoint.config.id2label
    unnamed = checkpoint.task != Task.FEATURES and len(labels) > 1 and labels == placeholder_labels(len(labels))
    text = f"the checkpoint names no classes: they are called {labels[0]} to {labels[-1]}; give --labels"
    return (*checkpoint.notices, *checkpoint.assumed, *([text] if unnamed else []))
