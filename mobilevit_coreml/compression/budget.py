"""The best package within a size, or the smallest of a quality: choices made by estimates, judged by measurements."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.compression.search import Candidate, choose, total_bytes
from mobilevit_coreml.errors import ConversionError

CURVE = (0.35, 0.5, 0.7)  # sizes beside the chosen one and half precision, as shares of the latter
CURVE_BYTES = 1000  # of the curve in the record of the package that is chosen, at most
SPARE = 256  # bytes beside those that a try was too large by: estimates are out by some hundred
TRIES = 6  # packages built to come within a size
HALVINGS = 6  # of the range of sizes in which a quality is looked for


@dataclasses.dataclass(frozen=True)
class Point:
    """A package that was built and measured: its bytes, and how near the original it is."""

    choice: Mapping[str, Candidate]
    bytes: int
    snr: float  # dB, of the worst output, all pictures together
    agreement: float | None  # of classes; None of features


def meet(
    budget: Budget,
    candidates: Mapping[str, Sequence[Candidate]],
    build: Callable[[Mapping[str, Candidate]], Point],
    advance: Callable[[], None] = lambda: None,
) -> tuple[Point, tuple[Point, ...]]:
    """The package that meets a budget, and all that were built on the way, by size: the curve.

    `build` makes a package of a choice and measures it; `advance` is called after each of at most
    `budget_steps()` times.

    Raises ConversionError where no package meets the budget.
    """
    built: list[Point] = []

    def built_of(room: float) -> Point:
        built.append(build(choose(candidates, room)))
        advance()
        return built[-1]

    whole = built_of(float("inf"))
    rest = whole.bytes - total_bytes(whole.choice)  # what is no weight of a layer: the program, biases, small weights
    least = rest + sum(min(one.bytes for one in options) for options in candidates.values())
    if budget.max_size is not None:
        chosen = _within(budget.max_size - CURVE_BYTES, rest, least, built_of)
        for share in CURVE:
            if share * whole.bytes > least:
                built_of(share * whole.bytes - rest)
    else:
        chosen = _of_quality(budget, whole, rest, least, built_of)
    return chosen, tuple(sorted(built, key=lambda point: point.bytes))


def budget_steps() -> int:
    """How many packages `meet` builds at most."""
    return 1 + max(TRIES + len(CURVE), HALVINGS)


def _within(size: int, rest: int, least: int, built_of: Callable[[float], Point]) -> Point:
    if size < least:
        raise _too_small(size, built_of(0).bytes)
    room = float(size - rest)
    for _ in range(TRIES):
        point = built_of(room)
        if point.bytes <= size:
            return point
        room = min(room, total_bytes(point.choice)) - (point.bytes - size + SPARE)  # less than this choice takes
    raise _too_small(size, point.bytes)


def _too_small(size: int, least: int) -> ConversionError:
    enough = math.ceil((least + CURVE_BYTES) / 1e4) / 100
    return ConversionError(
        f"max_size: expected at least {enough:.2f} MB, the smallest this network becomes, "
        f"got {(size + CURVE_BYTES) / 1e6:.2f} MB; raise it, or take a smaller variant"
    )


def _of_quality(budget: Budget, whole: Point, rest: int, least: int, built_of: Callable[[float], Point]) -> Point:
    def reached(point: Point) -> bool:
        if budget.min_snr is not None:
            return point.snr >= budget.min_snr
        return point.agreement is not None and point.agreement >= (budget.min_agreement or 0)

    if not reached(whole):
        wanted, got = (
            (f"min_snr: expected at most {whole.snr:.1f}", f"{budget.min_snr:g} dB")
            if budget.min_snr is not None
            else (f"min_agreement: expected at most {whole.agreement:.3f}", f"{budget.min_agreement:g}")
        )
        raise ConversionError(f"{wanted}, which half precision has on these pictures, got {got}; lower it")
    best, low, high = whole, float(least), float(whole.bytes)
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        point = built_of(middle - rest)
        if reached(point):
            best, high = min(best, point, key=lambda one: one.bytes), middle
        else:
            low = middle
    return best
