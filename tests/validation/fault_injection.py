"""Good packages, and what bugs of a converter, a quantizer or a file system would make of them: the table of faults.

Independent of what is to find it. `FAULTS` changes what a package computes or says; `UNSEEN` changes
a package in ways that no comparison of numbers can see. `MISREADINGS` are bugs of the reading of checkpoints, which
converter and validator share.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.checkpoints.load import Checkpoint, load_checkpoint
from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.compression.schemes import Palettize, Prune, Quantize
from mobilevit_coreml.config import (
    CLASSIFICATION,
    FEATURES,
    MULTI_LABEL,
    REGRESSION,
    SEGMENTATION,
    SINGLE_LABEL,
    published_config,
)
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.model import model_for
from mobilevit_coreml.model.layers import ChannelLayerNorm
from mobilevit_coreml.options import ConversionOptions
from tests.cache import once_per_run
from tests.checkpoints import saved
from tests.validation.edits import Array, Program, bits_of, edit, edit_record, key_of, packed, rename, rolled, swapped

SIDE = 64  # pixels of most packages: stage 3 has 16 tokens of 4 heads 16 wide
SEGMENTED = 128  # a map of 8x8 cells: a dilation of 6 still reaches other cells
ODD = 80  # maps of stages 4 and 5 that are no multiple of the patch
SEED = 0


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault, injected into a package in place.

    `package` is the key in PACKAGES of the good one. `mismatch` are the operations any of which is a right
    answer to which one is the first that computes something else: the edited one, or where one was left out
    the one that reads its input now, or one that was put in; None for what is outside the network.
    """

    name: str
    package: str
    apply: Callable[[Path], None]
    mismatch: tuple[str, ...] | None


# The good packages.


def random_weights(directory: Path, task: str) -> Path:
    """A checkpoint of xxs in which every parameter matters: no bias zero, no gamma one, attention not uniform.

    Of untrained weights the biases, gammas and betas are the same as none, and attention is the mean.
    """
    path = directory / f"{task}.safetensors"
    if path.exists():
        return path
    config = dataclasses.replace(published_config("xxs", task), image_size=SEGMENTED)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = model_for(task, config).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    module.bias.normal_(std=0.3)
            elif isinstance(module, ChannelLayerNorm | nn.BatchNorm2d):
                module.weight.normal_(mean=1, std=0.3)
                module.bias.normal_(std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.momentum = None  # the plain mean over what it sees
        images = [np.asarray(image, np.float32) / 255 for image in synthetic_images(SEGMENTED, SEGMENTED)]
        model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).flip(1))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def _package(name: str, side: int, task: str, weights: str | None, options: Mapping[str, Any], directory: Path) -> Path:
    """A package called after its key, of the random weights for the task `weights`, or of untrained ones."""
    source = "untrained" if weights is None else str(random_weights(directory, weights))
    output = directory / f"{name}.mlpackage"
    made = convert(
        source,
        "xxs",
        ConversionOptions(task=task, image_sizes=((side, side),), **options),
        output=output,
        verify=False,
        force=True,
    )
    return made.path


_KINDS: Mapping[str, tuple[int, str, str | None, Mapping[str, Any]]] = {
    "classifier": (SIDE, CLASSIFICATION, CLASSIFICATION, {}),
    "cropped": (SIDE, CLASSIFICATION, CLASSIFICATION, {"include_crop": True, "attention": "packed"}),
    "segmenter": (SEGMENTED, SEGMENTATION, SEGMENTATION, {}),
    "features": (ODD, FEATURES, CLASSIFICATION, {"hidden_states": True}),
    "palettized": (SIDE, FEATURES, CLASSIFICATION, {"compression": Palettize(6), "attention": "packed"}),
    "grouped": (SIDE, FEATURES, CLASSIFICATION, {"compression": Palettize(4, 8)}),
    "int8": (SIDE, FEATURES, CLASSIFICATION, {"compression": Quantize("int8")}),
    "pruned": (SIDE, FEATURES, None, {"compression": Prune(0.5)}),
}
# Makes the package, and the checkpoint it is of, in a directory, where both must stay.
PACKAGES: Mapping[str, Callable[[Path], Path]] = {name: partial(_package, name, *kind) for name, kind in _KINDS.items()}


def good_package_of(factory: pytest.TempPathFactory, name: str) -> Path:
    """A package by its name in PACKAGES, built once per run for all workers."""
    return once_per_run(factory, f"good_{name}", PACKAGES[name])


# What edits are made of.

Change = Callable[[Program], None]


def _row(name: str, package: str, change: Change, *mismatch: str) -> Fault:
    return Fault(name, package, partial(edit, change=change), mismatch or None)


def several(*changes: Change) -> Change:
    def change(program: Program) -> None:
        for one in changes:
            one(program)

    return change


def constant(operation: str, parameter: str, new: Callable[[Any], Any]) -> Change:
    """Another constant for one operation, from the one it has."""
    return lambda program: program.write(operation, parameter, new(program.read(operation, parameter)))


def rows(operation: str, new: Callable[[Array], Array]) -> Change:
    """The same change to the rows of a layer's weight and bias."""
    return several(constant(operation, "weight", new), constant(operation, "bias", new))


def encoded(operation: str, part: str, new: Callable[[Array], Any]) -> Change:
    """Another part, such as a table, of the constexpr a layer's weight comes from."""

    def change(program: Program) -> None:
        source = program.source(operation, "weight")
        program.write(source, part, new(program.read(source, part)))

    return change


def retyped(operation: str, kind: str, *without: str) -> Change:
    """Another operation on the same inputs, `without` those it does not have."""

    def change(program: Program) -> None:
        found = program.operation(operation)
        found.type = kind
        for parameter in without:
            del found.inputs[parameter]

    return change


def removed(operation: str, parameter: str = "x") -> Change:
    return lambda program: program.remove(operation, parameter)


def without(operation: str, parameter: str) -> Change:
    """Leave an input out that may be left out."""

    def change(program: Program) -> None:
        del program.operation(operation).inputs[parameter]

    return change


def inserted(kind: str, name: str, before: str, **constants: Any) -> Change:
    return lambda program: program.insert(kind, name, before, constants)


def rewired(operation: str, parameter: str, source: str, index: int = 0) -> Change:
    """Let an operation read another value."""

    def change(program: Program) -> None:
        program.binding(operation, parameter, index).name = source

    return change


def reordered(operation: str, order: Sequence[int]) -> Change:
    """The `values` of an operation in another order."""

    def change(program: Program) -> None:
        arguments = program.operation(operation).inputs["values"].arguments
        names = [argument.name for argument in arguments]
        for argument, index in zip(arguments, order, strict=True):
            argument.name = names[index]

    return change


def exchanged(first: str, second: str, *parameters: str) -> Change:
    """Two operations read what the other one should."""

    def change(program: Program) -> None:
        for parameter in parameters:
            one, other = program.binding(first, parameter), program.binding(second, parameter)
            one.name, other.name = other.name, one.name

    return change


def blobs_exchanged(first: tuple[str, str], second: tuple[str, str]) -> Change:
    """The offsets in weight.bin of two constants, each by operation and parameter, `weight.part` for a constexpr's."""

    def value(program: Program, operation: str, parameter: str) -> Any:
        outer, _, part = parameter.partition(".")
        return program.value(program.source(operation, outer), part) if part else program.value(operation, outer)

    def change(program: Program) -> None:
        one, other = value(program, *first).blobFileValue, value(program, *second).blobFileValue
        one.offset, other.offset = other.offset, one.offset

    return change


def renamed(old: str, new: str) -> Change:
    return lambda program: rename(program, old, new)


def recorded(field: str, new: Callable[[Any], Any]) -> Change:
    return lambda program: edit_record(program, field, new)


def entry(key: str, new: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Another value under one key of a dictionary."""
    return lambda values: {**values, key: new(values[key])}


def described(new: Callable[[Any], None]) -> Change:
    """A change to what the package declares."""
    return lambda program: new(program.specification.description)


def labelled(new: Callable[[list[str]], list[str]]) -> Change:
    """Other names of a classifier's classes."""

    def change(program: Program) -> None:
        values = program.binding("classLabel", "classes").value.immediateValue.list.values
        texts = [value.immediateValue.tensor.strings.values for value in values]
        for text, label in zip(texts, new([text[0] for text in texts]), strict=True):
            text[0] = label

    return change


def blocks(order: Sequence[int]) -> Callable[[Array], Array]:
    """Rows in as many equal blocks as there are numbers, in that order."""

    def new(values: Array) -> Array:
        parts = np.split(values, len(order))
        return np.concatenate([parts[index] for index in order])

    return new


def scaled(factor: float) -> Callable[[Array], Array]:
    return lambda values: (values.astype(np.float64) * factor).astype(values.dtype)


def part_scaled(part: int, parts: int, factor: float) -> Callable[[Array], Array]:
    """One of several equal blocks of rows multiplied."""

    def new(values: Array) -> Array:
        values = values.copy()
        size = len(values) // parts
        values[part * size : (part + 1) * size] *= values.dtype.type(factor)
        return values

    return new


def flipped_bit(bit: int) -> Callable[[Array], Array]:
    """One bit of the largest half-precision number."""

    def new(values: Array) -> Array:
        flat = values.copy().reshape(-1)
        flat.view(np.uint16)[np.abs(flat).argmax()] ^= np.uint16(1 << bit)
        return flat.reshape(values.shape)

    return new


def one_is(number: float) -> Callable[[Array], Array]:
    """One number in the middle is another."""

    def new(values: Array) -> Array:
        values = values.copy()
        values.reshape(-1)[values.size // 2] = number
        return values

    return new


def rounded(bits: int) -> Callable[[Array], Array]:
    """Values rounded to integers of so many bits, with one scale for all."""

    def new(values: Array) -> Array:
        step = np.abs(values).max() / (2 ** (bits - 1) - 1)
        return np.round(values / step) * step

    return new


def zeros(values: Array) -> Array:
    return np.zeros_like(values)


def ones(values: Array) -> Array:
    return np.ones_like(values)


def given(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def shifted_codes(codes: Array) -> Array:
    """6-bit indices, each one higher."""
    return packed((bits_of(codes, 6) + 1) % 64, 6)


def most_significant_first(codes: Array) -> Array:
    """The bits of each byte the other way round."""
    return np.packbits(np.unpackbits(codes, bitorder="little"), bitorder="big")


def exchanged_nibbles(codes: Array) -> Array:
    return (codes >> 4) | (codes << 4)


def as_unsigned(codes: Array) -> Array:
    """Integers stored from 0 to 255 read as from -128 to 127."""
    return (codes.view(np.uint8) ^ 0x80).view(np.int8)


def fold(operation: str, module: str, epsilon: float | None) -> Change:
    """Batch norm put into the convolution by another epsilon, or not at all."""

    def change(program: Program) -> None:
        state = load_checkpoint(json.loads(program.record["mobilevit_coreml.weights"])["name"]).state
        weight = state[f"{module}.conv.weight"].numpy()
        norm = {key: state[f"{module}.batch_norm.{key}"].numpy() for key in _NORM}
        scale = 1.0 if epsilon is None else norm["weight"] / np.sqrt(norm["running_var"] + epsilon)
        bias = 0 * norm["bias"] if epsilon is None else norm["bias"] - norm["running_mean"] * scale
        program.write(operation, "weight", weight * np.reshape(scale, (-1, 1, 1, 1)))
        program.write(operation, "bias", bias)

    return change


_NORM = ("weight", "bias", "running_mean", "running_var")


def unfold_as_reshape(program: Program) -> None:
    """Tokens read row by row, as if `space_to_batch` were a reshape."""
    program.remove("stage3_1_space_to_batch")


def fold_as_reshape(program: Program) -> None:
    """Maps put together row by row, as if `batch_to_space` were a reshape."""
    program.write("stage3_1_reshape_2", "shape", [1, 64, 8, 8])
    _set_shape(program, "stage3_1_reshape_2", [1, 64, 8, 8])
    program.remove("stage3_1_batch_to_space")


def _set_shape(program: Program, name: str, shape: Sequence[int]) -> None:
    dimensions = program.operation(name).outputs[0].type.tensorType.dimensions
    for dimension, size in zip(dimensions, shape, strict=True):
        dimension.constant.size = size


def stages_exchanged(program: Program) -> None:
    """Exchange the names of the outputs of stages 1 and 2."""
    one, other = (program.operation(name).outputs[0] for name in ("stage1", "stage2"))
    one.name, other.name = "stage2", "stage1"


def crop_moved(operation: str, axis: int) -> Change:
    """A crop two pixels later along an axis."""

    def new(index: Array) -> Array:
        index = index.copy()
        index[axis] += 2
        return index

    return several(constant(operation, "begin", new), constant(operation, "end", new))


def another_digest(digest: str) -> str:
    return digest[1:] + digest[0]


def colours_as(space: str) -> Change:
    """Declare the image input's channels in another order."""

    def new(description: Any) -> None:
        image = description.input[0].type.imageType
        image.colorSpace = image.ColorSpace.Value(space)

    return described(new)


def untold(field: str) -> Change:
    """Leave an entry of the metadata out."""

    def change(program: Program) -> None:
        del program.record[key_of(field)]

    return change


def as_float16(description: Any) -> None:
    description.output[0].type.multiArrayType.dataType = ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16


def predicted_probabilities(description: Any) -> None:
    description.predictedFeatureName = description.predictedProbabilitiesName


def first_exchanged(values: Array) -> Array:
    """The first two rows exchanged."""
    return values[[1, 0, *range(2, len(values))]]


def addends_exchanged(operation: str) -> Change:
    def change(program: Program) -> None:
        one, other = program.binding(operation, "x"), program.binding(operation, "y")
        one.name, other.name = other.name, one.name

    return change


def taken_before(operation: str, other: str) -> Change:
    """An operation moved before one that comes earlier."""

    def change(program: Program) -> None:
        index = program.index(operation)
        moved = type(program.block.operations[index])()
        moved.CopyFrom(program.block.operations[index])
        del program.block.operations[index]
        program.block.operations.insert(program.index(other), moved)

    return change


def unneeded(kind: str, name: str, after: str) -> Change:
    """One more operation on the result of another."""

    def change(program: Program) -> None:
        index = program.index(after)
        made = type(program.block.operations[index])(type=kind)
        made.inputs["x"].arguments.add().name = after
        made.outputs.add().CopyFrom(program.operation(after).outputs[0])
        made.outputs[0].name = name
        program.block.operations.insert(index + 1, made)

    return change


def filled_gaps(program: Program) -> None:
    """Ones where weight.bin has padding behind its first blob."""
    start, size = program.first_blob()
    end = start + size
    program.weights[end : -(-end // 64) * 64] = b"\xff" * (-end % 64)


PREVIEW = "com.apple.coreml.model.preview.params"
ATTENTION = "stage3_1_layers_0_attention"  # of the first transformer layer, which has 16 tokens
QKV = f"{ATTENTION}_qkv"  # 3 x 4 heads x 16 rows of 64 columns
SCORES = f"{ATTENTION}_einsum"

_PIXELS = (
    _row("channels declared as RGB", "classifier", colours_as("RGB"), "image__scaled__"),
    _row("pixel scale doubled", "classifier", constant("image__scaled__", "y", scaled(2)), "image__scaled__"),
    _row("pixels not scaled", "classifier", constant("image__scaled__", "y", given(1)), "image__scaled__"),
    _row("pixel scale 1/256", "classifier", constant("image__scaled__", "y", given(1 / 256)), "image__scaled__"),
    _row("mean subtracted", "classifier", inserted("add", "mean", "cast", y=np.float32(-0.5)), "cast", "mean"),
    _row(
        "image transposed", "classifier", inserted("transpose", "turned", "cast", perm=[0, 1, 3, 2]), "cast", "turned"
    ),
    _row("crop moved down", "cropped", crop_moved("slice_by_index", 2), "slice_by_index"),
    _row("crop moved right", "cropped", crop_moved("slice_by_index_2", 3), "slice_by_index", "slice_by_index_2"),
)

_WEIGHTS = (
    _row("weight zeroed", "classifier", constant("stage2_1_expand_conv", "weight", zeros), "stage2_1_expand_conv"),
    _row(
        "output channels rolled",
        "classifier",
        constant("stage2_0_reduce_conv", "weight", lambda w: np.roll(w, 1, 0)),
        "stage2_0_reduce_conv",
    ),
    _row(
        "input channels reversed",
        "classifier",
        constant("stage3_1_project_in", "weight", lambda w: w[:, ::-1]),
        "stage3_1_project_in",
    ),
    _row(
        "depthwise kernel turned",
        "classifier",
        constant("stage2_1_depthwise_conv", "weight", lambda w: w[..., ::-1, ::-1]),
        "stage2_1_depthwise_conv",
    ),
    _row(
        "rows and columns of a kernel exchanged",
        "classifier",
        constant("stage3_1_local_conv", "weight", lambda w: w.swapaxes(2, 3)),
        "stage3_1_local_conv",
    ),
    _row(
        "weight of a linear layer transposed",
        "classifier",
        constant(f"{ATTENTION}_out", "weight", lambda w: w.swapaxes(0, 1)),
        f"{ATTENTION}_out",
    ),
    _row(
        "exponent bit of a weight flipped",
        "classifier",
        constant("stage3_1_fusion_conv", "weight", flipped_bit(13)),
        "stage3_1_fusion_conv",
    ),
    _row(
        "sign bit of a weight flipped",
        "classifier",
        constant("stage4_1_fusion_conv", "weight", flipped_bit(15)),
        "stage4_1_fusion_conv",
    ),
    _row(
        "a NaN weight",
        "classifier",
        constant("stage4_1_local_conv", "weight", one_is(math.nan)),
        "stage4_1_local_conv",
    ),
    _row(
        "an infinite weight",
        "classifier",
        constant("stage3_0_expand_conv", "weight", one_is(math.inf)),
        "stage3_0_expand_conv",
    ),
    _row(
        "blobs of two weights exchanged",
        "classifier",
        blobs_exchanged(("stage2_1_depthwise_conv", "weight"), ("stage2_2_depthwise_conv", "weight")),
        "stage2_1_depthwise_conv",
    ),
    _row(
        "blobs of two biases exchanged",
        "classifier",
        blobs_exchanged(("stage2_1_expand_conv", "bias"), ("stage2_2_expand_conv", "bias")),
        "stage2_1_expand_conv",
    ),
    _row("bias zeroed", "classifier", constant("stage2_2_reduce_conv", "bias", zeros), "stage2_2_reduce_conv"),
    _row(
        "bias left out",
        "classifier",
        without("stage3_1_layers_0_mlp_in", "bias"),
        "stage3_1_layers_0_mlp_in",
    ),
    _row(
        "batch norm not folded",
        "classifier",
        fold("stage2_1_expand_conv", "backbone.stage2.1.expand", None),
        "stage2_1_expand_conv",
    ),
    _row(
        "batch norm folded with an epsilon of 1e-3",
        "classifier",
        fold("stem_conv", "backbone.stem", 1e-3),
        "stem_conv",
    ),
    _row(
        "one layer rounded to 4 bits, not recorded",
        "classifier",
        constant("stage4_1_layers_0_mlp_out", "weight", rounded(4)),
        "stage4_1_layers_0_mlp_out",
    ),
    _row(
        "one layer rounded to 8 bits, not recorded",
        "classifier",
        constant("stage4_1_layers_1_mlp_in", "weight", rounded(8)),
        "stage4_1_layers_1_mlp_in",
    ),
    _row(
        "values past half precision, compensated in the next layer",
        "classifier",
        several(rows(QKV, part_scaled(2, 3, 2.0**15)), constant(f"{ATTENTION}_out", "weight", scaled(2.0**-15))),
        QKV,
    ),
)

_ATTENTION = (
    _row("queries and keys exchanged in qkv", "classifier", rows(QKV, blocks((1, 0, 2))), QKV),
    _row("keys and values exchanged in qkv", "classifier", rows(QKV, blocks((0, 2, 1))), QKV),
    _row(
        "two heads exchanged in qkv",
        "classifier",
        rows(QKV, blocks((1, 0, 2, 3, 5, 4, 6, 7, 9, 8, 10, 11))),
        QKV,
    ),
    _row(
        "qkv in the order of heads",
        "classifier",
        rows(QKV, blocks((0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11))),
        QKV,
    ),
    _row("attention scale missing", "classifier", rows(QKV, part_scaled(0, 3, 4)), QKV),
    _row("attention scale applied twice", "classifier", rows(QKV, part_scaled(0, 3, 1 / 4)), QKV),
    _row("key bias zeroed", "classifier", constant(QKV, "bias", part_scaled(1, 3, 0)), QKV),  # softmax does not see it
    _row("query bias zeroed", "classifier", constant(QKV, "bias", part_scaled(0, 3, 0)), QKV),
    _row("einsum's arguments exchanged", "classifier", reordered(SCORES, (1, 0)), SCORES),
    _row("einsum's scores transposed", "classifier", constant(SCORES, "equation", given("bqhc,bchk->bkhq")), SCORES),
    _row(
        "values weighted transposed",
        "classifier",
        constant(f"{ATTENTION}_einsum_2", "equation", given("bchk,bqhk->bchq")),
        f"{ATTENTION}_einsum_2",
    ),
    _row(
        "softmax over the queries",
        "classifier",
        constant(f"{ATTENTION}_softmax", "axis", given(3)),
        f"{ATTENTION}_softmax",
    ),
    _row(
        "weights of another head",
        "classifier",
        rewired(f"{ATTENTION}_einsum_4", "values", f"{ATTENTION}_softmax", 1),
        f"{ATTENTION}_einsum_4",
    ),
    _row("softmax left out", "classifier", removed(f"{ATTENTION}_softmax"), f"{ATTENTION}_einsum_2"),
    _row(
        "heads joined in another order",
        "classifier",
        reordered(f"{ATTENTION}_concat", (1, 0, 2, 3)),
        f"{ATTENTION}_concat",
    ),
    _row(
        "matmul's queries and keys exchanged",
        "cropped",
        several(
            rewired(f"{ATTENTION}_matmul", "x", f"{ATTENTION}_split_1"),
            rewired(f"{ATTENTION}_matmul", "y", f"{ATTENTION}_split_0"),
        ),
        f"{ATTENTION}_matmul",
    ),
    _row(
        "matmul's weights not transposed",
        "cropped",
        constant(f"{ATTENTION}_matmul_2", "transpose_y", given(False)),
        f"{ATTENTION}_matmul_2",
    ),
    _row(
        "softmax over the queries, packed",
        "cropped",
        constant(f"{ATTENTION}_softmax", "axis", given(2)),
        f"{ATTENTION}_softmax",
    ),
    _row(
        "output projection over the heads the other way round",
        "cropped",
        constant(f"{ATTENTION}_out", "weight", lambda w: w[:, ::-1]),
        f"{ATTENTION}_out",
    ),
)

_LAYERS = (
    _row("layer norm left out", "classifier", removed(f"{ATTENTION}_norm"), f"{ATTENTION}_norm", QKV),
    _row(
        "layer norm's epsilon 1e-2 for 1e-5",
        "classifier",
        constant(f"{ATTENTION}_norm", "epsilon", scaled(1000)),
        f"{ATTENTION}_norm",
    ),
    _row("layer norm's gamma 1", "classifier", constant(f"{ATTENTION}_norm", "gamma", ones), f"{ATTENTION}_norm"),
    _row("layer norm's beta left out", "classifier", without(f"{ATTENTION}_norm", "beta"), f"{ATTENTION}_norm"),
    _row(
        "last layer norm left out",
        "classifier",
        removed("stage3_1_layer_norm"),
        "stage3_1_layer_norm",
        "stage3_1_reshape_2",
    ),
    _row(
        "padding of a kernel moved",
        "classifier",
        constant("stage2_1_depthwise_conv", "pad", given([0, 2, 1, 1])),
        "stage2_1_depthwise_conv",
    ),
    _row(
        "padding of a stride as TensorFlow has it",
        "classifier",
        constant("stage2_0_depthwise_conv", "pad", given([0, 1, 0, 1])),
        "stage2_0_depthwise_conv",
    ),
    _row("padding same", "classifier", constant("stem_conv", "pad_type", given("same")), "stem_conv"),
    _row(
        "dilation doubled",
        "classifier",
        several(
            constant("stage2_2_depthwise_conv", "dilations", given([2, 2])),
            constant("stage2_2_depthwise_conv", "pad", given([2, 2, 2, 2])),
        ),
        "stage2_2_depthwise_conv",
    ),
    _row(
        "stride made a dilation",
        "classifier",
        several(
            constant("stage3_0_depthwise_conv", "strides", given([1, 1])),
            constant("stage3_0_depthwise_conv", "dilations", given([5, 5])),
        ),
        "stage3_0_depthwise_conv",
    ),
    _row("relu for silu", "classifier", retyped("stem_activation", "relu"), "stem_activation"),
    _row(
        "sigmoid for silu",
        "classifier",
        retyped("stage3_1_layers_0_activation", "sigmoid"),
        "stage3_1_layers_0_activation",
    ),
    _row(
        "gelu for silu",
        "classifier",
        retyped("stage3_1_layers_1_activation", "gelu"),
        "stage3_1_layers_1_activation",
    ),
    _row("activation left out", "classifier", removed("stage1_0_expand_activation"), "stage1_0_depthwise_conv"),
    _row("residual connection cut", "classifier", removed("stage1_0_add", "y"), "stage2_0_expand_conv"),
    _row("branch of a residual cut", "classifier", removed("stage2_1_add"), "stage2_2_expand_conv"),
    _row(
        "branch added to itself",
        "classifier",
        rewired("stage3_1_layers_0_add", "x", f"{ATTENTION}_out"),
        "stage3_1_layers_0_add",
    ),
    _row(
        "residual taken behind the norm",
        "classifier",
        rewired("stage3_1_layers_0_add_2", "x", "stage3_1_layers_0_mlp_norm"),
        "stage3_1_layers_0_add_2",
    ),
    _row("fusion's inputs exchanged", "classifier", reordered("stage3_1_concat", (1, 0)), "stage3_1_concat"),
    _row(
        "fusion of the wrong map",
        "classifier",
        rewired("stage3_1_concat", "values", "stage3_1_local_activation"),
        "stage3_1_concat",
    ),
)

_PATCHES = (
    _row(
        "patches of 4x1",
        "classifier",
        constant("stage3_1_space_to_batch", "block_shape", given([4, 1])),
        "stage3_1_space_to_batch",
    ),
    _row(
        "patches read in columns",
        "classifier",
        inserted("transpose", "columns", "stage3_1_space_to_batch", perm=[0, 1, 3, 2]),
        "stage3_1_space_to_batch",
        "columns",
    ),
    _row(
        "places of a patch put back in reverse",
        "classifier",
        inserted("reverse", "last_first", "stage3_1_batch_to_space", axes=[0]),
        "stage3_1_batch_to_space",
        "last_first",
    ),
    _row("unfold as a reshape", "classifier", unfold_as_reshape, "stage3_1_reshape"),
    _row("fold as a reshape", "classifier", fold_as_reshape, "stage3_1_reshape_2", "stage3_1_project_out_conv"),
    _row(
        "map resized by nearest neighbours",
        "features",
        retyped("stage4_1_resize_bilinear", "resize_nearest_neighbor", "sampling_mode"),
        "stage4_1_resize_bilinear",
    ),
    _row(
        "map resized back with corners aligned",
        "features",
        constant("stage4_1_resize_bilinear_2", "sampling_mode", given("ALIGN_CORNERS")),
        "stage4_1_resize_bilinear_2",
    ),
)

_HEADS = (
    _row("softmax of the classifier left out", "classifier", removed("softmax"), "probabilities"),
    _row("rows of two classes exchanged", "classifier", rows("classifier", first_exchanged), "classifier"),
    _row("bias of the classifier zeroed", "classifier", constant("classifier", "bias", zeros), "classifier"),
    _row("maximum for the mean", "classifier", retyped("reduce_mean", "reduce_max"), "reduce_mean"),
    _row("mean before the activation", "features", rewired("reduce_mean", "x", "expand_conv"), "reduce_mean"),
    _row("map output before its activation", "features", rewired("featureMap", "x", "expand_conv"), "featureMap"),
    _row("stage output before its block", "features", rewired("stage3", "x", "stage3_0_reduce_conv"), "stage3"),
    _row("stages' names exchanged", "features", stages_exchanged, "stage1", "stage2"),
    _row(
        "classes of a mask one higher",
        "segmenter",
        inserted("add", "edited", "semanticPredictions", y=np.int32(1)),
        "semanticPredictions",
        "edited",
    ),
    _row(
        "mask turned",
        "segmenter",
        inserted("transpose", "edited", "semanticPredictions", perm=[0, 2, 1]),
        "semanticPredictions",
        "edited",
    ),
    _row("smallest for largest", "segmenter", retyped("reduce_argmax", "reduce_argmin"), "reduce_argmax"),
    _row(
        "logits resized by nearest neighbours",
        "segmenter",
        retyped("resize_bilinear", "resize_nearest_neighbor", "sampling_mode"),
        "resize_bilinear",
    ),
    _row(
        "logits resized with corners aligned",
        "segmenter",
        constant("resize_bilinear", "sampling_mode", given("ALIGN_CORNERS")),
        "resize_bilinear",
    ),
    _row(
        "rates of two branches exchanged",
        "segmenter",
        exchanged("head_branches_1_conv", "head_branches_2_conv", "dilations", "pad"),
        "head_branches_1_conv",
    ),
    _row(
        "weights of two branches exchanged",
        "segmenter",
        exchanged("head_branches_2_conv", "head_branches_3_conv", "weight", "bias"),
        "head_branches_2_conv",
    ),
    _row(
        "branches in another order",
        "segmenter",
        reordered("head_branches_concat", (0, 1, 3, 2)),
        "head_branches_concat",
    ),
    _row("pooled branch cut", "segmenter", removed("head_project_add"), "head_project_activation"),
    _row("pooled branch's maximum", "segmenter", retyped("head_reduce_mean", "reduce_max"), "head_reduce_mean"),
    _row(
        "silu for relu in the head",
        "segmenter",
        retyped("head_project_activation", "silu"),
        "head_project_activation",
    ),
    _row("two classes of the mask exchanged", "segmenter", rows("head_classifier", first_exchanged), "head_classifier"),
)

MLP = "stage4_1_layers_0_mlp_in"  # of the layers that are compressed

_COMPRESSED = (
    _row("table shuffled", "palettized", encoded(MLP, "lut", lambda table: np.roll(table, 1)), MLP),
    _row("table reversed", "palettized", encoded(MLP, "lut", lambda table: table[::-1]), MLP),
    _row("indices one higher", "palettized", encoded(MLP, "indices", shifted_codes), MLP),
    _row("indices' bits in the other order", "palettized", encoded(MLP, "indices", most_significant_first), MLP),
    _row(
        "tables of two layers exchanged",
        "palettized",
        blobs_exchanged((MLP, "weight.lut"), ("stage4_1_layers_0_mlp_out", "weight.lut")),
        MLP,
    ),
    _row("an entry of a table 1", "palettized", encoded(MLP, "lut", one_is(1.0)), MLP),
    _row("tables one group later", "grouped", encoded(MLP, "lut", lambda table: np.roll(table, 1, 0)), MLP),
    _row("two indices of a byte exchanged", "grouped", encoded(MLP, "indices", exchanged_nibbles), MLP),
    _row("scales halved", "int8", encoded(MLP, "scale", scaled(0.5)), MLP),
    _row("scales one channel later", "int8", encoded(MLP, "scale", lambda scale: np.roll(scale, 1)), MLP),
    _row("zero point 8 too high", "int8", encoded(MLP, "zero_point", lambda zero: zero + 8), MLP),
    _row("zero point 1 too high", "int8", encoded(MLP, "zero_point", lambda zero: zero + 1), MLP),
    _row("integers read as unsigned", "int8", encoded(MLP, "quantized_data", as_unsigned), MLP),
    _row(
        "scales along the inputs",
        "int8",
        encoded("stage4_1_layers_0_attention_out", "axis", given(1)),
        "stage4_1_layers_0_attention_out",
    ),
    _row("mask one later", "pruned", encoded(MLP, "mask", lambda mask: packed(np.roll(bits_of(mask, 1), 1), 1)), MLP),
    _row("mask's bits in the other order", "pruned", encoded(MLP, "mask", most_significant_first), MLP),
    _row("what is not zero one later", "pruned", encoded(MLP, "nonzero_data", lambda kept: np.roll(kept, 1)), MLP),
)

_OUTSIDE = (
    _row("labels one later", "classifier", labelled(rolled)),
    _row("two labels exchanged", "classifier", labelled(lambda labels: swapped(labels, 281, 207))),
    _row("preview's colours one later", "segmenter", recorded(PREVIEW, entry("colors", rolled))),
    _row("preview's labels one later", "segmenter", recorded(PREVIEW, entry("labels", rolled))),
    _row("preview left out", "segmenter", untold(PREVIEW)),
    _row("record's labels one later", "segmenter", recorded("labels", rolled)),
    _row("two of the record's colours exchanged", "segmenter", recorded("colors", lambda c: swapped(c, 1, 2))),
    _row("output renamed", "segmenter", renamed("semanticPredictions", "mask")),
    _row("input renamed", "features", renamed("image", "picture")),
    _row("output declared as float16", "features", described(as_float16)),
    _row("an output not declared", "features", described(lambda description: description.output.pop())),
    _row("record's resize", "classifier", recorded("preprocessing", entry("resize", given(100)))),
    _row("record's interpolation", "classifier", recorded("preprocessing", entry("interpolation", given("bicubic")))),
    _row("predicted feature of another name", "classifier", described(predicted_probabilities)),
    _row("record's channel order RGB", "classifier", recorded("preprocessing", entry("channel_order", given("RGB")))),
    _row("record's channel order for readers RGB", "classifier", recorded("channel_order", given("RGB"))),
    _row("record's scale doubled", "classifier", recorded("preprocessing", entry("scale", lambda s: 2 * s))),
    _row("record's variant xs", "classifier", recorded("variant", given("xs"))),
    _row("record's heads 2", "classifier", recorded("config", entry("num_attention_heads", given(2)))),
    _row("record's activation relu", "classifier", recorded("config", entry("hidden_act", given("relu")))),
    _row("record's epsilon 1e-2", "classifier", recorded("config", entry("layer_norm_eps", given(1e-2)))),
    _row("record's rates exchanged", "segmenter", recorded("config", entry("atrous_rates", given([12, 6, 18])))),
    _row("record's output logits", "segmenter", recorded("outputs", entry("type", given("logits")))),
    _row("digest of other weights", "classifier", recorded("weights", entry("sha256", another_digest))),
    _row("another seed", "pruned", recorded("weights", entry("seed", lambda seed: seed + 1))),
    _row("untrained, not recorded", "pruned", untold("untrained")),
    _row("record without its weights", "classifier", untold("weights")),
)

FAMILIES: Mapping[str, tuple[Fault, ...]] = {
    "pixels": _PIXELS,
    "weights": _WEIGHTS,
    "attention": _ATTENTION,
    "layers": _LAYERS,
    "patches": _PATCHES,
    "heads": _HEADS,
    "compressed": _COMPRESSED,
    "outside": _OUTSIDE,
}
FAULTS: tuple[Fault, ...] = tuple(fault for family in FAMILIES.values() for fault in family)

UNSEEN: tuple[Fault, ...] = (
    # one in 2048 of one weight in a thousand, far under the rounding of every activation
    _row("lowest bit of a weight flipped", "classifier", constant("stage3_1_fusion_conv", "weight", flipped_bit(0))),
    # texts that nothing is computed from
    _row("author", "classifier", described(lambda description: setattr(description.metadata, "author", "nobody"))),
    _row("licence", "classifier", described(lambda description: setattr(description.metadata, "license", "none"))),
    _row("coremltools' version", "classifier", recorded("com.github.apple.coremltools.version", given("1.0"))),
    _row("text on the input", "classifier", described(lambda d: setattr(d.input[0], "shortDescription", "a picture"))),
    # the two forms compute the same
    _row("record's attention packed", "classifier", recorded("attention", given("packed"))),
    # a + b is b + a
    _row("addends exchanged", "classifier", addends_exchanged("stage2_1_add")),
    # neither needs the other's result
    _row("order of two operations", "classifier", taken_before(f"{ATTENTION}_split_4_0", f"{ATTENTION}_split_2_0")),
    # on a map of 8x8 both reach beyond the edges with every cell of the kernel but the middle one
    _row(
        "rates past the map exchanged",
        "segmenter",
        exchanged("head_branches_2_conv", "head_branches_3_conv", "dilations", "pad"),
    ),
    # with pad_type valid they are not read
    _row("padding of a valid convolution", "classifier", constant("expand_conv", "pad", given([1, 1, 1, 1]))),
    # nobody reads its result
    _row("an unused operation", "classifier", unneeded("relu", "unneeded", "stem_conv")),
    # between the blobs, which begin at multiples of 64
    _row("bytes between blobs", "classifier", filled_gaps),
)


# Bugs of the reading of checkpoints, which a comparison of a package with its checkpoint as it was read cannot see.


@dataclasses.dataclass(frozen=True)
class Misreading:
    """A bug of the reading of a checkpoint; `checkpoint` is the key in CHECKPOINTS of one that it is wrong for."""

    name: str
    checkpoint: str
    apply: Callable[[Checkpoint], Checkpoint]


_BOTH = {"size": {"shortest_edge": 72}, "crop_size": {"height": SIDE, "width": SIDE}}
_NAMES = ("ant", "bee", "cat", "dog", "emu")
CHECKPOINTS: Mapping[str, Callable[[Path], saved.Saved]] = {
    "transformers": partial(saved.pretrained, id2label=dict(enumerate(_NAMES))),
    "normalized": partial(
        saved.pretrained,
        processor="CLIP",
        pixels={**_BOTH, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "stretched": partial(saved.pretrained, processor="ViT", pixels={"size": {"height": SIDE, "width": SIDE}}),
    "multi-label": partial(saved.pretrained, problem_type=MULTI_LABEL),
    "regression": partial(saved.pretrained, problem_type=REGRESSION, num_labels=3),
    "segmenter": partial(saved.pretrained, head=SEGMENTATION, output_stride=16),
    "features": partial(saved.pretrained, head=FEATURES),
    "timm": partial(
        saved.for_hub,
        data={**saved.IMAGENET, "crop_pct": 0.8},
        saving={"model_config": {"label_names": _NAMES}},
        names=_NAMES,
    ),
    "timm, max": partial(saved.for_hub, global_pool="max"),
    "timm, average": partial(saved.checkpoint_saver, averaged=False, img_size=SIDE, model_kwargs={}),
}


def _configured(**values: Any) -> Callable[[Checkpoint], Checkpoint]:
    """Other values in the configuration."""
    return lambda checkpoint: dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, **values))


def _prepared(**values: Any) -> Callable[[Checkpoint], Checkpoint]:
    """Other values in the preprocessing."""
    return lambda checkpoint: dataclasses.replace(
        checkpoint, preprocessing=dataclasses.replace(checkpoint.preprocessing, **values)
    )


def _head_exchanged(head: str) -> Callable[[Checkpoint], Checkpoint]:
    """The first two rows of the last layer exchanged."""

    def misread(checkpoint: Checkpoint) -> Checkpoint:
        state = dict(checkpoint.state)
        for name in (f"{head}.weight", f"{head}.bias"):
            state[name] = state[name][[1, 0, *range(2, len(state[name]))]]
        return dataclasses.replace(checkpoint, state=state)

    return misread


def _labels_reversed(checkpoint: Checkpoint) -> Checkpoint:
    return _configured(id2label=checkpoint.config.id2label[::-1])(checkpoint)


def _averaged(checkpoint: Checkpoint) -> Checkpoint:
    """The moving average in place of the weights."""
    assert checkpoint.path is not None
    other = load_checkpoint(checkpoint.path, overrides=CheckpointOverrides(ema=True))
    return dataclasses.replace(checkpoint, state=other.state)


MISREADINGS: tuple[Misreading, ...] = (
    Misreading("softmax for sigmoid", "multi-label", _configured(problem_type=SINGLE_LABEL)),
    Misreading("sigmoid for softmax", "transformers", _configured(problem_type=MULTI_LABEL)),
    Misreading("softmax for values", "regression", _configured(problem_type=SINGLE_LABEL)),
    Misreading("values for softmax", "timm", _configured(problem_type=REGRESSION)),
    Misreading("BGR for RGB", "timm", _prepared(channel_order="BGR")),
    Misreading("RGB for BGR", "transformers", _prepared(channel_order="RGB")),
    Misreading("RGB for BGR in a segmenter", "segmenter", _prepared(channel_order="RGB")),
    Misreading("RGB for BGR in features", "features", _prepared(channel_order="RGB")),
    Misreading("mean dropped", "normalized", _prepared(mean=(0.0,))),
    Misreading("mean and deviation dropped", "timm", _prepared(mean=(0.0,), std=(1.0,))),
    Misreading("means of the channels exchanged", "normalized", _prepared(mean=(0.406, 0.456, 0.485))),
    Misreading("pixels not scaled", "transformers", _prepared(scale=1.0)),
    Misreading("rows of the head exchanged", "transformers", _head_exchanged("classifier")),
    Misreading("rows of a segmenter's head exchanged", "segmenter", _head_exchanged("head.classifier")),
    Misreading("class names reversed", "transformers", _labels_reversed),
    Misreading("label_names reversed", "timm", _labels_reversed),
    Misreading("relu for silu", "timm", _configured(hidden_act="relu")),
    Misreading("gelu for silu", "transformers", _configured(hidden_act="gelu")),
    Misreading("maximum for the mean", "transformers", _configured(global_pool="max")),
    Misreading("mean for the maximum", "timm, max", _configured(global_pool="avg")),
    Misreading("2 heads for 4", "transformers", _configured(num_attention_heads=2)),
    Misreading("output stride 16 for 32", "transformers", _configured(output_stride=16)),
    Misreading("output stride 8 for 16 in a segmenter", "segmenter", _configured(output_stride=8)),
    Misreading("atrous rates 1, 2, 3 for 6, 12, 18", "segmenter", _configured(atrous_rates=(1, 2, 3))),
    Misreading("stretched for the shorter edge", "transformers", _prepared(resize=(72, 72))),
    Misreading("the shorter edge for stretched", "stretched", _prepared(resize=SIDE)),
    Misreading("nearest for bilinear", "transformers", _prepared(interpolation="nearest")),
    Misreading("bilinear for bicubic", "timm", _prepared(interpolation="bilinear")),
    Misreading("no margin around the crop", "timm", _prepared(resize=SIDE)),
    Misreading("averaged for plain weights", "timm, average", _averaged),
)


@contextlib.contextmanager
def misread(misreading: Misreading) -> Iterator[None]:
    """Let converter and validator misread their checkpoints."""

    def load(*arguments: Any, **keywords: Any) -> Checkpoint:
        return misreading.apply(load_checkpoint(*arguments, **keywords))

    with pytest.MonkeyPatch.context() as patch:
        for module in ("checkpoints.load", "validation.original"):
            patch.setattr(f"mobilevit_coreml.{module}.load_checkpoint", load)
        yield
