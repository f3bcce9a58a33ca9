"""Stem, five stages and the final expansion."""

from typing import NamedTuple

from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig
from mobilevit_coreml.model.block import MobileViTBlock
from mobilevit_coreml.model.layers import ConvLayer, InvertedResidual

STEM_KERNEL = 3
BLOCKS = (1, 3)  # inverted residuals in stages 1 and 2
DEPTHS = (2, 4, 3)  # transformer layers in stages 3, 4 and 5


class Features(NamedTuple):
    """What a backbone computes: `feature_map` (B, C, H, W) and the five stages' maps."""

    feature_map: Tensor
    hidden_states: tuple[Tensor, ...]


class Backbone(nn.Module):
    """MobileViT without a head (Mehta & Rastegari 2022, table 4).

    pixels (B, num_channels, H, W), 0 to 1, in the checkpoint's channel order, H and W exactly
    config.image_size. The feature map is 1/output_stride of that, sides rounded up, with
    neck_hidden_sizes[6] channels, or neck_hidden_sizes[5] without `expand`.
    """

    def __init__(self, config: MobileViTConfig, attention: str, expand: bool = True) -> None:
        super().__init__()
        necks, activation = config.neck_hidden_sizes, config.hidden_act
        self.stem = ConvLayer(config.num_channels, necks[0], STEM_KERNEL, activation, stride=2)
        self.stages = nn.ModuleList(nn.Sequential(*_stage(config, index, attention)) for index in range(len(necks) - 2))
        self.expand = ConvLayer(necks[5], necks[6], 1, activation) if expand else nn.Identity()

    def forward(self, pixels: Tensor) -> Features:
        x = self.stem(pixels)
        hidden_states = []
        for stage in self.stages:
            x = stage(x)
            hidden_states.append(x)
        return Features(self.expand(x), tuple(hidden_states))


def _stage(config: MobileViTConfig, index: int, attention: str) -> list[nn.Module]:
    """Blocks of stage index+1: inverted residuals first, from stage 3 on one and a MobileViT block."""
    in_channels, channels = config.neck_hidden_sizes[index : index + 2]
    ratio, activation = config.expand_ratio, config.hidden_act
    stride = config.stage_strides()[index]
    first = InvertedResidual(in_channels, channels, ratio, activation, stride, config.stage_dilations()[index])
    if index < len(BLOCKS):
        rest = (InvertedResidual(channels, channels, ratio, activation) for _ in range(BLOCKS[index] - 1))
        return [first, *rest]
    transformer = index - len(BLOCKS)
    block = MobileViTBlock(
        config,
        channels,
        config.hidden_sizes[transformer],
        DEPTHS[transformer],
        config.stage_sizes()[index],
        attention,
    )
    return [first, block]
