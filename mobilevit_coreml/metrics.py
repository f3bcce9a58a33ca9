"""Fidelity metrics of outputs against a reference, over any number of images in constant memory, and their gates.

Meters hold plain numbers only, so that what was measured of one image can be written down, read back and merged
with others.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mobilevit_coreml.config import MULTI_LABEL, SINGLE_LABEL, Task
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.options import Precision
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.reference.comparison import decibels

TOP = 5
THRESHOLD = 0.5  # of independent labels
MIN_PROBABILITY = 2.0**-24  # the smallest of fp16; what is less counts as that much in a divergence


@dataclasses.dataclass(frozen=True)
class SignalFidelity:
    """Real numbers: `snr` in dB of all images together and of the worst alone, cosine, largest difference."""

    snr: float
    worst_snr: float
    cosine: float
    max_abs_difference: float


@dataclasses.dataclass(frozen=True)
class RankingFidelity:
    """Probabilities of classes. Agreements are shares of the images: the same class first, the same set of five.

    `margin` is the smallest distance between the reference's first two: a first class that changes at
    a tiny margin is no fault. `kl` is the divergence of the output from the reference, the mean of all
    images, in nats.
    """

    top1_agreement: float
    top5_agreement: float
    margin: float
    max_abs_difference: float
    kl: float


@dataclasses.dataclass(frozen=True)
class LabelsFidelity:
    """Probabilities of independent labels: share of those that are above 0.5 on both sides or on neither.

    `by_label` has the share of the images and the largest difference of each label.
    """

    agreement: float
    max_abs_difference: float
    by_label: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Against labels: the share of images with the true class first, and among the first five."""

    top1: float
    top5: float


@dataclasses.dataclass(frozen=True)
class MaskFidelity:
    """Class maps: share of equal pixels, and intersection over union, the mean over the `classes` that occur."""

    pixel_agreement: float
    mean_iou: float
    classes: int


@dataclasses.dataclass
class SignalMeter:
    """Real numbers of any shape, one image after the other: sums of squares, of products, and extremes."""

    reference: float = 0.0
    output: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    worst_snr: float = math.inf
    largest: float = 0.0

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One image's results, of any shape."""
        reference, output = reference.double().flatten(), output.double().flatten()
        difference = reference - output
        signal, noise = float(reference @ reference), float(difference @ difference)
        largest = float(difference.abs().max())
        product, power = float(reference @ output), float(output @ output)
        self.merge(SignalMeter(signal, power, product, noise, decibels(signal, noise), largest))

    def merge(self, other: "SignalMeter") -> None:
        """Add what another meter has measured."""
        self.reference += other.reference
        self.output += other.output
        self.product += other.product
        self.noise += other.noise
        self.worst_snr = least(self.worst_snr, other.worst_snr)
        self.largest = greatest(self.largest, other.largest)

    def result(self) -> SignalFidelity:
        """The figures so far."""
        norms = math.sqrt(self.reference) * math.sqrt(self.output)
        cosine = self.product / norms if norms else math.nan
        return SignalFidelity(decibels(self.reference, self.noise), self.worst_snr, cosine, self.largest)


@dataclasses.dataclass
class RankingMeter:
    """Probabilities (classes,), one image after the other."""

    images: int = 0
    same_first: int = 0
    same_five: int = 0
    margin: float = math.inf
    largest: float = 0.0
    divergence: float = 0.0

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One image's probabilities."""
        top = min(TOP, len(reference))
        best, second = reference.topk(2).values.tolist()
        first, output_first = reference.topk(top).indices.tolist(), output.topk(top).indices.tolist()
        finite = bool(output.isfinite().all())  # NaN sorts first, and would agree with anything
        difference = float((reference - output).abs().max())
        same = finite and first[0] == output_first[0], finite and set(first) == set(output_first)
        self.merge(RankingMeter(1, *same, best - second, difference, _divergence(reference, output)))

    def merge(self, other: "RankingMeter") -> None:
        """Add what another meter has measured."""
        self.images += other.images
        self.same_first += other.same_first
        self.same_five += other.same_five
        self.margin = min(self.margin, other.margin)
        self.largest = greatest(self.largest, other.largest)
        self.divergence += other.divergence

    def result(self) -> RankingFidelity:
        """The figures so far, of one image at least."""
        first, five = self.same_first / self.images, self.same_five / self.images
        return RankingFidelity(first, five, self.margin, self.largest, self.divergence / self.images)


@dataclasses.dataclass
class LabelsMeter:
    """Probabilities (labels,) of independent labels, one image after the other: agreements and differences of each."""

    images: int = 0
    same: list[int] = dataclasses.field(default_factory=list)
    largest: list[float] = dataclasses.field(default_factory=list)

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One image's probabilities; NaN agrees with nothing."""
        same = ((reference > THRESHOLD) == (output > THRESHOLD)) & output.isfinite()
        self.merge(LabelsMeter(1, same.int().tolist(), (reference - output).abs().tolist()))

    def merge(self, other: "LabelsMeter") -> None:
        """Add what another meter has measured of the same labels."""
        self.images += other.images
        self.same = list(map(sum, itertools.zip_longest(self.same, other.same, fillvalue=0)))
        self.largest = list(
            itertools.starmap(greatest, itertools.zip_longest(self.largest, other.largest, fillvalue=0))
        )

    def result(self) -> LabelsFidelity:
        """The figures so far, of one image at least."""
        by_label = tuple((same / self.images, largest) for same, largest in zip(self.same, self.largest, strict=True))
        largest = functools.reduce(greatest, self.largest, 0.0)
        return LabelsFidelity(sum(self.same) / self.images / len(self.same), largest, by_label)


@dataclasses.dataclass
class AccuracyMeter:
    """Probabilities against the true class, one image after the other."""

    images: int = 0
    first: int = 0
    five: int = 0

    def add(self, probabilities: Tensor, truth: int) -> None:
        """One image's probabilities (classes,) and the index of its class."""
        best = probabilities.topk(min(TOP, len(probabilities))).indices.tolist()
        finite = bool(probabilities.isfinite().all())
        self.merge(AccuracyMeter(1, finite and best[0] == truth, finite and truth in best))

    def merge(self, other: "AccuracyMeter") -> None:
        """Add what another meter has measured."""
        self.images += other.images
        self.first += other.first
        self.five += other.five

    def result(self) -> Accuracy:
        """The figures so far, of one image at least."""
        return Accuracy(self.first / self.images, self.five / self.images)


@dataclasses.dataclass
class MaskMeter:
    """Class maps, one image after the other: the pixels of each class on both sides, on either, and in the first."""

    classes: int
    same: list[int] = dataclasses.field(default_factory=list)
    either: list[int] = dataclasses.field(default_factory=list)
    reference: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for counts in (self.same, self.either, self.reference):
            counts += [0] * (self.classes - len(counts))

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One image's maps, equally large, of class indices; where the reference's is of no class nothing counts."""
        reference, output = reference.flatten().long(), output.flatten().long()
        counts = (reference >= 0) & (reference < self.classes)
        reference, output = reference[counts], output[counts]
        same = torch.bincount(reference[reference == output], minlength=self.classes)
        known = output[(output >= 0) & (output < self.classes)]
        here = torch.bincount(reference, minlength=self.classes)
        either = here + torch.bincount(known, minlength=self.classes) - same
        self.merge(MaskMeter(self.classes, same.tolist(), either.tolist(), here.tolist()))

    def merge(self, other: "MaskMeter") -> None:
        """Add what another meter has measured."""
        for ours, theirs in (
            (self.same, other.same),
            (self.either, other.either),
            (self.reference, other.reference),
        ):
            ours[:] = map(sum, zip(ours, theirs, strict=True))

    def result(self) -> MaskFidelity:
        """The figures so far; no numbers where no pixel counted."""
        unions = [same / either for same, either in zip(self.same, self.either, strict=True) if either]
        pixels = sum(self.reference)
        agreement = sum(self.same) / pixels if pixels else math.nan
        return MaskFidelity(agreement, sum(unions) / len(unions) if unions else math.nan, len(unions))


PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"

# Gates by the package's precision. SNR in dB, of the network's own outputs.
MIN_SNR_DB = {Precision.FP16: 30.0, Precision.FP32: 70.0}
# Share of a mask's pixels. Where two classes come close rounding decides, and an untrained network is nowhere sure.
MIN_PIXEL_AGREEMENT = {Precision.FP16: 0.97, Precision.FP32: 0.999}
# Nats. Logits at their gate use a tenth of it; the probabilities of another class exceed it many times.
MAX_KL_NATS = {Precision.FP16: 0.05, Precision.FP32: 0.001}
# Compressed weights against the original ones: below, a classifier changes its first class on one image in some,
MIN_USEFUL_SNR_DB = 20.0
MIN_USEFUL_PIXEL_AGREEMENT = 0.9  # and a mask one pixel in ten


class Bound(NamedTuple):
    """The meaning of a gate on a figure."""

    at_least: bool  # or at most
    unit: str  # dB, share, nats, …
    description: str


BOUNDS: Mapping[str, Bound] = {
    "snr": Bound(True, "dB", "SNR of the worst signal, all images together"),
    "worst-snr": Bound(True, "dB", "SNR of the worst signal on the worst image"),
    "cosine": Bound(True, "", "cosine of the worst signal"),
    "top1": Bound(True, "share", "images with the same first class"),
    "top5": Bound(True, "share", "images with the same set of first five classes"),
    "kl": Bound(False, "nats", "divergence of the probabilities, mean of the images"),
    "probability": Bound(False, "", "largest absolute difference of a probability"),
    "labels": Bound(True, "share", "labels on the same side of 0.5"),
    "pixels": Bound(True, "share", "pixels with the same class"),
    "miou": Bound(True, "", "mean IoU of the two sides' masks"),
    # measured by `validate` only
    "accuracy-loss": Bound(False, "share", "top-1 accuracy, or mean IoU, that the package has less than the original"),
    "neural-engine": Bound(True, "share", "operations that Core ML plans to run on the Neural Engine"),
    "latency": Bound(False, "ms", "median time of a prediction"),
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
        """True if the gate is reached, which NaN never does; None where nothing was measured."""
        if self.figure is None:
            return None
        return self.figure >= self.gate if self.bound.at_least else self.figure <= self.gate


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """A function of a package against its PyTorch model in fp32, over a number of images.

    `signals` are of a classifier's or segmenter's logits and of whatever real numbers are outputs as
    arrays, by name; `ranking` is of a classifier's probabilities, `labels` of independent ones, `masks` of a
    segmenter's classes. `gates` bound figures, by their names in BOUNDS.
    """

    images: int
    gates: Mapping[str, float]
    signals: Mapping[str, SignalFidelity]
    ranking: RankingFidelity | None = None
    masks: MaskFidelity | None = None
    labels: LabelsFidelity | None = None

    @property
    def worst(self) -> SignalFidelity:
        """The figures of the worst signal; one whose SNR is NaN is worse than any."""
        return min(self.signals.values(), key=lambda signal: nan_lowest(signal.snr))

    @property
    def agreement(self) -> float | None:
        """Share of the images, or of the pixels, with the same class; None of features."""
        if self.ranking is not None:
            return self.ranking.top1_agreement
        if self.labels is not None:
            return self.labels.agreement
        return None if self.masks is None else self.masks.pixel_agreement

    @property
    def figures(self) -> dict[str, float]:
        """All figures, by the names in BOUNDS."""
        found: dict[str, float] = {}
        if self.signals:
            worst_image = min((signal.worst_snr for signal in self.signals.values()), key=nan_lowest)
            cosine = min((signal.cosine for signal in self.signals.values()), key=nan_lowest)
            found |= {"snr": self.worst.snr, "worst-snr": worst_image, "cosine": cosine}
        if self.ranking is not None:
            found |= {"top1": self.ranking.top1_agreement, "top5": self.ranking.top5_agreement}
            found |= {"kl": self.ranking.kl, "probability": self.ranking.max_abs_difference}
        if self.labels is not None:
            found |= {"labels": self.labels.agreement, "probability": self.labels.max_abs_difference}
        if self.masks is not None:
            found |= {"pixels": self.masks.pixel_agreement, "miou": self.masks.mean_iou}
        return found

    def with_gates(self, gates: Mapping[str, float]) -> Self:
        """The same figures with other gates."""
        return dataclasses.replace(self, gates=gates)

    @property
    def results(self) -> tuple[GateResult, ...]:
        """Each gate with its figure."""
        return gate_results(self.gates, self.figures)

    @property
    def passed(self) -> bool:
        """True if every gate is reached; one without a figure is not."""
        return all(result.passed for result in self.results)


@dataclasses.dataclass
class Meters:
    """Sums over a number of images, of all signals, probabilities and masks."""

    images: int = 0
    signals: dict[str, SignalMeter] = dataclasses.field(default_factory=dict)
    ranking: RankingMeter | None = None
    masks: MaskMeter | None = None
    labels: LabelsMeter | None = None

    def merge(self, other: "Meters") -> None:
        """Add what was measured of other images."""
        self.images += other.images
        for name, meter in other.signals.items():
            self.signals.setdefault(name, SignalMeter()).merge(meter)
        if other.ranking is not None:
            self.ranking = self.ranking or RankingMeter()
            self.ranking.merge(other.ranking)
        if other.labels is not None:
            self.labels = self.labels or LabelsMeter()
            self.labels.merge(other.labels)
        if other.masks is not None:
            self.masks = self.masks or MaskMeter(other.masks.classes)
            self.masks.merge(other.masks)

    def fidelity(self, gates: Mapping[str, float]) -> Fidelity:
        """The figures so far."""
        return Fidelity(
            self.images,
            gates,
            {name: meter.result() for name, meter in self.signals.items()},
            None if self.ranking is None else self.ranking.result(),
            None if self.masks is None else self.masks.result(),
            None if self.labels is None else self.labels.result(),
        )


def computation_gates(record: PackageRecord) -> dict[str, float]:
    """Gates for a package against PyTorch with the weights it stores, by its precision."""
    precision = Precision(record.precision)
    gates = {"snr": MIN_SNR_DB[precision]}
    if record.task == Task.SEGMENTATION:
        gates["pixels"] = MIN_PIXEL_AGREEMENT[precision]
    if record.task == Task.CLASSIFICATION and record.config.get("problem_type", SINGLE_LABEL) == SINGLE_LABEL:
        gates["kl"] = MAX_KL_NATS[precision]
    return gates


def quality_gates(record: PackageRecord) -> dict[str, float]:
    """Gates for a compressed package against PyTorch with the original weights.

    A quality that the user asked for stands in place of the least useful one.
    """
    agreement = "pixels" if record.task == Task.SEGMENTATION else "top1"
    if record.config.get("problem_type") == MULTI_LABEL:
        agreement = "labels"
    asked = re.fullmatch(r"([\d.e+-]+)dB|agree([\d.e+-]+)", str(record.compression.get("scheme", "")))
    if asked is not None and asked[2]:
        return {agreement: float(asked[2]) / 100}
    gates = {"snr": float(asked[1]) if asked is not None else MIN_USEFUL_SNR_DB}
    if record.task == Task.SEGMENTATION and asked is None:
        gates["pixels"] = MIN_USEFUL_PIXEL_AGREEMENT  # class indices alone have no SNR
    return gates


def default_gates(record: PackageRecord) -> dict[str, float]:
    """Gates for a package against the PyTorch model it was made from."""
    return quality_gates(record) if record.compression else computation_gates(record)


def parse_gate(text: str) -> tuple[str, float]:
    """A gate as NAME=NUMBER; raises InputError for another."""
    name, _, number = text.partition("=")
    if name not in BOUNDS:
        raise InputError(f"gate: expected one of {', '.join(BOUNDS)}, got {name!r}; choose one of these")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(f"gate {name}: expected a number, as in {name}=30, got {number!r}; give one")
    return name, value


def gate_results(gates: Mapping[str, float], figures: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Each gate with its figure, where that was measured."""
    return tuple(GateResult(name, gate, figures.get(name), BOUNDS[name]) for name, gate in gates.items())


def verdict_of(results: Sequence[GateResult]) -> str:
    """FAIL if a gate was not reached, PASS if one was and no measured one was not; NOT_RUN if none was measured."""
    passed = [result.passed for result in results]
    if False in passed:
        return FAIL
    return PASS if True in passed else NOT_RUN


def verdict_text(passed: bool | None) -> str:
    """PASS, FAIL, or NOT_RUN for None."""
    return NOT_RUN if passed is None else PASS if passed else FAIL


def overall(verdicts: Sequence[str]) -> str:
    """FAIL before NOT_RUN before PASS: what was asked for and did not run has not passed."""
    for verdict in (FAIL, NOT_RUN):
        if verdict in verdicts:
            return verdict
    return PASS if verdicts else NOT_RUN


def _divergence(reference: Tensor, output: Tensor) -> float:
    """Kullback-Leibler divergence of `output` from `reference`, nats."""
    p, q = (side.double().clamp(min=MIN_PROBABILITY) for side in (reference, output))
    p, q = p / p.sum(), q / q.sum()  # which roundings keep from being 1
    return float((p * (p / q).log()).sum())


def least(a: float, b: float) -> float:
    return b if math.isnan(b) else min(a, b)


def greatest(a: float, b: float) -> float:
    return b if math.isnan(b) else max(a, b)


def nan_lowest(value: float) -> float:
    """A key to sort by, with NaN below all numbers."""
    return -math.inf if math.isnan(value) else value
