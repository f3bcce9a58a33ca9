"""What was asked for, checked against what there is, before anybody waits for it."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilevit_coreml import __version__
from mobilevit_coreml.compression.budget import Budget
from mobilevit_coreml.compression.formats import INTEGER, INTEGER_BITS, PALETTE, PALETTE_BITS, SPARSE, Format
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import ConversionError, LabelsError, OutputError
from mobilevit_coreml.labels import placeholder_labels, unique_labels
from mobilevit_coreml.labels.colors import class_colors
from mobilevit_coreml.package.interface import LABELS, MASK, MAX_MASK_CLASSES, OutputForm
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.publish import check_file_free

if TYPE_CHECKING:
    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.config import MobileViTConfig

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
FIRST_WITH_FLOAT16_OUTPUTS = "iOS16"
FIRST_WITH_COMPRESSION = "iOS16"
FIRST_WITH_PIXEL_UNSHUFFLE = "iOS16"
FIRST_WITH_FUNCTIONS = "iOS18"
MAX_PACKAGE = 10**9  # bytes
MAX_ATTENTION = 5 * 10**9  # bytes of one layer's scores in single precision
REPORTS = (".html", ".json", ".png")
MIN_PICTURES = 3  # two to calibrate with, one to test

Size = tuple[int, int]  # height, width


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """Raise ConversionError for what is none of the choices."""
    if value is not None and value not in choices:
        raise ConversionError(f"{name}: expected one of {', '.join(choices)}, got {value!r}; choose one of these")


def target_for(target: str | None, form: OutputForm, several: bool, scheme: Format | Budget | None, unfold: str) -> str:
    """The deployment target: the one asked for, if it can do what else is, or the least that can."""
    needs = {"several image sizes in one package": FIRST_WITH_FUNCTIONS} if several else {}
    if form.dtype == "float16":
        needs["float16 outputs"] = FIRST_WITH_FLOAT16_OUTPUTS
    if unfold == "pixel_shuffle":
        needs["the unfold form pixel_shuffle"] = FIRST_WITH_PIXEL_UNSHUFFLE
    if isinstance(scheme, Format):
        needs[f"weights in {scheme}"] = scheme.target
    elif scheme is not None:
        needs["a budget"] = FIRST_WITH_COMPRESSION
    what, least = max(needs.items(), key=lambda need: TARGETS.index(need[1]), default=("", TARGETS[0]))
    target = target or max(least, "iOS16", key=TARGETS.index)
    if TARGETS.index(target) < TARGETS.index(least):
        raise ConversionError(f"target: expected {least} or later for {what}, got {target}; raise it with --target")
    return target


def scheme_of(
    palettize: int | None,
    group_size: int | None,
    quantize: str | None,
    prune: float | None,
    max_size: int | None,
    min_snr: float | None,
    min_agreement: float | None,
) -> Format | Budget | None:
    """One format for all weights, or a budget, or neither; raises ConversionError for values there are not, or two."""
    asked = {
        "palettize": palettize,
        "quantize": quantize,
        "prune": prune,
        "max_size": max_size,
        "min_snr": min_snr,
        "min_agreement": min_agreement,
    }
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ConversionError(f"{given[1]}: expected one scheme, got {given[0]} beside it; leave one out")
    if group_size is not None and (palettize is None or group_size < 1):
        raise ConversionError(
            f"group_size: expected a number of channels, at least 1, beside palettize, got {group_size}; leave it out"
        )
    if palettize is not None:
        check_choice("palettize", str(palettize), tuple(map(str, PALETTE_BITS)))
        return Format(PALETTE, palettize, group_size)
    if quantize is not None:
        check_choice("quantize", quantize, tuple(f"int{bits}" for bits in INTEGER_BITS))
        return Format(INTEGER, int(quantize.removeprefix("int")))
    if prune is not None:
        if not 0 < prune < 1:
            raise ConversionError(f"prune: expected a share between 0 and 1, got {prune:g}; 0.5 halves the weights")
        return Format(SPARSE, zeros=prune)
    if not given:
        return None
    for name, value, most in (
        ("max_size", max_size, MAX_PACKAGE),
        ("min_snr", min_snr, 200),
        ("min_agreement", min_agreement, 1),
    ):
        if value is not None and not 0 < value <= most:
            raise ConversionError(f"{name}: expected a number above 0, at most {most:g}, got {value:g}; change it")
    return Budget(max_size, min_snr, min_agreement)


def check_scheme(
    scheme: Format | Budget | None, checkpoint: "Checkpoint", sizes: Sequence[Size], pictures: int
) -> None:
    """Raise ConversionError where a scheme cannot be had for these weights, sizes and so many pictures."""
    if scheme is not None and 0 < pictures < MIN_PICTURES:
        raise ConversionError(
            f"images: expected at least {MIN_PICTURES} pictures to calibrate and to test with, got {pictures}; add some"
        )
    if not isinstance(scheme, Budget):
        return
    if not pictures:
        raise ConversionError(
            "images: expected photographs to calibrate with, got none; name their directory (--images)"
        )
    if len(sizes) > 1:
        raise ConversionError(f"budget: expected one image size, got {len(sizes)}; make a package for each")
    if scheme.min_agreement is not None and checkpoint.task == FEATURES:
        raise ConversionError("min_agreement: expected classes, got features, which have none; use min_snr")


_FOR = {
    "type": "segmentation",
    "size": "segmentation",
    "dtype": "features, logits or probabilities",
    "hidden_states": "features",
}


def check_outputs(checkpoint: "Checkpoint", asked: Collection[str], form: OutputForm) -> None:
    """Raise ConversionError where a form was asked for that the task does not have."""
    integers = checkpoint.task == SEGMENTATION and form.type in (LABELS, MASK)
    has = {
        CLASSIFICATION: (),
        SEGMENTATION: ("type", "size") if integers else ("type", "size", "dtype"),
        FEATURES: ("dtype", "hidden_states"),
    }[checkpoint.task]
    for name in asked:
        if name not in has:
            option = "--hidden-states" if name == "hidden_states" else f"--output-{name}"
            got = (
                f"{checkpoint.task} with --output-type {form.type}" if integers and name == "dtype" else checkpoint.task
            )
            raise ConversionError(f"{option}: expected {_FOR[name]}, got {got}; leave it out")
    if checkpoint.task == SEGMENTATION and form.type == MASK and checkpoint.config.num_labels > MAX_MASK_CLASSES:
        raise ConversionError(
            f"--output-type image: expected at most {MAX_MASK_CLASSES} classes, as a gray value can tell apart, "
            f"got {checkpoint.config.num_labels}; use --output-type labels"
        )


def adapted(
    checkpoint: "Checkpoint", names: tuple[str, ...] | None, channel_order: str | None, include_crop: bool
) -> "Checkpoint":
    """The checkpoint with what the user asked for in place of what it came with."""
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if names is not None:
        if checkpoint.task == FEATURES:
            raise LabelsError(
                f"labels: expected none, since features have no classes, got {len(names)}; leave them out"
            )
        if len(names) != config.num_labels:
            raise LabelsError(
                f"labels: expected {config.num_labels} names, one for each class of the checkpoint, got {len(names)}; "
                "give a file that names every class once"
            )
        config = dataclasses.replace(config, id2label=names)
    if channel_order is not None:
        preprocessing = dataclasses.replace(preprocessing, channel_order=channel_order)
    if include_crop:
        preprocessing = dataclasses.replace(preprocessing, include_crop=True)
    if config.num_channels != 3:
        raise ConversionError(
            f"num_channels: expected 3, as an image input has, got {config.num_channels}; retrain on colour images"
        )
    if config.num_labels < 2 and checkpoint.task != FEATURES:
        raise ConversionError("classes: expected at least 2 to choose among, got 1; give the head one output a class")
    return dataclasses.replace(checkpoint, config=config, preprocessing=preprocessing)


def check_report(report: Path | None, scheme: Format | Budget | None, verify: bool, force: bool) -> None:
    """Raise where there will be nothing to report of, or no place for it."""
    if report is None:
        return
    if report.suffix not in REPORTS:
        raise OutputError(
            f"report {report}: expected a name ending in {' or '.join(REPORTS)}, got another; change the ending"
        )
    if scheme is None or not verify:
        raise ConversionError("report: expected a compression that is verified, got none; leave it out")
    check_file_free(report, force)
    if report.suffix != ".json":
        from mobilevit_coreml.report.compression import check_drawable

        check_drawable()  # now, not after minutes of compression


def check_memory(config: "MobileViTConfig") -> None:
    """Raise ConversionError where attention at this size would take more memory than a machine has to spare."""
    rows, columns = config.stage_sizes()[2]  # stage 3 has the most tokens
    tokens = math.ceil(rows / config.patch_hw[0]) * math.ceil(columns / config.patch_hw[1])
    places = math.prod(config.patch_hw)
    needed = 4 * places * config.num_attention_heads * tokens**2
    if needed > MAX_ATTENTION:
        height, width = config.image_hw
        raise ConversionError(
            f"image size: expected attention to take at most {MAX_ATTENTION / 1e9:g} GB, got {needed / 1e9:.0f} GB "
            f"for {height}x{width} pixels; choose a smaller size"
        )


def sized(checkpoint: "Checkpoint", size: Size) -> "Checkpoint":
    """The checkpoint for another image size."""
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, image_size=size))


def record_of(
    checkpoint: "Checkpoint", attention: str, unfold: str, precision: str, form: OutputForm, sizes: Sequence[Size]
) -> tuple[PackageRecord, tuple[str, ...]]:
    """What the package will say of itself, and the class names, made unique."""
    functions = {_function_name(size): size for size in sizes}
    if len(functions) < len(sizes):
        raise ConversionError("image size: expected each size once, got one twice; leave the second out")
    for size in sizes or [checkpoint.config.image_hw]:
        check_memory(sized(checkpoint, size).config)
    config = dataclasses.asdict(sized(checkpoint, sizes[0] if sizes else checkpoint.config.image_hw).config)
    del config["id2label"]  # the package has them as its class labels
    labels = checkpoint.config.id2label
    class_names, renamed = unique_labels(labels) if checkpoint.task != FEATURES else ((), {})
    segments = checkpoint.task == SEGMENTATION
    record = PackageRecord(
        version=__version__,
        variant=checkpoint.variant,
        task=checkpoint.task,
        attention=attention,
        unfold=unfold,
        precision=precision,
        weights=checkpoint.source,
        preprocessing=checkpoint.preprocessing.with_crop(sizes[0]) if sizes else checkpoint.preprocessing,
        outputs=form,
        config=config,
        expand=checkpoint.expand,
        labels=class_names if segments else (),
        colors=class_colors(class_names) if segments else (),
        labels_renamed={str(index): name for index, name in renamed.items()},
        sizes=functions if len(sizes) > 1 else {},
    )
    return record, class_names


def _function_name(size: Size) -> str:
    height, width = size
    return f"size_{height}" if height == width else f"size_{height}x{width}"


def notices_of(checkpoint: "Checkpoint") -> tuple[str, ...]:
    """What the user should be told of the checkpoint."""
    labels = checkpoint.config.id2label
    unnamed = checkpoint.task != FEATURES and labels == placeholder_labels(len(labels))
    text = f"the checkpoint names no classes: they are called {labels[0]} to {labels[-1]}; give --labels"
    return tuple(filter(None, (checkpoint.notice, text if unnamed else None)))
