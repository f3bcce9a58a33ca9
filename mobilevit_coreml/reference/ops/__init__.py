"""The operations of MIL, one small function each, with the specification's names for its parameters.

A parameter's annotation says what it is given: a Tensor is a value of the program; int, float, bool,
str and tuples of int or bool are what such a value holds, taken out once where it is a constant.
Arithmetic is torch's in float32; rounding to fp16 is the evaluator's business.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

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

OPERATIONS: Mapping[str, Callable[..., Any]] = {
    name: function
    for module in (convolution, normalization, activation, elementwise, reduction, linear, shape, indexing, resizing)
    for name, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
}

# Operations that only move, choose or compare values: what they put out was rounded when it came in.
EXACT = frozenset(
    [
        "band_part",
        "batch_to_space",
        "concat",
        "crop",
        "depth_to_space",
        "expand_dims",
        "fill_like",
        "flatten2d",
        "gather",
        "gather_along_axis",
        "gather_nd",
        "identity",
        "max_pool",
        "maximum",
        "minimum",
        "pad",
        "pixel_shuffle",
        "pixel_unshuffle",
        "reduce_max",
        "reduce_min",
        "relu",
        "reshape",
        "reshape_like",
        "resize_nearest_neighbor",
        "reverse",
        "reverse_sequence",
        "select",
        "slice_by_index",
        "slice_by_size",
        "slice_update",
        "sliding_windows",
        "space_to_batch",
        "space_to_depth",
        "split",
        "squeeze",
        "stack",
        "tile",
        "topk",
        "transpose",
        "upsample_nearest_neighbor",
    ]
)
