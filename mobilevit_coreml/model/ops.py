"""Tensor rearrangements that are one MIL operation each: torch operators the converter knows by name.

Written out in reshapes and permutes, an unfold becomes up to seven reshapes and six transposes in
MIL. As operators of their own they keep their names in a trace, so that the conversion can put
`space_to_batch`, `batch_to_space` and `resize_bilinear` in their place. Each is registered as a
composite of ordinary torch operations, so gradients need no code here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NAMESPACE = "mobilevit_coreml"

_library = torch.library.Library(NAMESPACE, "DEF")
_library.define("space_to_batch(Tensor x, int block_height, int block_width) -> Tensor")
_library.define("batch_to_space(Tensor x, int block_height, int block_width) -> Tensor")
_library.define("resize_bilinear(Tensor x, int height, int width) -> Tensor")


def _space_to_batch(x: Tensor, block_height: int, block_width: int) -> Tensor:
    batch, channels, height, width = x.shape
    rows, columns = height // block_height, width // block_width
    blocks = x.reshape(batch, channels, rows, block_height, columns, block_width)
    blocks = blocks.permute(3, 5, 0, 1, 2, 4)  # P_h P_w B C rows columns
    return blocks.reshape(block_height * block_width * batch, channels, rows, columns)


def _batch_to_space(x: Tensor, block_height: int, block_width: int) -> Tensor:
    batch = x.shape[0] // (block_height * block_width)
    _, channels, rows, columns = x.shape
    blocks = x.reshape(block_height, block_width, batch, channels, rows, columns)
    blocks = blocks.permute(2, 3, 4, 0, 5, 1)  # B C rows P_h columns P_w
    return blocks.reshape(batch, channels, rows * block_height, columns * block_width)


def _resize_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


for _name, _implementation in (
    ("space_to_batch", _space_to_batch),
    ("batch_to_space", _batch_to_space),
    ("resize_bilinear", _resize_bilinear),
):
    _library.impl(_name, _implementation, "CompositeImplicitAutograd")


def space_to_batch(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Move each place within a block of the map into the batch (MIL `space_to_batch`, no padding).

    x: (B, C, H, W), H and W multiples of `block`. Returns (P*B, C, H/P_h, W/P_w) with P = P_h*P_w
    and the place within the block outermost.
    """
    return torch.ops.mobilevit_coreml.space_to_batch(x, *block)


def batch_to_space(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Undo `space_to_batch`: (P*B, C, H/P_h, W/P_w) -> (B, C, H, W) (MIL `batch_to_space`, no crop)."""
    return torch.ops.mobilevit_coreml.batch_to_space(x, *block)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to (B, C, *size) with half-pixel centres (MIL `resize_bilinear`, UNALIGN_CORNERS)."""
    return torch.ops.mobilevit_coreml.resize_bilinear(x, *size)
