"""Constants of a program: immediate values, weight.bin, and compressed weights (`constexpr_*` operations).

Constants become torch tensors (strings a str or a list): fp16 and fp32 as float32, which holds every
fp16 value exactly; integers of up to 32 bits as int32, booleans as bool. Follows the MIL
specification of iOS16 (packed bits, one lookup table) and iOS18 (sub-byte types, blocks, groups, vectors).
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilevit_coreml._coremltools import BlobStorageReader, ct
from mobilevit_coreml.errors import PackageError, UnsupportedError

Array = npt.NDArray[Any]

MIL = ct.proto.MIL_pb2
MAX_ELEMENTS = 2**31  # of one constant; 8 GiB as float32

# Numeric data types of MIL: (bits, numpy type).
DATA_TYPES: Mapping[str, tuple[int, str]] = {
    "bool": (8, "bool"),
    "fp16": (16, "float16"),
    "fp32": (32, "float32"),
    "int4": (4, "int8"),
    "int64": (64, "int64"),
    **{f"uint{bits}": (bits, "uint8") for bits in (1, 2, 3, 4, 6)},
    **{f"{kind}{bits}": (bits, f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32)},
}
_READERS = {"fp32": "float"}  # types with another name in coremltools' BlobStorageReader


class Weights:
    """Weight files of a package, opened when first read."""

    def __init__(self, model_directory: Path) -> None:
        self.model_directory = model_directory
        self._readers: dict[str, Any] = {}

    def read(self, file_name: str, offset: int, dtype: str) -> Array:
        """Values of `dtype` at byte `offset` of a file, named as in the program (`@model_path/weights/weight.bin`)."""
        try:
            if file_name not in self._readers:
                self._readers[file_name] = BlobStorageReader(str(self._path(file_name)))
            read = getattr(self._readers[file_name], f"read_{_READERS.get(dtype, dtype)}_data")
            values: Array = np.asarray(read(offset))
        except (RuntimeError, ValueError, AttributeError, OverflowError, TypeError) as error:
            raise PackageError(
                f"weights {file_name}: expected {dtype} values at byte {offset}, got "
                f"{' '.join(str(error).split())[:120]}; the package is damaged, convert or copy it again"
            ) from None
        return values.view(np.float16) if dtype == "fp16" else values

    def _path(self, file_name: str) -> Path:
        parts = Path(file_name).parts
        if parts[:1] != ("@model_path",) or ".." in parts:
            raise PackageError(
                f"weights {file_name}: expected a path below @model_path, got another; the package is damaged"
            )
        return self.model_directory.joinpath(*parts[1:])


def type_of(value_type: Any) -> tuple[str, tuple[int, ...]]:
    """(data type, shape) of a tensor's ValueType, with -1 for a variable dimension; ("", ()) of other types."""
    if value_type.WhichOneof("type") != "tensorType":
        return "", ()
    tensor = value_type.tensorType
    known = MIL.DataType.DESCRIPTOR.values_by_number.get(tensor.dataType)
    shape = tuple(
        int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else -1
        for dimension in tensor.dimensions
    )
    return known.name.lower().replace("float", "fp") if known is not None else f"type {tensor.dataType}", shape


def decode(value: Any, weights: Weights) -> Any:
    """A MIL Value as an array of the stored type, a str for a scalar string, or a list for strings and lists.

    Sub-byte numbers take a byte each.
    """
    kind = value.type.WhichOneof("type")
    if kind == "listType":
        return [decode(entry, weights) for entry in value.immediateValue.list.values]
    if kind != "tensorType":
        raise UnsupportedError(f"constant: expected a tensor or a list, got {kind}; other types are not implemented")
    dtype, shape = type_of(value.type)
    if dtype == "string":
        strings = list(value.immediateValue.tensor.strings.values)
        return strings if shape else strings[0]
    return _decode_numbers(value, dtype, shape, weights)


def _decode_numbers(value: Any, dtype: str, shape: tuple[int, ...], weights: Weights) -> Array:
    count = math.prod(shape)
    if dtype not in DATA_TYPES or any(size < 0 for size in shape) or count > MAX_ELEMENTS:
        raise PackageError(f"constant: expected a tensor of fixed size, got {dtype} {shape}; the package is damaged")
    bits, numpy_type = DATA_TYPES[dtype]
    if value.WhichOneof("value") == "blobFileValue":
        array = weights.read(value.blobFileValue.fileName, value.blobFileValue.offset, dtype)
    else:
        try:
            array = _immediate(value.immediateValue.tensor, bits, numpy_type, count)
        except (ValueError, OverflowError) as error:
            raise PackageError(f"constant: expected {dtype} {shape}, got {error}; the package is damaged") from None
    if array.size != count:
        raise PackageError(
            f"constant: expected {count} values for shape {shape}, got {array.size}; the package is damaged"
        )
    if dtype == "int4":
        array = (array.astype(np.int8) << 4) >> 4  # sign extension of the low four bits
    return array.astype(numpy_type, copy=False).reshape(shape)


def _immediate(tensor: Any, bits: int, numpy_type: str, count: int) -> Array:
    values = getattr(tensor, tensor.WhichOneof("value") or "floats").values
    if not isinstance(values, bytes):
        return np.asarray(values).astype(numpy_type)
    if bits < 8:  # types without their own list in the protobuf
        return _unpack_bits(np.frombuffer(values, np.uint8), bits, count)
    return np.frombuffer(values, numpy_type)


def to_tensors(value: Any) -> Any:
    """A decoded value with its arrays as float32, int32 (int64 stays) or bool tensors."""
    if isinstance(value, list):
        return [to_tensors(entry) for entry in value]
    if not isinstance(value, np.ndarray):
        return value
    integer = np.int64 if value.dtype.itemsize == 8 else np.int32
    return torch.from_numpy(np.array(value, dtype={"f": np.float32, "b": np.bool_}.get(value.dtype.kind, integer)))


def _unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """`count` unsigned values of `bits` bits, packed least significant bit first."""
    if not 0 <= count * bits <= packed.nbytes * 8:  # numpy would pad with zeros, terabytes if a shape says so
        raise ValueError(f"{packed.nbytes} bytes for {count} values of {bits} bits")
    flat = np.unpackbits(packed.view(np.uint8).reshape(-1), count=count * bits, bitorder="little")
    return np.packbits(flat.reshape(count, bits), axis=1, bitorder="little")[:, 0]


# constexpr operations, from and to numpy arrays, with the parameter names of the specification. Those of
# iOS16 have a `shape` and packed indices or masks, those of iOS18 have neither.


def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    """iOS16: scale * (quantized_data - zero_point); scale and zero_point are scalars or vectors along axis."""
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    offset, factor = (values.reshape(shape).astype(np.float32) for values in (zero_point, scale))
    dense: Array = (quantized_data - offset) * factor
    return dense.astype(scale.dtype)


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """iOS16: fp16 widened to fp32."""
    return source_val.astype(np.float32 if output_dtype == "fp32" else np.float16)


def constexpr_lut_to_dense(indices: Array, lut: Array, vector_axis: Any = 0, shape: Array | None = None) -> Array:
    """A lookup table for each group of indices, of scalars or of vectors along vector_axis.

    lut: (number of groups for each dimension of indices…, entries, vector size), or (entries,) with a `shape`.
    """
    if shape is not None:
        sizes = shape.tolist()
        indices = _unpack_bits(indices, int(math.log2(lut.size)), math.prod(sizes)).reshape(sizes)
        lut = lut.reshape(*[1] * len(sizes), -1, 1)
    *groups, entries, vector = lut.shape
    if indices.size * vector > MAX_ELEMENTS:
        raise ValueError(f"{indices.size} indices of vectors of {vector}")
    table = _for_blocks(np.arange(math.prod(groups)).reshape(groups), indices.shape)
    vectors = lut.reshape(-1, entries, vector)[table, indices]  # indices' shape, then the vector
    if vector == 1:
        return vectors[..., 0]
    axis = int(vector_axis) % indices.ndim
    vectors = np.moveaxis(vectors, -1, axis + 1)
    return vectors.reshape([size * (vector if i == axis else 1) for i, size in enumerate(indices.shape)])


def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """nonzero_data, in row-major order, where the mask is 1; zero elsewhere."""
    if shape is not None:
        mask = _unpack_bits(mask, 1, math.prod(shape.tolist())).reshape(shape.tolist())
    dense = np.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), with a scale and an offset for each block of the data."""
    shifted = data.astype(np.float32)
    if offset is not None:
        shifted = shifted - _for_blocks(offset.astype(np.float32), data.shape)
    dense: Array = shifted * _for_blocks(scale.astype(np.float32), data.shape)
    return dense.astype(scale.dtype)


def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Any = 0
) -> tuple[Array, Array]:
    """`constexpr_lut_to_dense` of sparse indices; returns (mask, nonzero data)."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis)
    mask = np.repeat(indices_mask, lut.shape[-1], axis=int(vector_axis)) if lut.shape[-1] > 1 else indices_mask
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """`constexpr_blockwise_shift_scale` of sparse data; returns (mask, nonzero data)."""
    data = constexpr_sparse_to_dense(nonzero_data, data_mask)
    return data_mask, constexpr_blockwise_shift_scale(data, scale, offset)[data_mask != 0]


def _for_blocks(values: Array, shape: tuple[int, ...]) -> Array:
    """One value for each block, repeated until it broadcasts with data of this shape."""
    if values.ndim != len(shape) or any(size % count for size, count in zip(shape, values.shape, strict=True)):
        raise ValueError(f"{values.shape} blocks for data of shape {shape}")
    for axis, (size, count) in enumerate(zip(shape, values.shape, strict=True)):
        if count > 1:
            values = np.repeat(values, size // count, axis=axis)
    return values


CONSTEXPR: Mapping[str, Callable[..., Any]] = {
    name: function for name, function in list(globals().items()) if name.startswith("constexpr_")
}


def evaluate_constexpr(operation_type: str, arguments: Mapping[str, Any]) -> tuple[Array, ...]:
    """Outputs of a constexpr operation; raises UnsupportedError if it is not implemented."""
    if operation_type not in CONSTEXPR:
        raise UnsupportedError(f"{operation_type}: expected one of {', '.join(CONSTEXPR)}; others are not implemented")
    try:
        outputs = CONSTEXPR[operation_type](**arguments)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise PackageError(f"{operation_type}: expected arguments that fit each other, got {error}") from None
    return outputs if isinstance(outputs, tuple) else (outputs,)
