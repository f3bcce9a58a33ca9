"""DeepLabV3 head: atrous spatial pyramid pooling and a classifier (Chen et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig
from mobilevit_coreml.model.layers import ConvLayer

ACTIVATION = "relu"  # independent of the backbone's activation


class Projection(nn.Module):
    """1x1 convolution of maps (B, C1, H, W) concatenated with pooled values (B, C2, 1, 1).

    The contribution of the pooled values is the same at every pixel and is added by broadcasting;
    transformers expands them to the size of the maps and concatenates.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layer = ConvLayer(in_channels, out_channels, 1, ACTIVATION)
        self.conv, self.batch_norm, self.activation = layer.conv, layer.batch_norm, layer.activation

    def forward(self, maps: Tensor, values: Tensor) -> Tensor:
        weight = self.conv.weight
        y = F.conv2d(maps, weight[:, : maps.shape[1]], self.conv.bias) + F.conv2d(values, weight[:, maps.shape[1] :])
        return self.activation(self.batch_norm(y))


class SplitProjection(nn.Module):
    """A Projection with folded batch norm as two convolutions, one for the maps and one for the pooled values."""

    def __init__(self, projection: Projection, maps: int) -> None:
        super().__init__()
        conv = projection.conv
        self.maps = nn.Conv2d(maps, conv.out_channels, 1)
        self.values = nn.Conv2d(conv.in_channels - maps, conv.out_channels, 1, bias=False)
        self.activation = projection.activation
        assert conv.bias is not None
        state = {"maps.weight": conv.weight[:, :maps], "maps.bias": conv.bias, "values.weight": conv.weight[:, maps:]}
        self.load_state_dict(state)

    def forward(self, maps: Tensor, values: Tensor) -> Tensor:
        return self.activation(self.maps(maps) + self.values(values))


class Branches(nn.Sequential):
    """Parallel modules on the same input; outputs concatenated along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


class DeepLabV3Head(nn.Module):
    """(B, neck_hidden_sizes[5], H, W) -> logits (B, classes, H, W).

    Atrous spatial pyramid pooling: a 1x1 convolution, three dilated 3x3 convolutions and the global
    average, projected together.
    """

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        in_channels, channels = config.neck_hidden_sizes[5], config.aspp_out_channels
        self.branches = Branches(
            ConvLayer(in_channels, channels, 1, ACTIVATION),
            *(ConvLayer(in_channels, channels, 3, ACTIVATION, dilation=rate) for rate in config.atrous_rates),
        )
        self.pool = ConvLayer(in_channels, channels, 1, ACTIVATION)
        self.project: nn.Module = Projection(channels * (len(self.branches) + 1), channels)
        self.dropout = nn.Dropout(config.aspp_dropout_prob)
        self.classifier_dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(channels, config.num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.branches(x)
        pooled = self.pool(x.mean((2, 3), keepdim=True))  # B C 1 1
        y = self.dropout(self.project(branches, pooled))
        return self.classifier(self.classifier_dropout(y))
