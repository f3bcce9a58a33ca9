"""Convolution and pooling. Shapes: N batch, C channels, *D spatial dimensions, *K kernel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops.attributes import Edges, Ints, along, padded

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints = (),
    pad_type: str = "valid",
    pad: Ints = (),
    dilations: Ints = (),
    groups: int = 1,
) -> Tensor:
    """x: (N, C_in, *D), weight: (C_out, C_in/groups, *K)."""
    ones = (1,) * (x.dim() - 2)
    strides, dilations = strides or ones, dilations or ones
    kernel = tuple((size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True))
    edges = _edges(pad_type, pad, _same_totals(x, kernel, strides))
    padding = [before for before, _ in edges]
    if any(before != after for before, after in edges):  # which torch's convolution does not have
        x, padding = padded(x, edges), [0] * len(edges)
    return torch.convolution(x, weight, bias, strides, padding, dilations, False, [0], groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints = (),
    output_shape: Ints = (),
    pad_type: str = "valid",
    strides: Ints = (),
    dilations: Ints = (),
    groups: int = 1,
) -> Tensor:
    """x: (N, C_in, *D), weight: (C_in, C_out/groups, *K). The unpadded result, cropped to the output size."""
    ones = (1,) * (x.dim() - 2)
    strides, dilations = strides or ones, dilations or ones
    full = torch.convolution(x, weight, bias, strides, [0], dilations, True, [0], groups)
    goals = output_shape[2:] or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    excess = [max(size - goal, 0) for size, goal in zip(full.shape[2:], goals, strict=True)]
    edges = _edges(pad_type, pad, excess)
    if not output_shape and not pad_type.startswith("same"):
        goals = [size - sum(edge) for size, edge in zip(full.shape[2:], edges, strict=True)]
    for axis, ((start, _), size) in enumerate(zip(edges, goals, strict=True), start=2):
        missing = start + size - full.shape[axis]
        if missing > 0:  # outputs beyond the reach of the last input are the bias alone
            shape = [*full.shape[:axis], missing, *full.shape[axis + 1 :]]
            edge = torch.zeros(shape) if bias is None else along(bias, 1, x.dim()).expand(shape)
            full = torch.cat([full, edge], dim=axis)
        full = full.narrow(axis, start, size)
    return full


def max_pool(
    x: Tensor, kernel_sizes: Ints, strides: Ints = (), pad_type: str = "valid", pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """x: (N, C, *D), padded with -inf."""
    strides = strides or (1,) * len(kernel_sizes)
    for edges in _pool_edges(x, kernel_sizes, strides, pad_type, pad, ceil_mode):
        x = padded(x, edges, -math.inf)
    return _MAX_POOL[len(kernel_sizes)](x, kernel_sizes, strides)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints = (),
    pad_type: str = "valid",
    pad: Ints = (),
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """x: (N, C, *D). Padding counts as zeros unless excluded; the rows that ceil_mode adds never count."""
    strides = strides or (1,) * len(kernel_sizes)
    edges, partial = _pool_edges(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    counted = padded(torch.ones(1, 1, *x.shape[2:]), edges, 0.0 if exclude_padding_from_average else 1.0)
    sums = _window_sum(padded(padded(x, edges), partial), kernel_sizes, strides)
    return sums / _window_sum(padded(counted, partial), kernel_sizes, strides)


def l2_pool(
    x: Tensor, kernel_sizes: Ints, strides: Ints = (), pad_type: str = "valid", pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """x: (N, C, *D). Square root of the sum of squares."""
    strides = strides or (1,) * len(kernel_sizes)
    for edges in _pool_edges(x, kernel_sizes, strides, pad_type, pad, ceil_mode):
        x = padded(x, edges)
    return _window_sum(x * x, kernel_sizes, strides).sqrt()


def _window_sum(x: Tensor, kernel: Ints, strides: Ints) -> Tensor:
    return _AVG_POOL[len(kernel)](x, kernel, strides) * math.prod(kernel)


def _pool_edges(
    x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints, ceil_mode: bool
) -> tuple[Edges, Edges]:
    """Padding of each dimension, and what ceil_mode adds so that a last partial window fits.

    A window that would start in the padding at the end is dropped.
    """
    edges = _edges(pad_type, pad, _same_totals(x, kernel, strides))
    partial = []
    for size, (before, after), window, stride in zip(x.shape[2:], edges, kernel, strides, strict=True):
        total = size + before + after
        count = math.ceil((total - window) / stride) + 1
        if (count - 1) * stride >= size + before and before + after > 0:
            count -= 1
        partial.append((0, max((count - 1) * stride + window - total, 0) if ceil_mode else 0))
    return edges, partial


def _same_totals(x: Tensor, kernel: Ints, strides: Ints) -> list[int]:
    """Padding of each dimension with which the output has size / stride elements, rounded up."""
    return [
        max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        for size, stride, window in zip(x.shape[2:], strides, kernel, strict=True)
    ]


def _edges(pad_type: str, pad: Ints, same: list[int]) -> Edges:
    """Padding (before, after) of each dimension; `same` has the sums for pad_type same."""
    if pad_type == "valid" or (pad_type == "custom" and not pad):
        return [(0, 0)] * len(same)
    if pad_type == "custom":
        return [(before, after) for before, after, _ in zip(pad[::2], pad[1::2], same, strict=True)]
    if pad_type == "same":
        return [(total // 2, total - total // 2) for total in same]
    if pad_type == "same_lower":
        return [(total - total // 2, total // 2) for total in same]
    raise UnsupportedError(f"pad_type: expected valid, same, same_lower or custom, got {pad_type!r}")
