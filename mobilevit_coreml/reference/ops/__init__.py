"""MIL operations, each a small function with the parameter names of the specification.

A parameter annotated Tensor takes a value of the program; int, float, bool, str and tuples of int or
bool take the contents of a value, converted once if it is constant. Arithmetic is float32 in torch;
the evaluator rounds to fp16. Operations of one line are lambdas in a TABLE of their module.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mobilevit_coreml.reference.ops import (
    activation,
    control,
    convolution,
    detection,
    elementwise,
    indexing,
    linear,
    normalization,
    recurrent,
    reduction,
    resizing,
    shape,
    state,
)
from mobilevit_coreml.reference.ops.attributes import Ints

_WITH_TABLES = (normalization, activation, elementwise, linear, shape, indexing)
_MODULES = (*_WITH_TABLES, control, convolution, detection, recurrent, reduction, resizing, state)

# Types of the lambdas' parameters; those not here are Tensor.
_TYPES = {
    **dict.fromkeys(("alpha", "beta", "epsilon", "k"), float),
    **dict.fromkeys(("axis", "block_size", "num_splits", "size", "stride", "upscale_factor", "downscale_factor"), int),
    **dict.fromkeys(("ascending", "keep_dims"), bool),
    **dict.fromkeys(("axes", "perm", "reps", "split_sizes"), Ints),
    "equation": str,
    "values": list[Tensor],
}


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__annotations__ = {name: _TYPES.get(name, Tensor) for name in inspect.signature(function).parameters}
    return function


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(x, y)


def _reduction(function: Callable[[Tensor, Ints, bool], Tensor]) -> Callable[..., Tensor]:
    return lambda x, axes=(), keep_dims=False: function(x, axes or tuple(range(x.dim())), keep_dims)


_LAMBDAS = {
    **{name: _unary(function) for name, function in elementwise.UNARY.items()},
    **{name: _binary(function) for name, function in elementwise.BINARY.items()},
    **{name: _reduction(function) for name, function in reduction.REDUCTIONS.items()},
    **{name: function for module in _WITH_TABLES for name, function in module.TABLE.items()},
}

OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{name: _annotated(function) for name, function in _LAMBDAS.items()},
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
