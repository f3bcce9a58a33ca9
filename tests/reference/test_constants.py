"""Constants of a program: immediate values, weight.bin, and the compressed forms against coremltools' decompression."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobilevit_coreml._coremltools import ct, mb, quietly
from mobilevit_coreml.errors import PackageError, UnsupportedError
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.constants import (
    CONSTEXPR,
    DATA_TYPES,
    MIL,
    Weights,
    decode,
    evaluate_constexpr,
    to_tensors,
    type_of,
)
from mobilevit_coreml.reference.reader import MODEL_DIRECTORY, Ref, read_package

Array = npt.NDArray[Any]

mil = ct.converters.mil
types = mil.mil.types
optimize = ct.optimize.coreml
WEIGHT_FILE = "@model_path/weights/weight.bin"
u8, i8, f16, f32 = (partial(np.array, dtype=dtype) for dtype in ("uint8", "int8", "float16", "float32"))
TORCH_TYPES = {"f": torch.float32, "b": torch.bool, "i": torch.int32, "u": torch.int32}


# Values of each type: the extremes, and what has the sign or the highest bit set.
def values(dtype: str) -> Array:
    numpy_type = np.dtype(DATA_TYPES[dtype][1])
    if numpy_type.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    if numpy_type.kind == "f":
        limits = np.finfo(numpy_type)
        return np.array([[0.1, -2.5, limits.max], [limits.min, limits.tiny, 0]], dtype=numpy_type)
    bits, _ = DATA_TYPES[dtype]
    low, high = (0, 2**bits - 1) if numpy_type.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return np.array([[low, high, 1], [high, high // 2, low]], dtype=numpy_type)


def tensor_value(dtype: str, shape: tuple[int, ...]) -> Any:
    value = MIL.Value()
    tensor = value.type.tensorType
    tensor.dataType = MIL.DataType.Value(dtype.upper().replace("FP", "FLOAT"))
    tensor.rank = len(shape)
    for size in shape:
        tensor.dimensions.add().constant.size = size
    return value


FIELDS = {"fp32": "floats", "int32": "ints", "uint32": "ints", "int64": "longInts", "bool": "bools"}
FIELDS |= {"int16": "ints", "uint16": "ints"}  # coremltools 9's; the others have no list of their own


def immediate(dtype: str, array: Array) -> Any:
    """The array as MIL.proto has it: in the list of its type, or as bytes, values of few bits packed low bits first."""
    value = tensor_value(dtype, array.shape)
    tensor = value.immediateValue.tensor
    if dtype in FIELDS:
        signed = array.astype(np.int32) if dtype == "uint32" else array  # its list has 32 bits and a sign
        getattr(tensor, FIELDS[dtype]).values.extend(signed.flatten().tolist())
        return value
    bits, _ = DATA_TYPES[dtype]
    if bits >= 8:
        tensor.bytes.values = array.tobytes()
        return value
    packed = sum((int(entry) % 2**bits) << (bits * place) for place, entry in enumerate(array.flatten()))
    tensor.bytes.values = packed.to_bytes(math.ceil(bits * array.size / 8), "little")
    return value


@pytest.mark.parametrize("dtype", DATA_TYPES)
def test_immediate_values_of_every_type(dtype: str, tmp_path: Path) -> None:
    expected = values(dtype)
    decoded = decode(immediate(dtype, expected), Weights(tmp_path))
    assert decoded.dtype == expected.dtype
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("dtype", ["int4", "uint1", "uint2", "uint3", "uint4", "uint6", "uint8", "int8", "fp16"])
def test_immediate_values_as_coremltools_writes_them(dtype: str, tmp_path: Path) -> None:
    expected = values(dtype)
    typed = expected.astype(types.nptype_from_builtin(types.string_to_builtin(dtype)))
    value = mil.backend.mil.helper.create_tensor_value(typed)
    assert type_of(value.type) == (dtype, (2, 3))
    np.testing.assert_array_equal(decode(value, Weights(tmp_path)), expected)


WRITERS = {"fp32": "float"}
STORED = [name for name in DATA_TYPES if name not in ("bool", "int64")]  # the file has no such types


def stored(dtype: str, array: Array, directory: Path) -> Any:
    """The array written to a weight.bin by coremltools, behind another so that its place is not the first."""
    path = directory / "weights" / "weight.bin"
    path.parent.mkdir()
    writer = ct.libmilstoragepython._BlobStorageWriter(str(path))
    writer.write_float_data(np.ones(3, dtype=np.float32))
    flat = np.ascontiguousarray(array.flatten())
    value = tensor_value(dtype, array.shape)
    value.blobFileValue.fileName = WEIGHT_FILE
    value.blobFileValue.offset = getattr(writer, f"write_{WRITERS.get(dtype, dtype)}_data")(
        flat.view(np.uint16) if dtype == "fp16" else flat
    )
    return value


@pytest.mark.parametrize("dtype", STORED)
def test_stored_values_of_every_type(dtype: str, tmp_path: Path) -> None:
    expected = values(dtype)
    decoded = decode(stored(dtype, expected, tmp_path), Weights(tmp_path))
    assert decoded.dtype == expected.dtype
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("dtype", DATA_TYPES)
def test_tensors_keep_every_value(dtype: str) -> None:
    array = values(dtype) if dtype != "uint32" else np.array([[0, 1, 2**31 - 1]], dtype=np.uint32)
    tensor = to_tensors(array)
    assert tensor.dtype == (torch.int64 if dtype == "int64" else TORCH_TYPES[array.dtype.kind])
    np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...], tmp_path: Path) -> None:
    expected = np.full(shape, 2.5, dtype=np.float32)
    assert decode(immediate("fp32", expected), Weights(tmp_path)).shape == shape


def test_texts_and_lists(tmp_path: Path) -> None:
    scalar, several, both = tensor_value("string", ()), tensor_value("string", (2,)), MIL.Value()
    scalar.immediateValue.tensor.strings.values.append("reflect")
    several.immediateValue.tensor.strings.values.extend(["cat", "dog"])
    both.type.listType.type.CopyFrom(scalar.type)
    both.immediateValue.list.values.extend([scalar, immediate("int32", np.array(7, dtype=np.int32))])
    weights = Weights(tmp_path)
    assert decode(scalar, weights) == "reflect"
    assert decode(several, weights) == ["cat", "dog"]
    text, number = decode(both, weights)
    assert (text, number.item()) == ("reflect", 7)


def test_open_dimensions_are_minus_one() -> None:
    value = tensor_value("fp16", (2, 3))
    value.type.tensorType.dimensions[1].unknown.variadic = False
    assert type_of(value.type) == ("fp16", (2, -1))
    assert type_of(MIL.Value().type) == ("", ())


def test_a_dictionary_is_refused(tmp_path: Path) -> None:
    value = MIL.Value()
    value.type.dictionaryType.keyType.CopyFrom(tensor_value("string", ()).type)
    with pytest.raises(UnsupportedError, match="^constant: expected a tensor or a list, got dictionaryType; "):
        decode(value, Weights(tmp_path))


# Damage. Each is one line that names the place and what to do.


def refer(value: Any, **changes: Any) -> None:
    for name, change in changes.items():
        setattr(value.blobFileValue, name, change)


AT_ANY = f"weights {WEIGHT_FILE}: expected fp32 values at byte"
DAMAGED: Mapping[str, tuple[Callable[[Any, Path], object], str]] = {
    "missing file": (lambda value, path: path.unlink(), AT_ANY),
    "truncated file": (lambda value, path: path.write_bytes(path.read_bytes()[:-9]), AT_ANY),
    "empty file": (lambda value, path: path.write_bytes(b""), AT_ANY),
    "offset past the end": (lambda value, path: refer(value, offset=10**9), f"{AT_ANY} 1000000000, got "),
    "offset of no entry": (lambda value, path: refer(value, offset=65), f"{AT_ANY} 65, got "),
    "path outside": (
        lambda value, path: refer(value, fileName="@model_path/../weight.bin"),
        "weights @model_path/../weight.bin: expected a path below @model_path, got another; ",
    ),
    "absolute path": (
        lambda value, path: refer(value, fileName=str(path)),
        "weight.bin: expected a path below @model_path, got another; ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_weights(damage: str, tmp_path: Path) -> None:
    value = stored("fp32", values("fp32"), tmp_path)
    change, message = DAMAGED[damage]
    change(value, tmp_path / "weights" / "weight.bin")
    with pytest.raises(PackageError) as caught:
        decode(value, Weights(tmp_path))
    assert message in str(caught.value)
    assert "the package is damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stored_values_are_of_the_type_named(tmp_path: Path) -> None:
    value = stored("fp32", values("fp32"), tmp_path)
    value.type.tensorType.dataType = MIL.DataType.FLOAT16
    with pytest.raises(PackageError, match="^weights .*: expected fp16 values at byte .*; the package is damaged"):
        decode(value, Weights(tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2), "expected 4 values for shape (2, 2), got 6; the package is damaged"),
        ((2**20, 2**20), "expected a tensor of fixed size, got fp32 (1048576, 1048576); the package is damaged"),
    ],
)
def test_shapes_have_as_many_elements_as_there_are_values(shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    value = immediate("fp32", values("fp32"))
    for dimension, size in zip(value.type.tensorType.dimensions, shape, strict=True):
        dimension.constant.size = size
    with pytest.raises(PackageError) as caught:
        decode(value, Weights(tmp_path))
    assert message in str(caught.value)


# The constexpr operations, by the specification's own examples.


def constexpr(operation_type: str, **arguments: Any) -> tuple[Array, ...]:
    return evaluate_constexpr(operation_type, {name: np.asarray(value) for name, value in arguments.items()})


def test_lut_to_dense_by_groups() -> None:
    (dense,) = constexpr(
        "constexpr_lut_to_dense",
        indices=u8([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]).reshape(6, 2),
        lut=f16([1, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1),
    )
    assert dense.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    assert dense.dtype == np.float16


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (1, [[[0, 0], [1, 1], [2, 2], [3, 0], [4, 1], [5, 2]], [[3, 3], [4, 4], [5, 5], [0, 0], [1, 1], [2, 2]]]),
        (2, [[[0, 1, 2, 0, 1, 2], [3, 4, 5, 0, 1, 2]], [[3, 4, 5, 3, 4, 5], [0, 1, 2, 0, 1, 2]]]),
        (-1, [[[0, 1, 2, 0, 1, 2], [3, 4, 5, 0, 1, 2]], [[3, 4, 5, 3, 4, 5], [0, 1, 2, 0, 1, 2]]]),
    ],
)
def test_lut_to_dense_by_vectors(axis: int, expected: list[Any]) -> None:
    (dense,) = constexpr(
        "constexpr_lut_to_dense",
        indices=u8([[[0, 0], [1, 0]], [[1, 1], [0, 0]]]),
        lut=i8([0, 1, 2, 3, 4, 5]).reshape(1, 1, 1, 2, 3),
        vector_axis=axis,
    )
    assert dense.tolist() == expected


@pytest.mark.parametrize("axis", [0, 1])
def test_lut_to_dense_by_vectors_of_groups_of_both_dimensions(axis: int) -> None:
    generator = np.random.default_rng(0)
    indices = generator.integers(0, 4, (4, 6), dtype=np.uint8)
    lut = generator.standard_normal((2, 3, 4, 2)).astype(np.float16)
    (dense,) = constexpr("constexpr_lut_to_dense", indices=indices, lut=lut, vector_axis=axis)
    assert dense.shape == ((8, 6) if axis == 0 else (4, 12))
    for (i, j), value in np.ndenumerate(dense):
        place, entry = ((i // 2, j), i % 2) if axis == 0 else ((i, j // 2), j % 2)
        assert value == lut[place[0] // 2, place[1] // 2, indices[place], entry]


def test_lut_to_dense_by_packed_bits() -> None:
    (dense,) = constexpr("constexpr_lut_to_dense", indices=u8([0b01101100, 0b11]), lut=f32([10, 11, 12, 13]), shape=[5])
    assert dense.tolist() == [10, 13, 12, 11, 13]


def test_sparse_to_dense_by_packed_bits() -> None:
    (dense,) = constexpr("constexpr_sparse_to_dense", nonzero_data=f32([7, 8]), mask=u8([0b1100]), shape=[5])
    assert dense.tolist() == [0, 0, 7, 8, 0]


def test_sparse_to_dense() -> None:
    (dense,) = constexpr("constexpr_sparse_to_dense", nonzero_data=i8([7, -8, 0]), mask=u8([[0, 1], [1, 1]]))
    assert dense.tolist() == [[0, 7], [-8, 0]]


INDICES_MASK = u8([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
INDICES = u8([0, 1, 1, 0, 1, 1, 0, 0, 1])


def test_lut_to_sparse() -> None:
    lut = f16([2, 3]).reshape(1, 1, 2, 1)
    mask, data = constexpr("constexpr_lut_to_sparse", indices_mask=INDICES_MASK, indices_nonzero_data=INDICES, lut=lut)
    np.testing.assert_array_equal(mask, INDICES_MASK)
    assert data.tolist() == [2, 3, 3, 2, 3, 3, 2, 2, 3]


def test_lut_to_sparse_by_vectors() -> None:
    mask, data = constexpr(
        "constexpr_lut_to_sparse",
        indices_mask=INDICES_MASK,
        indices_nonzero_data=INDICES,
        lut=f16([[2, 2], [3, 3]]).reshape(1, 1, 2, 2),
        vector_axis=0,
    )
    rows = [[2, 3], [2, 3], [3, 2, 3], [3, 2, 3], [3, 2, 2], [3, 2, 2], [3], [3]]
    assert mask.tolist() == [row for row in INDICES_MASK.tolist() for _ in range(2)]
    assert data.tolist() == [entry for row in rows for entry in row]


def test_sparse_blockwise_shift_scale() -> None:
    given = u8([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    mask, data = constexpr(
        "constexpr_sparse_blockwise_shift_scale",
        data_mask=given,
        nonzero_data=i8([10, 11, 3, 4, 5, 6, 7, 8, 9]),
        scale=f32([[0.1, 0.2, 0.3, 0.4]]),
        offset=i8([[1, 2, 3, 4]]),
    )
    np.testing.assert_array_equal(mask, given)
    np.testing.assert_allclose(data, [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4], rtol=1e-6)  # one rounding


def test_blockwise_shift_scale() -> None:
    data = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    scale, offset = f32([[0.5, 2, 1], [4, 8, 0.25]]), f32([[1.5, -3, 0], [7, 2, -1]])
    (without,) = constexpr("constexpr_blockwise_shift_scale", data=data, scale=scale)
    (with_offset,) = constexpr("constexpr_blockwise_shift_scale", data=data, scale=scale, offset=offset)
    for (i, j), value in np.ndenumerate(data):
        assert without[i, j] == scale[i // 2, j // 2] * value
        assert with_offset[i, j] == scale[i // 2, j // 2] * (value - offset[i // 2, j // 2])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_dequantize(axis: int) -> None:
    data = u8([[0, 255, 128], [3, 4, 5]])
    scale, zero_point = f32([0.5, 4, 0.25])[: data.shape[axis]], u8([128, 255, 7])[: data.shape[axis]]
    (dense,) = constexpr(
        "constexpr_affine_dequantize", quantized_data=data, zero_point=zero_point, scale=scale, axis=axis
    )
    (scalar,) = constexpr(
        "constexpr_affine_dequantize", quantized_data=data, zero_point=u8(4), scale=f16(0.5), axis=axis
    )
    for (i, j), value in np.ndenumerate(data):
        place = i if axis == 0 else j
        assert dense[i, j] == scale[place] * (int(value) - int(zero_point[place]))
        assert scalar[i, j] == 0.5 * (int(value) - 4)
    assert [dense.dtype, scalar.dtype] == [np.dtype(np.float32), np.dtype(np.float16)]


def test_cast() -> None:
    source = values("fp16")
    (wide,) = evaluate_constexpr("constexpr_cast", {"source_val": source, "output_dtype": "fp32"})
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, source)


def test_an_unknown_constexpr_is_named() -> None:
    with pytest.raises(UnsupportedError) as caught:
        evaluate_constexpr("constexpr_of_tomorrow", {})
    assert str(caught.value).startswith(f"constexpr_of_tomorrow: expected one of {', '.join(CONSTEXPR)}")


@pytest.mark.parametrize(
    ("operation_type", "arguments"),
    [
        ("constexpr_sparse_to_dense", {"nonzero_data": np.ones(3), "mask": np.ones((2, 2), np.uint8)}),
        ("constexpr_lut_to_dense", {"indices": u8([[9]]), "lut": np.ones((1, 1, 2, 1))}),
        ("constexpr_lut_to_dense", {"indices": u8([[0]])}),
        ("constexpr_lut_to_dense", {"indices": u8([0, 1, 0]), "lut": np.ones((2, 2, 1))}),
        ("constexpr_blockwise_shift_scale", {"data": np.ones((2, 2)), "scale": np.ones((1, 1)), "zoom": np.ones(1)}),
        ("constexpr_blockwise_shift_scale", {"data": np.ones((2, 2)), "scale": np.ones((1, 0))}),
        ("constexpr_blockwise_shift_scale", {"data": np.ones((2, 1)), "scale": np.ones((1, 0))}),
    ],
)
def test_arguments_that_do_not_fit(operation_type: str, arguments: dict[str, Array]) -> None:
    with pytest.raises(PackageError, match=f"^{operation_type}: expected arguments that fit each other, got "):
        evaluate_constexpr(operation_type, arguments)


# Packages that coremltools compresses, against what coremltools makes of their weights.


@dataclasses.dataclass(frozen=True)
class Compression:
    target: str
    steps: tuple[Any, ...]  # of coremltools' configurations, applied one after the other
    operations: frozenset[str]


def palettize(target: str = "iOS16", **options: Any) -> Compression:
    config = optimize.OpPalettizerConfig(**{"mode": "uniform", "weight_threshold": 0} | options)
    return Compression(target, (config,), frozenset(["lut_to_dense"]))


def quantize(target: str = "iOS16", **options: Any) -> Compression:
    operation = "affine_dequantize" if target == "iOS16" else "blockwise_shift_scale"
    return Compression(
        target, (optimize.OpLinearQuantizerConfig(weight_threshold=0, **options),), frozenset([operation])
    )


def pruned(then: Compression, *operations: str) -> Compression:
    return dataclasses.replace(then, steps=(PRUNE, *then.steps), operations=frozenset(operations))


PRUNE = optimize.OpMagnitudePrunerConfig(target_sparsity=0.2, weight_threshold=0)
GROUPS = {"granularity": "per_grouped_channel", "group_size": 4}
COMPRESSIONS = {
    **{f"palette of {bits} bits": palettize(nbits=bits) for bits in (1, 2, 4, 6, 8)},
    **{f"iOS18 palette of {bits} bits": palettize("iOS18", nbits=bits) for bits in (1, 2, 3, 4, 6, 8)},
    "iOS18 palettes of groups of outputs": palettize("iOS18", nbits=3, channel_axis=0, **GROUPS),
    "iOS18 palettes of groups of inputs": palettize("iOS18", nbits=4, channel_axis=1, **GROUPS),
    "iOS18 palette of pairs": palettize("iOS18", nbits=2, mode="kmeans", cluster_dim=2),
    "iOS18 palette of fours": palettize("iOS18", nbits=3, mode="kmeans", cluster_dim=4, channel_axis=1),
    "iOS18 palettes of pairs of groups": palettize("iOS18", nbits=1, mode="kmeans", cluster_dim=2, **GROUPS),
    "int8 of a tensor": quantize(dtype="int8", mode="linear_symmetric", granularity="per_tensor"),
    "int8 of channels": quantize(dtype="int8", mode="linear_symmetric"),
    "int8 of channels, shifted": quantize(dtype="int8", mode="linear"),
    "uint8 of a tensor, shifted": quantize(dtype="uint8", mode="linear", granularity="per_tensor"),
    "uint8 of channels": quantize(dtype="uint8", mode="linear_symmetric"),
    "iOS18 int8 of channels": quantize("iOS18", dtype="int8", mode="linear_symmetric"),
    "iOS18 int8 of a tensor, shifted": quantize("iOS18", dtype="int8", mode="linear", granularity="per_tensor"),
    "iOS18 int4 of blocks": quantize("iOS18", dtype="int4", granularity="per_block", block_size=4),
    "iOS18 uint4 of blocks": quantize("iOS18", dtype="uint4", mode="linear", granularity="per_block", block_size=2),
    "iOS18 int4 of channels, shifted": quantize("iOS18", dtype="int4", mode="linear"),
    "pruned": Compression("iOS16", (PRUNE,), frozenset(["sparse_to_dense"])),
    "iOS18 pruned": Compression("iOS18", (PRUNE,), frozenset(["sparse_to_dense"])),
    "iOS18 pruned, then palette": pruned(palettize("iOS18", nbits=4), "lut_to_sparse", "sparse_to_dense"),
    "iOS18 pruned, then palettes": pruned(palettize("iOS18", nbits=2, **GROUPS), "lut_to_sparse", "sparse_to_dense"),
    "iOS18 pruned, then int8": pruned(
        quantize("iOS18", dtype="int8", mode="linear_symmetric"), "sparse_blockwise_shift_scale", "sparse_to_dense"
    ),
    "iOS18 pruned, then int4 of blocks": pruned(
        quantize("iOS18", dtype="int4", granularity="per_block", block_size=4),
        "sparse_blockwise_shift_scale",
        "sparse_to_dense",
    ),
    "iOS18 palette of int8": Compression(
        "iOS18",
        (
            optimize.OpPalettizerConfig(nbits=4, mode="uniform", weight_threshold=0),
            optimize.OpLinearQuantizerConfig(dtype="int8", granularity="per_tensor", weight_threshold=0),
        ),
        frozenset(["lut_to_dense", "blockwise_shift_scale"]),
    ),
}
STEPS = {
    optimize.OpPalettizerConfig: optimize.palettize_weights,
    optimize.OpLinearQuantizerConfig: optimize.linear_quantize_weights,
    optimize.OpMagnitudePrunerConfig: optimize.prune_weights,
}


@cache
def two_layers(target: str, precision: str) -> Any:
    """A convolution and a linear layer, of odd sizes but for what groups and blocks divide."""
    generator = np.random.default_rng(0)
    convolution = generator.standard_normal((12, 8, 3, 1), dtype=np.float32)
    linear = generator.standard_normal((8, 12), dtype=np.float32)

    def program(x: Any) -> Any:
        x = mb.conv(x=x, weight=convolution)
        return mb.linear(x=mb.reduce_mean(x=x, axes=[2, 3]), weight=linear)

    opset = getattr(ct.target, target)
    return ct.convert(
        mb.program(input_specs=[mb.TensorSpec((1, 8, 5, 3))], opset_version=opset)(program),
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
        skip_model_load=True,
    )


def compressed(compression: Compression, precision: str, path: Path) -> Path:
    with quietly():
        model = two_layers(compression.target, precision)
        for number, config in enumerate(compression.steps):
            options = {"joint_compression": True} if number else {}
            model = STEPS[type(config)](model, optimize.OptimizationConfig(config), **options)
    package = path / "compressed.mlpackage"
    model.save(str(package))
    return package


def materialized(operation: Any) -> Array:
    """What coremltools makes of a constexpr; it would not see by itself that a table is compressed in its turn."""
    if operation.op_type == "constexpr_lut_to_dense" and operation.lut.val is None:
        return operation.decompress(operation.indices.val, materialized(operation.lut.op), None)
    return operation.materialized_val_inference()


def decompressed_by_coremltools(package: Path) -> list[Array]:
    specification = ct.utils.load_spec(str(package))
    program = mil.frontend.milproto.load.load(
        specification, specification.specificationVersion, str(package.joinpath(*MODEL_DIRECTORY, "weights"))
    )
    return [
        materialized(operation.weight.op)
        for operation in program.functions["main"].operations
        if operation.op_type in ("conv", "linear")
    ]


def weights_read(package: Path) -> list[Array]:
    function = read_package(package).function
    weights = []
    for operation in function.operations:
        if operation.type in ("conv", "linear"):
            reference = operation.inputs["weight"]
            assert isinstance(reference, Ref)
            weights.append(function.constants[reference.name].numpy())
    return weights


def constexpr_operations(package: Path) -> set[str]:
    function = ct.utils.load_spec(str(package)).mlProgram.functions["main"]
    (block,) = function.block_specializations.values()
    return {entry.type.removeprefix("constexpr_") for entry in block.operations if entry.type.startswith("constexpr_")}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_are_those_coremltools_decompresses(name: str, tmp_path: Path) -> None:
    compression = COMPRESSIONS[name]
    precision = "fp16" if len(name) % 2 else "fp32"  # each way of compression meets both
    package = compressed(compression, precision, tmp_path)
    assert constexpr_operations(package) == compression.operations
    read, expected = weights_read(package), decompressed_by_coremltools(package)
    assert [weight.shape for weight in read] == [(12, 8, 3, 1), (8, 12)]
    for ours, theirs in zip(read, expected, strict=True):
        assert theirs.dtype == ("float16" if precision == "fp16" else "float32")
        assert np.unique(ours).size > 1
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))


def test_a_compressed_package_runs(tmp_path: Path) -> None:
    package = compressed(COMPRESSIONS["iOS18 pruned, then palettes"], "fp32", tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 8, 5, 3), dtype=np.float32)
    convolution, linear = (torch.from_numpy(weight) for weight in decompressed_by_coremltools(package))
    expected = torch.conv2d(torch.from_numpy(x), convolution).mean((2, 3)) @ linear.T
    (output,) = ReferenceEvaluator(package, precision="fp32").run({"x": x}).values()
    np.testing.assert_allclose(output, expected.numpy(), atol=1e-5)  # sums of 24 products in float32


def test_a_package_without_its_weights_is_named(tmp_path: Path) -> None:
    package = compressed(COMPRESSIONS["palette of 8 bits"], "fp16", tmp_path)
    package.joinpath(*MODEL_DIRECTORY, "weights", "weight.bin").unlink()
    with pytest.raises(PackageError) as caught:
        read_package(package)
    assert str(caught.value).startswith(f"package {package}: weights {WEIGHT_FILE}: expected ")
    assert "\n" not in str(caught.value)
