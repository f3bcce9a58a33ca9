"""Budgets met against stubs: scores and packages that are not made, and differ from the estimates."""

import dataclasses
import math
from collections.abc import Mapping

import pytest

from mobilevit_coreml.compression.formats import FP16, PALETTE, Format
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.compression.search import (
    CURVE_BYTES,
    MAX_BUILDS,
    Candidate,
    Point,
    Quality,
    choose,
    meet,
    total_bytes,
)
from mobilevit_coreml.errors import ConversionError
from tests.compression.packages import total_noise

FORMATS = (FP16, *(Format(PALETTE, bits) for bits in (8, 6, 4, 2)))
REST = 70_000  # bytes of a program
CANDIDATES = {
    f"layer {number}": [
        Candidate(
            format, format.stored_bytes((64, 40 + 8 * number), "fp16"), 10 ** (-number / 10 - 0.6 * format.bits), None
        )
        for format in FORMATS
    ]
    for number in range(40)
}
Candidates = Mapping[str, list[Candidate]]


@dataclasses.dataclass
class Packages:
    """Stubs of `score` and `build`: a package has `surplus` bytes more for each layer that is compressed.

    Its quality is `lost` dB under its score.
    """

    surplus: float = 0.0
    lost: float = 0.0
    scored: int = 0
    built: list[Point] = dataclasses.field(default_factory=list)

    def score(self, choice: Mapping[str, Candidate]) -> Quality:
        self.scored += 1
        return quality_of(-10 * math.log10(total_noise(choice)))

    def build(self, choice: Mapping[str, Candidate]) -> Point:
        compressed = sum(one.format != FP16 for one in choice.values())
        size = REST + total_bytes(choice) + round(self.surplus * compressed)
        self.built.append(Point(choice, size, quality_of(-10 * math.log10(total_noise(choice)) - self.lost)))
        return self.built[-1]

    def meet(
        self, budget: Budget, candidates: Candidates = CANDIDATES, rest: int = REST
    ) -> tuple[Point, tuple[Point, ...]]:
        return meet(budget, candidates, rest, self.score, self.build)


def quality_of(snr: float) -> Quality:
    return Quality(snr, 1 - 10 ** (-snr / 20))


def is_compressed(point: Point) -> bool:
    return any(one.format != FP16 for one in point.choice.values())


@pytest.mark.parametrize("rest", [REST - 40_000, REST, REST + 40_000])
@pytest.mark.parametrize("surplus", [0, -40, 25.5, 200])
@pytest.mark.parametrize("size", [300_000, 420_000, 800_000, 2_000_000])
def test_a_size_is_never_exceeded_and_used(size: int, surplus: float, rest: int) -> None:
    packages = Packages(surplus)
    chosen, curve = packages.meet(Budget(max_size=size), rest=rest)
    assert chosen.bytes <= size - CURVE_BYTES
    assert chosen in packages.built
    assert chosen in curve
    assert [point.bytes for point in curve] == sorted(point.bytes for point in curve)
    # What is left over is less than one layer's step from 8 bits to 16, and twice the error of the estimate.
    most = REST + total_bytes(choose(CANDIDATES, math.inf))
    assert chosen.bytes >= min(size - CURVE_BYTES, most) - 2 * abs(surplus) * len(CANDIDATES) - 25_000


def test_a_good_estimate_needs_one_package() -> None:
    packages = Packages()
    packages.meet(Budget(max_size=800_000))
    assert len(packages.built) == 1
    packages = Packages()
    packages.meet(Budget(min_snr=30))
    assert len(packages.built) == 1


@pytest.mark.parametrize("rest", [0, 2 * REST])
def test_a_wrong_estimate_of_the_program_costs_one_more_package(rest: int) -> None:
    packages = Packages()
    chosen, _ = packages.meet(Budget(max_size=800_000), rest=rest)
    assert len(packages.built) == 2
    assert 775_000 < chosen.bytes <= 800_000


def test_a_size_is_met_where_choices_lie_far_apart() -> None:
    coarse = {
        f"layer {number}": [
            Candidate(format, format.stored_bytes((1024, 512), "fp16"), 10 ** (-0.6 * format.bits), None)
            for format in FORMATS
        ]
        for number in range(3)
    }
    size = REST + 3 * Format(PALETTE, 8).stored_bytes((1024, 512), "fp16") + 59_000 + CURVE_BYTES
    for room in (40_000, 0):  # with a surplus of 20,000 for each layer, 8 bits for all take 1,000 bytes too many
        packages = Packages(20_000)
        chosen, _ = packages.meet(Budget(max_size=size + room), coarse)
        assert chosen.bytes <= size + room
        assert len(packages.built) <= MAX_BUILDS


def test_a_size_above_uncompressed_is_uncompressed() -> None:
    chosen, _ = Packages().meet(Budget(max_size=10**7))
    assert not is_compressed(chosen)


def test_a_size_below_the_smallest_says_what_the_smallest_is() -> None:
    packages = Packages(25)
    with pytest.raises(ConversionError) as caught:
        packages.meet(Budget(max_size=150_000))
    least = REST + sum(min(one.bytes for one in options) + 25 for options in CANDIDATES.values()) + CURVE_BYTES
    enough = math.ceil(least / 1e4) * 10**4
    assert str(caught.value) == (
        f"max_size: expected at least {enough / 1e6:.2f} MB, the smallest this network becomes, got 0.15 MB; "
        "raise it, or take a smaller variant"
    )
    chosen, _ = Packages(25).meet(Budget(max_size=enough))
    assert chosen.bytes <= enough


def smallest_that_reaches(snr: float) -> int:
    """Bytes of the smallest of many choices."""
    points = [Packages().build(choose(CANDIDATES, room)) for room in range(100_000, 1_000_000, 5_000)]
    return min(point.bytes for point in points if point.quality.snr >= snr)


@pytest.mark.parametrize("lost", [0, 0.3, 3.0])
@pytest.mark.parametrize("snr", [15.0, 25.0, 40.0, 55.0])
def test_a_quality_is_reached_by_nearly_the_fewest_bytes(snr: float, lost: float) -> None:
    packages = Packages(lost=lost)
    chosen, curve = packages.meet(Budget(min_snr=snr))
    assert chosen.quality.snr >= snr  # as it was measured
    assert chosen in curve
    assert chosen.bytes <= 1.06 * smallest_that_reaches(snr + lost)


def test_an_agreement_is_looked_for_like_a_quality() -> None:
    chosen, _ = Packages().meet(Budget(min_agreement=0.99))
    assert chosen.quality.agreement is not None
    assert chosen.quality.agreement >= 0.99
    assert is_compressed(chosen)
    same, _ = Packages().meet(Budget(min_snr=40))  # 10 ** (-40 / 20) is 0.01
    assert chosen.bytes == same.bytes


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(min_snr=150), "min_snr: expected at most {snr:.1f}, {which}, got 150 dB; lower it"),
        (Budget(min_agreement=1.0), "min_agreement: expected at most {agreement:.3f}, {which}, got 1; lower it"),
    ],
)
def test_a_quality_that_uncompressed_weights_do_not_have(budget: Budget, message: str) -> None:
    packages = Packages()
    with pytest.raises(ConversionError) as caught:
        packages.meet(budget)
    (whole,) = packages.built
    assert not is_compressed(whole)
    assert str(caught.value) == message.format(
        snr=whole.quality.snr,
        agreement=whole.quality.agreement,
        which="which uncompressed weights have on these images",
    )


def test_the_curve_has_forecasts_beside_the_chosen_package() -> None:
    packages = Packages()
    chosen, curve = packages.meet(Budget(max_size=800_000))
    assert packages.built == [chosen]
    assert packages.scored == len(curve) - 1
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
