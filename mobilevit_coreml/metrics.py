"""How far two sides are apart, over any number of pictures, in constant memory."""

import dataclasses
import math

import torch
from torch import Tensor

from mobilevit_coreml.reference.comparison import decibels

TOP = 5


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
    a tiny margin is no fault.
    """

    top1_agreement: float
    top5_agreement: float
    margin: float
    max_abs_difference: float


@dataclasses.dataclass(frozen=True)
class MaskFidelity:
    """Class maps: share of equal pixels, and intersection over union, the mean over the `classes` that occur."""

    pixel_agreement: float
    mean_iou: float
    classes: int


class SignalMeter:
    """Real numbers of any shape, one picture after the other."""

    def __init__(self) -> None:
        self._worst_snr = math.inf
        self._largest = 0.0
        self._reference = self._output = self._product = self._noise = 0.0  # sums of squares and products

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One picture's results, of any shape."""
        reference, output = reference.double().flatten(), output.double().flatten()
        difference = reference - output
        signal, noise = float(reference @ reference), float(difference @ difference)
        self._reference += signal
        self._noise += noise
        self._output += float(output @ output)
        self._product += float(reference @ output)
        self._worst_snr = _least(self._worst_snr, decibels(signal, noise))
        self._largest = _greatest(self._largest, float(difference.abs().max()))

    def result(self) -> SignalFidelity:
        """The figures so far."""
        norms = math.sqrt(self._reference) * math.sqrt(self._output)
        cosine = self._product / norms if norms else math.nan
        return SignalFidelity(decibels(self._reference, self._noise), self._worst_snr, cosine, self._largest)


class RankingMeter:
    """Probabilities (classes,), one picture after the other."""

    def __init__(self) -> None:
        self._images = self._same_first = self._same_five = 0
        self._margin = math.inf
        self._largest = 0.0

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One picture's probabilities."""
        top = min(TOP, len(reference))
        best, second = reference.topk(2).values.tolist()
        first, output_first = reference.topk(top).indices.tolist(), output.topk(top).indices.tolist()
        self._images += 1
        self._margin = min(self._margin, best - second)
        self._largest = _greatest(self._largest, float((reference - output).abs().max()))
        finite = bool(output.isfinite().all())  # NaN sorts first, and would agree with anything
        self._same_first += finite and first[0] == output_first[0]
        self._same_five += finite and set(first) == set(output_first)

    def result(self) -> RankingFidelity:
        """The figures so far, of one picture at least."""
        first, five = self._same_first / self._images, self._same_five / self._images
        return RankingFidelity(first, five, self._margin, self._largest)


class MaskMeter:
    """Class maps, one picture after the other."""

    def __init__(self, classes: int) -> None:
        self._same, self._either, self._reference = torch.zeros(3, classes, dtype=torch.int64)  # pixels of each class

    def add(self, reference: Tensor, output: Tensor) -> None:
        """One picture's maps, equally large, of class indices; where the reference's is of no class nothing counts."""
        classes = len(self._same)
        reference, output = reference.flatten().long(), output.flatten().long()
        counts = (reference >= 0) & (reference < classes)
        reference, output = reference[counts], output[counts]
        same = torch.bincount(reference[reference == output], minlength=classes)
        known = output[(output >= 0) & (output < classes)]
        here = torch.bincount(reference, minlength=classes)
        self._same += same
        self._reference += here
        self._either += here + torch.bincount(known, minlength=classes) - same

    def result(self) -> MaskFidelity:
        """The figures so far, of one picture at least."""
        occurs = self._either > 0
        agreement = float(self._same.sum() / self._reference.sum())
        return MaskFidelity(agreement, float((self._same / self._either)[occurs].mean()), int(occurs.sum()))


def _least(a: float, b: float) -> float:
    return b if math.isnan(b) else min(a, b)


def _greatest(a: float, b: float) -> float:
    return b if math.isnan(b) else max(a, b)
