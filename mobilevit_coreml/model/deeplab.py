"""DeepLabV3's head: context at several distances, then a class for each cell (Chen et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig
from mobilevit_coreml.model.layers import ConvLayer

ACTIVATION = "relu"  # of the head, whatever the backbone's is


class Projection(ConvLayer):
    """1x1 convolution of maps (B, C1, H, W) joined with one value a channel for all places, (B, C2, 1, 1).

    Those values are the same at every place, and so is their share of the result: it is added by
    broadcasting. The reference spreads them over the map and joins that to the rest first.
    """

    def forward(self, maps: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        weight = self.conv.weight
        y = F.conv2d(maps, weight[:, : maps.shape[1]], self.conv.bias) + F.conv2d(values, weight[:, maps.shape[1] :])
        return self.activation(self.batch_norm(y))


class SplitProjection(nn.Module):
    """The same with the two shares as convolutions of their own, from a Projection whose batch norm is folded."""

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
    """Modules side by side on the same input, their outputs joined along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


class DeepLabV3Head(nn.Module):
    """(B, neck_hidden_sizes[5], H, W) -> logits (B, classes, H, W).

    Atrous spatial pyramid pooling: a 1x1 convolution, three dilated 3x3 ones and the mean of the whole
    map, projected together.
    """

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        in_channels, channels = config.neck_hidden_sizes[5], config.aspp_out_channels
        self.branches = Branches(
            ConvLayer(in_channels, channels, 1, ACTIVATION),
            *(ConvLayer(in_channels, channels, 3, ACTIVATION, dilation=rate) for rate in config.atrous_rates),
        )
        self.pool = ConvLayer(in_channels, channels, 1, ACTIVATION)
        self.project: nn.Module = Projection(channels * (len(self.branches) + 1), channels, 1, ACTIVATION)
        self.dropout = nn.Dropout(config.aspp_dropout_prob)
        self.classifier_dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(channels, config.num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.branches(x)
        pooled = self.pool(x.mean((2, 3), keepdim=True))  # B C 1 1
        y = self.dropout(self.project(branches, pooled))
        return self.classifier(self.classifier_dropout(y))
