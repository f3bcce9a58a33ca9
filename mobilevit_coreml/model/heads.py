"""Models of the tasks: a backbone and a head."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig, Task
from mobilevit_coreml.model.backbone import Backbone
from mobilevit_coreml.model.deeplab import DeepLabV3Head


class ClassifierOutput(NamedTuple):
    """Output of ImageClassifier: `logits` (B, classes), `pooled` (B, C), outputs of the stages, loss with labels."""

    logits: Tensor
    pooled: Tensor
    hidden_states: tuple[Tensor, ...]
    loss: Tensor | None


class ImageClassifier(nn.Module):
    """MobileViT with a linear head on the pooled features.

    pixels: (B, num_channels, H, W), 0 to 1, (H, W) equal to config.image_size. labels: class indices
    (B,); 0/1 floats (B, classes) for multi-label classification; regression targets (B,) for a head
    with one output. With labels the output has the mean loss.
    """

    def __init__(
        self, config: MobileViTConfig, attention: str = "split_einsum", unfold: str = "space_to_batch"
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, attention, unfold)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Linear(config.neck_hidden_sizes[-1], config.num_labels)
        initialize(self, config.initializer_range)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> ClassifierOutput:
        features = self.backbone(pixels)
        pooled = _pool(features.feature_map, self.config)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else classification_loss(logits, labels)
        return ClassifierOutput(logits, pooled, features.hidden_states, loss)


class SegmenterOutput(NamedTuple):
    """Output of SemanticSegmenter: `logits` (B, classes, H/s, W/s), s: output stride, outputs of the stages, loss."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]
    loss: Tensor | None


class SemanticSegmenter(nn.Module):
    """MobileViT with a DeepLabV3 head on the last stage; config.output_stride is 16 or 8.

    pixels: (B, num_channels, H, W), 0 to 1, (H, W) equal to config.image_size. labels: class indices
    (B, H', W') of any size, semantic_loss_ignore_index for ignored pixels. With labels the output has
    the mean cross entropy of the logits resized to (H', W').
    """

    def __init__(
        self, config: MobileViTConfig, attention: str = "split_einsum", unfold: str = "space_to_batch"
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, attention, unfold, expand=False)
        self.head = DeepLabV3Head(config)
        initialize(self, config.initializer_range)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> SegmenterOutput:
        features = self.backbone(pixels)
        logits = self.head(features.feature_map)
        loss = None
        if labels is not None:
            resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(resized, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SegmenterOutput(logits, features.hidden_states, loss)


class FeatureExtractorOutput(NamedTuple):
    """Output of FeatureExtractor: `pooled` (B, C), `feature_map` (B, C, H, W), outputs of the stages."""

    pooled: Tensor
    feature_map: Tensor
    hidden_states: tuple[Tensor, ...]


class FeatureExtractor(nn.Module):
    """MobileViT without a head.

    pixels: (B, num_channels, H, W), 0 to 1, (H, W) equal to config.image_size. `pooled` is the mean,
    or the maximum, of the feature map, which has neck_hidden_sizes[6] channels, or [5] without the final expansion.
    """

    def __init__(
        self,
        config: MobileViTConfig,
        attention: str = "split_einsum",
        unfold: str = "space_to_batch",
        expand: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, attention, unfold, expand)
        initialize(self, config.initializer_range)

    def forward(self, pixels: Tensor) -> FeatureExtractorOutput:
        features = self.backbone(pixels)
        pooled = _pool(features.feature_map, self.config)
        return FeatureExtractorOutput(pooled, features.feature_map, features.hidden_states)


def _pool(feature_map: Tensor, config: MobileViTConfig) -> Tensor:
    return (feature_map.mean if config.global_pool == "avg" else feature_map.amax)((2, 3))  # B C


Model = ImageClassifier | SemanticSegmenter | FeatureExtractor


def model_for(
    task: str,
    config: MobileViTConfig,
    attention: str = "split_einsum",
    unfold: str = "space_to_batch",
    expand: bool = True,
) -> Model:
    """A new model for a task; `expand` is for feature extractors: with the backbone's final expansion."""
    models: Mapping[str, Callable[..., Model]] = {
        Task.CLASSIFICATION: ImageClassifier,
        Task.SEGMENTATION: SemanticSegmenter,
        Task.FEATURES: functools.partial(FeatureExtractor, expand=expand),
    }
    return models[task](config, attention, unfold)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of logits (B, classes), as in transformers.

    Cross entropy for class indices, binary cross entropy for 0/1 floats, mean squared error for one output.
    """
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels.reshape(-1).to(logits.dtype))
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def initialize(model: nn.Module, std: float) -> None:
    """Initialize weights of convolutions and linear layers from N(0, std) and biases to zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
