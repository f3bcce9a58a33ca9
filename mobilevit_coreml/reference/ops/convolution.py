"""Convolution and pooling. Shapes: N batch, C channels, *D spatial dimensions, *K kernel."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError

Ints = tuple[int, ...]

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


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
    dims = x.dim() - 2
    strides, dilations = strides or (1,) * dims, dilations or (1,) * dims
    kernel = tuple((size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True))
    x, padding = _padded(x, kernel, strides, pad_type, pad, value=0.0)
    return _CONV[dims](x, weight, bias, strides, padding, dilations, groups)


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
    dims = x.dim() - 2
    strides, dilations = strides or (1,) * dims, dilations or (1,) * dims
    full = _CONV_TRANSPOSE[dims](x, weight, bias, strides, 0, 0, groups, dilations)
    before = [0] * dims
    sizes = [
        (size - 1) * stride + (kernel - 1) * dilation + 1
        for size, stride, kernel, dilation in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    ]
    if pad_type == "custom":
        pad = pad or (0,) * 2 * dims
        before = list(pad[::2])
        sizes = [size - pad[2 * i] - pad[2 * i + 1] for i, size in enumerate(sizes)]
    elif pad_type in ("same", "same_lower"):
        target = list(output_shape[2:]) or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        excess = [max(size - goal, 0) for size, goal in zip(sizes, target, strict=True)]
        before = [(total + (pad_type == "same_lower")) // 2 for total in excess]
        sizes = target
    elif pad_type != "valid":
        raise _unknown_pad_type(pad_type)
    if output_shape:
        sizes = list(output_shape[2:])
    for axis, (start, size) in enumerate(zip(before, sizes, strict=True), start=2):
        missing = start + size - full.shape[axis]
        if missing > 0:  # outputs beyond the reach of the last input are the bias alone
            shape = [*full.shape[:axis], missing, *full.shape[axis + 1 :]]
            edge = torch.zeros(shape) if bias is None else bias.view(1, -1, *[1] * dims).expand(shape)
            full = torch.cat([full, edge], dim=axis)
        full = full.narrow(axis, start, size)
    return full


def max_pool(
    x: Tensor, kernel_sizes: Ints, strides: Ints = (), pad_type: str = "valid", pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """x: (N, C, *D), padded with -inf."""
    strides = strides or (1,) * len(kernel_sizes)
    x, _, _ = _pool_padded(x, kernel_sizes, strides, pad_type, pad, ceil_mode, value=-math.inf)
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
    padded, before, after = _pool_padded(x, kernel_sizes, strides, pad_type, pad, ceil_mode, value=0.0)
    counted = torch.ones(x.shape[2:])
    edges = [(0, 0) if exclude_padding_from_average else pair for pair in zip(before, after, strict=True)]
    counted = F.pad(counted, _flat(edges), value=1.0)
    counted = F.pad(counted, _flat([(b - e[0], 0) for b, e in zip(before, edges, strict=True)]))
    missing = [size - have for size, have in zip(padded.shape[2:], counted.shape, strict=True)]
    counted = F.pad(counted, _flat([(0, count) for count in missing]))
    sums = _window_sum(padded, kernel_sizes, strides)
    return sums / _window_sum(counted[None, None], kernel_sizes, strides)


def l2_pool(
    x: Tensor, kernel_sizes: Ints, strides: Ints = (), pad_type: str = "valid", pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """x: (N, C, *D). Square root of the sum of squares."""
    strides = strides or (1,) * len(kernel_sizes)
    x, _, _ = _pool_padded(x, kernel_sizes, strides, pad_type, pad, ceil_mode, value=0.0)
    return _window_sum(x * x, kernel_sizes, strides).sqrt()


def _window_sum(x: Tensor, kernel: Ints, strides: Ints) -> Tensor:
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    return average(x, kernel, strides) * math.prod(kernel)


def _pool_padded(
    x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints, ceil_mode: bool, value: float
) -> tuple[Tensor, list[int], list[int]]:
    """x padded with `value`, and the padding before and after each dimension.

    ceil_mode pads the end so that a last partial window fits; a window that would start in the
    padding at the end is dropped.
    """
    edges = _edges(x.shape[2:], kernel, strides, pad_type, pad)
    before, after = [edge[0] for edge in edges], [edge[1] for edge in edges]
    extra = [0] * len(kernel)
    if ceil_mode:
        for i, (size, window, stride) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
            total = size + before[i] + after[i]
            count = math.ceil((total - window) / stride) + 1
            if (count - 1) * stride >= size + before[i] and before[i] + after[i] > 0:
                count -= 1
            extra[i] = max((count - 1) * stride + window - total, 0)
    amounts = [(b, a + e) for b, a, e in zip(before, after, extra, strict=True)]
    if any(map(any, amounts)):
        x = F.pad(x, _flat(amounts), value=value)
    return x, before, after


def _padded(x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints, value: float) -> tuple[Tensor, Ints]:
    """x and the symmetric padding for torch's convolution, or x padded asymmetrically and no padding."""
    edges = _edges(x.shape[2:], kernel, strides, pad_type, pad)
    if all(start == end for start, end in edges):
        return x, tuple(start for start, _ in edges)
    return F.pad(x, _flat(edges), value=value), (0,) * len(edges)


def _edges(sizes: Ints, kernel: Ints, strides: Ints, pad_type: str, pad: Ints) -> list[tuple[int, int]]:
    """Padding (before, after) of each dimension."""
    if pad_type == "valid":
        return [(0, 0)] * len(kernel)
    if pad_type == "custom":
        pad = pad or (0,) * 2 * len(kernel)
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(kernel))]
    if pad_type in ("same", "same_lower"):
        totals = [
            max((math.ceil(size / stride) - 1) * stride + window - size, 0)
            for size, stride, window in zip(sizes, strides, kernel, strict=True)
        ]
        if pad_type == "same":
            return [(total // 2, total - total // 2) for total in totals]
        return [(total - total // 2, total // 2) for total in totals]
    raise _unknown_pad_type(pad_type)


def _unknown_pad_type(pad_type: str) -> UnsupportedError:
    return UnsupportedError(f"pad_type: expected valid, same, same_lower or custom, got {pad_type!r}")


def _flat(edges: list[tuple[int, int]]) -> list[int]:
    """Padding in the order of F.pad: last dimension first."""
    return [amount for edge in reversed(edges) for amount in edge]
