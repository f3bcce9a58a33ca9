"""Which format for which layer: the least noise at the output for a number of bytes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mobilevit_coreml.compression.formats import Format

if TYPE_CHECKING:
    from mobilevit_coreml.compression.encoded import Encoded


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


def total_noise(choice: Choice) -> float:
    """Power of the output's noise, relative to its own."""
    return sum(one.noise for one in choice.values())
