"""Reshaping, slicing, padding, joining and repeating: operations that do not change values."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops.attributes import Ints, padded

Bools = tuple[bool, ...]

# Shapes: N batch, C channels, H W height and width, b block size.
TABLE: Mapping[str, Callable[..., Tensor]] = {
    # (N, b*b*C, H, W) -> (N, C, H*b, W*b) and back, channels innermost
    "depth_to_space": lambda x, block_size: (
        x.unflatten(1, (block_size, block_size, -1)).permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
    ),
    "space_to_depth": lambda x, block_size: (
        x.unflatten(3, (-1, block_size)).unflatten(2, (-1, block_size)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    ),
    "fill_like": lambda ref_tensor, value=None: fill(tuple(ref_tensor.shape), value),
    "flatten2d": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, upscale_factor),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, downscale_factor),
    "range_1d": lambda start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype),
    "reverse": lambda x, axes=(): x.flip(axes or tuple(range(x.dim()))),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "sliding_windows": lambda x, axis, size, stride=1: x.unfold(axis, size, stride).movedim(-1, axis % x.dim() + 1),
    "split": lambda x, axis, num_splits=0, split_sizes=(): x.split(split_sizes or x.shape[axis] // num_splits, axis),
    "squeeze": lambda x, axes=(): x.squeeze(axes) if axes else x.squeeze(),
    "stack": lambda values, axis: torch.stack(values, axis),
    "tile": lambda x, reps: x.repeat(reps),
    "transpose": lambda x, perm: x.permute(perm),
}


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zeros outside a band around the diagonal of the last two dimensions; negative: all of that side is kept."""
    if upper >= 0:
        x = x.tril(upper)
    return x.triu(-lower) if lower >= 0 else x


def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints = (0, 0, 0, 0)) -> Tensor:
    """(N*b_h*b_w, C, H, W) -> (N, C, H*b_h - crops, W*b_w - crops), position within the block outermost."""
    height, width = block_shape
    full = x.unflatten(0, (height, width, -1)).permute(2, 3, 4, 0, 5, 1).flatten(4).flatten(2, 3)
    top, bottom, left, right = crops
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Joined along an axis, in turn if `interleave`; scalars to a vector."""
    values = [value if value.dim() else value.reshape(1) for value in values]
    if not interleave:
        return torch.cat(values, axis)
    axis = axis % values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """`axes` are those of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    value = torch.tensor(0.0) if value is None else value
    return value.reshape(()).repeat(shape)


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` has (before, after) of each of the last len(pad)/2 dimensions."""
    edges = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return padded(x, edges, constant_val)
    if mode not in ("reflect", "replicate"):
        raise UnsupportedError(f"mode: expected constant, reflect or replicate, got {mode!r}")
    for axis, (before, after) in enumerate(edges, start=x.dim() - len(edges)):
        last = x.shape[axis] - 1
        index = torch.arange(-before, last + 1 + after)
        index = index.clamp(0, last) if mode == "replicate" else last - (last - index.abs()).abs()
        x = x.index_select(axis, index)
    return x


def reshape(x: Tensor, shape: Ints) -> Tensor:
    """-1 is inferred; 0 keeps a dimension, counted from the right if the ranks differ (iOS17)."""
    if 0 in shape:
        shift = x.dim() - len(shape)
        shape = tuple(size or (x.shape[axis + shift] if axis + shift >= 0 else 1) for axis, size in enumerate(shape))
    return x.reshape(shape)


def reshape_like(x: Tensor, ref_tensors: list[Tensor], begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    """To the concatenated dimensions [begin, end) of the reference tensors."""
    shape: list[int] = []
    for tensor, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += tensor.shape[begin:] if to_end else tensor.shape[begin:end]
    return x.reshape(shape)


def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first lengths[i] elements of slice i reversed."""
    parts = []
    for index, length in enumerate(lengths.tolist()):
        part = x.select(batch_axis, index).unsqueeze(batch_axis)
        head, tail = part.split([length, part.shape[seq_axis] - length], seq_axis)
        parts.append(torch.cat([head.flip(seq_axis), tail], seq_axis))
    return torch.cat(parts, batch_axis)


def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints = (),
    begin_mask: Bools = (),
    end_mask: Bools = (),
    squeeze_mask: Bools = (),
) -> Tensor:
    """x[begin:end:stride, …]; begin_mask and end_mask ignore begin and end, squeeze_mask takes x[begin]."""
    none = (False,) * x.dim()
    masks = zip(begin_mask or none, end_mask or none, squeeze_mask or none, strict=True)
    bounds = zip(begin, end, stride or (1,) * x.dim(), strict=True)
    for axis, (size, (first, last, step), (from_start, to_end, one)) in enumerate(
        zip(x.shape, bounds, masks, strict=True)
    ):
        taken = range(size)[None if from_start else first : None if to_end else last : step]
        if one:
            start = range(size)[first]
            taken = range(start, start + 1)
        if taken.step == 1:
            x = x.narrow(axis, taken.start, len(taken))
        else:
            x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64))
    return x.squeeze([axis for axis, drop in enumerate(squeeze_mask) if drop]) if any(squeeze_mask) else x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints = (),
    begin_mask: Bools = (),
    end_mask: Bools = (),
    squeeze_mask: Bools = (),
) -> Tensor:
    """x with the slice that `slice_by_index` returns replaced by `update`."""
    index = torch.arange(x.numel()).view(x.shape)
    index = slice_by_index(index, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.clone().flatten()
    result[index.flatten()] = update.broadcast_to(index.shape).flatten()
    return result.view(x.shape)


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """x[begin : begin + size]; size -1 is to the end."""
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        start = start % x.shape[axis] if x.shape[axis] else 0
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints = (0, 0, 0, 0)) -> Tensor:
    """(N, C, H, W), zero-padded -> (N*b_h*b_w, C, H/b_h, W/b_w), position within the block outermost."""
    height, width = block_shape
    top, bottom, left, right = paddings
    x = padded(x, [(top, bottom), (left, right)])
    blocks = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return blocks.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)
