"""The search for a format for each layer that serves a budget: estimates choose, scores and built packages decide."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from mobilevit_coreml.compression.formats import Format
from mobilevit_coreml.compression.quantize import Encoded
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.errors import ConversionError

CURVE = (0.35, 0.5, 0.7)  # sizes beside the chosen one and the uncompressed, as shares of the latter
NEAR = 0.02  # share of the uncompressed size: no point of the curve is closer to the chosen one
CURVE_BYTES = 256  # of the curve in the record of the package that is chosen, at most
SPARE = 256  # bytes beside those that a package was out by: estimates are out by some hundred
UNUSED = 0.002  # share of a size that is not worth another package
MAX_BUILDS = 6  # packages
HALVINGS = 7  # of the range of sizes in which a quality is looked for
MAX_STEPS = 1 + HALVINGS + MAX_BUILDS  # choices that are scored or built, nearly always
GROWTH = 0.01  # share of the layers' bytes added where a package misses a quality, doubled each time


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer's weight in one format: its bytes and its noise.

    `noise` is the power it puts at the output, relative to the output's own; `encoded` is None where it is
    uncompressed.
    """

    format: Format
    bytes: int
    noise: float
    encoded: Encoded | None


Candidates = Mapping[str, Sequence[Candidate]]  # by the layer's path
Choice = Mapping[str, Candidate]  # by the layer's path


@dataclasses.dataclass(frozen=True)
class Quality:
    """Fidelity to the original: dB of the worst output, all images together, and the share of equal classes, if any."""

    snr: float
    agreement: float | None


@dataclasses.dataclass(frozen=True)
class Point:
    """A choice with the bytes and the quality of its package."""

    choice: Choice
    bytes: int
    quality: Quality


def choose(candidates: Candidates, budget: float) -> dict[str, Candidate]:
    """The choice of least noise within `budget` bytes, or the smallest there is where nothing fits.

    Noise of different layers adds up. So from the smallest choice on, the upgrade that takes off most noise
    a byte is made, until none fits: but for the last few bytes that is the optimum of Lagrange's method.
    """
    choice = {path: min(options, key=lambda one: one.bytes) for path, options in candidates.items()}
    room = budget - total_bytes(choice)
    while True:
        gains = [
            ((choice[path].noise - one.noise) / max(one.bytes - choice[path].bytes, 1), path, one)
            for path, options in candidates.items()
            for one in options
            if one.noise < choice[path].noise and one.bytes - choice[path].bytes <= room
        ]
        if not gains:
            return choice
        _, path, one = max(gains, key=lambda gain: gain[:2])
        room -= one.bytes - choice[path].bytes
        choice[path] = one


def total_bytes(choice: Choice) -> int:
    """Bytes of all layers together."""
    return sum(one.bytes for one in choice.values())


def meet(
    budget: Budget,
    candidates: Candidates,
    rest: int,
    score: Callable[[Choice], Quality],
    build: Callable[[Choice], Point],
) -> tuple[Point, tuple[Point, ...]]:
    """The package that meets a budget, as it was built and measured, and the curve of size against quality.

    `rest` is a guess of the bytes that are not of these layers; the first package tells. `score` is the quality that
    a choice has in PyTorch, `build` makes its package and measures it. Points of the curve are by size; all but the
    chosen one are scored, and their bytes predicted.

    Raises ConversionError where no package meets the budget.
    """
    scored: list[tuple[Choice, Quality]] = []

    def scored_quality(choice: Choice) -> Quality:
        scored.append((choice, score(choice)))
        return scored[-1][1]

    if budget.max_size is not None:
        chosen = _within(budget.max_size, candidates, rest, build)
        rest = chosen.bytes - total_bytes(chosen.choice)
        least = rest + total_bytes(choose(candidates, 0))
        size = rest + total_bytes(choose(candidates, math.inf))
        for one in (*(share * size for share in CURVE if share * size > least), size):
            if abs(one - chosen.bytes) > NEAR * size:
                scored_quality(choose(candidates, one - rest))
    else:
        chosen = _of_quality(budget, candidates, rest, scored_quality, build)
        rest = chosen.bytes - total_bytes(chosen.choice)
    points = [Point(choice, rest + total_bytes(choice), quality) for choice, quality in scored]
    curve = [chosen, *(point for point in points if point.choice != chosen.choice)]
    return chosen, tuple(sorted(curve, key=lambda point: point.bytes))


def _within(max_size: int, candidates: Candidates, rest: int, build: Callable[[Choice], Point]) -> Point:
    """The best package within a size: built by the guess, then again with the bytes that was out by."""
    limit, smallest = max_size - CURVE_BYTES, choose(candidates, 0)
    room: float = limit - rest
    most = math.inf  # bytes of the layers, by a package that was too large
    best: Point | None = None
    for tries in range(MAX_BUILDS):
        choice = choose(candidates, room) if best is not None or tries < MAX_BUILDS - 1 else smallest
        if best is not None and total_bytes(choice) <= total_bytes(best.choice):
            break
        point = build(choice)
        if point.bytes <= limit:
            best = point
            if limit - point.bytes <= UNUSED * max_size:
                break
        elif choice == smallest:
            raise _too_small(max_size, point.bytes)
        else:
            most = total_bytes(choice) - 1
        room = min(limit - (point.bytes - total_bytes(choice)) - SPARE, most)
    assert best is not None  # the last try is the smallest
    return best


def _too_small(max_size: int, least: int) -> ConversionError:
    enough = math.ceil((least + CURVE_BYTES) / 1e4) / 100
    return ConversionError(
        f"max_size: expected at least {enough:.2f} MB, the smallest this network becomes, "
        f"got {max_size / 1e6:.2f} MB; raise it, or take a smaller variant"
    )


def _of_quality(
    budget: Budget,
    candidates: Candidates,
    rest: int,
    score: Callable[[Choice], Quality],
    build: Callable[[Choice], Point],
) -> Point:
    """The smallest package of a quality by the scores; larger ones are built until one has it when measured."""

    def reached(quality: Quality) -> bool:
        if budget.min_snr is not None:
            return quality.snr >= budget.min_snr
        return quality.agreement is not None and quality.agreement >= (budget.min_agreement or 0)

    best = whole = choose(candidates, math.inf)
    if reached(score(whole)):
        low, high = float(rest + total_bytes(choose(candidates, 0))), float(rest + total_bytes(whole))
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            choice = choose(candidates, middle - rest)
            if reached(score(choice)):
                best, high = min(best, choice, key=total_bytes), middle
            else:
                low = middle
    growth = GROWTH
    while not reached((point := build(best)).quality) and best != whole:
        while (larger := choose(candidates, (1 + growth) * total_bytes(best))) == best:
            growth *= 2
        best, growth = larger, 2 * growth
    if not reached(point.quality):
        raise _too_good(budget, point.quality)
    return point


def _too_good(budget: Budget, most: Quality) -> ConversionError:
    wanted, got = (
        (f"min_snr: expected at most {most.snr:.1f}", f"{budget.min_snr:g} dB")
        if budget.min_snr is not None
        else (f"min_agreement: expected at most {most.agreement:.3f}", f"{budget.min_agreement:g}")
    )
    return ConversionError(f"{wanted}, which uncompressed weights have on these images, got {got}; lower it")
