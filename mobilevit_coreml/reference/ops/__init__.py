"""MIL operations, each a small function with the parameter names of the specification.

A parameter annotated Tensor takes a value of the program; int, float, bool, str and tuples of int or
bool take the contents of a value, converted once if it is constant. Arithmetic is float32 in torch;
the evaluator rounds to fp16.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mobilevit_coreml.reference.ops import (
    activation,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    reduction,
    resizing,
    shape,
)

_MODULES = (convolution, normalization, activation, elementwise, reduction, linear, shape, indexing, resizing)


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def operation(x: Tensor) -> Tensor:
        return function(x)

    return operation


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def operation(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return operation


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def operation(x: Tensor, axes: tuple[int, ...] = (), keep_dims: bool = False) -> Tensor:
        return function(x, axes or tuple(range(x.dim())), keep_dims)

    return operation


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{name: _unary(function) for name, function in elementwise.UNARY.items()},
    **{name: _binary(function) for name, function in elementwise.BINARY.items()},
    **{name: _reduction(function) for name, function in reduction.REDUCTIONS.items()},
    **{
        name: function
        for module in _MODULES
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    },
}

# Operations that move, select or compare values; their fp16 results need no rounding.
EXACT = {name for name, function in OPERATIONS.items() if function.__module__ == shape.__name__} - {"range_1d"}
EXACT |= {"crop", "gather", "gather_along_axis", "gather_nd", "identity", "max_pool", "maximum", "minimum", "relu"}
EXACT |= {"reduce_max", "reduce_min", "resize_nearest_neighbor", "select", "topk", "upsample_nearest_neighbor"}
