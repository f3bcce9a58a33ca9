"""Reductions over axes, all of them where none are given, and running sums.

Of integers all are integers, the integer part where there is another.
"""

import torch
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError

Ints = tuple[int, ...]


def _axes(x: Tensor, axes: Ints) -> Ints:
    return axes or tuple(range(x.dim()))


def reduce_l1_norm(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return x.abs().sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)


def reduce_l2_norm(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return x.float().square().sum(_axes(x, axes), keepdim=keep_dims).sqrt().to(x.dtype)


def reduce_log_sum(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return x.sum(_axes(x, axes), keepdim=keep_dims).log().to(x.dtype)


def reduce_log_sum_exp(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return torch.logsumexp(x.float(), _axes(x, axes), keepdim=keep_dims).to(x.dtype)


def reduce_max(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return torch.amax(x, _axes(x, axes), keepdim=keep_dims)


def reduce_mean(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return x.float().mean(_axes(x, axes), keepdim=keep_dims).to(x.dtype)


def reduce_min(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return torch.amin(x, _axes(x, axes), keepdim=keep_dims)


def reduce_prod(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in _axes(x, axes)), reverse=True):
        x = x.prod(axis, keepdim=keep_dims, dtype=x.dtype)
    return x


def reduce_sum(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return x.sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)


def reduce_sum_square(x: Tensor, axes: Ints = (), keep_dims: bool = False) -> Tensor:
    return x.square().sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the first greatest value."""
    _check_index_type(output_dtype)
    return x.argmax(axis, keepdim=keep_dims).to(torch.int32)


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the first least value."""
    _check_index_type(output_dtype)
    return x.argmin(axis, keepdim=keep_dims).to(torch.int32)


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sums along an axis, from the end with `reverse`, without the element itself with `exclusive`."""
    if reverse:
        x = x.flip(axis)
    if exclusive:
        count = x.shape[axis]
        x = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, count - 1)], axis)
    sums = x.cumsum(axis, dtype=x.dtype)
    return sums.flip(axis) if reverse else sums


def _check_index_type(output_dtype: str) -> None:
    if output_dtype not in ("int32", "uint16", "int16"):
        raise UnsupportedError(f"output_dtype: expected int32, int16 or uint16, got {output_dtype!r}")
