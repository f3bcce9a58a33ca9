"""MobileViT as Core ML packages, proven right on any machine.

import mobilevit_coreml as mc

checkpoint = mc.load("untrained", "xs")       # or a file, a directory, a hub id
conversion = mc.convert("untrained", "xs")    # a .mlpackage, verified
(answer,) = mc.predict(conversion.path, [photograph])
validation = mc.validate(conversion.path)     # PASS, FAIL or NOT_RUN, and why
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.checkpoints.load import load_checkpoint as load
    from mobilevit_coreml.config import MobileViTConfig
    from mobilevit_coreml.conversion import Conversion, convert
    from mobilevit_coreml.errors import MobileViTError
    from mobilevit_coreml.prediction import predict
    from mobilevit_coreml.reference import ReferenceEvaluator
    from mobilevit_coreml.validate.validation import (  # type: ignore[import-not-found]  # in a checkout: `validate`
        Validation,
        validate,
    )

__version__ = "0.1.0"

# Imported when they are first used: torch takes seconds, and `--help` should not.
_API = {
    "Checkpoint": "mobilevit_coreml.checkpoints.load",
    "Conversion": "mobilevit_coreml.conversion",
    "MobileViTConfig": "mobilevit_coreml.config",
    "MobileViTError": "mobilevit_coreml.errors",
    "ReferenceEvaluator": "mobilevit_coreml.reference",
    "Validation": "mobilevit_coreml.validate.validation",
    "convert": "mobilevit_coreml.conversion",
    "load": "mobilevit_coreml.checkpoints.load",
    "predict": "mobilevit_coreml.prediction",
    "validate": "mobilevit_coreml.validate.validation",
}
_OWN_NAMES = {"load": "load_checkpoint"}

__all__ = [
    "Checkpoint",
    "Conversion",
    "MobileViTConfig",
    "MobileViTError",
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
    return getattr(importlib.import_module(_API[name]), _OWN_NAMES.get(name, name))


class _Package(ModuleType):
    """Keeps functions that are called like a command of this package, which importing the command would replace."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _API and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
