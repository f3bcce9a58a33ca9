"""Executes a saved package, operation by operation, on any machine."""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilevit_coreml.errors import InputError, PackageError, UnsupportedError
from mobilevit_coreml.reference.comparison import (
    Comparison,
    OperationRange,
    compare_values,
    module_outputs,
    named_like_operations,
    ranges,
)
from mobilevit_coreml.reference.features import from_program, to_program
from mobilevit_coreml.reference.ops import EXACT, OPERATIONS
from mobilevit_coreml.reference.reader import Feature, Function, Operation, Ref, read_package, references

PRECISIONS = ("fp16", "fp32")


class ReferenceEvaluator:
    """A function of a saved .mlpackage, executed by the MIL specification with torch as arithmetic.

    Everything is read from the package on disk. With precision "fp16" every value the program types
    as fp16 is rounded to fp16 after the operation that makes it (beyond 65504 it becomes infinite);
    with "fp32" nothing is rounded, and only the stored constants are fp16. Sums within an
    operation are float32 in both: this is true to the program's types, and no model of how a Neural
    Engine accumulates or fuses.

    Raises PackageError for a package that is damaged or none, UnsupportedError for operations that
    are not implemented, with their name and place.
    """

    def __init__(self, path: str | Path, precision: str = "fp16", function_name: str | None = None) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision: expected fp16 or fp32, got {precision!r}; choose one of these")
        self.path = Path(path)
        self.precision = precision
        package = read_package(self.path, function_name)
        lost = [name for name in package.outputs if name not in package.function.outputs]
        if lost:
            raise PackageError(
                f"package {path}: expected a program that puts out {', '.join(package.outputs)}, got no "
                f"{', '.join(lost)}; the package is damaged"
            )
        self.inputs: Mapping[str, Feature] = package.inputs
        self.outputs: Mapping[str, Feature] = package.outputs
        self.metadata: Mapping[str, str] = package.metadata
        self.function: Function = package.function
        try:
            self._steps = _plan(package.function, rounds=precision == "fp16")
        except PackageError as error:
            raise type(error)(f"package {path}: {error}") from None

    def run(self, inputs: Mapping[str, Any], capture: Collection[str] | bool = ()) -> dict[str, Any]:
        """Outputs by name, as Core ML returns them: numpy arrays, PIL images, a label and its probabilities.

        `inputs` holds a PIL image of exactly the declared size and mode for each image input, and an
        array for each array input. `capture` names values to add to the outputs as float32 or int32
        arrays; True adds the result of every operation.

        Raises InputError for inputs that do not fit or are NaN, or for a captured name there is not.
        """
        values = self.values(to_program(self.inputs, inputs), capture)
        try:
            outputs = {name: from_program(feature, values[name]) for name, feature in self.outputs.items()}
        except (AttributeError, ValueError, IndexError, TypeError) as error:
            raise PackageError(f"package {self.path}: expected outputs as it declares them, got {error}") from None
        for name, value in values.items():
            if name not in outputs and isinstance(value, Tensor):
                outputs[name] = value.numpy()
        return outputs

    @torch.inference_mode()
    def values(self, inputs: Mapping[str, Tensor], capture: Collection[str] | bool = ()) -> dict[str, Any]:
        """The program's own values: its outputs and what is captured, as torch tensors, from tensors."""
        names = {name for step in self._steps for name in step.operation.outputs}
        kept = names if capture is True else set(capture or ())
        if kept - names:
            raise InputError(
                f"capture: expected names of values, got {', '.join(sorted(kept - names))}; see `function`"
            )
        kept = kept | set(self.function.outputs)
        values: dict[str, Any] = dict(self.function.constants)
        for name, dtype in self.function.inputs.items():
            if name in inputs:
                values[name] = _rounded(inputs[name]) if self.precision == "fp16" and dtype == "fp16" else inputs[name]
        for step in self._steps:
            _execute(step, values)
            for name in step.last_used:
                if name not in kept:
                    del values[name]
        return {name: values[name] for name in values if name in kept}

    def compare(self, other: "ReferenceEvaluator", inputs: Mapping[str, Any]) -> Comparison:
        """Each operation's result here against the one `other` has under the same name, in program order.

        `other` is the reference: another package, or this one in another precision.
        """
        return compare_values(self._types(), other._all_values(inputs), self._all_values(inputs))

    def compare_modules(self, model: nn.Module, pixels: Tensor, inputs: Mapping[str, Any]) -> Comparison:
        """Each module's last operation here against what the module puts out for `pixels` in PyTorch.

        For packages whose operations are named after their modules, as `mobilevit_coreml.convert` does.
        """
        types = self._types()
        reference = named_like_operations(module_outputs(model, pixels), types)
        return compare_values(types, reference, self._all_values(inputs))

    def ranges(self, inputs: Mapping[str, Any]) -> tuple[OperationRange, ...]:
        """The largest absolute value each operation produces, in program order."""
        return ranges(self._types(), self._all_values(inputs))

    def _types(self) -> dict[str, str]:
        return {name: operation.type for operation in self.function.operations for name in operation.outputs}

    def _all_values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.values(to_program(self.inputs, inputs), capture=True)


# An argument that comes by name: the parameter, the value's name (or a list of Refs and constants), its conversion.
_Named = tuple[str, str | list[Any], Callable[[Any], Any]]


class _Step(NamedTuple):
    """An operation made ready: its function, the arguments that never change, and where the others come from."""

    operation: Operation
    function: Callable[..., Any]
    fixed: Mapping[str, Any]
    named: tuple[_Named, ...]
    rounded: tuple[bool, ...]  # of each output, whether it is rounded to fp16
    last_used: tuple[str, ...]  # values nobody reads later


def _plan(function: Function, rounds: bool) -> tuple[_Step, ...]:
    """Steps in order; constants are converted to what the operations take, once."""
    steps = []
    used_later: set[str] = set()
    for index in reversed(range(len(function.operations))):
        operation = function.operations[index]
        implementation = OPERATIONS.get(operation.type) or _SPECIAL.get(operation.type)
        if implementation is None:
            raise UnsupportedError(
                f"{_place(function, index)}: expected an implemented operation, got {operation.type}; "
                f"the reference evaluator has {len(OPERATIONS)} others, `mobilevit_coreml.reference.OPERATIONS`"
            )
        fixed, named = _bind(function, index, implementation)
        reads = {ref.name for ref in references(operation)} - set(function.constants)
        done = tuple(sorted((reads | set(operation.outputs)) - used_later))
        used_later |= reads
        inexact = rounds and operation.type not in EXACT
        rounded = tuple(inexact and dtype == "fp16" for dtype in operation.output_dtypes)
        steps.append(_Step(operation, implementation, fixed, tuple(named), rounded, done))
    return tuple(reversed(steps))


def _bind(function: Function, index: int, implementation: Callable[..., Any]) -> tuple[dict[str, Any], list[_Named]]:
    """Arguments that are constant, converted, and those that come by name with their conversion."""
    operation = function.operations[index]
    conversions, required = _parameters(implementation)
    unknown = set(operation.inputs) - set(conversions)
    missing = required - set(operation.inputs)
    if unknown or missing:
        raise UnsupportedError(
            f"{_place(function, index)}: expected the parameters {', '.join(conversions)}, got "
            f"{'unknown ' + ', '.join(sorted(unknown)) if unknown else 'no ' + ', '.join(sorted(missing))}; "
            "this form of the operation is not implemented"
        )
    fixed: dict[str, Any] = {}
    named: list[_Named] = []
    constants = function.constants
    for parameter, argument in operation.inputs.items():
        convert = conversions[parameter]
        bindings = argument if isinstance(argument, list) else [argument]
        known = [
            constants[binding.name] if isinstance(binding, Ref) and binding.name in constants else binding
            for binding in bindings
        ]
        try:
            if not any(isinstance(binding, Ref) for binding in known):
                fixed[parameter] = convert(known if isinstance(argument, list) else known[0])
            elif isinstance(argument, list) or convert is _tensors:
                named.append((parameter, known, convert))
            else:
                named.append((parameter, argument.name, convert))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PackageError(f"{_place(function, index)}: {parameter}: {error}; the package is damaged") from None
    return fixed, named


def _execute(step: _Step, values: dict[str, Any]) -> None:
    arguments = dict(step.fixed)
    try:
        for parameter, source, convert in step.named:
            if isinstance(source, str):
                arguments[parameter] = convert(values[source])
            else:
                arguments[parameter] = convert([values[b.name] if isinstance(b, Ref) else b for b in source])
        result = step.function(**arguments)
    except UnsupportedError as error:
        raise UnsupportedError(f"{step.operation}: {error}") from None
    except KeyError as error:
        raise PackageError(f"{step.operation}: expected the value {error}, got none") from None
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise PackageError(
            f"{step.operation}: expected arguments that fit each other, got {' '.join(str(error).split())[:160]}"
        ) from None
    outputs = result if isinstance(result, tuple) else (result,)
    for name, rounds, output in zip(step.operation.outputs, step.rounded, outputs, strict=False):
        values[name] = _rounded(output) if rounds else output


def _rounded(x: Tensor) -> Tensor:
    return x.half().float()


def _place(function: Function, index: int) -> str:
    return f"operation {index + 1} of {len(function.operations)}, {function.operations[index]}"


def classify(probabilities: Tensor, classes: list[str] | Tensor) -> tuple[Any, dict[Any, float]]:
    """The most probable class and the probability of each, as a classifier's outputs are."""
    names = classes.tolist() if isinstance(classes, Tensor) else classes
    flat = probabilities.flatten().tolist()
    if len(names) != len(flat):
        raise ValueError(f"{len(names)} classes for {len(flat)} probabilities")
    return names[int(probabilities.argmax())], dict(zip(names, flat, strict=True))


_SPECIAL: Mapping[str, Callable[..., Any]] = {"classify": classify}


# From values to what a parameter's annotation asks for.


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected a tensor, got {type(value).__name__}")
    return value


def _tensors(value: Any) -> list[Tensor]:
    return [_tensor(entry) for entry in value] if isinstance(value, list) else [_tensor(value)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(int(_tensor(entry).item()) for entry in value)
    return tuple(int(entry) for entry in _tensor(value).flatten().tolist())


def _bools(value: Any) -> tuple[bool, ...]:
    return tuple(bool(entry) for entry in _ints(value))


_CONVERSIONS: Mapping[Any, Callable[[Any], Any]] = {
    Tensor: _tensor,
    list[Tensor]: _tensors,
    int: lambda value: int(_tensor(value).item()),
    float: lambda value: float(_tensor(value).item()),
    bool: lambda value: bool(_tensor(value).item()),
    str: _text,
    tuple[int, ...]: _ints,
    tuple[bool, ...]: _bools,
    list[str] | Tensor: lambda value: value,
}


@cache
def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    """How to convert each parameter of an operation's function, and which of them must be given."""
    hints = typing.get_type_hints(function)
    conversions = {}
    required = set()
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if hint not in _CONVERSIONS and isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        conversions[name] = _CONVERSIONS[hint]
        if parameter.default is inspect.Parameter.empty:
            required.add(name)
    return conversions, frozenset(required)
