"""Gather, scatter, sorting and other operations with indices.

Negative indices count from the end, unless validate_indices says that there are none.
"""

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops.attributes import along

TABLE: Mapping[str, Callable[..., Tensor]] = {
    "argsort": lambda x, axis=-1, ascending=False: _order(x, axis, ascending).to(torch.int32),
    "non_zero": lambda x: x.nonzero().to(torch.int32),
}


def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x along an axis; the dimensions of `indices` replace that axis."""
    axis = axis % x.dim()
    if batch_dims:
        each = functools.partial(gather, axis=axis - batch_dims, validate_indices=validate_indices)
        return _for_each(each, x, indices, batch_dims)
    selected = x.index_select(axis, _nonnegative(indices, x.shape[axis], validate_indices).flatten())
    return selected.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """torch.gather."""
    return x.gather(axis, _nonnegative(indices, x.shape[axis], validate_indices))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x at the positions in the last dimension of `indices`."""
    if batch_dims:
        each = functools.partial(gather_nd, validate_indices=validate_indices)
        return _for_each(each, x, indices, batch_dims)
    positions = zip(indices.unbind(-1), x.shape, strict=False)
    return x[tuple(_nonnegative(index, size, validate_indices) for index, size in positions)]


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """A new dimension at `axis`: on_value at the index, off_value elsewhere and for indices out of range."""
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value.reshape(())
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value.reshape(())
    axis = axis % (indices.dim() + 1)
    classes = torch.arange(one_hot_vector_size).view(-1, *[1] * (indices.dim() - axis))
    return torch.where(classes == indices.unsqueeze(axis), on, off)


def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """Updates of whole slices along an axis, one index each."""
    axis = axis % data.dim()
    index = _nonnegative(indices.flatten(), data.shape[axis], validate_indices)
    updates = updates.reshape(*data.shape[:axis], index.numel(), *data.shape[axis + 1 :])
    return _scatter(data, axis, along(index, axis, data.dim()).expand_as(updates), updates, mode)


def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """torch.scatter, with a mode."""
    return _scatter(data, axis, _nonnegative(indices, data.shape[axis], validate_indices), updates, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """Updates of slices at the positions in the last dimension of `indices`."""
    depth = indices.shape[-1]
    inner = math.prod(data.shape[depth:])
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for size, index in zip(data.shape[:depth], indices.unbind(-1), strict=True):
        row = row * size + _nonnegative(index, size, validate_indices)
    flat = data.reshape(-1, inner)
    rows = row.flatten()[:, None].expand(-1, inner)
    return _scatter(flat, 0, rows, updates.reshape(-1, inner), mode).view(data.shape)


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest or smallest values along an axis, sorted, and their indices."""
    k = x.shape[axis] if k == -1 else k
    order = _order(x, axis, ascending).narrow(axis, 0, k)
    values = x.gather(axis, order)
    return (values, order.to(torch.int32)) if return_indices else (values,)


def _order(x: Tensor, axis: int, ascending: bool) -> Tensor:
    return x.argsort(dim=axis, descending=not ascending, stable=True)


def _for_each(function: Callable[..., Tensor], x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """function(x, indices) for each entry of the first batch_dims dimensions."""
    batch = x.shape[:batch_dims]
    entries = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
    return torch.stack([function(*entry) for entry in entries]).unflatten(0, batch)


def _scatter(data: Tensor, axis: int, index: Tensor, updates: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return data.scatter(axis, index, updates)
    if mode == "sub":
        return _scatter(data, axis, index, -updates, "add")
    if mode == "div":  # of integers the integer part
        divisor = _scatter(torch.ones_like(data), axis, index, updates, "mul")
        return data / divisor if data.is_floating_point() else torch.div(data, divisor, rounding_mode="trunc")
    reductions = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    if mode not in reductions:
        raise UnsupportedError(f"mode: expected update, sub, div, {', '.join(reductions)}, got {mode!r}")
    return data.scatter_reduce(axis, index, updates.to(data.dtype), reductions[mode])


def _nonnegative(indices: Tensor, size: int, validate: bool) -> Tensor:
    indices = indices.long()
    low = 0 if validate else -size
    if ((indices < low) | (indices >= size)).any():
        raise UnsupportedError(
            f"indices: expected {low} to {size - 1}, got {int(indices.min())} to {int(indices.max())}; "
            "the specification does not define the result"
        )
    return torch.where(indices < 0, indices + size, indices)
