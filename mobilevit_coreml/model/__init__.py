"""MobileViT as PyTorch modules, written to be traced and to be trained.

Letters in shape comments: B batch, C channels, H W rows and columns of a map, D width of a
transformer, P places within a patch, N patches, which are the tokens of attention.
"""

from mobilevit_coreml.model.attention import ATTENTION_FORMS
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
    "ATTENTION_FORMS",
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
