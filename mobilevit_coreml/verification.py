"""Whether a saved package computes what the PyTorch model does, by the reference evaluator, on any machine."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.interface import (
    CLASS_PROBABILITIES,
    IMAGE,
    LABELS,
    LOGITS,
    MASK,
    NETWORK,
    OutputForm,
    output_names,
)
from mobilevit_coreml.metrics import MaskFidelity, MaskMeter, RankingFidelity, RankingMeter, SignalFidelity, SignalMeter
from mobilevit_coreml.mil.deployed import output_of_logits
from mobilevit_coreml.model import Model
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.record import PackageRecord
from mobilevit_coreml.reference import ReferenceEvaluator

CLASSIFIER, HEAD = "classifier", "head_classifier"  # the logits: operations are named after their modules
GATES = {"fp16": 30.0, "fp32": 70.0}  # dB SNR of what the network itself puts out, by the package's precision
# Share of a mask's pixels. Where two classes come close rounding decides, and an untrained network is nowhere sure.
MASK_GATES = {"fp16": 0.97, "fp32": 0.999}


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """A function of a package against its PyTorch model in fp32, over a number of pictures.

    `signals` are of a classifier's or segmenter's logits and of whatever real numbers are put out as
    arrays, by name; `ranking` is of a classifier's probabilities, `masks` of a segmenter's classes.
    """

    images: int
    gate: float  # dB, of every signal
    agreement_gate: float  # share of the pictures with the same first class, of a mask's pixels with the same class
    signals: Mapping[str, SignalFidelity]
    ranking: RankingFidelity | None = None
    masks: MaskFidelity | None = None

    @property
    def worst(self) -> SignalFidelity:
        """The figures of the worst signal; one whose SNR is no number is worse than any."""
        return min(self.signals.values(), key=_rank)

    @property
    def agreement(self) -> float | None:
        """Share of the pictures, or of the pixels, with the same class; None of features."""
        if self.ranking is not None:
            return self.ranking.top1_agreement
        return None if self.masks is None else self.masks.pixel_agreement

    @property
    def passed(self) -> bool:
        """Whether everything reaches its gate; what is not a number does not."""
        agrees = self.agreement is None or self.agreement >= self.agreement_gate
        return agrees and self.worst.snr >= self.gate


@torch.inference_mode()
def verify(
    package: Path,
    model: Model,
    record: PackageRecord,
    preprocessing: Preprocessing,
    images: Iterable[Image.Image],
    function_name: str | None = None,
    gate: float | None = None,
    agreement_gate: float | None = None,
) -> Fidelity:
    """Run a function of a saved package, and a model, on RGB pictures of preprocessing.input_size.

    Without gates of its own the package has to compute what the model does, as far as its precision allows.
    """
    if gate is None:
        gate = GATES[record.precision]
    if agreement_gate is None:
        agreement_gate = MASK_GATES[record.precision] if record.task == SEGMENTATION else 0.0
    evaluator = ReferenceEvaluator(package, record.precision, function_name)
    compare = {CLASSIFICATION: _compare_classifier, SEGMENTATION: _compare_segmenter, FEATURES: _compare_features}
    meters = _Meters(defaultdict(SignalMeter), RankingMeter(), MaskMeter(model.config.num_labels))
    count = 0
    for image in images:
        pixels = torch.from_numpy(preprocessing.pixels(image))
        compare[record.task](evaluator, model, record.outputs, image, pixels, meters)
        count += 1
    return Fidelity(
        count,
        gate,
        agreement_gate,
        {name: meter.result() for name, meter in meters.signals.items()},
        meters.ranking.result() if record.task == CLASSIFICATION else None,
        meters.masks.result() if record.task == SEGMENTATION else None,
    )


class _Meters(NamedTuple):
    signals: dict[str, SignalMeter]
    ranking: RankingMeter
    masks: MaskMeter


def _compare_classifier(
    evaluator: ReferenceEvaluator, model: Model, _form: OutputForm, image: Image.Image, pixels: Tensor, meters: _Meters
) -> None:
    logits = model(pixels).logits
    outputs = evaluator.run({IMAGE: image}, capture=[CLASSIFIER])
    meters.signals[LOGITS].add(logits, torch.from_numpy(outputs[CLASSIFIER]))
    meters.ranking.add(logits.softmax(1)[0], torch.tensor(list(outputs[CLASS_PROBABILITIES].values())))


def _compare_segmenter(
    evaluator: ReferenceEvaluator, model: Model, form: OutputForm, image: Image.Image, pixels: Tensor, meters: _Meters
) -> None:
    logits = model(pixels).logits
    (name,) = output_names(SEGMENTATION, form)
    own = name if (form.type, form.size) == (LOGITS, NETWORK) else HEAD  # where the network's logits are to be had
    outputs = evaluator.run({IMAGE: image}, capture=[own])
    meters.signals[LOGITS].add(logits, torch.from_numpy(outputs[own]))
    expected, output = output_of_logits(logits, form, model.config), torch.from_numpy(np.array(outputs[name]))
    if form.type not in (LABELS, MASK):
        if own != name:
            meters.signals["output"].add(expected, output)
        expected, output = expected.argmax(1), output.argmax(1)
    meters.masks.add(expected, output)


def _compare_features(
    evaluator: ReferenceEvaluator, model: Model, form: OutputForm, image: Image.Image, pixels: Tensor, meters: _Meters
) -> None:
    result = model(pixels)
    outputs = evaluator.run({IMAGE: image})
    values = (result.pooled, result.feature_map, *result.hidden_states)
    for name, value in zip(output_names(FEATURES, form), values, strict=False):  # the stages may be left out
        meters.signals[name].add(value, torch.from_numpy(outputs[name]))


def report(fidelity: Fidelity, reference: str = "PyTorch fp32") -> list[str]:
    """A verification in short lines, the worst signal first; without a gate there is no verdict."""
    f = fidelity
    (name, worst), *others = sorted(f.signals.items(), key=lambda entry: _rank(entry[1]))
    verdict, gate = ("PASS, " if f.passed else "FAIL, "), f" (gate {f.gate:g} dB)"
    if math.isinf(f.gate):
        verdict = gate = ""
    lines = [
        f"{verdict}{name} {_db(worst.snr)} SNR against {reference}{gate}",
        f"worst picture {_db(worst.worst_snr)}, cosine {worst.cosine:.6f}",
        *(f"{other} {_db(s.snr)}, worst picture {_db(s.worst_snr)}, cosine {s.cosine:.6f}" for other, s in others),
    ]
    if f.ranking is not None:
        lines += [
            f"largest difference of a probability {f.ranking.max_abs_difference:.2g}",
            f"top-1 equal on {f.ranking.top1_agreement:.0%}, top-5 on {f.ranking.top5_agreement:.0%} "
            f"of {f.images} pictures",
            f"smallest top-1 margin {f.ranking.margin:.2g}",
        ]
    elif f.masks is not None:
        needed = f" (gate {f.agreement_gate:.4g})" if f.agreement_gate else ""
        lines += [
            f"pixel agreement {f.masks.pixel_agreement:.2%}{needed}",
            f"mean IoU {f.masks.mean_iou:.3f} over {f.masks.classes} classes, {f.images} pictures",
        ]
    else:
        lines.append(f"over {f.images} pictures")
    return lines


def _rank(signal: SignalFidelity) -> float:
    return -math.inf if math.isnan(signal.snr) else signal.snr


def _db(value: float) -> str:
    if not math.isfinite(value):
        return "no finite" if math.isnan(value) else f"{value} dB"
    return f"{math.floor(value * 10) / 10:.1f} dB"  # down, lest what is just under a gate look as if it reached it
