"""How far two sides are apart, over any number of pictures, in constant memory.

Meters hold plain numbers only, so that what was measured of one picture can be written down, read
back and merged with others.
"""

import dataclasses
import math

import torch
from torch import Tensor

from mobilevit_coreml.reference.comparison import decibels

TOP = 5
LEAST_PROBABILITY = 2.0**-24  # of fp16; what is less counts as that much in a divergence


@dataclasses.dataclass(frozen=True)
class SignalFidelity:
    """Real numbers: `snr` in dB of all pictures together and of the worst alone, cosine, largest difference."""

    snr: float
    worst_snr: float
    cosine: float
    max_abs_difference: float


@dataclasses.dataclass(frozen=True)
class RankingFidelity:
    """Probabilities of classes. Agreements are shares of the pictures: the same class first, the same set of five.

    `margin` is the smallest distance between the reference's first two: a first class that changes at
    a tiny margin is no fault. `kl` is the divergence of the output from the reference, the mean of all
    pictures, in nats.
    """

    top1_agreement: float
    top5_agreement: float
    margin: float
    max_abs_difference: float
    kl: float


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Against labels: the share of pictures with the true class first, and among the first five."""

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
    """Real numbers of any shape, one picture after the other: sums of squares, of products, and extremes."""

    reference: float = 0.0
    output: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    worst_snr: float = math.inf
    largest: float = 0.0

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One picture's results, of any shape."""
        reference, output = reference.double().flatten(), output.double().flatten()
        difference = reference - output
        signal, noise = float(reference @ reference), float(difference @ difference)
        largest = float(difference.abs().max())
        product, power = float(reference @ output), float(output @ output)
        self.merge(SignalMeter(signal, power, product, noise, decibels(signal, noise), largest))

    def merge(self, other: "SignalMeter") -> None:
        """Count what another meter has measured, too."""
        self.reference += other.reference
        self.output += other.output
        self.product += other.product
        self.noise += other.noise
        self.worst_snr = _least(self.worst_snr, other.worst_snr)
        self.largest = _greatest(self.largest, other.largest)

    def result(self) -> SignalFidelity:
        """The figures so far."""
        norms = math.sqrt(self.reference) * math.sqrt(self.output)
        cosine = self.product / norms if norms else math.nan
        return SignalFidelity(decibels(self.reference, self.noise), self.worst_snr, cosine, self.largest)


@dataclasses.dataclass
class RankingMeter:
    """Probabilities (classes,), one picture after the other."""

    images: int = 0
    same_first: int = 0
    same_five: int = 0
    margin: float = math.inf
    largest: float = 0.0
    divergence: float = 0.0

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One picture's probabilities."""
        top = min(TOP, len(reference))
        best, second = reference.topk(2).values.tolist()
        first, output_first = reference.topk(top).indices.tolist(), output.topk(top).indices.tolist()
        finite = bool(output.isfinite().all())  # NaN sorts first, and would agree with anything
        difference = float((reference - output).abs().max())
        same = finite and first[0] == output_first[0], finite and set(first) == set(output_first)
        self.merge(RankingMeter(1, *same, best - second, difference, _divergence(reference, output)))

    def merge(self, other: "RankingMeter") -> None:
        """Count what another meter has measured, too."""
        self.images += other.images
        self.same_first += other.same_first
        self.same_five += other.same_five
        self.margin = min(self.margin, other.margin)
        self.largest = _greatest(self.largest, other.largest)
        self.divergence += other.divergence

    def result(self) -> RankingFidelity:
        """The figures so far, of one picture at least."""
        first, five = self.same_first / self.images, self.same_five / self.images
        return RankingFidelity(first, five, self.margin, self.largest, self.divergence / self.images)


@dataclasses.dataclass
class AccuracyMeter:
    """Probabilities against the true class, one picture after the other."""

    images: int = 0
    first: int = 0
    five: int = 0

    def add(self, probabilities: Tensor, truth: int) -> None:
        """One picture's probabilities (classes,) and the index of its class."""
        best = probabilities.topk(min(TOP, len(probabilities))).indices.tolist()
        finite = bool(probabilities.isfinite().all())
        self.merge(AccuracyMeter(1, finite and best[0] == truth, finite and truth in best))

    def merge(self, other: "AccuracyMeter") -> None:
        """Count what another meter has measured, too."""
        self.images += other.images
        self.first += other.first
        self.five += other.five

    def result(self) -> Accuracy:
        """The figures so far, of one picture at least."""
        return Accuracy(self.first / self.images, self.five / self.images)


@dataclasses.dataclass
class MaskMeter:
    """Class maps, one picture after the other: the pixels of each class on both sides, on either, and in the first."""

    classes: int
    same: list[int] = dataclasses.field(default_factory=list)
    either: list[int] = dataclasses.field(default_factory=list)
    reference: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for counts in (self.same, self.either, self.reference):
            counts += [0] * (self.classes - len(counts))

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One picture's maps, equally large, of class indices; where the reference's is of no class nothing counts."""
        reference, output = reference.flatten().long(), output.flatten().long()
        counts = (reference >= 0) & (reference < self.classes)
        reference, output = reference[counts], output[counts]
        same = torch.bincount(reference[reference == output], minlength=self.classes)
        known = output[(output >= 0) & (output < self.classes)]
        here = torch.bincount(reference, minlength=self.classes)
        either = here + torch.bincount(known, minlength=self.classes) - same
        self.merge(MaskMeter(self.classes, same.tolist(), either.tolist(), here.tolist()))

    def merge(self, other: "MaskMeter") -> None:
        """Count what another meter has measured, too."""
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


def _divergence(reference: Tensor, output: Tensor) -> float:
    """Kullback-Leibler divergence of `output` from `reference`, nats."""
    p, q = (side.double().clamp(min=LEAST_PROBABILITY) for side in (reference, output))
    p, q = p / p.sum(), q / q.sum()  # which roundings keep from being 1
    return float((p * (p / q).log()).sum())


def _least(a: float, b: float) -> float:
    return b if math.isnan(b) else min(a, b)


def _greatest(a: float, b: float) -> float:
    return b if math.isnan(b) else max(a, b)
