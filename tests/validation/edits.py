"""Edits of a saved package in place: its protobuf, and the blobs of its weight.bin. Knows nothing of the evaluator."""

import dataclasses
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilevit_coreml._coremltools import ct

Array = npt.NDArray[Any]

MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
WEIGHTS = Path("Data", "com.apple.CoreML", "weights", "weight.bin")
SENTINEL = 0xDEADBEEF  # a blob's metadata begin with it: sentinel, data type, bytes, where these begin
RECORD = "mobilevit_coreml."

DataType = ct.proto.MIL_pb2.DataType
NUMPY_TYPES = {
    DataType.FLOAT16: "float16",
    DataType.FLOAT32: "float32",
    DataType.INT32: "int32",
    DataType.UINT32: "uint32",
    DataType.INT8: "int8",
    DataType.UINT8: "uint8",
    DataType.BOOL: "bool",
}
# Immediate values that have a list of their own in the protobuf; the others are bytes.
LISTS = {DataType.FLOAT32: "floats", DataType.INT32: "ints", DataType.BOOL: "bools", DataType.STRING: "strings"}


@dataclasses.dataclass(frozen=True)
class Program:
    """The program of a package with one function, and its weights, open for editing."""

    specification: Any  # Model
    weights: bytearray

    @property
    def function(self) -> Any:
        (function,) = self.specification.mlProgram.functions.values()
        return function

    @property
    def block(self) -> Any:
        return self.function.block_specializations[self.function.opset]

    @property
    def record(self) -> Any:
        return self.specification.description.metadata.userDefined

    def operation(self, name: str) -> Any:
        """The operation, constants among them, one of whose outputs is called so."""
        return self.block.operations[self.index(name)]

    def index(self, name: str) -> int:
        operations = self.block.operations
        found = (i for i, operation in enumerate(operations) for output in operation.outputs if output.name == name)
        return next(found)

    def readers(self, name: str) -> list[Any]:
        """The bindings of operations that read a value."""
        return [
            binding
            for operation in self.block.operations
            for argument in operation.inputs.values()
            for binding in argument.arguments
            if binding.WhichOneof("binding") == "name" and binding.name == name
        ]

    def binding(self, operation: str, parameter: str, index: int = 0) -> Any:
        """The binding of a parameter, or of one place in its list."""
        return self.operation(operation).inputs[parameter].arguments[index]

    def source(self, operation: str, parameter: str) -> str:
        """The name of the value an operation reads for a parameter."""
        name = self.binding(operation, parameter).name
        assert isinstance(name, str)
        return name

    def value(self, operation: str, parameter: str) -> Any:
        """The constant of a parameter as its Value, that of this operation alone: a shared one is copied first."""
        own = self.operation(operation)
        if parameter in own.attributes:  # of a constexpr, iOS16
            return own.attributes[parameter]
        binding = own.inputs[parameter].arguments[0]
        if binding.WhichOneof("binding") == "value":
            return binding.value
        constant = self.operation(binding.name)
        assert constant.type == "const", constant.type
        if len(self.readers(binding.name)) > 1:
            copy = type(constant)()
            copy.CopyFrom(constant)
            copy.outputs[0].name = f"{binding.name}_of_{operation}"
            self.block.operations.insert(self.index(operation), copy)
            binding = self.binding(operation, parameter)  # that message may have moved
            binding.name = copy.outputs[0].name
            constant = self.operation(binding.name)
            value = constant.attributes["val"]
            if value.WhichOneof("value") == "blobFileValue":
                set_immediate(value, self.blob(value).copy())
        return constant.attributes["val"]

    def blob(self, value: Any) -> Array:
        """The numbers of a Value in weight.bin as an array to be written to; types below a byte as bytes."""
        sentinel, _, size, start = struct.unpack_from("<IIQQ", self.weights, value.blobFileValue.offset)
        assert sentinel == SENTINEL
        numpy_type = NUMPY_TYPES.get(value.type.tensorType.dataType)
        array = np.frombuffer(memoryview(self.weights)[start : start + size], numpy_type or "uint8")
        return array.reshape(shape_of(value)) if numpy_type else array

    def first_blob(self) -> tuple[int, int]:
        """Offset and size in bytes of the numbers of the first blob."""
        _, _, size, start = struct.unpack_from("<IIQQ", self.weights, 64)
        return start, size

    def read(self, operation: str, parameter: str) -> Any:
        """The constant of a parameter: a numpy array, or a text."""
        value = self.value(operation, parameter)
        return self.blob(value).copy() if value.WhichOneof("value") == "blobFileValue" else immediate(value)

    def write(self, operation: str, parameter: str, new: Any) -> None:
        """Give an operation another constant, of the type and, in weight.bin, of the size of the old one."""
        value = self.value(operation, parameter)
        if value.WhichOneof("value") == "blobFileValue":
            blob = self.blob(value)
            blob[...] = np.asarray(new).reshape(blob.shape).astype(blob.dtype)
        else:
            set_immediate(value, new)

    def remove(self, operation: str, parameter: str = "x") -> None:
        """Leave an operation out: what reads its result reads its `parameter` instead."""
        source = self.source(operation, parameter)
        for binding in self.readers(operation):
            binding.name = source
        del self.block.operations[self.index(operation)]

    def insert(self, kind: str, name: str, before: str, constants: Mapping[str, Any], parameter: str = "x") -> None:
        """Put an operation between `before` and what that reads; `constants` are its parameters besides x.

        Texts, ints, bools, lists of ints, and numpy scalars of the type that is meant.
        """
        reader = self.operation(before)
        new = type(reader)(type=kind)
        new.inputs["x"].arguments.add().name = self.source(before, parameter)
        output = new.outputs.add()
        output.CopyFrom(self._output_of(self.source(before, parameter)))
        output.name = name
        for key, constant in constants.items():
            value = new.inputs[key].arguments.add().value
            tensor = value.type.tensorType
            tensor.dataType = _data_type(constant)
            if isinstance(constant, list):
                tensor.rank = 1
                tensor.dimensions.add().constant.size = len(constant)
            set_immediate(value, constant)
        self.block.operations.insert(self.index(before), new)
        self.binding(before, parameter).name = name

    def _output_of(self, name: str) -> Any:
        for entry in (*self.function.inputs, *(out for op in self.block.operations for out in op.outputs)):
            if entry.name == name:
                return entry
        raise KeyError(name)


def edit(package: Path, change: Callable[[Program], None]) -> None:
    """Open a package, change it, and save it at its place."""
    program = Program(ct.proto.Model_pb2.Model.FromString((package / MODEL).read_bytes()), read_weights(package))
    change(program)
    (package / MODEL).write_bytes(program.specification.SerializeToString(deterministic=True))
    (package / WEIGHTS).write_bytes(program.weights)


def read_weights(package: Path) -> bytearray:
    """The bytes of a package's weight.bin."""
    return bytearray((package / WEIGHTS).read_bytes())


def edit_record(program: Program, field: str, change: Callable[[Any], Any]) -> None:
    """Change one field of the record; those that are JSON are handed over read."""
    key = key_of(field)
    text = program.record[key]
    structured = text[:1] in ("{", "[")
    new = change(json.loads(text) if structured else text)
    program.record[key] = json.dumps(new) if structured else new


def key_of(field: str) -> str:
    """The key in the metadata of a field of the record, or the key itself of what others have there."""
    return field if field.startswith("com.") else RECORD + field


def rename(program: Program, old: str, new: str) -> None:
    """Call a value otherwise, wherever it is spoken of: made, read, put out, declared."""
    for binding in program.readers(old):
        binding.name = new
    for operation in program.block.operations:
        for output in operation.outputs:
            if output.name == old:
                output.name = new
    program.block.outputs[:] = [new if name == old else name for name in program.block.outputs]
    for feature in (*program.specification.description.input, *program.specification.description.output):
        if feature.name == old:
            feature.name = new
    for entry in program.function.inputs:
        if entry.name == old:
            entry.name = new


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a tensor's Value."""
    return tuple(int(dimension.constant.size) for dimension in value.type.tensorType.dimensions)


def immediate(value: Any) -> Any:
    """The numbers of a Value in the protobuf as an array, or its text."""
    tensor = value.immediateValue.tensor
    data_type = value.type.tensorType.dataType
    values = getattr(tensor, tensor.WhichOneof("value")).values
    if data_type == DataType.STRING:
        return values[0]
    if isinstance(values, bytes):
        return np.frombuffer(values, NUMPY_TYPES[data_type]).reshape(shape_of(value))
    return np.array(values, NUMPY_TYPES[data_type]).reshape(shape_of(value))


def set_immediate(value: Any, new: Any) -> None:
    """Put numbers or a text into the protobuf, under the type the Value has."""
    data_type = value.type.tensorType.dataType
    tensor = value.immediateValue.tensor
    tensor.Clear()
    if data_type == DataType.STRING:
        tensor.strings.values.append(new)
        return
    array = np.asarray(new).astype(NUMPY_TYPES[data_type])
    if data_type in LISTS:
        getattr(tensor, LISTS[data_type]).values.extend(array.reshape(-1).tolist())
    else:
        tensor.bytes.values = array.tobytes()


def _data_type(constant: Any) -> int:
    if isinstance(constant, str):
        return int(DataType.STRING)
    if isinstance(constant, np.generic):
        return int(next(key for key, name in NUMPY_TYPES.items() if name == constant.dtype.name))
    first = constant[0] if isinstance(constant, list) else constant
    return int(DataType.BOOL if isinstance(first, bool) else DataType.INT32)


def bits_of(packed: Array, bits: int) -> Array:
    """Values of so many bits, packed least significant first, one each."""
    flat = np.unpackbits(packed.reshape(-1), bitorder="little")
    each = flat[: flat.size // bits * bits].reshape(-1, bits)
    return np.packbits(each, axis=1, bitorder="little")[:, 0]


def packed(values: Array, bits: int) -> Array:
    """The inverse of `bits_of`."""
    flat = np.unpackbits(values.astype(np.uint8).reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
    return np.packbits(flat.reshape(-1), bitorder="little")


def swapped(values: Iterable[Any], first: int, second: int) -> list[Any]:
    """With two entries exchanged."""
    changed = list(values)
    changed[first], changed[second] = changed[second], changed[first]
    return changed


def rolled(values: Sequence[Any]) -> list[Any]:
    """Each entry one place later, the last at the front."""
    return [*values[-1:], *values[:-1]]
