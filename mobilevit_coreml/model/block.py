"""MobileViT block: local convolutions, and a transformer across patches."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig, UnfoldImplementation
from mobilevit_coreml.errors import ConfigError
from mobilevit_coreml.model.attention import SelfAttention
from mobilevit_coreml.model.layers import ACTIVATION_LAYERS, ChannelLayerNorm, ConvLayer
from mobilevit_coreml.model.ops import batch_to_space, resize_bilinear, space_to_batch


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP with residual connections: (B, D, 1, N) -> (B, D, 1, N)."""

    def __init__(self, config: MobileViTConfig, width: int, tokens: int, attention: str) -> None:
        super().__init__()
        mlp_width = int(width * config.mlp_ratio)
        self.attention_norm = ChannelLayerNorm(width, config.layer_norm_eps)
        self.attention = SelfAttention(
            width, config.num_attention_heads, tokens, attention, config.qkv_bias, config.attention_probs_dropout_prob
        )
        self.mlp_norm = ChannelLayerNorm(width, config.layer_norm_eps)
        self.mlp_in = nn.Conv2d(width, mlp_width, 1)
        self.activation = ACTIVATION_LAYERS[config.hidden_act]()
        self.mlp_out = nn.Conv2d(mlp_width, width, 1)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x)))))


class MobileViTBlock(nn.Module):
    """Local convolutions, a transformer across patches, and fusion (Mehta & Rastegari 2022, figure 1b).

    (B, C, H, W) -> (B, C, H, W). Attention is between the pixels at the same position of the N
    patches: (B, D, H, W) -> (P*B, D, 1, N). A `map_size` (H, W) that is not a multiple of the patch is
    resized up before and back after, as in transformers. `attention` and `unfold` are keys of
    ATTENTION_IMPLEMENTATIONS and UNFOLD_IMPLEMENTATIONS.

    Raises ConfigError for patches that the unfold implementation does not support.
    """

    def __init__(
        self,
        config: MobileViTConfig,
        channels: int,
        width: int,
        depth: int,
        map_size: tuple[int, int],
        attention: str,
        unfold: str,
    ) -> None:
        super().__init__()
        self.width = width
        self.map_size = map_size
        self.patch = config.patch_hw
        if unfold == UnfoldImplementation.PIXEL_SHUFFLE and self.patch[0] != self.patch[1]:
            raise ConfigError(
                "patch_size: expected a square patch for the unfold implementation pixel_shuffle, "
                f"got {self.patch[0]}x{self.patch[1]}; use space_to_batch"
            )
        self.patch_area = math.prod(self.patch)
        rows = math.ceil(map_size[0] / self.patch[0])
        columns = math.ceil(map_size[1] / self.patch[1])
        self.grid = (rows, columns)
        self.tokens = rows * columns
        self.patched_size = (rows * self.patch[0], columns * self.patch[1])
        self.needs_resize = self.patched_size != map_size
        self.unfold_implementation, self.fold_implementation = UNFOLD_IMPLEMENTATIONS[unfold]
        kernel, activation = config.conv_kernel_size, config.hidden_act

        self.local = ConvLayer(channels, channels, kernel, activation)
        self.project_in = nn.Conv2d(channels, width, 1, bias=False)
        self.layers = nn.Sequential(*(TransformerLayer(config, width, self.tokens, attention) for _ in range(depth)))
        self.layer_norm = ChannelLayerNorm(width, config.layer_norm_eps)
        self.project_out = ConvLayer(width, channels, 1, activation)
        self.fusion = ConvLayer(2 * channels, channels, kernel, activation)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.unfold(self.project_in(self.local(x)))
        y = self.project_out(self.fold(self.layer_norm(self.layers(tokens))))
        return self.fusion(torch.cat([x, y], dim=1))

    def unfold(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (P*B, D, 1, N), position within the patch outermost."""
        if self.needs_resize:
            x = resize_bilinear(x, self.patched_size)
        return self.unfold_implementation(self, x)

    def fold(self, x: Tensor) -> Tensor:
        """(P*B, D, 1, N) -> (B, D, H, W)."""
        x = self.fold_implementation(self, x)
        return resize_bilinear(x, self.map_size) if self.needs_resize else x


def unfold_to_batch(block: MobileViTBlock, x: Tensor) -> Tensor:
    """(B, D, H, W) -> (P*B, D, 1, N) by space_to_batch."""
    x = space_to_batch(x, block.patch)  # P*B D rows columns
    return x.reshape(-1, block.width, 1, block.tokens)


def fold_from_batch(block: MobileViTBlock, x: Tensor) -> Tensor:
    """Inverse of `unfold_to_batch`."""
    return batch_to_space(x.reshape(-1, block.width, *block.grid), block.patch)


def unfold_to_channels(block: MobileViTBlock, x: Tensor) -> Tensor:
    """(B, D, H, W) -> (P*B, D, 1, N) by pixel_unshuffle and a transpose."""
    x = F.pixel_unshuffle(x, block.patch[0])  # B D*P rows columns
    x = x.reshape(-1, block.patch_area, 1, block.tokens).transpose(0, 1)  # P B*D 1 N
    return x.reshape(-1, block.width, 1, block.tokens)  # a no-op for a batch of one


def fold_from_channels(block: MobileViTBlock, x: Tensor) -> Tensor:
    """Inverse of `unfold_to_channels`."""
    x = x.reshape(block.patch_area, -1, 1, block.tokens).transpose(0, 1)  # B*D P 1 N
    return F.pixel_shuffle(x.reshape(-1, block.width * block.patch_area, *block.grid), block.patch[0])


Reshape = Callable[[MobileViTBlock, Tensor], Tensor]
UNFOLD_IMPLEMENTATIONS: Mapping[str, tuple[Reshape, Reshape]] = {  # unfold, fold
    UnfoldImplementation.SPACE_TO_BATCH: (unfold_to_batch, fold_from_batch),
    UnfoldImplementation.PIXEL_SHUFFLE: (unfold_to_channels, fold_from_channels),
}
