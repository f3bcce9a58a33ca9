"""Which format for which layer: the least noise at the output for a number of bytes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mobilevit_coreml.compression.formats import Format

if TYPE_CHECKING:
    from mobilevit_coreml.compression.encoded import Encoded

STEPS = 60  # of the bisection over the price of a byte


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer's weight in one format: what it takes and what it costs.

    `noise` is the power it puts at the output, relative to the output's own; `encoded` is None in half precision.
    """

    format: Format
    bytes: int
    noise: float
    encoded: "Encoded | None"


Choice = Mapping[str, Candidate]  # by the layer's path


def choose(candidates: Mapping[str, Sequence[Candidate]], budget: float) -> dict[str, Candidate]:
    """The choice of least noise within `budget` bytes, or the smallest there is where nothing fits.

    Noise of different layers adds up, so each layer takes what is best at one common price of a byte (Lagrange);
    what that leaves of the budget goes to the upgrades that bring most.
    """
    smallest = {path: min(options, key=lambda one: one.bytes) for path, options in candidates.items()}
    if total_bytes(smallest) > budget:
        return smallest
    low, high = 1e-15, 1e3  # noise a byte: nothing matters but noise, nothing but bytes
    best = smallest
    for _ in range(STEPS):
        price = math.sqrt(low * high)
        choice = _at_price(candidates, price)
        if total_bytes(choice) > budget:
            low = price
        else:
            high, best = price, choice
    return _upgraded(candidates, best, budget)


def _at_price(candidates: Mapping[str, Sequence[Candidate]], price: float) -> dict[str, Candidate]:
    return {path: min(options, key=lambda one: one.noise + price * one.bytes) for path, options in candidates.items()}


def _upgraded(
    candidates: Mapping[str, Sequence[Candidate]], choice: dict[str, Candidate], budget: float
) -> dict[str, Candidate]:
    choice, room = dict(choice), budget - total_bytes(choice)
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


def total_noise(choice: Choice) -> float:
    """Power of the output's noise, relative to its own."""
    return sum(one.noise for one in choice.values())
