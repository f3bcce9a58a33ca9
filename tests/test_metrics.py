"""The meters against scikit-learn and torch, which see all pictures at once."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from mobilevit_coreml.metrics import MaskMeter, RankingMeter, SignalMeter
from tests.peers import snr

PICTURES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def signals() -> tuple[Tensor, Tensor]:
    """Maps of five pictures (5, 3, 4, 6), each louder and with more noise than the one before but the last."""
    reference = torch.randn(PICTURES, 3, 4, 6, generator=generator())
    noise = torch.randn(PICTURES, 3, 4, 6, generator=generator(1))
    loud = torch.tensor([1.0, 2, 3, 9, 4])[:, None, None, None]
    noisy = torch.tensor([0.01, 0.1, 0.5, 0.2, 0.3])[:, None, None, None]
    return reference * loud, reference * loud + noise * noisy


def test_signals_are_measured_over_all_pictures(signals: tuple[Tensor, Tensor]) -> None:
    reference, output = signals
    meter = SignalMeter()
    for ours, theirs in zip(reference, output, strict=True):
        meter.add(ours, theirs)
    result = meter.result()
    assert result.snr == pytest.approx(snr(reference, output))
    assert result.worst_snr == pytest.approx(min(map(snr, reference, output)))
    assert result.worst_snr < result.snr - 5
    cosine = cosine_similarity(reference.double().reshape(1, -1), output.double().reshape(1, -1))
    assert result.cosine == pytest.approx(float(cosine.item()), rel=1e-12)
    assert result.cosine < 0.9999  # 1e-12 of 1 would say nothing
    assert result.max_abs_difference == float((reference.double() - output.double()).abs().max())


def test_a_fault_of_one_picture_is_not_outvoted() -> None:
    """A hundred loud pictures without a fault, and a quiet one that is nothing but."""
    meter = SignalMeter()
    for _ in range(100):
        meter.add(torch.ones(10), torch.ones(10))
    meter.add(torch.full((10,), 1e-3), torch.full((10,), -1e-3))
    result = meter.result()
    assert result.snr > 70
    assert result.worst_snr == pytest.approx(-20 * math.log10(2))


def test_equal_signals_have_no_noise() -> None:
    meter = SignalMeter()
    meter.add(torch.arange(5), torch.arange(5))
    result = meter.result()
    assert (result.snr, result.worst_snr, result.max_abs_difference) == (math.inf, math.inf, 0)
    assert result.cosine == pytest.approx(1, abs=1e-15)


def test_half_precision_signals_are_summed_in_double() -> None:
    """Squares of 300 overflow float16."""
    values = torch.full((1000,), 300.0, dtype=torch.float16)
    meter = SignalMeter()
    meter.add(values, values + 3)
    assert meter.result().snr == pytest.approx(40)
    assert meter.result().cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(3))
def test_signals_that_are_no_numbers_never_pass(value: float, place: int) -> None:
    """Whichever picture they are in: comparisons with nan are false, in min() and max() too."""
    meter = SignalMeter()
    for index in range(3):
        output = torch.ones(4)
        if index == place:
            output[2] = value
        meter.add(torch.ones(4), output)
    result = meter.result()
    assert not result.snr >= -1000
    assert not result.worst_snr >= -1000
    assert not result.max_abs_difference <= 1000


def test_a_signal_of_nothing_but_zeros_has_no_direction() -> None:
    meter = SignalMeter()
    meter.add(torch.zeros(4), torch.zeros(4))
    assert math.isnan(meter.result().cosine)


@pytest.mark.parametrize("classes", [2, 4, 5, 12])
def test_rankings_agree_as_often_as_scikit_learn_counts(classes: int) -> None:
    reference = torch.randn(40, classes, generator=generator()).softmax(1)
    output = (reference.log() + 0.3 * torch.randn(40, classes, generator=generator(1))).softmax(1)
    meter = RankingMeter()
    for ours, theirs in zip(reference, output, strict=True):
        meter.add(ours, theirs)
    result = meter.result()
    assert result.top1_agreement == pytest.approx(accuracy_score(reference.argmax(1), output.argmax(1)))
    assert 0.5 < result.top1_agreement < 1
    five = reference.argsort(descending=True)[:, :5], output.argsort(descending=True)[:, :5]
    same = [set(a.tolist()) == set(b.tolist()) for a, b in zip(*five, strict=True)]
    assert result.top5_agreement == pytest.approx(np.mean(same))
    assert (result.top5_agreement < 1) == (classes > 5)
    ordered = reference.sort(descending=True).values
    assert result.margin == pytest.approx(float((ordered[:, 0] - ordered[:, 1]).min()))
    assert result.max_abs_difference == pytest.approx(float((reference - output).abs().max()))


def test_the_first_five_are_a_set_of_five() -> None:
    """Neither their order counts nor that the first is among them, which is what top-5 accuracy means."""
    reference = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.06, 0.03, 0.01])
    reordered, other = reference[[4, 3, 2, 1, 0, 5, 6]], reference[[0, 1, 2, 3, 5, 4, 6]]
    meter = RankingMeter()
    for output in (reordered, other):
        meter.add(reference, output)
        assert top_k_accuracy_score([0], output[None], k=5, labels=range(7)) == 1
    result = meter.result()
    assert (result.top1_agreement, result.top5_agreement) == (0.5, 0.5)


@pytest.mark.parametrize("place", range(3))
def test_probabilities_that_are_no_numbers_show(place: int) -> None:
    meter = RankingMeter()
    for index in range(3):
        meter.add(torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.7, 0.2, math.nan if index == place else 0.1]))
    result = meter.result()
    assert not result.max_abs_difference <= 1
    assert result.top1_agreement == pytest.approx(2 / 3)


def scikit_learns(reference: Tensor, output: Tensor) -> tuple[float, float]:
    """Pixel agreement and mean intersection over union of all pixels of class maps, those of no class left out."""
    ours, theirs = reference.flatten().numpy(), output.flatten().numpy()
    occurring = np.union1d(ours, theirs)
    return (
        float(accuracy_score(ours, theirs)),
        float(jaccard_score(ours, theirs, labels=occurring, average="macro")),
    )


@pytest.mark.parametrize("classes", [3, 21, 150])
def test_masks_are_measured_over_all_pictures(classes: int) -> None:
    """Classes that a picture lacks, and that all lack, among them."""
    present = torch.randperm(classes, generator=generator())[: max(2, classes // 2)]
    reference = present[torch.randint(len(present), (PICTURES, 9, 12), generator=generator(1))]
    wrong = torch.rand(reference.shape, generator=generator(2)) < 0.3
    output = torch.where(wrong, torch.randint(classes, reference.shape, generator=generator(3)), reference)
    reference[0], output[0] = present[0], present[0]
    meter = MaskMeter(classes)
    for ours, theirs in zip(reference, output, strict=True):
        meter.add(ours, theirs.to(torch.int32))
    result = meter.result()
    assert (result.pixel_agreement, result.mean_iou) == pytest.approx(scikit_learns(reference, output))
    assert result.classes == len(torch.cat((reference, output)).unique())
    assert result.mean_iou < 0.9


def test_equal_masks_of_some_classes() -> None:
    meter = MaskMeter(21)
    meter.add(torch.tensor([[0, 3], [3, 20]]), torch.tensor([[0, 3], [3, 20]]))
    assert meter.result() == type(meter.result())(1, 1, 3)


@pytest.mark.parametrize("void", [-1, 5, 255])
def test_pixels_the_reference_has_no_class_for_do_not_count(void: int) -> None:
    reference, output = (torch.randint(5, (8, 8), generator=generator(seed)) for seed in range(2))
    nowhere = torch.rand(8, 8, generator=generator(2)) < 0.3
    meter = MaskMeter(5)
    meter.add(torch.where(nowhere, void, reference), output)
    result = meter.result()
    assert (result.pixel_agreement, result.mean_iou) == pytest.approx(
        scikit_learns(reference[~nowhere], output[~nowhere])
    )


@pytest.mark.parametrize("nonsense", [-1, 5, 255])
def test_pixels_the_output_has_no_class_for_are_wrong(nonsense: int) -> None:
    """As scikit-learn counts a label outside the ones whose mean it takes."""
    reference, output = (torch.randint(5, (8, 8), generator=generator(seed)) for seed in range(2))
    output = torch.where(torch.rand(8, 8, generator=generator(2)) < 0.6, reference, output)
    output[torch.rand(8, 8, generator=generator(3)) < 0.3] = nonsense
    meter = MaskMeter(5)
    meter.add(reference, output)
    result = meter.result()
    ours, theirs = reference.flatten().numpy(), output.flatten().numpy()
    assert result.pixel_agreement == pytest.approx(accuracy_score(ours, theirs))
    assert result.mean_iou == pytest.approx(jaccard_score(ours, theirs, labels=range(5), average="macro"))
    assert result.classes == 5


def test_maps_that_are_no_numbers_never_pass() -> None:
    meter = MaskMeter(3)
    meter.add(torch.zeros(4, 4), torch.full((4, 4), math.nan))
    assert meter.result().pixel_agreement == 0


def test_masks_without_a_class_never_pass() -> None:
    meter = MaskMeter(3)
    meter.add(torch.full((4, 4), 255), torch.zeros(4, 4))
    result = meter.result()
    assert not result.pixel_agreement >= 0
    assert not result.mean_iou >= 0


@pytest.mark.parametrize("output", [[torch.nan, 0.2, 0.1], [torch.nan] * 3, [0.7, torch.inf, 0.1]])
def test_what_is_no_number_agrees_with_nothing(output: list[float]) -> None:
    meter = RankingMeter()
    meter.add(torch.tensor([0.7, 0.2, 0.1]), torch.tensor(output))
    assert (meter.result().top1_agreement, meter.result().top5_agreement) == (0, 0)
