"""Convolutional layers and layer norm, on (B, C, H, W)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mobilevit_coreml.model.ops import channel_layer_norm

BATCH_NORM_EPS = 1e-5  # a constant in transformers, too

ACTIVATION_LAYERS: Mapping[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "hardswish": nn.Hardswish,
}


class ConvLayer(nn.Module):
    """Convolution without bias, batch norm, activation.

    (B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride), rounded up. `activation` is a key
    of ACTIVATION_LAYERS, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: str | None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.batch_norm: nn.Module = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)
        self.activation: nn.Module = nn.Identity() if activation is None else ACTIVATION_LAYERS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.batch_norm(self.conv(x)))


class InvertedResidual(nn.Module):
    """MobileNetV2 block: expand 1x1, depthwise 3x3, reduce 1x1 (Sandler et al. 2018).

    (B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride), with a residual connection if the
    shapes are equal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expand_ratio: float,
        activation: str,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        width = make_divisible(round(in_channels * expand_ratio))
        self.has_residual = stride == 1 and in_channels == out_channels
        self.expand = ConvLayer(in_channels, width, 1, activation)
        self.depthwise = ConvLayer(width, width, 3, activation, stride, dilation, groups=width)
        self.reduce = ConvLayer(width, out_channels, 1, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(self.depthwise(self.expand(x)))
        return x + y if self.has_residual else y


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return channel_layer_norm(x, self.weight, self.bias, self.eps)


def make_divisible(channels: int, divisor: int = 8) -> int:
    """Nearest multiple of `divisor` that is at most 10 % below `channels`, as in MobileNet."""
    rounded = max(divisor, (channels + divisor // 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
