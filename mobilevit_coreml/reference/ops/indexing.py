"""Operations that read and write at places given by indices, and that find such places."""

import math

import torch
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return x.argsort(dim=axis, descending=not ascending, stable=True).to(torch.int32)


def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x along an axis, in place of which come the dimensions of the indices."""
    axis = axis % x.dim()
    if batch_dims:
        batch = x.shape[:batch_dims]
        flat, index = x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1)
        parts = [gather(part, places, axis - batch_dims) for part, places in zip(flat, index, strict=True)]
        return torch.stack(parts).unflatten(0, batch)
    places = _wrapped(indices, x.shape[axis])
    taken = x.index_select(axis, places.flatten())
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """x at the indices' place in one dimension, at their own in the others."""
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x at the places that the indices' last dimension holds."""
    if batch_dims:
        batch = x.shape[:batch_dims]
        flat, index = x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1)
        return torch.stack([gather_nd(part, places) for part, places in zip(flat, index, strict=True)]).unflatten(
            0, batch
        )
    return x[_places(x, indices)]


def non_zero(x: Tensor) -> Tensor:
    return x.nonzero().to(torch.int32)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """A new dimension at the axis with on_value at the index, and nowhere for an index outside it."""
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value.reshape(())
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value.reshape(())
    axis = axis % (indices.dim() + 1)
    places = torch.arange(one_hot_vector_size).view(-1, *[1] * (indices.dim() - axis))
    return torch.where(places == indices.unsqueeze(axis), on, off)


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Whole slices along an axis, one index each."""
    axis = axis % data.dim()
    places = _wrapped(indices.flatten(), data.shape[axis])
    shape = [-1 if i == axis else 1 for i in range(data.dim())]
    updates = updates.reshape(*data.shape[:axis], places.numel(), *data.shape[axis + 1 :])
    return _scatter(data, axis, places.view(shape).expand_as(updates), updates, mode)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """At the indices' place in one dimension, at their own in the others."""
    return _scatter(data, axis, _wrapped(indices, data.shape[axis]), updates, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """Slices at the places that the indices' last dimension holds."""
    depth = indices.shape[-1]
    inner = math.prod(data.shape[depth:])
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for size, index in zip(data.shape[:depth], indices.unbind(-1), strict=True):
        place = place * size + _wrapped(index, size)
    flat = data.reshape(-1, inner)
    rows = place.flatten()[:, None].expand(-1, inner)
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
    """The k greatest or least values along an axis, in order, and where they were."""
    k = x.shape[axis] if k == -1 else k
    order = x.argsort(dim=axis, descending=not ascending, stable=True).narrow(axis, 0, k)
    values = x.gather(axis, order)
    return (values, order.to(torch.int32)) if return_indices else (values,)


_REDUCTIONS: dict[str, str] = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(data: Tensor, axis: int, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode == "sub":
        return _scatter(data, axis, places, -updates, "add")
    if mode == "div":  # of integers the integer part
        divisor = _scatter(torch.ones_like(data), axis, places, updates, "mul")
        return data / divisor if data.is_floating_point() else torch.div(data, divisor, rounding_mode="trunc")
    if mode not in _REDUCTIONS:
        raise UnsupportedError(f"mode: expected update, sub, div, {', '.join(_REDUCTIONS)}, got {mode!r}")
    return data.scatter_reduce(axis, places, updates.to(data.dtype), _REDUCTIONS[mode])


def _places(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    return tuple(_wrapped(index, size) for index, size in zip(indices.unbind(-1), x.shape, strict=False))


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    places = indices.long()
    return torch.where(places < 0, places + size, places)
