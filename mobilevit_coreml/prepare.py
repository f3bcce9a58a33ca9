"""A checkpoint under the options of a conversion, and the record of what the package is going to be."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobilevit_coreml import __version__
from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import ConversionError, LabelsError
from mobilevit_coreml.labels import placeholder_labels, unique_labels
from mobilevit_coreml.labels.colors import class_colors
from mobilevit_coreml.options import ConversionOptions, Size
from mobilevit_coreml.package.interface import MASK, MAX_MASK_CLASSES
from mobilevit_coreml.package.metadata import PackageRecord

if TYPE_CHECKING:
    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.config import MobileViTConfig

MAX_ATTENTION_BYTES = 5 * 10**9  # of one layer's scores in single precision


def with_overrides(
    checkpoint: "Checkpoint", labels: tuple[str, ...] | None, channel_order: str | None, include_crop: bool
) -> "Checkpoint":
    """The checkpoint with what the user asked for in place of what it came with.

    Raises LabelsError for labels that are not one for each class, ConversionError for a network that no image
    package can hold.
    """
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if labels is not None:
        if len(labels) != config.num_labels:
            raise LabelsError(
                f"labels: expected {config.num_labels} names, one for each class of the checkpoint, got {len(labels)}; "
                "give a file that names every class once"
            )
        config = dataclasses.replace(config, id2label=labels)
    if channel_order is not None:
        preprocessing = dataclasses.replace(preprocessing, channel_order=channel_order)
    if include_crop:
        preprocessing = dataclasses.replace(preprocessing, include_crop=True)
    if config.num_channels != 3:
        raise ConversionError(
            f"num_channels: expected 3, as an image input has, got {config.num_channels}; retrain on colour images"
        )
    if config.num_labels < 2 and checkpoint.task != Task.FEATURES:
        raise ConversionError("classes: expected at least 2 to choose among, got 1; give the head one output a class")
    return dataclasses.replace(checkpoint, config=config, preprocessing=preprocessing)


def with_image_size(checkpoint: "Checkpoint", size: Size) -> "Checkpoint":
    """The checkpoint for another image size."""
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, image_size=size))


def make_record(checkpoint: "Checkpoint", options: ConversionOptions) -> tuple[PackageRecord, tuple[str, ...]]:
    """The record of a package of this checkpoint, and its class names, made unique; () of features.

    Raises ConversionError for outputs, or sizes of image, that this checkpoint cannot have.
    """
    options.check_task(Task(checkpoint.task))
    outputs = options.outputs(checkpoint.expand)
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
    mask_labels = class_names if checkpoint.task == Task.SEGMENTATION else ()
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
        labels=mask_labels,
        colors=class_colors(mask_labels) if mask_labels else (),
        labels_renamed={str(index): name for index, name in renamed.items()},
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
    unnamed = checkpoint.task != Task.FEATURES and labels == placeholder_labels(len(labels))
    text = f"the checkpoint names no classes: they are called {labels[0]} to {labels[-1]}; give --labels"
    return tuple(filter(None, (checkpoint.notice, text if unnamed else None)))
