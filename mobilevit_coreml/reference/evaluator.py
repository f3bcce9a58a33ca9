"""Execution of a saved package, operation by operation, on any machine."""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobilevit_coreml.errors import InputError, PackageError, UnsupportedError, check_choice
from mobilevit_coreml.reference import comparison
from mobilevit_coreml.reference.features import from_program, to_program
from mobilevit_coreml.reference.ops import EXACT, OPERATIONS
from mobilevit_coreml.reference.ops.control import Blocks
from mobilevit_coreml.reference.ops.state import Cell
from mobilevit_coreml.reference.reader import Block, Feature, Function, Operation, Ref, read_package, references

PRECISIONS = ("fp16", "fp32")


class State:
    """Values of a stateful model's states from one prediction to the next, as coremltools' MLState."""

    def __init__(self, features: Mapping[str, Feature]) -> None:
        self.features = features
        self.cells = {name: Cell(torch.zeros(feature.shape)) for name, feature in features.items()}

    def read_state(self, name: str) -> npt.NDArray[Any]:
        """Value of a state, fp16 as float32; raises InputError if there is none of this name."""
        value = self._cell(name).value
        return np.array(from_program(self.features[name], value))

    def write_state(self, name: str, value: npt.ArrayLike) -> None:
        """Set a state; raises InputError for an unknown name and a value of another shape."""
        self._cell(name).value = to_program({name: self.features[name]}, {name: value})[name]

    def _cell(self, name: str) -> Cell:
        if name not in self.cells:
            raise InputError(f"state: expected one of {', '.join(self.cells)}, got {name}; choose one of these")
        return self.cells[name]


class ReferenceEvaluator:
    """A function of a saved .mlpackage, executed by the MIL specification in torch.

    With precision "fp16" the output of every operation that the program types as fp16 is rounded to
    fp16 (beyond 65504 to infinity); with "fp32" only the stored constants are fp16. Sums within an
    operation are float32 in both: the accumulation and fusion of the Neural Engine are not modelled.

    Raises PackageError for a missing or damaged package, UnsupportedError for operations that are
    not implemented, with their names and positions.
    """

    def __init__(self, path: str | os.PathLike[str], precision: str = "fp16", function_name: str | None = None) -> None:
        check_choice("precision", precision, PRECISIONS, InputError)
        self.path = Path(path)
        self.precision = precision
        package = read_package(self.path, function_name)
        missing = [name for name in package.outputs if name not in package.function.outputs]
        if missing:
            raise PackageError(
                f"package {path}: expected a program with the outputs {', '.join(package.outputs)}, got no "
                f"{', '.join(missing)}; the package is damaged"
            )
        self.inputs: Mapping[str, Feature] = package.inputs
        self.outputs: Mapping[str, Feature] = package.outputs
        self.states: Mapping[str, Feature] = package.states
        self.metadata: Mapping[str, str] = package.metadata
        self.function: Function = package.function
        try:
            function = package.function
            self._steps = _plan(function.operations, function.constants, function.outputs, precision == "fp16")
        except PackageError as error:
            raise type(error)(f"package {path}: {error}") from None

    def make_state(self) -> State:
        """States of zeros, for `run`."""
        return State(self.states)

    def run(
        self, inputs: Mapping[str, Any], capture: Collection[str] | bool = (), state: State | None = None
    ) -> dict[str, Any]:
        """Outputs by name, in the types Core ML returns: numpy arrays, PIL images, a class label, probabilities.

        `inputs` has a PIL image of the declared size and mode for each image input, and an array for
        each array input. `capture` names values to add to the outputs as float32 or int32 arrays;
        True adds the outputs of all operations. `state`, from `make_state`, has the states of a stateful
        model before and after; others have none.

        Raises InputError for inputs of another type, shape or mode, and for unknown names in `capture`.
        """
        if set(state.features if state else ()) != set(self.states):
            raise InputError(
                f"state: expected {'one of make_state()' if self.states else 'none'}, got "
                f"{'another' if state else 'none'}; the model's states are {', '.join(self.states) or 'none'}"
            )
        values = self.values(to_program(self.inputs, inputs), capture, state)
        try:
            outputs = {name: from_program(feature, values[name]) for name, feature in self.outputs.items()}
        except (AttributeError, ValueError, IndexError, TypeError) as error:
            raise PackageError(f"package {self.path}: expected outputs as it declares them, got {error}") from None
        for name, value in values.items():
            if name not in outputs and isinstance(value, Tensor):
                outputs[name] = value.numpy()
        return outputs

    @torch.inference_mode()
    def values(
        self, inputs: Mapping[str, Tensor], capture: Collection[str] | bool = (), state: State | None = None
    ) -> dict[str, Any]:
        """The program's outputs and captured values as torch tensors; `inputs` are tensors, too.

        Without a `state` the states are zeros.
        """
        names = {name for step in self._steps for name in step.operation.outputs}
        kept = names if capture is True else set(capture or ())
        if kept - names:
            raise InputError(
                f"capture: expected names of values, got {', '.join(sorted(kept - names))}; see `function`"
            )
        kept = kept | set(self.function.outputs)
        values: dict[str, Any] = {**self.function.constants, **(state or self.make_state()).cells}
        for name, dtype in self.function.inputs.items():
            if name in inputs:
                values[name] = _rounded(inputs[name]) if self.precision == "fp16" and dtype == "fp16" else inputs[name]
        for step in self._steps:
            _execute(step, values)
            for name in step.last_used:
                if name not in kept:
                    del values[name]
        return {name: values[name] for name in values if name in kept}

    def compare(self, other: "ReferenceEvaluator", inputs: Mapping[str, Any]) -> comparison.Comparison:
        """Errors of this program's operations against those of the same names in `other`, the reference.

        `other` is another package, or this one in another precision.
        """
        return comparison.compare_values(self._types(), other._all_values(inputs), self._all_values(inputs))

    def compare_modules(self, model: nn.Module, pixels: Tensor, inputs: Mapping[str, Any]) -> comparison.Comparison:
        """Errors of each module's last operation against the output of the PyTorch module for `pixels`.

        For packages with the operation names of `mobilevit_coreml.operation_names`.
        """
        types = self._types()
        reference = comparison.by_last_operation(comparison.module_outputs(model, pixels), list(types))
        return comparison.compare_values(types, reference, self._all_values(inputs))

    def ranges(self, inputs: Mapping[str, Any]) -> tuple[comparison.OperationRange, ...]:
        """Maximum absolute value of each operation's output, in program order."""
        return comparison.ranges(self._types(), self._all_values(inputs))

    def _types(self) -> dict[str, str]:
        return {name: operation.type for operation in self.function.operations for name in operation.outputs}

    def _all_values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.values(to_program(self.inputs, inputs), capture=True)


class _Variable(NamedTuple):
    """The Refs and constants of an argument, and the conversion to the type of its parameter."""

    bindings: list[Any]
    is_list: bool
    convert: Callable[[Any], Any]


class _PlannedBlock(NamedTuple):
    """A block with the steps of its operations."""

    block: Block
    steps: "tuple[_Step, ...]"


class _Step(NamedTuple):
    """An operation with its function, its converted constant arguments and its variable arguments."""

    operation: Operation
    function: Callable[..., Any]
    constant: Mapping[str, Any]
    variable: Mapping[str, _Variable]
    rounded: tuple[bool, ...]  # for each output, True if it is rounded to fp16
    last_used: tuple[str, ...]  # names of values that later steps do not read
    blocks: tuple[_PlannedBlock, ...]


def _plan(
    operations: tuple[Operation, ...], constants: Mapping[str, Any], outputs: tuple[str, ...], rounds: bool
) -> tuple[_Step, ...]:
    """The steps of a function or block in order, with constant arguments converted to the types of the parameters."""
    steps = []
    used_later: set[str] = set(outputs)
    for number, operation in reversed(list(enumerate(operations, start=1))):
        implementation = classify if operation.type == "classify" else OPERATIONS.get(operation.type)
        try:
            if implementation is None:
                raise UnsupportedError(
                    f"expected an implemented operation, got {operation.type}; the {len(OPERATIONS)} of the reference "
                    "evaluator are in `mobilevit_coreml.reference.OPERATIONS`"
                )
            constant, variable = _bind(operation, implementation, constants)
            blocks = tuple(_plan_block(block, constants, rounds) for block in operation.blocks)
        except PackageError as error:
            position = f"operation {number} of {len(operations)}, {operation}"
            raise type(error)(f"{position}: {error}") from None
        reads = {ref.name for ref in references(operation)} - set(constants)
        last_used = tuple(sorted((reads | set(operation.outputs)) - used_later))
        used_later |= reads
        inexact = rounds and operation.type not in EXACT
        rounded = tuple(inexact and dtype == "fp16" for dtype in operation.output_dtypes)
        steps.append(_Step(operation, implementation, constant, variable, rounded, last_used, blocks))
    return tuple(reversed(steps))


def _plan_block(block: Block, outer: Mapping[str, Any], rounds: bool) -> _PlannedBlock:
    constants = {name: value for name, value in outer.items() if name not in block.inputs} | dict(block.constants)
    return _PlannedBlock(block, _plan(block.operations, constants, block.outputs, rounds))


def _bind(
    operation: Operation, implementation: Callable[..., Any], constants: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, _Variable]]:
    """Constant arguments, converted, and variable arguments."""
    conversions, required = _parameters(implementation)
    unknown = set(operation.inputs) - set(conversions)
    missing = required - set(operation.inputs)
    if unknown or missing:
        raise UnsupportedError(
            f"expected the parameters {', '.join(conversions)}, got "
            f"{'unknown ' + ', '.join(sorted(unknown)) if unknown else 'no ' + ', '.join(sorted(missing))}; "
            "this variant of the operation is not implemented"
        )
    constant: dict[str, Any] = {}
    variable: dict[str, _Variable] = {}
    for parameter, argument in operation.inputs.items():
        bindings = [
            constants.get(binding.name, binding) if isinstance(binding, Ref) else binding
            for binding in (argument if isinstance(argument, list) else [argument])
        ]
        unbound = _Variable(bindings, isinstance(argument, list), conversions[parameter])
        if any(isinstance(binding, Ref) for binding in bindings):
            variable[parameter] = unbound
            continue
        try:
            constant[parameter] = _value(unbound, {})
        except (TypeError, ValueError, RuntimeError) as error:
            raise PackageError(f"{parameter}: {error}; the package is damaged") from None
    return constant, variable


def _value(argument: _Variable, values: Mapping[str, Any]) -> Any:
    found = [values[binding.name] if isinstance(binding, Ref) else binding for binding in argument.bindings]
    return argument.convert(found if argument.is_list else found[0])


def _execute(step: _Step, values: dict[str, Any]) -> None:
    try:
        variable = {parameter: _value(argument, values) for parameter, argument in step.variable.items()}
        if step.blocks:
            variable["blocks"] = [functools.partial(_run_block, block, values) for block in step.blocks]
        result = step.function(**step.constant, **variable)
    except PackageError as error:  # of the operation, or of one in its blocks
        raise type(error)(f"{step.operation}: {error}") from None
    except KeyError as error:
        raise PackageError(f"{step.operation}: expected the value {error}, got none") from None
    except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError) as error:
        raise PackageError(
            f"{step.operation}: expected arguments that fit each other, got {' '.join(str(error).split())[:160]}"
        ) from None
    outputs = result if isinstance(result, tuple) else (result,)
    for name, rounds, output in zip(step.operation.outputs, step.rounded, outputs, strict=False):
        values[name] = _rounded(output) if rounds else output


def _run_block(planned: _PlannedBlock, outer: Mapping[str, Any], *arguments: Any) -> tuple[Any, ...]:
    block = planned.block
    values = {**outer, **block.constants, **dict(zip(block.inputs, arguments, strict=True))}
    for step in planned.steps:
        _execute(step, values)
        for name in step.last_used:
            values.pop(name, None)
    return tuple(values[name] for name in block.outputs)


def _rounded(x: Tensor) -> Tensor:
    return x.half().float()


def classify(probabilities: Tensor, classes: list[str] | Tensor) -> tuple[Any, dict[Any, float]]:
    """The most probable class, and the probability of each class."""
    names = classes.tolist() if isinstance(classes, Tensor) else classes
    flat = probabilities.flatten().tolist()
    if len(names) != len(flat):
        raise ValueError(f"{len(names)} classes for {len(flat)} probabilities")
    return names[int(probabilities.argmax())], dict(zip(names, flat, strict=True))


# Conversions of a value to the type of a parameter.


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected a tensor, got {type(value).__name__}")
    return value


def _cell(value: Any) -> Cell:
    if not isinstance(value, Cell):
        raise TypeError(f"expected a state, got {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(int(_tensor(entry).item()) for entry in value)
    return tuple(int(entry) for entry in _tensor(value).flatten().tolist())


_CONVERSIONS: Mapping[Any, Callable[[Any], Any]] = {
    Tensor: _tensor,
    Cell: _cell,
    list[Tensor]: lambda value: [_tensor(entry) for entry in (value if isinstance(value, list) else [value])],
    int: lambda value: int(_tensor(value).item()),
    float: lambda value: float(_tensor(value).item()),
    bool: lambda value: bool(_tensor(value).item()),
    str: _text,
    tuple[int, ...]: _ints,
    tuple[bool, ...]: lambda value: tuple(map(bool, _ints(value))),
    list[str] | Tensor: lambda value: value,
}


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    """Conversion of each parameter of an operation's function, and the names of the required ones."""
    conversions = {}
    for name, hint in typing.get_type_hints(function).items():
        if isinstance(hint, types.UnionType) and hint not in _CONVERSIONS:
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        if hint != Blocks and name != "return":
            conversions[name] = _CONVERSIONS[hint]
    parameters = inspect.signature(function).parameters
    required = frozenset(name for name in conversions if parameters[name].default is inspect.Parameter.empty)
    return conversions, required
