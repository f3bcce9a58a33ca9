"""Reading of a package into dataclasses: features, function, operations, decoded constants."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.errors import PackageError, UnsupportedError
from mobilevit_coreml.reference.constants import Weights, decode, evaluate_constexpr, to_tensors, type_of

MAX_SPECIFICATION_BYTES = 512 * 1024**2
MODEL_DIRECTORY = ("Data", "com.apple.CoreML")  # of program and weights, within the package


@dataclasses.dataclass(frozen=True)
class Feature:
    """Declaration of an input or output.

    `kind`: image, array, label or probabilities. `shape`: of an array, or (height, width) of an image.
    `dtype`: numpy element type of an array or image; key type of a label or probabilities, str or
    int64. `color_layout`: of an image, RGB, BGR, GRAYSCALE or GRAYSCALE_FLOAT16. Flexible inputs have
    `other_shapes`, or a `shape_range` of (minimum, maximum) for each dimension, maximum -1 if unbounded.
    `default`: value of all elements of an array that is left out; None if it may not be left out.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    color_layout: str | None = None
    default: float | None = None
    other_shapes: tuple[tuple[int, ...], ...] = ()
    shape_range: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Ref:
    """Reference to a value by name: an input of the function, or an output of an earlier operation."""

    name: str


@dataclasses.dataclass(frozen=True)
class Block:
    """Operations nested in a `cond` or `while_loop`, with constants and inputs of their own; they read outer values."""

    inputs: tuple[str, ...]
    constants: Mapping[str, Any]
    operations: "tuple[Operation, ...]"
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation; `inputs` has a Ref, a constant, or a list of these by parameter name."""

    type: str
    name: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    output_dtypes: tuple[str, ...]  # fp16, fp32, int32, bool, …; "" if not a tensor
    output_shapes: tuple[tuple[int, ...], ...]  # as declared; -1 is a variable dimension
    blocks: tuple[Block, ...] = ()

    def __str__(self) -> str:
        return f"{self.type} '{self.name}'"


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of the program: operations in order of execution, and constants."""

    inputs: Mapping[str, str]  # name to data type
    input_shapes: Mapping[str, tuple[int, ...]]  # -1 is a variable dimension
    constants: Mapping[str, Any]
    encodings: Mapping[str, tuple[str, ...]]  # name of a compressed constant to the constexpr operations that decode it
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Package:
    """Interface, function and metadata of a package."""

    inputs: Mapping[str, Feature]
    outputs: Mapping[str, Feature]
    function: Function
    predicted: str  # name of a classifier's class label output, "" for other models
    metadata: Mapping[str, str]  # user-defined
    states: Mapping[str, Feature]


def read_package(path: str | os.PathLike[str], function_name: str | None = None) -> Package:
    """A package with one of its functions, by default the default function.

    Raises PackageError if the package or function is missing or damaged, UnsupportedError if it has
    parts that are not implemented.
    """
    specification = read_specification(path)
    functions = specification.mlProgram.functions
    description = specification.description
    names = [entry.name for entry in description.functions] or list(functions)
    name = function_name or description.defaultFunctionName or "main"
    if name not in functions:
        raise PackageError(
            f"package {path}: expected a function called {name}, got {', '.join(names) or 'none'}; choose one of these"
        )
    features = next((entry for entry in description.functions if entry.name == name), description)
    weights = Weights(Path(path, *MODEL_DIRECTORY))
    try:
        function = _read_function(name, functions[name], weights)
    except PackageError as error:
        raise type(error)(f"package {path}: {error}") from None
    except (ValueError, IndexError) as error:  # a required part is missing
        raise PackageError(
            f"package {path}: expected a complete program, got {error}; convert or copy it again"
        ) from None
    return Package(
        {feature.name: _read_feature(feature) for feature in features.input},
        {feature.name: _read_feature(feature) for feature in features.output},
        function,
        features.predictedFeatureName,
        dict(description.metadata.userDefined),
        {feature.name: _read_feature(feature) for feature in features.state},
    )


def read_specification(path: str | os.PathLike[str]) -> Any:
    """A package's Model protobuf; raises PackageError if it is missing, damaged or not an ML Program."""
    path = Path(path)
    if not path.exists():
        raise PackageError(f"package {path}: expected a .mlpackage directory, got nothing there; check the path")
    try:
        program = path.joinpath(*MODEL_DIRECTORY, "model.mlmodel") if path.is_dir() else path
        if program.is_file() and program.stat().st_size > MAX_SPECIFICATION_BYTES:
            raise ValueError(f"a specification of {program.stat().st_size} bytes")
        specification = ct.utils.load_spec(str(path))
    except Exception as error:  # coremltools passes on errors of its C++ code and protobuf
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise PackageError(
            f"package {path}: expected a Core ML package, got a damaged package or another file ({reason}); "
            "convert or copy it again"
        ) from None
    kind = specification.WhichOneof("Type")
    if kind != "mlProgram":
        raise (UnsupportedError if kind else PackageError)(
            f"package {path}: expected an ML Program, got {kind or 'an empty specification'}; "
            "convert with convert_to='mlprogram' and a target of iOS15 or later"
        )
    return specification


def _read_function(name: str, function: Any, weights: Weights) -> Function:
    block = function.block_specializations.get(function.opset)
    if block is None:
        raise PackageError(f"function {name}: expected a block for {function.opset}, got none; the package is damaged")
    constants: dict[str, Any] = {}
    encodings: dict[str, tuple[str, ...]] = {}
    operations = _read_operations(block.operations, weights, constants, encodings)
    used = {ref.name for operation in operations for ref in references(operation)} | set(block.outputs)
    return Function(
        {entry.name: type_of(entry.type)[0] for entry in function.inputs},
        {entry.name: type_of(entry.type)[1] for entry in function.inputs},
        {key: to_tensors(value) for key, value in constants.items() if key in used},
        {key: value for key, value in encodings.items() if key in used},
        operations,
        tuple(block.outputs),
    )


def _read_operations(
    entries: Iterable[Any], weights: Weights, constants: dict[str, Any], encodings: dict[str, tuple[str, ...]]
) -> tuple[Operation, ...]:
    """The operations of a block; its constants, decoded, and their encodings are added to the mappings."""
    operations = []
    for entry in entries:
        if entry.type == "const":
            constants[entry.outputs[0].name] = decode(entry.attributes["val"], weights)
        elif entry.type.startswith("constexpr_"):
            names = [output.name for output in entry.outputs]
            arrays = evaluate_constexpr(entry.type, _constexpr_arguments(entry, weights, constants))
            constants.update(zip(names, arrays, strict=True))
            encodings.update(dict.fromkeys(names, _decoders(entry, encodings)))
        else:
            blocks = tuple(_read_block(block, weights, constants, encodings) for block in entry.blocks)
            operations.append(_read_operation(entry, weights, blocks))
    return tuple(operations)


def _read_block(
    block: Any, weights: Weights, outer: Mapping[str, Any], encodings: Mapping[str, tuple[str, ...]]
) -> Block:
    constants = dict(outer)
    operations = _read_operations(block.operations, weights, constants, dict(encodings))
    own = {name: to_tensors(value) for name, value in constants.items() if value is not outer.get(name)}
    return Block(tuple(entry.name for entry in block.inputs), own, operations, tuple(block.outputs))


def references(operation: Operation) -> Iterator[Ref]:
    """References to values outside an operation: its arguments, and what its blocks read."""
    for block in operation.blocks:
        own = {*block.inputs, *block.constants, *(name for inner in block.operations for name in inner.outputs)}
        inner_references = (ref for inner in block.operations for ref in references(inner))
        yield from (ref for ref in (*inner_references, *map(Ref, block.outputs)) if ref.name not in own)
    for argument in operation.inputs.values():
        for binding in argument if isinstance(argument, list) else [argument]:
            if isinstance(binding, Ref):
                yield binding


def _constexpr_arguments(entry: Any, weights: Weights, constants: Mapping[str, Any]) -> dict[str, Any]:
    # attributes in iOS16, inputs in iOS18
    arguments = {name: decode(value, weights) for name, value in entry.attributes.items() if name != "name"}
    for name, argument in entry.inputs.items():
        (binding,) = _bindings(argument, weights)
        if isinstance(binding, Ref) and binding.name not in constants:
            raise PackageError(f"{entry.type}: expected the constant {binding.name} before it, got none")
        arguments[name] = constants[binding.name] if isinstance(binding, Ref) else binding
    return arguments


def _decoders(entry: Any, encodings: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Types of a chain of constexpr operations (joint compression) that ends with this one."""
    names = [binding.name for argument in entry.inputs.values() for binding in argument.arguments]
    before = dict.fromkeys(kind for name in names for kind in encodings.get(name, ()))
    return (*before, entry.type)


def _bindings(argument: Any, weights: Weights) -> list[Any]:
    """The Refs and constants of an argument, constants of the stored type."""
    return [
        Ref(binding.name) if binding.WhichOneof("binding") == "name" else decode(binding.value, weights)
        for binding in argument.arguments
    ]


def _read_operation(entry: Any, weights: Weights, blocks: tuple[Block, ...]) -> Operation:
    name = entry.outputs[0].name if entry.outputs else entry.type
    inputs = {parameter: to_tensors(_bindings(argument, weights)) for parameter, argument in entry.inputs.items()}
    types = [type_of(output.type) for output in entry.outputs]
    return Operation(
        entry.type,
        name,
        {parameter: bindings[0] if len(bindings) == 1 else bindings for parameter, bindings in inputs.items()},
        tuple(output.name for output in entry.outputs),
        tuple(dtype for dtype, _ in types),
        tuple(shape for _, shape in types),
        blocks,
    )


_COLOR_LAYOUTS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
_ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}


def _read_feature(feature: Any) -> Feature:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        return _read_image(feature.name, feature.type.imageType)
    if kind == "multiArrayType":
        return _read_array(feature.name, feature.type.multiArrayType)
    if kind == "stateType":
        return _read_array(feature.name, feature.type.stateType.arrayType)
    if kind in ("stringType", "int64Type"):
        return Feature(feature.name, "label", dtype="str" if kind == "stringType" else "int64")
    if kind == "dictionaryType":
        keys = feature.type.dictionaryType.WhichOneof("KeyType")
        return Feature(feature.name, "probabilities", dtype="str" if keys == "stringKeyType" else "int64")
    raise UnsupportedError(f"feature {feature.name}: expected an image, an array or a class, got {kind}")


def _read_image(name: str, image: Any) -> Feature:
    layout = _COLOR_LAYOUTS.get(image.colorSpace)
    if layout is None:
        raise UnsupportedError(
            f"feature {name}: expected one of {', '.join(_COLOR_LAYOUTS.values())}, got colour space {image.colorSpace}"
        )
    sizes = tuple((int(size.height), int(size.width)) for size in image.enumeratedSizes.sizes)
    limits = image.imageSizeRange
    sides = (limits.heightRange, limits.widthRange) if image.HasField("imageSizeRange") else ()
    dtype = "float16" if layout == "GRAYSCALE_FLOAT16" else "uint8"
    shape = (int(image.height), int(image.width))
    return Feature(name, "image", shape, dtype, layout, other_shapes=sizes, shape_range=_limits(sides))


def _read_array(name: str, array: Any) -> Feature:
    shapes = tuple(tuple(int(size) for size in shape.shape) for shape in array.enumeratedShapes.shapes)
    dtype = _ARRAY_TYPES.get(array.dataType, "float32")
    limits = _limits(array.shapeRange.sizeRanges)
    given = array.WhichOneof("defaultOptionalValue")
    default = None if given is None else float(getattr(array, given))
    return Feature(name, "array", tuple(int(size) for size in array.shape), dtype, None, default, shapes, limits)


def _limits(ranges: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(side.lowerBound), int(side.upperBound)) for side in ranges)
