"""DeepLabV3's head: context at several distances, then a class for each cell (Chen et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig
from mobilevit_coreml.model.layers import ConvLayer

ACTIVATION = "relu"  # of the head, whatever the backbone's is


class DeepLabV3Head(nn.Module):
    """(B, neck_hidden_sizes[5], H, W) -> logits (B, classes, H, W).

    Atrous spatial pyramid pooling: a 1x1 convolution, three dilated 3x3 ones and the mean of the whole
    map, projected together. The mean is one value a channel, so its share of the projection is
    added by broadcasting; the reference spreads it over the map and joins it to the rest first.
    """

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        in_channels, channels = config.neck_hidden_sizes[5], config.aspp_out_channels
        self.branches = nn.ModuleList(
            [
                ConvLayer(in_channels, channels, 1, ACTIVATION),
                *(ConvLayer(in_channels, channels, 3, ACTIVATION, dilation=rate) for rate in config.atrous_rates),
            ]
        )
        self.pool = ConvLayer(in_channels, channels, 1, ACTIVATION)
        self.project = ConvLayer(channels * (len(self.branches) + 1), channels, 1, ACTIVATION)
        self.dropout = nn.Dropout(config.aspp_dropout_prob)
        self.classifier_dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(channels, config.num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([branch(x) for branch in self.branches], dim=1)
        pooled = self.pool(x.mean((2, 3), keepdim=True))  # B C 1 1
        projection, channels = self.project.conv, self.pool.conv.out_channels
        near = F.conv2d(branches, projection.weight[:, :-channels], projection.bias)
        y = near + F.conv2d(pooled, projection.weight[:, -channels:])
        y = self.dropout(self.project.activation(self.project.batch_norm(y)))
        return self.classifier(self.classifier_dropout(y))
