"""Choices against all there are, of few layers with few formats."""

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from mobilevit_coreml.compression.formats import FP16, INTEGER, PALETTE, Format
from mobilevit_coreml.compression.search import Candidate, choose, total_bytes
from tests.compression.packages import total_noise

FORMATS = (FP16, Format(INTEGER, 8), *(Format(PALETTE, bits) for bits in (8, 6, 4, 2)))
Candidates = dict[str, list[Candidate]]


def stored_bytes(format: Format, shape: tuple[int, ...]) -> int:
    return format.stored_bytes(shape, "fp16")


def problem(seed: int, layers: int = 5, formats: tuple[Format, ...] = FORMATS) -> Candidates:
    """Layers of different sizes and sensitivities, each bit worth 6 dB, more or less."""
    generator = random.Random(seed)
    candidates = {}
    for number in range(layers):
        shape = (generator.choice([32, 64, 96]), generator.choice([32, 80, 640]))
        sensitivity = 10 ** generator.uniform(-3, 1)
        candidates[f"layer {number}"] = [
            Candidate(
                format, stored_bytes(format, shape), sensitivity * 4**-format.bits * generator.uniform(0.5, 2), None
            )
            for format in formats
        ]
    return candidates


def all_choices(candidates: Candidates) -> Iterator[dict[str, Candidate]]:
    for options in itertools.product(*candidates.values()):
        yield dict(zip(candidates, options, strict=True))


def budgets(candidates: Candidates, count: int = 12) -> list[float]:
    """From the smallest choice to the largest."""
    least, most = (sum(bound(one.bytes for one in options) for options in candidates.values()) for bound in (min, max))
    return [least * (most / least) ** (step / (count - 1)) + 0.5 for step in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_choices_are_near_the_best_there_are(seed: int) -> None:
    candidates = problem(seed)
    points = [(total_bytes(choice), total_noise(choice)) for choice in all_choices(candidates)]
    ratios = []
    for budget in budgets(candidates):
        chosen = choose(candidates, budget)
        assert total_bytes(chosen) <= budget
        ratios.append(total_noise(chosen) / min(noise for size, noise in points if size <= budget))
    # Five layers are few for one price of a byte; of more, less of the budget is left over.
    assert max(ratios) <= 3
    assert math.prod(ratios) ** (1 / len(ratios)) <= 1.2


def test_every_layer_has_one_of_its_own_candidates() -> None:
    candidates = problem(7)
    for budget in budgets(candidates):
        chosen = choose(candidates, budget)
        assert list(chosen) == list(candidates)
        assert all(one in candidates[path] for path, one in chosen.items())


def test_where_nothing_fits_it_is_the_smallest() -> None:
    candidates = problem(1)
    least = min(map(total_bytes, all_choices(candidates)))
    assert total_bytes(choose(candidates, least - 1)) == least
    assert total_bytes(choose(candidates, -1)) == least
    assert total_bytes(choose(candidates, least)) == least


def test_without_a_limit_noise_is_the_least() -> None:
    candidates = problem(2)
    least = min(map(total_noise, all_choices(candidates)))
    assert total_noise(choose(candidates, math.inf)) == pytest.approx(least)


def test_noise_that_outweighs_everything_and_none_at_all() -> None:
    for scale in (0.0, 1e-9, 1e6):
        candidates = {
            path: [Candidate(one.format, one.bytes, one.noise * scale, None) for one in options]
            for path, options in problem(3).items()
        }
        middle = budgets(candidates)[6]
        chosen = choose(candidates, middle)
        assert total_bytes(chosen) <= middle
        best = min(total_noise(choice) for choice in all_choices(candidates) if total_bytes(choice) <= middle)
        assert total_noise(chosen) <= 2.5 * best


@pytest.mark.parametrize("seed", range(8))
def test_more_bytes_do_not_bring_more_noise(seed: int) -> None:
    candidates = problem(seed, layers=30)
    noises = [total_noise(choose(candidates, budget)) for budget in budgets(candidates, 60)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(noises))
    assert noises[-1] < noises[0] / 100


def test_the_budget_is_used_up_where_it_brings_anything() -> None:
    candidates = problem(4, layers=30)
    for budget in budgets(candidates)[1:-1]:
        chosen = choose(candidates, budget)
        room = budget - total_bytes(chosen)
        assert room < 0.05 * budget
        for path, options in candidates.items():
            for one in options:
                assert one.noise >= chosen[path].noise or one.bytes - chosen[path].bytes > room


def test_formats_against_the_sensitivities_are_worse() -> None:
    formats = tuple(Format(PALETTE, bits) for bits in (8, 6, 4, 2))
    shape = (64, 640)  # all alike, so that any order of the same formats takes the same bytes
    candidates = {
        f"layer {number}": [
            Candidate(format, stored_bytes(format, shape), 10 ** (-number / 4) * 4**-format.bits, None)
            for format in formats
        ]
        for number in range(16)
    }
    chosen = choose(candidates, budgets(candidates)[6])
    bits = [one.format.bits for one in chosen.values()]
    assert bits == sorted(bits, reverse=True)  # the first is the most sensitive
    assert len(set(bits)) > 1
    options = {path: {one.format: one for one in of_layer} for path, of_layer in candidates.items()}
    reverse = {path: options[path][one.format] for path, one in zip(candidates, reversed(chosen.values()), strict=True)}
    assert total_bytes(reverse) == total_bytes(chosen)
    assert total_noise(reverse) > 10 * total_noise(chosen)
