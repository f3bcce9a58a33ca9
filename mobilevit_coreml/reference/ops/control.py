"""Control flow. `blocks` are the nested blocks of the operation, as functions of their inputs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError

Blocks = list[Callable[..., tuple[Any, ...]]]

MAX_ITERATIONS = 100_000


def cond(blocks: Blocks, pred: bool) -> tuple[Any, ...]:
    """Outputs of the first block if `pred`, of the second otherwise."""
    return blocks[0 if pred else 1]()


def while_loop(blocks: Blocks, loop_vars: list[Tensor]) -> tuple[Any, ...]:
    """The loop variables, replaced by the outputs of the second block as long as the first returns True."""
    values = tuple(loop_vars)
    for _ in range(MAX_ITERATIONS):
        (goes_on,) = blocks[0](*values)
        if not goes_on:
            return values
        values = blocks[1](*values)
    raise UnsupportedError(f"expected a loop that ends, got more than {MAX_ITERATIONS} iterations")
