"""The reports as self-contained pages, which load nothing: templates, plots, and images of the worst cases."""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.masks import VOID, palette_image
from mobilevit_coreml.metrics import SignalFidelity, nan_lowest
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.report import formatting, plots, values
from mobilevit_coreml.report.collect import bound_text, got_text, mismatch_text, validation_report
from mobilevit_coreml.report.text import images_text, range_text, result_lines
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.measure import ClassMap
from mobilevit_coreml.validation.run import Run, Validation

THUMBNAIL, MASK_SIDE = 160, 256  # pixels of the longer edge, alone and beside masks
JPEG_QUALITY = 80
SAME_COLOR = "#D5DAE0"  # of a difference map, plots.ORANGE where the masks differ
LISTED = 20  # rows of a table that is open; all are in a table that can be opened


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """An image in a page, as a data URI; `text` describes it."""

    uri: str
    width: int
    height: int
    text: str


@dataclasses.dataclass(frozen=True)
class Masks:
    """Both sides' masks of an image, where they differ, and the name and colour of each class in them."""

    original: Thumbnail
    package: Thumbnail
    difference: Thumbnail
    legend: Sequence[tuple[str, str]]


def write_html(path: Path, validation: Validation, images: Mapping[str, Sequence[LabelledImage]]) -> None:
    """Write the page of a validation, whole or not at all; `images` are those of each function, for thumbnails.

    The page is deterministic. Raises OutputError where nothing can be written.
    """
    report = validation_report(validation)
    signals = next(filter(None, (worst_signal(run.figures) for run in report.runs)), None)
    context = {
        "report": report,
        "points": {(str(run.backend), run.function): run.measured.points for run in validation.runs},
        "drawings": {
            (str(run.backend), run.function): _drawings(run, validation, images.get(run.function, ()))
            for run in validation.runs
        },
        "measured_snr": signals.snr if signals and math.isfinite(signals.snr) else None,
    }
    with atomic_write(path) as file:
        render(file, "validation.html", context)


def render(file: IO[bytes], template: str, context: Mapping[str, Any]) -> None:
    """Write a page; bytes in file names that are no text become question marks."""
    environment = Environment(
        loader=PackageLoader("mobilevit_coreml", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"DEVICES": plots.DEVICES, "LISTED": LISTED, "NEURAL_ENGINE": NEURAL_ENGINE, "plots": plots}
    environment.filters |= {one.__name__: one for one in FILTERS}
    file.write(environment.get_template(template).render(context).encode(errors="replace"))


def worst_signal(figures: values.Figures | None) -> SignalFidelity | None:
    """Worst figures of all signals; None without signals."""
    if figures is None or not figures.signals:
        return None
    signals = figures.signals.values()

    def least(name: str) -> float:
        return min((getattr(one, name) for one in signals), key=nan_lowest)

    difference = max((one.max_abs_difference for one in signals), key=lambda one: -nan_lowest(-one))
    return SignalFidelity(least("snr"), least("worst_snr"), least("cosine"), difference)


def ranges_by_operation(function: values.Function) -> dict[str, float]:
    """Largest absolute value of each operation."""
    return {one.operation: one.max_abs for one in function.ranges}


FILTERS = (
    *(formatting.counted, formatting.decibels, formatting.megabytes, formatting.noise, formatting.percent),
    *(bound_text, got_text, images_text, mismatch_text, range_text, result_lines, ranges_by_operation, worst_signal),
)


def _drawings(
    run: Run, validation: Validation, images: Sequence[LabelledImage]
) -> list[tuple[Thumbnail | str, Masks | None]]:
    """Thumbnail and masks of each of the worst images of a run."""
    by_name = {image.name: image for image in images}
    crop, record = validation.original.preprocessing[run.function].crop, validation.record
    return [
        (
            _photograph(by_name.get(result.name), crop, THUMBNAIL if result.masks is None else MASK_SIDE),
            None if result.masks is None else _masks(result.masks, crop, record),
        )
        for result in run.measured.worst
    ]


def _photograph(image: LabelledImage | None, crop: tuple[int, int], side: int) -> Thumbnail | str:
    """Crop of an image as the network has it, or a sentence why there is none."""
    if image is None:
        return "no image"
    try:
        prepared = image.prepared()
    except MobileViTError:
        return "the image can no longer be read"
    left, top = (prepared.width - crop[1]) // 2, (prepared.height - crop[0]) // 2
    cropped = prepared.crop((left, top, left + crop[1], top + crop[0]))
    cropped.thumbnail((side, side))
    return _thumbnail(cropped, f"{image.name}, {crop[1]}x{crop[0]} pixels", "jpeg")


def _masks(masks: tuple[ClassMap, ClassMap], crop: tuple[int, int], record: PackageRecord) -> Masks:
    """Masks in the classes' colours, at most MASK_SIDE large, with the pixels of indices that are no class as void."""
    scale = min(1, MASK_SIDE / max(crop))
    size = round(crop[1] * scale), round(crop[0] * scale)
    known = [np.where((side >= 0) & (side < len(record.labels)), side, VOID).astype(np.int32) for side in masks]
    original, package = (palette_image(side, record.colors).resize(size, Image.Resampling.NEAREST) for side in known)
    differs = Image.fromarray(np.where(masks[0] != masks[1], 255, 0).astype(np.uint8))
    shrinks = differs.width > size[0]  # where each differing pixel shows
    differs = differs.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
    difference = differs.point(lambda value: value > 0).convert("P")
    difference.putpalette(bytes.fromhex(SAME_COLOR[1:] + plots.ORANGE[1:]))
    occurring = [int(index) for index in np.unique(np.stack(known)) if index != VOID]
    return Masks(
        _thumbnail(original, "PyTorch's mask", "png"),
        _thumbnail(package, "the package's mask", "png"),
        _thumbnail(difference, "pixels that differ", "png"),
        [(record.labels[index], record.colors[index]) for index in occurring],
    )


def _thumbnail(image: Image.Image, text: str, kind: str) -> Thumbnail:
    file = io.BytesIO()
    image.save(file, kind, quality=JPEG_QUALITY, optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{data}", image.width, image.height, text)
