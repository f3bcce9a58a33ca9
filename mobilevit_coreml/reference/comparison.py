"""Comparison of two runs operation by operation, and value ranges relative to the fp16 limit."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit_coreml.operation_names import belongs_to

FP16_MAX = 65504.0
NEAR_LIMIT = 4  # factor of FP16_MAX within which values are flagged


@dataclasses.dataclass(frozen=True)
class OperationError:
    """Error of one operation's output: SNR in dB (inf if equal) and maximum absolute difference."""

    name: str
    type: str
    snr: float
    max_abs_difference: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Errors of the operations that two runs have in common, in program order."""

    operations: tuple[OperationError, ...]

    def first_below(self, snr: float) -> OperationError | None:
        """First operation with an SNR below a threshold in dB, or NaN."""
        return next((operation for operation in self.operations if not operation.snr >= snr), None)


@dataclasses.dataclass(frozen=True)
class OperationRange:
    """Maximum absolute value of an operation's output."""

    name: str
    type: str
    max_abs: float

    @property
    def near_limit(self) -> bool:
        """True from a quarter of FP16_MAX on, where another image may overflow."""
        return not self.max_abs < FP16_MAX / NEAR_LIMIT


def snr(reference: Tensor, output: Tensor) -> float:
    """10 log10(sum ref^2 / sum (ref - out)^2) in dB: inf if equal, NaN if values are not finite."""
    reference, output = reference.double(), output.double()
    return decibels(float((reference**2).sum()), float(((reference - output) ** 2).sum()))


def decibels(signal: float, noise: float) -> float:
    """10 log10 of a power ratio in dB: inf without noise, NaN if either is not finite."""
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def compare_values(types: Mapping[str, str], reference: Mapping[str, Any], output: Mapping[str, Any]) -> Comparison:
    """Compare floating-point values of the same name, in the order of `types` (name to operation type)."""
    errors = []
    for name, kind in types.items():
        ours, theirs = output.get(name), reference.get(name)
        if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.is_floating_point()):
            continue
        figures = math.nan, math.inf
        if ours.numel() == theirs.numel():
            theirs = theirs.reshape(ours.shape)
            figures = snr(theirs, ours), float((theirs - ours).abs().max())
        errors.append(OperationError(name, kind, *figures))
    return Comparison(tuple(errors))


def ranges(types: Mapping[str, str], values: Mapping[str, Any]) -> tuple[OperationRange, ...]:
    """Maximum absolute value of each operation's floating-point output, in program order."""
    return tuple(
        OperationRange(name, kind, float(values[name].abs().max()))
        for name, kind in types.items()
        if isinstance(values.get(name), Tensor) and values[name].is_floating_point() and values[name].numel()
    )


@torch.inference_mode()
def module_outputs(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Outputs of the modules of a PyTorch model by path, for modules that return one tensor."""
    outputs: dict[str, Tensor] = {}

    def record(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[path] = output.clone()

    with contextlib.ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_hook(functools.partial(record, path)).remove)
        model(*inputs)
    return outputs


def by_last_operation(modules: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Module outputs by the name of the module's last operation; `names` are in program order."""
    outputs: dict[str, Tensor] = {}
    for path, output in modules.items():
        if last := next((name for name in reversed(names) if belongs_to(name, path)), None):
            outputs.setdefault(last, output)
    return outputs
