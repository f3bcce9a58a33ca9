"""MobileViT as PyTorch modules, for training and for tracing.

Shapes: B batch, C channels, H height and W width of a feature map, D transformer width,
P pixels in a patch, N patches (the tokens of attention).
"""

from mobilevit_coreml.model.attention import ATTENTION_IMPLEMENTATIONS
from mobilevit_coreml.model.backbone import Backbone, Features
from mobilevit_coreml.model.folding import fold_for_inference
from mobilevit_coreml.model.heads import (
    ClassifierOutput,
    FeatureExtractor,
    FeatureExtractorOutput,
    ImageClassifier,
    Model,
    SegmenterOutput,
    SemanticSegmenter,
    model_for,
)

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "Backbone",
    "ClassifierOutput",
    "FeatureExtractor",
    "FeatureExtractorOutput",
    "Features",
    "ImageClassifier",
    "Model",
    "SegmenterOutput",
    "SemanticSegmenter",
    "fold_for_inference",
    "model_for",
]
