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
from torch import Tensor

from mobilevit_coreml._coremltools import BlobStorageReader, ct
from mobilevit_coreml.errors import PackageError, UnsupportedError

Array = npt.NDArray[Any]

MIL = ct.proto.MIL_pb2
MAX_ELEMENTS = 2**31  # of one constant; 8 GiB as float32

# Data types of MIL by protobuf name: (name in MIL, bits, numpy type).
DATA_TYPES: Mapping[str, tuple[str, int, str]] = {
    "BOOL": ("bool", 8, "bool"),
    "STRING": ("string", 0, "object"),
    "FLOAT16": ("fp16", 16, "float16"),
    "FLOAT32": ("fp32", 32, "float32"),
    "INT4": ("int4", 4, "int8"),
    "INT8": ("int8", 8, "int8"),
    "INT16": ("int16", 16, "int16"),
    "INT32": ("int32", 32, "int32"),
    "INT64": ("int64", 64, "int64"),
    "UINT1": ("uint1", 1, "uint8"),
    "UINT2": ("uint2", 2, "uint8"),
    "UINT3": ("uint3", 3, "uint8"),
    "UINT4": ("uint4", 4, "uint8"),
    "UINT6": ("uint6", 6, "uint8"),
    "UINT8": ("uint8", 8, "uint8"),
    "UINT16": ("uint16", 16, "uint16"),
    "UINT32": ("uint32", 32, "uint32"),
}
_STORAGE = {name: (bits, numpy_type) for name, bits, numpy_type in DATA_TYPES.values()}
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
    name = known.name if known is not None else f"type {tensor.dataType}"
    shape = tuple(
        int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else -1
        for dimension in tensor.dimensions
    )
    return DATA_TYPES[name][0] if name in DATA_TYPES else name.lower(), shape


def is_numeric(value: Any) -> bool:
    """True for a MIL Value that is a tensor of numbers or booleans."""
    return type_of(value.type)[0] not in ("", "string")


def decode(value: Any, weights: Weights) -> Any:
    """A MIL Value as a tensor, a str for a scalar string, or a list for strings and lists."""
    kind = value.type.WhichOneof("type")
    if kind == "listType":
        return [decode(entry, weights) for entry in value.immediateValue.list.values]
    if kind != "tensorType":
        raise UnsupportedError(f"constant: expected a tensor or a list, got {kind}; other types are not implemented")
    dtype, shape = type_of(value.type)
    if dtype == "string":
        strings = list(value.immediateValue.tensor.strings.values)
        return strings if shape else strings[0]
    return to_tensor(decode_array(value, weights))


def decode_array(value: Any, weights: Weights) -> Array:
    """A numeric MIL Value as a numpy array of the stored type; sub-byte values take a byte each."""
    dtype, shape = type_of(value.type)
    if dtype not in _STORAGE or any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise PackageError(f"constant: expected a tensor of fixed size, got {dtype} {shape}; the package is damaged")
    bits, numpy_type = _STORAGE[dtype]
    if value.WhichOneof("value") == "blobFileValue":
        array = weights.read(value.blobFileValue.fileName, value.blobFileValue.offset, dtype)
    else:
        try:
            array = _immediate(value.immediateValue.tensor, bits, numpy_type, math.prod(shape))
        except (ValueError, OverflowError) as error:
            raise PackageError(f"constant: expected {dtype} {shape}, got {error}; the package is damaged") from None
    if array.size != math.prod(shape):
        raise PackageError(
            f"constant: expected {math.prod(shape)} values for shape {shape}, got {array.size}; the package is damaged"
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


def to_tensor(array: Array) -> Tensor:
    """An array as a float32, int32 (int64 stays) or bool tensor."""
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, dtype=np.float32))
    if array.dtype.kind == "b":
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(np.array(array, dtype=np.int64 if array.dtype.itemsize == 8 else np.int32))


def _unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """`count` unsigned values of `bits` bits, packed least significant bit first."""
    if not 0 <= count * bits <= packed.nbytes * 8:  # numpy would pad with zeros, terabytes if a shape says so
        raise ValueError(f"{packed.nbytes} bytes for {count} values of {bits} bits")
    flat = np.unpackbits(packed.view(np.uint8).reshape(-1), count=count * bits, bitorder="little")
    return np.packbits(flat.reshape(count, bits), axis=1, bitorder="little")[:, 0]


# constexpr operations, from and to numpy arrays, with the parameter names of the specification.


def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    """iOS16: scale * (quantized_data - zero_point); scale and zero_point are scalars or vectors along axis."""
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    offset, factor = (v.reshape(shape if v.ndim else ()).astype(np.float32) for v in (zero_point, scale))
    values: Array = (quantized_data - offset) * factor
    return values.astype(scale.dtype)


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """iOS16: fp16 widened to fp32."""
    return source_val.astype(np.float32 if output_dtype == "fp32" else np.float16)


def constexpr_lut_to_dense_packed(indices: Array, lut: Array, shape: Array) -> Array:
    """iOS16: one lookup table; indices of log2(len(lut)) bits, packed least significant bit first."""
    sizes = tuple(int(size) for size in shape)
    return lut[_unpack_bits(indices, int(math.log2(lut.size)), math.prod(sizes))].reshape(sizes)


def constexpr_sparse_to_dense_packed(nonzero_data: Array, mask: Array, shape: Array) -> Array:
    """iOS16: nonzero_data where the mask's bit is 1 (packed least significant bit first), zero elsewhere."""
    sizes = tuple(int(size) for size in shape)
    return constexpr_sparse_to_dense(nonzero_data, _unpack_bits(mask, 1, math.prod(sizes)).reshape(sizes))


def constexpr_lut_to_dense(indices: Array, lut: Array, vector_axis: Array | None = None) -> Array:
    """iOS18: a lookup table for each group of indices, of scalars or of vectors along vector_axis.

    lut: (number of groups for each dimension of indices…, entries, vector size).
    """
    groups = lut.shape[:-2]
    table = np.zeros(indices.shape, dtype=np.int64)  # index of the lookup table for each element
    for axis, (size, count) in enumerate(zip(indices.shape, groups, strict=True)):
        group = np.arange(size) // (size // count)
        table = table * count + group.reshape([-1 if i == axis else 1 for i in range(indices.ndim)])
    if indices.size * lut.shape[-1] > MAX_ELEMENTS:
        raise ValueError(f"{indices.size} indices of vectors of {lut.shape[-1]}")
    vectors = lut.reshape(-1, *lut.shape[-2:])[table, indices]  # indices' shape, then the vector
    if lut.shape[-1] == 1:
        return vectors[..., 0]
    axis = int(vector_axis if vector_axis is not None else 0) % indices.ndim
    vectors = np.moveaxis(vectors, -1, axis + 1)
    return vectors.reshape([size * (lut.shape[-1] if i == axis else 1) for i, size in enumerate(indices.shape)])


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """iOS18: scale * (data - offset), with a scale and an offset for each block of the data."""
    shifted = data.astype(np.float32)
    if offset is not None:
        shifted = shifted - _repeat_blocks(offset.astype(np.float32), data.shape)
    values: Array = shifted * _repeat_blocks(scale.astype(np.float32), data.shape)
    return values.astype(scale.dtype)


def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array) -> Array:
    """iOS18: nonzero_data, in row-major order, where the mask is 1; zero elsewhere."""
    dense = np.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None
) -> tuple[Array, Array]:
    """iOS18: `constexpr_lut_to_dense` of sparse indices; returns (mask, nonzero data)."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        mask = np.repeat(mask, lut.shape[-1], axis=int(vector_axis if vector_axis is not None else 0))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """iOS18: `constexpr_blockwise_shift_scale` of sparse data; returns (mask, nonzero data)."""
    data = constexpr_sparse_to_dense(nonzero_data, data_mask)
    return data_mask, constexpr_blockwise_shift_scale(data, scale, offset)[data_mask != 0]


def _repeat_blocks(values: Array, shape: tuple[int, ...]) -> Array:
    """One value for each block repeated to one for each element."""
    if values.ndim != len(shape):
        raise ValueError(f"{values.ndim} dimensions of blocks for {len(shape)} of data")
    for axis, size in enumerate(shape):
        values = np.repeat(values, size // values.shape[axis], axis=axis)
    return values


CONSTEXPR: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        constexpr_affine_dequantize,
        constexpr_cast,
        constexpr_lut_to_dense,
        constexpr_sparse_to_dense,
        constexpr_blockwise_shift_scale,
        constexpr_lut_to_sparse,
        constexpr_sparse_blockwise_shift_scale,
    )
}
# iOS16 variants with packed bits and a parameter `shape`.
CONSTEXPR_PACKED: Mapping[str, Callable[..., Any]] = {
    "constexpr_lut_to_dense": constexpr_lut_to_dense_packed,
    "constexpr_sparse_to_dense": constexpr_sparse_to_dense_packed,
}


def evaluate_constexpr(operation_type: str, arguments: Mapping[str, Any]) -> tuple[Array, ...]:
    """Outputs of a constexpr operation; raises UnsupportedError if it is not implemented."""
    functions = CONSTEXPR_PACKED if "shape" in arguments and operation_type in CONSTEXPR_PACKED else CONSTEXPR
    if operation_type not in functions:
        raise UnsupportedError(f"{operation_type}: expected one of {', '.join(CONSTEXPR)}; others are not implemented")
    try:
        outputs = functions[operation_type](**arguments)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise PackageError(f"{operation_type}: expected arguments that fit each other, got {error}") from None
    return outputs if isinstance(outputs, tuple) else (outputs,)
