"""A package against PyTorch, image by image, and over any number of them in constant memory."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobilevit_coreml.config import SEGMENTATION
from mobilevit_coreml.masks import post_process_semantic_segmentation
from mobilevit_coreml.metrics import TOP, AccuracyMeter, MaskMeter, Meters, nan_lowest
from mobilevit_coreml.mil.export import CLASSIFIER_OUTPUTS
from mobilevit_coreml.model import Model
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES, LABELS, names_classes, output_names
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.validation.dataset import LabelledImage, true_mask
from mobilevit_coreml.validation.worker import BackendError
from mobilevit_coreml.verification import class_maps, compare

MAX_WORST_IMAGES = 6  # that reports show
MAX_POINTS = 2000  # pairs of probabilities to plot: those of the first images
ORIGINAL, PACKAGE = "original", "package"  # the two sides, where both are compared with the truth

TruthMeter = AccuracyMeter | MaskMeter
ClassMap = npt.NDArray[np.int16]


@dataclasses.dataclass
class ImageResult:
    """The figures of one image.

    `truths` has a meter of each side against the image's label or mask, where it has one. `first` are
    the classes that either side puts among its first five: index, and both sides' probabilities. `masks`
    are both sides' class maps (H, W), int16, of a segmenter; a journal does not keep them.
    """

    name: str
    meters: Meters
    truths: dict[str, TruthMeter]
    first: list[tuple[int, float, float]]
    masks: tuple[ClassMap, ClassMap] | None = None

    @property
    def snr(self) -> float:
        """dB of the worst signal, or of masks alone the share of equal pixels; -inf for NaN."""
        figures = self.meters.fidelity({}).figures
        value = figures.get("snr", figures.get("pixels", math.nan))
        return nan_lowest(value)


@dataclasses.dataclass
class Measured:
    """The figures of all images: sums, the worst images, and some of the probabilities."""

    meters: Meters = dataclasses.field(default_factory=Meters)
    truths: dict[str, TruthMeter] = dataclasses.field(default_factory=dict)
    worst: list[ImageResult] = dataclasses.field(default_factory=list)
    points: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def add(self, result: ImageResult) -> None:
        """Count one image."""
        self.meters.merge(result.meters)
        for side, meter in result.truths.items():
            empty = MaskMeter(meter.classes) if isinstance(meter, MaskMeter) else AccuracyMeter()
            self.truths.setdefault(side, empty).merge(meter)  # type: ignore[arg-type]  # of one kind in a run
        self.worst = sorted([*self.worst, result], key=lambda one: one.snr)[:MAX_WORST_IMAGES]
        self.points = (self.points + [(ours, theirs) for _, ours, theirs in result.first])[:MAX_POINTS]


@torch.inference_mode()
def compare_image(
    image: LabelledImage,
    run: Callable[[Image.Image], Mapping[str, Any]],
    model: Model,
    record: PackageRecord,
    preprocessing: Preprocessing,
    classes: Sequence[str],
) -> ImageResult:
    """Compare the outputs of a package, which `run` returns for an image, with PyTorch's; `classes` are the package's.

    Raises BackendError for outputs that are missing, or of another size.
    """
    pixels = image.prepared()
    outputs = run(pixels)
    result = model(torch.from_numpy(preprocessing.pixels(pixels)))
    if names_classes(record.task, record.outputs):
        outputs = {**outputs, CLASS_PROBABILITIES: _in_order(outputs[CLASS_PROBABILITIES], classes)}
    try:
        meters = compare(record, model, result, outputs)
    except (KeyError, RuntimeError, ValueError) as error:
        raise BackendError(f"outputs that cannot be compared: {' '.join(str(error).split())[:120]}") from None
    truths = {} if image.truth is None else _truths(image.truth, record, preprocessing, result, outputs)
    masks = None
    if record.task == SEGMENTATION:
        ours, theirs = class_maps(model, record.outputs, result.logits, outputs)
        masks = ours.short().numpy(), theirs.short().numpy()
    return ImageResult(image.name, meters, truths, _first(record, result, outputs), masks)


def _in_order(probabilities: Mapping[str, float], classes: Sequence[str]) -> dict[str, float]:
    """The probabilities in the order of the classes, in which Core ML does not hand them over."""
    if set(probabilities) != set(classes):
        raise BackendError(f"probabilities of {len(probabilities)} classes, the package has {len(classes)} others")
    return {name: probabilities[name] for name in classes}


def _first(record: PackageRecord, result: Any, outputs: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    if not names_classes(record.task, record.outputs):
        return []
    expected = CLASSIFIER_OUTPUTS[record.outputs.type](result.logits)[0]
    sides = expected, torch.tensor(list(outputs[CLASS_PROBABILITIES].values()))
    best = {int(index) for side in sides for index in side.topk(min(TOP, len(side))).indices}
    rows = [(index, float(sides[0][index]), float(sides[1][index])) for index in best]
    return sorted(rows, key=lambda row: -row[1])


def _truths(
    truth: int | Path, record: PackageRecord, preprocessing: Preprocessing, result: Any, outputs: Mapping[str, Any]
) -> dict[str, TruthMeter]:
    """Both sides against an image's class or mask."""
    if isinstance(truth, int):
        if record.outputs.type != LABELS:  # of one class for each image
            return {}
        ours, theirs = AccuracyMeter(), AccuracyMeter()
        ours.add(result.logits[0], truth)
        theirs.add(torch.tensor(list(outputs[CLASS_PROBABILITIES].values())), truth)
        return {ORIGINAL: ours, PACKAGE: theirs}
    (name,) = output_names(SEGMENTATION, record.outputs)
    output = np.array(outputs[name])
    expected = torch.from_numpy(true_mask(truth, preprocessing))
    meters: dict[str, TruthMeter] = {}
    for side, scores in ((ORIGINAL, result.logits.numpy()), (PACKAGE, output if output.ndim == 4 else output[None])):
        (mask,) = post_process_semantic_segmentation(scores, [preprocessing.crop])
        meter = MaskMeter(result.logits.shape[1])
        meter.add(expected, torch.from_numpy(mask))
        meters[side] = meter
    return meters
