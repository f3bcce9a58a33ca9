"""Backbone: stem, five stages and the final expansion."""

from typing import NamedTuple

from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig
from mobilevit_coreml.model.block import MobileViTBlock
from mobilevit_coreml.model.layers import ConvLayer, InvertedResidual

BLOCKS = {1: 1, 2: 3}  # inverted residuals in stages 1 and 2
DEPTHS = {3: 2, 4: 4, 5: 3}  # transformer layers in stages 3, 4 and 5


class Features(NamedTuple):
    """Output of Backbone: `feature_map` (B, C, H, W) and the outputs of the five stages."""

    feature_map: Tensor
    hidden_states: tuple[Tensor, ...]


class Backbone(nn.Module):
    """MobileViT without a head (Mehta & Rastegari 2022, table 4).

    pixels: (B, num_channels, H, W), 0 to 1, in the checkpoint's channel order, (H, W) equal to
    config.image_size. The feature map has 1/output_stride of that size, rounded up, and
    neck_hidden_sizes[6] channels, or neck_hidden_sizes[5] without `expand`.
    """

    def __init__(self, config: MobileViTConfig, attention: str, unfold: str, expand: bool = True) -> None:
        super().__init__()
        necks, activation = config.neck_hidden_sizes, config.hidden_act
        self.stem = ConvLayer(config.num_channels, necks[0], 3, activation, stride=2)
        self.stage1 = _stage(config, 1, attention, unfold)
        self.stage2 = _stage(config, 2, attention, unfold)
        self.stage3 = _stage(config, 3, attention, unfold)
        self.stage4 = _stage(config, 4, attention, unfold)
        self.stage5 = _stage(config, 5, attention, unfold)
        self.expand = ConvLayer(necks[5], necks[6], 1, activation) if expand else nn.Identity()

    def forward(self, pixels: Tensor) -> Features:
        x = self.stem(pixels)
        hidden_states = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4, self.stage5):
            x = stage(x)
            hidden_states.append(x)
        return Features(self.expand(x), tuple(hidden_states))


def _stage(config: MobileViTConfig, number: int, attention: str, unfold: str) -> nn.Sequential:
    """Stages 1 and 2: inverted residuals; stages 3 to 5: one inverted residual and a MobileViT block."""
    in_channels, channels = config.neck_hidden_sizes[number - 1 : number + 1]
    ratio, activation = config.expand_ratio, config.hidden_act
    stride, dilation = config.stage_strides()[number - 1], config.stage_dilations()[number - 1]
    first = InvertedResidual(in_channels, channels, ratio, activation, stride, dilation)
    if number in BLOCKS:
        rest = (InvertedResidual(channels, channels, ratio, activation) for _ in range(BLOCKS[number] - 1))
        return nn.Sequential(first, *rest)
    width, map_size = config.hidden_sizes[number - 3], config.stage_sizes()[number - 1]
    return nn.Sequential(first, MobileViTBlock(config, channels, width, DEPTHS[number], map_size, attention, unfold))
