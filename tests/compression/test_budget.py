"""Budgets met by measurement: packages that are not built, but measured with errors the estimates do not know."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache

import pytest

from mobilevit_coreml.compression.budget import (
    CURVE_BYTES,
    TRIES,
    Point,
    budget_steps,
    meet,
)
from mobilevit_coreml.compression.formats import FP16, PALETTE, Format
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.compression.search import Candidate, choose, total_bytes, total_noise
from mobilevit_coreml.errors import ConversionError

FORMS = (FP16, *(Format(PALETTE, bits) for bits in (8, 6, 4, 2)))
REST = 70_000  # bytes of a program
CANDIDATES = {
    f"layer {number}": [
        Candidate(form, form.stored_bytes((64, 40 + 8 * number)), 10 ** (-number / 10 - 0.6 * form.bits), None)
        for form in FORMS
    ]
    for number in range(40)
}


@dataclasses.dataclass
class Builder:
    """In place of packages: `surplus` bytes more for each layer that is encoded, as the estimates do not see."""

    surplus: float = 0.0
    built: list[Point] = dataclasses.field(default_factory=list)
    steps: int = 0

    def __call__(self, choice: Mapping[str, Candidate]) -> Point:
        encoded = sum(one.format != FP16 for one in choice.values())
        size = REST + total_bytes(choice) + round(self.surplus * encoded)
        snr = -10 * math.log10(total_noise(choice))
        self.built.append(Point(choice, size, snr, 1 - 10 ** (-snr / 20)))
        return self.built[-1]

    def advance(self) -> None:
        self.steps += 1


def is_compressed(point: Point) -> bool:
    return any(one.format != FP16 for one in point.choice.values())


def within_steps(builder: Builder, curve: tuple[Point, ...]) -> bool:
    """Whether the curve has all that was built, by size, and none was too many."""
    return [point.bytes for point in curve] == sorted(point.bytes for point in builder.built) and builder.steps == len(
        builder.built
    ) == len(curve) <= budget_steps()


@pytest.mark.parametrize("surplus", [0, -40, 25.5, 200])
@pytest.mark.parametrize("size", [300_000, 420_000, 800_000, 2_000_000])
def test_a_size_is_kept_however_the_estimates_err(size: int, surplus: float) -> None:
    builder = Builder(surplus)
    chosen, curve = meet(Budget(max_size=size), CANDIDATES, builder, builder.advance)
    assert chosen.bytes <= size - CURVE_BYTES
    assert chosen in curve
    assert within_steps(builder, curve)
    # what is left over is less than one layer's step from 8 bits to 16, and what the estimates are out by
    most = max(point.bytes for point in curve)
    assert chosen.bytes >= min(size - CURVE_BYTES, most) - 2 * abs(surplus) * len(CANDIDATES) - 25_000


def test_a_size_is_met_where_choices_lie_far_apart() -> None:
    """A choice that leaves room of its own comes out over the size: less than what it takes has to be asked for."""
    coarse = {
        f"layer {number}": [
            Candidate(form, form.stored_bytes((1024, 512)), 10 ** (-0.6 * form.bits), None) for form in FORMS
        ]
        for number in range(3)
    }
    surplus = 20_000.0
    size = REST + 3 * Format(PALETTE, 8).stored_bytes((1024, 512)) + round(3 * surplus) - 1000 + CURVE_BYTES
    builder = Builder(surplus)
    chosen, _ = meet(Budget(max_size=size + 40_000), coarse, builder, builder.advance)
    assert chosen.bytes <= size + 40_000
    chosen, _ = meet(Budget(max_size=size), coarse, builder, builder.advance)
    assert chosen.bytes <= size


def test_a_size_above_half_precision_is_half_precision() -> None:
    chosen, _ = meet(Budget(max_size=10**7), CANDIDATES, Builder())
    assert not is_compressed(chosen)


def test_a_size_below_the_smallest_says_what_the_smallest_is() -> None:
    builder = Builder(25)
    with pytest.raises(ConversionError) as caught:
        meet(Budget(max_size=150_000), CANDIDATES, builder, builder.advance)
    least = REST + sum(min(one.bytes for one in options) + 25 for options in CANDIDATES.values()) + CURVE_BYTES
    assert str(caught.value) == (
        f"max_size: expected at least {least / 1e6:.2f} MB, the smallest this network becomes, got 0.15 MB; "
        "raise it, or take a smaller variant"
    )
    assert len(builder.built) <= budget_steps()
    at_least = math.ceil(least / 1e4) * 10**4  # what it says can be had, but for its rounding
    chosen, _ = meet(Budget(max_size=at_least), CANDIDATES, Builder(25))
    assert chosen.bytes <= at_least


@cache
def smallest_that_reaches(snr: float, surplus: float) -> int:
    """Among the choices of a fine search."""
    builder = Builder(surplus)
    points = [builder(choose(CANDIDATES, room)) for room in range(100_000, 1_000_000, 5_000)]
    return min(point.bytes for point in points if point.snr >= snr)


@pytest.mark.parametrize("surplus", [0, 25.5])
@pytest.mark.parametrize("snr", [15.0, 25.0, 40.0, 55.0])
def test_a_quality_is_had_for_nearly_the_fewest_bytes(snr: float, surplus: float) -> None:
    builder = Builder(surplus)
    chosen, curve = meet(Budget(min_snr=snr), CANDIDATES, builder, builder.advance)
    assert chosen.snr >= snr
    assert chosen in curve
    assert within_steps(builder, curve)
    assert chosen.bytes <= 1.05 * smallest_that_reaches(snr, surplus)


def test_an_agreement_is_looked_for_like_a_quality() -> None:
    chosen, _ = meet(Budget(min_agreement=0.99), CANDIDATES, Builder())
    assert chosen.agreement is not None
    assert chosen.agreement >= 0.99
    assert is_compressed(chosen)
    same, _ = meet(Budget(min_snr=40), CANDIDATES, Builder())  # 10 ** (-40 / 20) is 0.01
    assert chosen.bytes == same.bytes


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(min_snr=150), "min_snr: expected at most {snr:.1f}, {which}, got 150 dB; lower it"),
        (Budget(min_agreement=1.0), "min_agreement: expected at most {agreement:.3f}, {which}, got 1; lower it"),
    ],
)
def test_a_quality_that_half_precision_does_not_have(budget: Budget, message: str) -> None:
    builder = Builder()
    with pytest.raises(ConversionError) as caught:
        meet(budget, CANDIDATES, builder)
    (whole,) = builder.built
    assert not is_compressed(whole)
    assert str(caught.value) == message.format(
        snr=whole.snr, agreement=whole.agreement, which="which half precision has on these pictures"
    )


def test_the_curve_goes_beside_a_size() -> None:
    builder = Builder()
    _, curve = meet(Budget(max_size=800_000), CANDIDATES, builder)
    sizes = [point.bytes for point in curve]
    shares = [size / sizes[-1] for size in sizes]
    for share in (0.35, 0.5, 0.7, 1.0):
        assert min(abs(share - one) for one in shares) < 0.02


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (Budget(max_size=1_500_000), "1.5MB"),
        (Budget(max_size=2_000_000), "2MB"),
        (Budget(min_snr=37.5), "37.5dB"),
        (Budget(min_agreement=0.99), "agree99"),
    ],
)
def test_names(budget: Budget, name: str) -> None:
    assert str(budget) == name


def test_the_steps_announced_are_those_of_a_size_that_is_hard_to_meet() -> None:
    builder = Builder()

    def stubborn(choice: Mapping[str, Candidate]) -> Point:
        point = builder(choice)
        too_large = 1 < len(builder.built) < TRIES + 1  # all tries but the last
        return dataclasses.replace(point, bytes=500_001) if too_large else point

    chosen, curve = meet(Budget(max_size=500_000), CANDIDATES, stubborn, builder.advance)
    assert chosen.bytes <= 500_000
    assert builder.steps == len(curve) == budget_steps()
