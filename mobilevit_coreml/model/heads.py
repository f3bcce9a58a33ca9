"""The tasks: a backbone and what is computed from its features."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig
from mobilevit_coreml.model.backbone import Backbone
from mobilevit_coreml.model.initialization import initialize


class Classification(NamedTuple):
    """What a classifier computes: `logits` (B, classes), `pooled` (B, C), the stages' maps, the loss if asked for."""

    logits: Tensor
    pooled: Tensor
    hidden_states: tuple[Tensor, ...]
    loss: Tensor | None


class ImageClassifier(nn.Module):
    """MobileViT with a linear head on the pooled features.

    pixels (B, num_channels, H, W), 0 to 1, H and W exactly config.image_size. `labels` are class
    indices (B,), or for several labels an image 0/1 floats (B, classes), or for a single-output
    head regression targets (B,); with them the output carries the mean loss.
    """

    def __init__(self, config: MobileViTConfig, attention: str = "split_einsum") -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, attention)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Linear(config.neck_hidden_sizes[-1], config.num_labels)
        initialize(self, config.initializer_range)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Classification:
        features = self.backbone(pixels)
        pooled = features.feature_map.mean((2, 3))  # B C
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else classification_loss(logits, labels)
        return Classification(logits, pooled, features.hidden_states, loss)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of (B, classes) logits: cross entropy for indices, BCE for 0/1 floats, MSE for one output.

    The choice among the three is the reference's.
    """
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels.reshape(-1).to(logits.dtype))
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)
