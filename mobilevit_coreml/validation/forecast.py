"""Forecast of the operations that may leave the Neural Engine, or be slow on it: nothing is run.

Core ML decides on the device, operation by operation, and by more than is documented; that an operation is
listed here does not show that it leaves, nor that it stays if it is not. The rules are Apple's own, in RULES
by these names:

- article: machinelearning.apple.com/research/neural-engine-transformers
- ml-ane-transformers: github.com/apple/ml-ane-transformers, the article's code
- coreai-models: github.com/apple/coreai-models, skills/skills/model-authoring/references/neural_engine_rules.md
- coremltools guide: apple.github.io/coremltools/docs-guides/source, typed-execution-example.html
- forum: developer.apple.com/forums/thread/724930, an answer of an Apple engineer

Layouts: B batch, C channels, H rows, W columns, S positions; B C H W, and B C 1 S of sequences.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mobilevit_coreml.operation_names import module_of
from mobilevit_coreml.reference.reader import Feature, Function, Operation, Ref, read_package, references

Shape = tuple[int, ...]

# From what is documented to keep an operation off the Neural Engine, to what is documented to cost time or memory on
# it, to what is so in every package.
RULES: Mapping[str, str] = {
    "dtype": "The Neural Engine is documented to compute in float16, int8 and int16; what a program types otherwise "
    "may run on the CPU or GPU, with a switch there and back (coremltools guide, coreai-models).",
    "rank": "Tensors of more than 5 dimensions are documented to be rejected by the Neural Engine (coreai-models).",
    "dynamic shape": "Fully static shapes are documented as a condition (coreai-models); an input with a range of "
    "sizes may run there at its default size only, one with a list of sizes may at each of them (forum).",
    "infinity": "-inf in a softmax is documented not to be handled correctly there, -1e4 or -4e4 to do as well "
    "(coreai-models, ml-ane-transformers).",
    "linear": "A linear layer is documented to become less efficient operations, which may fall back to the CPU "
    "(coreai-models); a 1x1 convolution is recommended in its place (article).",
    "heads": "Attention is documented to be split into single heads, `bchq,bkhc->bkhq`: chunks that may stay in the "
    "cache, and no copies; several heads in one operation may be slower, and a fused attention is documented to have "
    "no counterpart there (article, coreai-models).",
    "stride": "Convolution strides of other prime factors than 2 and 3, unequal ones over 2, any over 2 with "
    "palettized weights, and pooling strides other than 2 and 4 are documented to bring overhead (coreai-models).",
    "dilation": "Large dilations are documented to be expensive; chains of dilations of 2 and 3 are recommended "
    "(coreai-models).",
    "layout": "Reshapes and transposes may be copies of memory, those that change the innermost axis are documented "
    "to be the most expensive (coreai-models); one of the keys is in Apple's own attention (article).",
    "softmax axis": "A softmax over rows or columns is documented to limit how its work is split, which matters for "
    "large tensors; the channel axis is recommended (coreai-models).",
    "last axis": "The innermost axis is documented to be padded to 64 bytes, 32 values of float16, where a tensor is "
    "in memory; smaller axes, and 1 above all, may cost a multiple of it (article, coreai-models).",
    "boundary": "Operations that prepare the image and casts in or out beside float16 may run on the CPU by the same "
    "documents; every package has some of it, at the ends of a program, where no way back is lost.",
}

NATIVE_DTYPES = ("fp16", "int8", "int16")
MAX_RANK = 5
MAX_DILATION = 3  # 2 and 3 are what the documented remedy is made of
MAX_PALETTIZED_STRIDE = 2
POOLING_STRIDES = (1, 2, 4)
ROW_BYTES = 64  # the innermost axis is padded to a multiple of it
# Apple names no size from which on padding matters: tensors in the cache may do without it. This is 1/16 of the
# largest map of the smallest network here (1 MiB: xxs at 256x256), of which 13 operations waste as much and 126 any.
MIN_PADDING = 64 * 1024

_BYTES = {"fp16": 2, "int8": 1, "int16": 2}
_NAMES = {"fp32": "float32"}  # the others are called so, too
_POOLING = ("max_pool", "avg_pool", "l2_pool")
_RESHAPES = ("reshape", "squeeze", "expand_dims", "flatten2d")
_PREPARATIONS = ("cast", "mul", "add", "sub", "real_div", "slice_by_index", "slice_by_size", "crop")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One documented rule that one operation, or an input, does not keep.

    `rule` is a key of RULES, `operation` the operation's name in the program, "" for an input; `type` its MIL type,
    "input" for an input; `module` the dotted path of the PyTorch module it belongs to, "" where none matches;
    `detail` what is there, with figures.
    """

    rule: str
    operation: str
    type: str
    module: str
    detail: str


def forecast(package: Path, modules: Collection[str], function_name: str | None = None) -> tuple[Finding, ...]:
    """Operations of one function that may leave the Neural Engine or be slow there, by rule, then in program order.

    `modules` are the paths of the PyTorch model's modules, as `dict(model.named_modules())` has them. An operation
    that may not be on the Neural Engine at all (dtype, rank, dynamic shape, boundary) is not listed for what it would
    cost there. Raises PackageError and UnsupportedError as `read_package` does.
    """
    read = read_package(package, function_name)
    function = read.function
    program = _Program(function, _shapes(function), _boundary(function))
    inputs = [*_of_inputs(read.inputs, function)]
    caused = {rule for rule, _ in inputs}  # an input's shape reaches the whole program: listed once
    found = [Finding(rule, "", "input", "", detail) for rule, detail in inputs]
    for operation in function.operations:
        blockers = [(rule, detail) for rule, detail in _ane_blockers(operation, program) if detail]
        blockers = [entry for entry in blockers if entry[0] != "dynamic shape" or entry[0] not in caused]
        module = module_of(operation.name, modules)
        for rule, detail in blockers or _costs(operation, program):
            if detail:
                found.append(Finding(rule, operation.name, operation.type, module, detail))
    order = list(RULES)
    return tuple(sorted(found, key=lambda finding: order.index(finding.rule)))


@dataclasses.dataclass(frozen=True)
class _Program:
    """A function, the shapes of its values by name, and which operations are at its ends."""

    function: Function
    shapes: Mapping[str, Shape]
    boundary: frozenset[str]

    def constants(self, operation: Operation, parameter: str) -> list[Tensor]:
        """Constant tensors of a parameter: one, or none where it is computed, or any number of a list."""
        given = operation.inputs.get(parameter)
        values = [
            self.function.constants.get(binding.name) if isinstance(binding, Ref) else binding
            for binding in (given if isinstance(given, list) else [given])
        ]
        return [value for value in values if isinstance(value, Tensor)]

    def numbers(self, operation: Operation, parameter: str) -> Shape:
        """A parameter that is a constant of integers, () where it is not given."""
        values = self.constants(operation, parameter)
        return tuple(int(number) for value in values for number in value.reshape(-1).tolist())

    def shape(self, operation: Operation, parameter: str) -> Shape:
        """Shape of a parameter that is a tensor; () where it is not known."""
        value = operation.inputs.get(parameter)
        if isinstance(value, Tensor):
            return tuple(value.shape)
        return self.shapes.get(value.name, ()) if isinstance(value, Ref) else ()

    def is_palettized(self, operation: Operation, parameter: str) -> bool:
        """True for a parameter that is a constant decoded by a lookup table."""
        value = operation.inputs.get(parameter)
        decoders = self.function.encodings.get(value.name, ()) if isinstance(value, Ref) else ()
        return any("lut" in decoder for decoder in decoders)


def _of_inputs(features: Mapping[str, Feature], function: Function) -> Iterator[tuple[str, str]]:
    """Rule and detail of each input that does not keep one."""
    for feature in features.values():
        if detail := flexible(feature):
            yield "dynamic shape", f"input {feature.name}: {detail}"
    for name, shape in function.input_shapes.items():
        if detail := rank([shape]):
            yield "rank", f"input {name}: {detail}"


def _ane_blockers(operation: Operation, program: _Program) -> Iterator[tuple[str, str]]:
    """Rules documented to keep an operation off the Neural Engine, with details, "" where a rule is kept."""
    kind = "boundary" if operation.name in program.boundary else "dtype"
    yield kind, dtype(operation.output_dtypes, operation.output_shapes)
    yield "rank", rank(operation.output_shapes)
    yield "dynamic shape", dynamic(operation.output_shapes)


def _costs(operation: Operation, program: _Program) -> Iterator[tuple[str, str]]:
    """Rules documented to cost time or memory on the Neural Engine, with details, "" where a rule is kept."""
    shape = operation.output_shapes[0] if operation.output_shapes else ()
    match operation.type:
        case "linear":
            yield "linear", linear(program.shape(operation, "weight"))
        case "matmul":
            matrices = [program.shape(operation, side) for side in ("x", "y") if program.constants(operation, side)]
            yield ("linear", linear(matrices[0])) if matrices else ("heads", heads(shape))
        case "scaled_dot_product_attention":
            yield "heads", f"attention as one operation, {_by(shape)}"
        case "conv":
            palettized = program.is_palettized(operation, "weight")
            yield "stride", convolution_stride(program.numbers(operation, "strides"), palettized)
            yield "dilation", dilation(program.numbers(operation, "dilations"))
        case "softmax":
            axis = program.numbers(operation, "axis")
            yield "softmax axis", softmax_axis(shape, axis[0] if axis else -1)
        case "transpose":
            yield "layout", transpose(program.numbers(operation, "perm"))
        case kind if kind in _POOLING:
            yield "stride", pooling_stride(program.numbers(operation, "strides"))
        case kind if kind in _RESHAPES:
            yield "layout", reshape(program.shape(operation, "x"), shape)
    constants = [value for parameter in operation.inputs for value in program.constants(operation, parameter)]
    yield "infinity", infinity(constants)
    yield "last axis", last_axis(operation.output_dtypes, operation.output_shapes)


# The rules: each returns the detail of a breach, "" where it is kept.


def dtype(dtypes: Collection[str], shapes: Collection[Shape]) -> str:
    """Types of an operation's results, in MIL's words; texts and dictionaries are no arithmetic."""
    tensors = [(kind, shape) for kind, shape in zip(dtypes, shapes, strict=True) if kind not in ("", "string")]
    other = [f"{_NAMES.get(kind, kind)} output {_by(shape)}" for kind, shape in tensors if kind not in NATIVE_DTYPES]
    return ", ".join(dict.fromkeys(other))


def rank(shapes: Collection[Shape]) -> str:
    """Dimensions of an operation's results."""
    worst: Shape = max(shapes, key=len, default=())
    return f"{len(worst)} dimensions, {_by(worst)}" if len(worst) > MAX_RANK else ""


def dynamic(shapes: Collection[Shape]) -> str:
    """Shapes of an operation's results; -1 is a dimension that is not fixed."""
    return next((f"output {_by(shape)}" for shape in shapes if -1 in shape), "")


def flexible(feature: Feature) -> str:
    """Shapes of an input."""
    if any(least != greatest for least, greatest in feature.shape_range):
        ranges = (f"{least}..{greatest if greatest >= 0 else ''}" for least, greatest in feature.shape_range)
        return f"sizes in a range, {' by '.join(ranges)}; {_by(feature.shape)} by default"
    if len(feature.other_shapes) > 1:
        return f"{len(feature.other_shapes)} sizes, {', '.join(map(_by, feature.other_shapes))}"
    return ""


def infinity(constants: Collection[Tensor]) -> str:
    """Constants an operation reads."""
    count = sum(int(torch.isneginf(value).sum()) for value in constants if value.is_floating_point())
    return f"-inf, {count} times among its constants" if count else ""


def linear(weight: Shape) -> str:
    """Shape of a matrix that is multiplied with."""
    return f"a matrix of {_by(weight)}, no convolution"


def heads(shape: Shape) -> str:
    """Shape of the product of two computed tensors: B heads S S, or B heads S C."""
    return f"{shape[1]} heads at once, {_by(shape)}" if len(shape) > 3 and shape[1] > 1 else ""


def convolution_stride(strides: Shape, palettized: bool) -> str:
    """Strides of a convolution."""
    if any(not _twos_and_threes(stride) for stride in strides):
        return f"stride {_by(strides)}, not of 2s and 3s"
    if palettized and max(strides, default=1) > MAX_PALETTIZED_STRIDE:
        return f"stride {_by(strides)} with palettized weights"
    if len(set(strides)) > 1 and min(strides) > 2:
        return f"stride {_by(strides)}, unequal"
    return ""


def pooling_stride(strides: Shape) -> str:
    """Strides of a pooling."""
    return "" if all(stride in POOLING_STRIDES for stride in strides) else f"pooling stride {_by(strides)}"


def dilation(dilations: Shape) -> str:
    """Dilations of a convolution."""
    return f"dilation {_by(dilations)}" if max(dilations, default=1) > MAX_DILATION else ""


def transpose(order: Shape) -> str:
    """Axes of a transpose."""
    if not order or order == tuple(range(len(order))):
        return ""
    stays = order[-1] in (-1, len(order) - 1)
    return f"axes in order {order}: the innermost {'stays' if stays else 'changes'}"


def reshape(before: Shape, after: Shape) -> str:
    """Shapes of an operation that reshapes, other than by axes of 1 further out."""
    if not before or not after:
        return ""
    stays = before[-1] == after[-1]
    if stays and [size for size in before if size != 1] == [size for size in after if size != 1]:
        return ""
    return f"{_by(before)} to {_by(after)}: the innermost axis {'stays' if stays else 'changes'}"


def softmax_axis(shape: Shape, axis: int) -> str:
    """Axis of a softmax: rows and columns are the last two of B C H W, the last of B C S; classes have neither."""
    position = axis % max(len(shape), 1)
    return f"axis {position} of {_by(shape)}" if position >= max(len(shape) - 2, 2) else ""


def last_axis(dtypes: Collection[str], shapes: Collection[Shape]) -> str:
    """Padding of an operation's results, if it adds up to MIN_PADDING bytes."""
    stored = padded = 0
    narrowest = (0, 0)  # values of the innermost axis as they are, and padded
    for kind, shape in zip(dtypes, shapes, strict=True):
        if kind in _BYTES and shape and min(shape) > 0:
            values = ROW_BYTES // _BYTES[kind]
            width = math.ceil(shape[-1] / values) * values
            stored += math.prod(shape) * _BYTES[kind]
            padded += math.prod(shape[:-1]) * width * _BYTES[kind]
            narrowest = min(narrowest, (shape[-1], width)) if narrowest[0] else (shape[-1], width)
    if padded - stored < MIN_PADDING:
        return ""
    axis, width = narrowest
    return f"innermost axis of {axis} may be padded to {width}: {padded / stored:.3g}x the memory, {padded // 1024} KiB"


def _twos_and_threes(number: int) -> bool:
    for factor in (2, 3):
        while number > 1 and number % factor == 0:
            number //= factor
    return number == 1


def _by(shape: Shape) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape) or "scalar"


def _shapes(function: Function) -> dict[str, Shape]:
    shapes = dict(function.input_shapes)
    shapes |= {name: tuple(value.shape) for name, value in function.constants.items() if isinstance(value, Tensor)}
    for operation in function.operations:
        shapes |= zip(operation.outputs, operation.output_shapes, strict=True)
    return shapes


def _boundary(function: Function) -> frozenset[str]:
    """Operations that only prepare inputs (scale, crop, cast), and casts of results that only go out."""
    prepared = set(function.inputs)
    used = {
        ref.name for operation in function.operations for ref in references(operation) if operation.type != "classify"
    }
    found = set()
    for operation in function.operations:
        read = {ref.name for ref in references(operation)} - set(function.constants)
        if operation.type in _PREPARATIONS and read and read <= prepared:
            prepared.update(operation.outputs)
            found.add(operation.name)
        elif operation.type == "cast" and not used & set(operation.outputs):
            found.add(operation.name)
    return frozenset(found)
