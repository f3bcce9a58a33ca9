"""Every operation of a program beside the step of the PyTorch model it comes from."""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobilevit_coreml.operation_names import module_of
from mobilevit_coreml.reference.comparison import decibels, snr
from mobilevit_coreml.reference.reader import Function, Operation, Ref

# MIL's names of functions of torch, where they differ
MIL_TYPES = {
    "conv2d": "conv",
    "channel_layer_norm": "layer_norm",
    "cat": "concat",
    "chunk": "split",
    "mean": "reduce_mean",
    "permute": "transpose",
    "argmax": "reduce_argmax",
    "__getitem__": "slice_by_index",
}
SLICE = "slice_by_index"
UNTRANSLATED = ("dropout", "dropout2d", "transpose")  # nothing at all in inference; or part of a matmul

Call = tuple[str, str, int]  # a module's path, the MIL type of what it calls itself, and which call of that type it is


@dataclasses.dataclass(frozen=True)
class Step:
    """SNR in dB of an operation against the same step in PyTorch; of class indices by the share that differ.

    `own` is its error when the step in PyTorch gets the inputs the operation had, `accumulated` when it
    gets PyTorch's: what all operations up to it have added up to.
    """

    operation: str
    type: str
    module: str
    own: float
    accumulated: float


@torch.inference_mode()
def compare_steps(
    function: Function, values: Mapping[str, Any], model: nn.Module, run: Callable[[], Any]
) -> list[Step]:
    """The operations that have a counterpart in PyTorch, in the program's order.

    `values` are those of all operations of the program, by name, which come from modules of `model`.
    `run` computes in PyTorch what the program was traced from. It is run twice: as it is, and with the
    result of each step replaced by the operation's, so that an error shows where it happens.
    """
    results: dict[Call, Any] = {}
    end = _followed(model, run, results.setdefault)
    operations = _operations(function, model, results)
    paired = {operation.name for operation in operations.values()}
    ends = {name: one for name, one in zip(_ends(function), _tensors(end), strict=False) if name not in paired}
    accumulated = {one.name: _error(values, one, results[call]) for call, one in operations.items()}
    accumulated |= {name: _snr(values[name], result) for name, result in ends.items()}
    own: dict[str, float] = {}

    def replaced(call: Call, result: Any) -> Any:
        if call not in operations:
            return result
        operation = operations[call]
        own[operation.name] = _error(values, operation, result)
        return _replaced(values, operation, result)

    end = _followed(model, run, replaced)
    results_of_all = dict(zip(_ends(function), _tensors(end), strict=False))
    own |= {name: _snr(values[name], results_of_all[name]) for name in ends}
    paths = {one.name: path for (path, _, _), one in operations.items()}
    return [
        Step(one.name, one.type, paths.get(one.name, ""), own[one.name], accumulated[one.name])
        for one in function.operations
        if one.name in own
    ]


def _followed(model: nn.Module, run: Callable[[], Any], visit: Callable[[Call, Any], Any]) -> Any:
    """Run, with each function of torch that a module calls itself going on with what `visit` makes of its result."""
    path = [""]

    def leave(*_: Any) -> None:
        path.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        handles.append(module.register_forward_hook(leave))
    counts: Counter[tuple[str, str]] = Counter()

    class Visitor(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if not _tensors(result):
                return result
            kind = MIL_TYPES.get(function.__name__, function.__name__)
            counts[path[-1], kind] += 1
            return visit((path[-1], kind, counts[path[-1], kind]), result)

    try:
        with Visitor():
            return run()
    finally:
        for handle in handles:
            handle.remove()


def _operations(function: Function, model: nn.Module, calls: Iterable[Call]) -> dict[Call, Operation]:
    """The operation of each call: a module's only one, or the one of its type that comes at the same place."""
    paths = [path for path, _ in model.named_modules() if path]
    of_module = defaultdict(list)
    for operation in function.operations:
        if operation.type not in ("cast", "classify"):  # which no module asks for
            of_module[module_of(operation.name, paths)].append(operation)
    by_module = defaultdict(list)
    for call in calls:
        by_module[call[0]].append(call)
    found: dict[Call, Operation] = {}
    for path, own in by_module.items():
        found |= _paired(own, of_module[path])
    return found


def _paired(calls: list[Call], operations: list[Operation]) -> dict[Call, Operation]:
    """One module's calls and operations in order: by type where a type's numbers are equal, then the rest if equal."""
    found: dict[Call, Operation] = {}
    for kind in {kind for _, kind, _ in calls}:
        called = [call for call in calls if call[1] == kind]
        translated = sorted((one for one in operations if one.type == kind), key=_number)
        if len(called) == 1 and kind == SLICE:
            translated = translated[-1:]  # an axis each
        if len(called) == len(translated):  # others were fused, or are wrong, which shows in what reads them
            found |= dict(zip(called, translated, strict=True))
    taken = {one.name for one in found.values()}
    called = [call for call in calls if call not in found and call[1] not in UNTRANSLATED]
    others = [one for one in operations if one.name not in taken and one.type not in MIL_TYPES.values()]
    return found | (dict(zip(called, others, strict=True)) if len(called) == len(others) else {})


def _number(operation: Operation) -> int:
    """The number at the end of an operation's name, by which a module's differ; 1 where there is none."""
    name = operation.name.removesuffix("_0") if len(operation.outputs) > 1 else operation.name
    match = re.search(r"_(\d+)$", name)
    return int(match[1]) if match else 1


def _ends(function: Function) -> Sequence[str]:
    """The program's outputs in the order of the model's results; of a classifier the probabilities."""
    probabilities = function.operations[-1].inputs.get("probabilities")
    return [probabilities.name] if isinstance(probabilities, Ref) else function.outputs


def _tensors(result: Any) -> tuple[Tensor, ...]:
    results = result if isinstance(result, tuple | list) else (result,)
    return tuple(results) if all(isinstance(one, Tensor) for one in results) else ()


def _error(values: Mapping[str, Any], operation: Operation, result: Any) -> float:
    pairs = zip(operation.outputs, _tensors(result), strict=False)
    errors = [_snr(values[name], one) for name, one in pairs]
    return math.nan if any(map(math.isnan, errors)) else min(errors)


def _snr(value: Tensor, result: Tensor) -> float:
    """SNR of real numbers; of class indices the share that differ counts as the noise."""
    if value.numel() != result.numel():
        return math.nan
    value = value.reshape(result.shape)
    if value.is_floating_point() and result.is_floating_point():
        return snr(result, value)
    return decibels(1.0, float((value != result).double().mean()))


def _replaced(values: Mapping[str, Any], operation: Operation, result: Any) -> Any:
    tensors = _tensors(result)
    ours = [values[name] for name in operation.outputs]
    if [one.numel() for one in ours] != [one.numel() for one in tensors]:
        return result
    ours = [one.reshape(like.shape).to(like.dtype) for one, like in zip(ours, tensors, strict=True)]
    return ours[0] if isinstance(result, Tensor) else type(result)(ours)
