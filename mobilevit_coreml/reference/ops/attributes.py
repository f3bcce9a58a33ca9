"""Attributes that several operations have in common: choices, padding, values along an axis."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError

T = TypeVar("T")

Ints = tuple[int, ...]
Edges = Sequence[tuple[int, int]]  # (before, after) of the last dimensions


def choose(name: str, value: str, choices: Mapping[str, T]) -> T:
    """The entry for an attribute's value; raises UnsupportedError for values without one."""
    if value not in choices:
        raise UnsupportedError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def along(values: Tensor, axis: int, rank: int) -> Tensor:
    """A vector along an axis, in a shape that broadcasts with tensors of this rank."""
    return values.view([-1 if i == axis % rank else 1 for i in range(rank)])


def padded(x: Tensor, edges: Edges, value: float = 0.0) -> Tensor:
    """x with `value` before and after its last len(edges) dimensions."""
    amounts = [amount for edge in reversed(edges) for amount in edge]  # F.pad begins with the last dimension
    return F.pad(x, amounts, value=value) if any(amounts) else x
