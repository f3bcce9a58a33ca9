"""Reference evaluator of ML Program packages, for any model on any machine.

Package -> program -> operations -> outputs.
"""

from mobilevit_coreml.reference.evaluator import ReferenceEvaluator
from mobilevit_coreml.reference.ops import OPERATIONS
from mobilevit_coreml.reference.reader import Feature

__all__ = ["OPERATIONS", "Feature", "ReferenceEvaluator"]
