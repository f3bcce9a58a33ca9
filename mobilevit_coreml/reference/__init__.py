"""Runs a saved Core ML package on any machine: package -> program -> operations -> outputs.

Knows nothing of MobileViT.
"""

from mobilevit_coreml.reference.evaluator import ReferenceEvaluator
from mobilevit_coreml.reference.ops import OPERATIONS
from mobilevit_coreml.reference.reader import Feature

__all__ = ["OPERATIONS", "Feature", "ReferenceEvaluator"]
