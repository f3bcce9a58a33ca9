"""Whether a saved package computes what the PyTorch model does, by the reference evaluator, on any machine."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.metrics import (
    LEAST_PROBABILITY,
    MaskFidelity,
    MaskMeter,
    RankingFidelity,
    RankingMeter,
    SignalFidelity,
    SignalMeter,
)
from mobilevit_coreml.mil.export import segmentation_output
from mobilevit_coreml.model import Model
from mobilevit_coreml.package.interface import (
    CLASS_PROBABILITIES,
    IMAGE,
    LABELS,
    LOGITS,
    MASK,
    NETWORK,
    OutputForm,
    output_names,
)
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.reference import ReferenceEvaluator

CLASSIFIER, HEAD = "classifier", "head_classifier"  # the logits: operations are named after their modules
LOG_PROBABILITIES = "log-probabilities"  # a classifier's logits as far as its probabilities tell
LEAST_SIGNIFICANT = 16 * LEAST_PROBABILITY  # a probability below it has less than four bits left in fp16
GATES = {"fp16": 30.0, "fp32": 70.0}  # dB SNR of what the network itself puts out, by the package's precision
# Share of a mask's pixels. Where two classes come close rounding decides, and an untrained network is nowhere sure.
MASK_GATES = {"fp16": 0.97, "fp32": 0.999}
# Nats. Logits at their gate leave a tenth of it; probabilities that are none, or another class's, have many times more.
KL_GATES = {"fp16": 0.05, "fp32": 0.001}


class Bound(NamedTuple):
    """What a gate on a figure means."""

    at_least: bool  # or at most
    unit: str  # dB, share, nats, …
    what: str


BOUNDS: Mapping[str, Bound] = {
    "snr": Bound(True, "dB", "SNR of the worst signal, all pictures together"),
    "worst-snr": Bound(True, "dB", "SNR of the worst signal on the worst picture"),
    "cosine": Bound(True, "", "cosine of the worst signal"),
    "top1": Bound(True, "share", "pictures with the same first class"),
    "top5": Bound(True, "share", "pictures with the same set of first five classes"),
    "kl": Bound(False, "nats", "divergence of the probabilities, mean of the pictures"),
    "probability": Bound(False, "", "largest difference of a probability"),
    "pixels": Bound(True, "share", "pixels with the same class"),
    "miou": Bound(True, "", "mean IoU of the two sides' masks"),
}


@dataclasses.dataclass(frozen=True)
class GateResult:
    """A figure against its gate; `figure` is None where it was not measured."""

    name: str
    gate: float
    figure: float | None
    bound: Bound

    @property
    def passed(self) -> bool | None:
        """Whether the gate is reached, which what is no number does not; None where nothing was measured."""
        if self.figure is None:
            return None
        return self.figure >= self.gate if self.bound.at_least else self.figure <= self.gate


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """A function of a package against its PyTorch model in fp32, over a number of pictures.

    `signals` are of a classifier's or segmenter's logits and of whatever real numbers are put out as
    arrays, by name; `ranking` is of a classifier's probabilities, `masks` of a segmenter's classes.
    `gates` bound figures, by their names in BOUNDS.
    """

    images: int
    gates: Mapping[str, float]
    signals: Mapping[str, SignalFidelity]
    ranking: RankingFidelity | None = None
    masks: MaskFidelity | None = None

    @property
    def worst(self) -> SignalFidelity:
        """The figures of the worst signal; one whose SNR is no number is worse than any."""
        return min(self.signals.values(), key=lambda signal: _no_number_first(signal.snr))

    @property
    def agreement(self) -> float | None:
        """Share of the pictures, or of the pixels, with the same class; None of features."""
        if self.ranking is not None:
            return self.ranking.top1_agreement
        return None if self.masks is None else self.masks.pixel_agreement

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by the names in BOUNDS."""
        found: dict[str, float] = {}
        if self.signals:
            worst_picture = min((signal.worst_snr for signal in self.signals.values()), key=_no_number_first)
            cosine = min((signal.cosine for signal in self.signals.values()), key=_no_number_first)
            found |= {"snr": self.worst.snr, "worst-snr": worst_picture, "cosine": cosine}
        if self.ranking is not None:
            found |= {"top1": self.ranking.top1_agreement, "top5": self.ranking.top5_agreement}
            found |= {"kl": self.ranking.kl, "probability": self.ranking.max_abs_difference}
        if self.masks is not None:
            found |= {"pixels": self.masks.pixel_agreement, "miou": self.masks.mean_iou}
        return found

    def with_gates(self, gates: Mapping[str, float]) -> Self:
        """The same figures before other gates."""
        return dataclasses.replace(self, gates=gates)

    @property
    def results(self) -> tuple[GateResult, ...]:
        """Each gate with its figure."""
        figures = self.figures
        return tuple(GateResult(name, gate, figures.get(name), BOUNDS[name]) for name, gate in self.gates.items())

    @property
    def passed(self) -> bool:
        """Whether everything reaches its gate."""
        return all(result.passed for result in self.results)


def default_gates(record: PackageRecord) -> dict[str, float]:
    """What a package has to reach to compute what its weights say, as far as its precision allows."""
    gates = {"snr": GATES[record.precision]}
    if record.task == SEGMENTATION:
        gates["pixels"] = MASK_GATES[record.precision]
    if record.task == CLASSIFICATION:
        gates["kl"] = KL_GATES[record.precision]
    return gates


@torch.inference_mode()
def verify(
    package: Path,
    model: Model,
    record: PackageRecord,
    preprocessing: Preprocessing,
    images: Iterable[Image.Image],
    function_name: str | None = None,
    gates: Mapping[str, float] | None = None,
) -> Fidelity:
    """Run a function of a saved package, and a model, on RGB pictures of preprocessing.input_size.

    Without gates of its own the package has to reach `default_gates`.
    """
    evaluator = ReferenceEvaluator(package, record.precision, function_name)
    captured = network_outputs(record)
    meters = Meters()
    for image in images:
        result = model(torch.from_numpy(preprocessing.pixels(image)))
        outputs = evaluator.run({IMAGE: image}, capture=captured)
        meters.merge(compare(record, model, result, outputs))
    return meters.fidelity(default_gates(record) if gates is None else gates)


def network_outputs(record: PackageRecord) -> list[str]:
    """Operations to capture beside the outputs: what the network itself puts out before it is given a form."""
    if record.task == CLASSIFICATION:
        return [CLASSIFIER]
    if record.task == SEGMENTATION and not _puts_out_logits(record.outputs):
        return [HEAD]
    return []


@dataclasses.dataclass
class Meters:
    """What has been measured of a number of pictures."""

    images: int = 0
    signals: dict[str, SignalMeter] = dataclasses.field(default_factory=dict)
    ranking: RankingMeter | None = None
    masks: MaskMeter | None = None

    def merge(self, other: "Meters") -> None:
        """Count other pictures, too."""
        self.images += other.images
        for name, meter in other.signals.items():
            self.signals.setdefault(name, SignalMeter()).merge(meter)
        if other.ranking is not None:
            self.ranking = self.ranking or RankingMeter()
            self.ranking.merge(other.ranking)
        if other.masks is not None:
            self.masks = self.masks or MaskMeter(other.masks.classes)
            self.masks.merge(other.masks)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` makes of one."""
        ranking, masks = values["ranking"], values["masks"]
        return cls(
            values["images"],
            {name: SignalMeter(**meter) for name, meter in values["signals"].items()},
            None if ranking is None else RankingMeter(**ranking),
            None if masks is None else MaskMeter(**masks),
        )

    def fidelity(self, gates: Mapping[str, float]) -> Fidelity:
        """The figures so far."""
        return Fidelity(
            self.images,
            gates,
            {name: meter.result() for name, meter in self.signals.items()},
            None if self.ranking is None else self.ranking.result(),
            None if self.masks is None else self.masks.result(),
        )


def compare(record: PackageRecord, model: Model, result: Any, outputs: Mapping[str, Any]) -> Meters:
    """One picture's result of the model against a package's outputs, with `network_outputs` where they could be had.

    A classifier's probabilities have to be in the order of its classes.
    """
    meters = Meters(1)
    if record.task == CLASSIFICATION:
        _compare_classes(meters, result.logits, outputs)
    elif record.task == SEGMENTATION:
        _compare_masks(meters, model, record.outputs, result.logits, outputs)
    else:
        values = (result.pooled, result.feature_map, *result.hidden_states)
        names = output_names(FEATURES, record.outputs)
        for name, value in zip(names, values, strict=False):  # the stages may be left out
            _signal(meters, name, value, torch.from_numpy(outputs[name]))
    return meters


def _compare_classes(meters: Meters, logits: Tensor, outputs: Mapping[str, Any]) -> None:
    expected, got = logits.softmax(1)[0], torch.tensor(list(outputs[CLASS_PROBABILITIES].values()))
    if CLASSIFIER in outputs:
        _signal(meters, LOGITS, logits, torch.from_numpy(outputs[CLASSIFIER]))
    else:
        _signal(meters, LOG_PROBABILITIES, _centred_logarithms(expected), _centred_logarithms(got))
    meters.ranking = RankingMeter()
    meters.ranking.add(expected, got)


def _centred_logarithms(probabilities: Tensor) -> Tensor:
    """Logits but for a constant, and for classes so improbable that fp16 hardly knows them."""
    logarithms = probabilities.double().clamp(min=LEAST_SIGNIFICANT).log()
    return logarithms - logarithms.mean()


def _compare_masks(meters: Meters, model: Model, form: OutputForm, logits: Tensor, outputs: Mapping[str, Any]) -> None:
    (name,) = output_names(SEGMENTATION, form)
    if _puts_out_logits(form):
        _signal(meters, LOGITS, logits, torch.from_numpy(outputs[name]))
    elif HEAD in outputs:
        _signal(meters, LOGITS, logits, torch.from_numpy(outputs[HEAD]))
    expected, output = segmentation_output(logits, form, model.config), torch.from_numpy(np.array(outputs[name]))
    if form.type not in (LABELS, MASK):
        if not _puts_out_logits(form):
            _signal(meters, "output", expected, output)
        expected, output = expected.argmax(1), output.argmax(1)
    meters.masks = MaskMeter(model.config.num_labels)
    meters.masks.add(expected, output)


def _puts_out_logits(form: OutputForm) -> bool:
    return (form.type, form.size) == (LOGITS, NETWORK)


def _signal(meters: Meters, name: str, reference: Tensor, output: Tensor) -> None:
    meters.signals[name] = SignalMeter()
    meters.signals[name].add(reference, output)


def report(fidelity: Fidelity, reference: str = "PyTorch fp32") -> list[str]:
    """A verification in short lines, the worst signal first; without a gate there is no verdict."""
    verdict = ("PASS, " if fidelity.passed else "FAIL, ") if fidelity.gates else ""
    first, *others = figure_lines(fidelity, reference)
    return [verdict + first, *others]


def figure_lines(fidelity: Fidelity, reference: str) -> list[str]:
    """What was measured, in short lines, with the gates there are."""
    f = fidelity
    lines: list[str] = []
    for name, s in sorted(f.signals.items(), key=lambda entry: _no_number_first(entry[1].snr)):
        worst = f"worst picture {decibels_text(s.worst_snr)}, cosine {s.cosine:.6f}"
        if lines:
            lines.append(f"{name} {decibels_text(s.snr)}, {worst}")
        else:
            gate = f" (gate {f.gates['snr']:g} dB)" if "snr" in f.gates else ""
            lines += [f"{name} {decibels_text(s.snr)} SNR against {reference}{gate}", worst]
    if f.ranking is not None:
        needed = f" (gate {f.gates['top1']:.4g})" if "top1" in f.gates else ""
        lines += [
            f"largest difference of a probability {f.ranking.max_abs_difference:.2g}, KL {f.ranking.kl:.2g} nats",
            f"top-1 equal on {f.ranking.top1_agreement:.0%}{needed}, top-5 on {f.ranking.top5_agreement:.0%} "
            f"of {f.images} pictures",
            f"smallest top-1 margin {f.ranking.margin:.2g}",
        ]
    elif f.masks is not None:
        needed = f" (gate {f.gates['pixels']:.4g})" if "pixels" in f.gates else ""
        lines += [
            f"pixel agreement {f.masks.pixel_agreement:.2%}{needed}",
            f"mean IoU {f.masks.mean_iou:.3f} over {f.masks.classes} classes, {f.images} pictures",
        ]
    else:
        lines.append(f"over {f.images} pictures")
    return lines


def _no_number_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def decibels_text(value: float) -> str:
    """A number of dB for people: to a tenth, and down, lest what is just under a gate look as if it reached it."""
    if not math.isfinite(value):
        return "no finite" if math.isnan(value) else f"{value} dB"
    return f"{math.floor(value * 10) / 10:.1f} dB"
