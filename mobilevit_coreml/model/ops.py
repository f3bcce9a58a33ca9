"""Custom torch operators, each of which `mil.translations` converts to one MIL operation.

Traced as ordinary torch operations they would be many MIL operations: an unfold up to seven reshapes
and six transposes, a layer norm over channels two transposes. They are registered as composites of
torch operations, so autograd works without further code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NAMESPACE = "mobilevit_coreml"


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


def _channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)


_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _parameters, _implementation in (
    ("space_to_batch", "Tensor x, int block_height, int block_width", _space_to_batch),
    ("batch_to_space", "Tensor x, int block_height, int block_width", _batch_to_space),
    ("resize_bilinear", "Tensor x, int height, int width", _resize_bilinear),
    ("channel_layer_norm", "Tensor x, Tensor weight, Tensor bias, float eps", _channel_layer_norm),
):
    _library.define(f"{_name}({_parameters}) -> Tensor")
    _library.impl(_name, _implementation, "CompositeImplicitAutograd")


def space_to_batch(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Move each position within a block of the map to the batch (MIL `space_to_batch`, no padding).

    x: (B, C, H, W), H and W multiples of `block`. Returns (P*B, C, H/P_h, W/P_w) with P = P_h*P_w
    and the position within the block outermost.
    """
    return torch.ops.mobilevit_coreml.space_to_batch(x, *block)


def batch_to_space(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Inverse of `space_to_batch`: (P*B, C, H/P_h, W/P_w) -> (B, C, H, W) (MIL `batch_to_space`, no crop)."""
    return torch.ops.mobilevit_coreml.batch_to_space(x, *block)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to (B, C, *size) with half-pixel centres (MIL `resize_bilinear`, UNALIGN_CORNERS)."""
    return torch.ops.mobilevit_coreml.resize_bilinear(x, *size)


def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of (B, C, H, W) over C; weight and bias (C,) (MIL `layer_norm`, axes [1])."""
    return torch.ops.mobilevit_coreml.channel_layer_norm(x, weight, bias, eps)
