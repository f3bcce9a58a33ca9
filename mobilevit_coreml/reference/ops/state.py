"""States of a stateful model (iOS18)."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass
class Cell:
    """A state's value."""

    value: Tensor


def read_state(input: Cell) -> Tensor:
    return input.value


def write_state(input: Cell, data: Tensor) -> tuple[()]:
    input.value = data
    return ()
