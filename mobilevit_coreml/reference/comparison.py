"""Where two runs part, operation by operation, and how near values come to the limit of fp16."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

FP16_MAX = 65504.0
NEAR_LIMIT = 4  # values within this factor of FP16_MAX are flagged


@dataclasses.dataclass(frozen=True)
class OperationError:
    """How far one operation's result is from its counterpart: SNR in dB (inf where equal), largest difference."""

    name: str
    type: str
    snr: float
    max_abs_difference: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The operations two runs have in common, in program order."""

    operations: tuple[OperationError, ...]

    def first_below(self, snr: float) -> OperationError | None:
        """The first operation whose SNR is under a threshold in dB: where the runs part."""
        return next((operation for operation in self.operations if not operation.snr >= snr), None)


@dataclasses.dataclass(frozen=True)
class OperationRange:
    """The largest absolute value an operation produced."""

    name: str
    type: str
    max_abs: float

    @property
    def near_limit(self) -> bool:
        """Whether it is within a factor of 4 of fp16's 65504, or past it: another image may overflow here."""
        return not self.max_abs < FP16_MAX / NEAR_LIMIT


def snr(reference: Tensor, output: Tensor) -> float:
    """10 log10(sum ref^2 / sum (ref - out)^2) in dB: inf where equal, nan where values are not finite."""
    reference, output = reference.double(), output.double()
    return decibels(float((reference**2).sum()), float(((reference - output) ** 2).sum()))


def decibels(signal: float, noise: float) -> float:
    """10 log10 of a ratio of powers: inf without noise, nan where either is not finite."""
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def compare_values(types: Mapping[str, str], reference: Mapping[str, Any], output: Mapping[str, Any]) -> Comparison:
    """Compare the real values that two runs call by the same name, in the order of `types` (name to operation)."""
    return Comparison(tuple(_errors(types, reference, output)))


def _errors(
    types: Mapping[str, str], reference: Mapping[str, Any], output: Mapping[str, Any]
) -> Iterator[OperationError]:
    for name, kind in types.items():
        ours, theirs = output.get(name), reference.get(name)
        if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.is_floating_point()):
            continue
        if ours.numel() != theirs.numel():
            yield OperationError(name, kind, math.nan, math.inf)
            continue
        theirs = theirs.reshape(ours.shape)
        yield OperationError(name, kind, snr(theirs, ours), float((theirs - ours).abs().max()))


def ranges(types: Mapping[str, str], values: Mapping[str, Any]) -> tuple[OperationRange, ...]:
    """The largest absolute value of each operation's real result, in program order."""
    return tuple(
        OperationRange(name, kind, float(values[name].abs().max()))
        for name, kind in types.items()
        if isinstance(values.get(name), Tensor) and values[name].is_floating_point() and values[name].numel()
    )


@torch.inference_mode()
def module_outputs(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """What each module of a PyTorch model puts out, by its path, for modules that put out one tensor."""
    outputs: dict[str, Tensor] = {}

    def record(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[path] = output.clone()

        return hook

    handles = [module.register_forward_hook(record(path)) for path, module in model.named_modules() if path]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def named_like_operations(modules: Mapping[str, Tensor], types: Mapping[str, str]) -> dict[str, Tensor]:
    """Module outputs under the names of the operations that end them.

    An operation is called after its module's path, with underscores for dots and perhaps its kind
    behind, and perhaps without the path's first part; a module's result is its last operation's.
    """
    named: dict[str, Tensor] = {}
    for path, output in modules.items():
        for part in (path, path.partition(".")[2]):
            stem = part.replace(".", "_")
            own = [name for name in types if name == stem or name.startswith(stem + "_")] if part else []
            if own:
                named.setdefault(own[-1], output)
                break
    return named
