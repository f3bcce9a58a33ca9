"""Reductions and cumulative sums. Results of integers are integers, rounded towards zero."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mobilevit_coreml.reference.ops.attributes import Ints, choose


def _product(x: Tensor, axes: Ints, keep_dims: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep_dims, dtype=x.dtype)
    return x


# Operations of `x`, `axes` (all axes if empty) and `keep_dims`.
REDUCTIONS: Mapping[str, Callable[[Tensor, Ints, bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype),
    "reduce_l2_norm": lambda x, axes, keep: x.float().square().sum(axes, keep).sqrt().to(x.dtype),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log().to(x.dtype),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x.float(), axes, keep).to(x.dtype),
    "reduce_max": torch.amax,
    "reduce_mean": lambda x, axes, keep: x.float().mean(axes, keep).to(x.dtype),
    "reduce_min": torch.amin,
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep, dtype=x.dtype),
}

_INDEX_TYPES = dict.fromkeys(("int32", "int16", "uint16"), torch.int32)


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the first maximum."""
    return x.argmax(axis, keepdim=keep_dims).to(choose("output_dtype", output_dtype, _INDEX_TYPES))


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the first minimum."""
    return x.argmin(axis, keepdim=keep_dims).to(choose("output_dtype", output_dtype, _INDEX_TYPES))


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Cumulative sum along an axis, from the end if `reverse`, without the element itself if `exclusive`."""
    if reverse:
        x = x.flip(axis)
    if exclusive:
        count = x.shape[axis]
        x = torch.cat([torch.zeros_like(x.narrow(axis, 0, min(count, 1))), x.narrow(axis, 0, max(count - 1, 0))], axis)
    sums = x.cumsum(axis, dtype=x.dtype)
    return sums.flip(axis) if reverse else sums
