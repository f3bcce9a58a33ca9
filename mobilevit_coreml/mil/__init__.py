"""Conversion of a PyTorch model to an ML Program in memory: export model, trace, coremltools."""

from mobilevit_coreml.mil.functions import merge_functions
from mobilevit_coreml.mil.trace import build_mlprogram, count_operations, guess_package_bytes

__all__ = ["build_mlprogram", "count_operations", "guess_package_bytes", "merge_functions"]
