"""MobileViT as Core ML packages, verified on any machine.

import mobilevit_coreml as mc

checkpoint = mc.load("untrained", "xs")       # or a file, a directory, a hub id
conversion = mc.convert("untrained", "xs")    # a .mlpackage, verified
(answer,) = mc.predict(conversion.path, ["cat.jpg"])
validation = mc.validate(conversion.path)     # PASS, FAIL or NOT_RUN, and why
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.checkpoints.load import load_checkpoint as load
    from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
    from mobilevit_coreml.compression.schemes import Budget, Palettize, Prune, Quantize
    from mobilevit_coreml.config import MobileViTConfig
    from mobilevit_coreml.conversion import Conversion, convert
    from mobilevit_coreml.errors import MobileViTError
    from mobilevit_coreml.inference import predict
    from mobilevit_coreml.options import ConversionOptions
    from mobilevit_coreml.reference import ReferenceEvaluator
    from mobilevit_coreml.validation.run import Validation, validate

__version__ = "0.1.0"

# Imported when they are first used: torch takes seconds, and `--help` should not.
_API = {
    "Budget": "mobilevit_coreml.compression.schemes:Budget",
    "Checkpoint": "mobilevit_coreml.checkpoints.load:Checkpoint",
    "CheckpointOverrides": "mobilevit_coreml.checkpoints.overrides:CheckpointOverrides",
    "Conversion": "mobilevit_coreml.conversion:Conversion",
    "ConversionOptions": "mobilevit_coreml.options:ConversionOptions",
    "MobileViTConfig": "mobilevit_coreml.config:MobileViTConfig",
    "MobileViTError": "mobilevit_coreml.errors:MobileViTError",
    "Palettize": "mobilevit_coreml.compression.schemes:Palettize",
    "Prune": "mobilevit_coreml.compression.schemes:Prune",
    "Quantize": "mobilevit_coreml.compression.schemes:Quantize",
    "ReferenceEvaluator": "mobilevit_coreml.reference:ReferenceEvaluator",
    "Validation": "mobilevit_coreml.validation.run:Validation",
    "convert": "mobilevit_coreml.conversion:convert",
    "load": "mobilevit_coreml.checkpoints.load:load_checkpoint",
    "predict": "mobilevit_coreml.inference:predict",
    "validate": "mobilevit_coreml.validation.run:validate",
}

__all__ = [
    "Budget",
    "Checkpoint",
    "CheckpointOverrides",
    "Conversion",
    "ConversionOptions",
    "MobileViTConfig",
    "MobileViTError",
    "Palettize",
    "Prune",
    "Quantize",
    "ReferenceEvaluator",
    "Validation",
    "convert",
    "load",
    "predict",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _API[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
