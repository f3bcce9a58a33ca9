"""Strict JSON, written from plain values and dataclasses, and read back into dataclasses.

Every parser reads it: numbers that JSON does not have are the texts "inf", "-inf" and "nan".
"""

import contextlib
import dataclasses
import inspect
import json
import math
import reprlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mobilevit_coreml.errors import os_error_text

T = TypeVar("T")

NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
NOT_FINITE = ("inf", "-inf", "nan")

_quoted = reprlib.Repr()
_quoted.maxstring = _quoted.maxlong = _quoted.maxother = 40
_quoted.maxlevel = 2


class JsonError(ValueError):
    """A line that says what is wrong, and at which place in a file, without the file's name."""


def plain(value: Any) -> Any:
    """Dataclasses as objects, in which `class_` is the key class, and texts that can be encoded, "?" for others."""
    if dataclasses.is_dataclass(value):
        return {field.name.rstrip("_"): plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value


def to_json(value: Any) -> bytes:
    """UTF-8, indented, with a line end at the end."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_json(path: Path, max_size: int) -> Any:
    """The content of a JSON file of at most `max_size` bytes; JsonError for anything else."""
    try:
        if not path.is_file():
            raise JsonError("expected a file, got none")
        with path.open("rb") as file:
            content = file.read(max_size + 1)
    except OSError as error:
        raise JsonError(f"expected a file to read, got {os_error_text(error)}") from None
    if len(content) > max_size:
        raise JsonError(f"expected at most {max_size} bytes, got more")
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text; JsonError for anything else, NaN and Infinity included."""
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise JsonError("expected JSON, got brackets nested too deep") from None
    except ValueError as error:
        raise JsonError(f"expected JSON, got {' '.join(str(error).split()):.80}") from None


def load(kind: type[T], value: Any, where: str) -> T:
    """Build a dataclass from an object of a JSON file; JsonError naming the place, below `where`, that does not fit.

    Keys are the names of the fields; those with a default may be missing, others are refused. Fields are
    dataclasses, tuples, lists, mappings by text, Literal, unions, str, bool, int, float or Any. A ValueError
    that the dataclass itself raises becomes a JsonError.
    """
    loaded: T = _load(kind, value, where)
    return loaded


def _load(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _load_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        return _load_union(arguments, value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise JsonError(f"{where}: expected one of {', '.join(arguments)}, got {_quoted.repr(value)}")
        return value
    if origin in (tuple, list):
        return origin(_load_entries(arguments, value, where))
    if origin in (dict, Mapping):
        return {key: _load(arguments[1], entry, f"{where}.{key:.60}") for key, entry in _object(value, where).items()}
    return _load_scalar(kind, value, where)


def _load_dataclass(kind: Any, value: Any, where: str) -> Any:
    values, types = _object(value, where), get_type_hints(kind)
    fields = inspect.signature(kind).parameters
    if unknown := values.keys() - fields.keys():
        raise JsonError(f"{where}: expected only {', '.join(fields)}, got {_quoted.repr(min(unknown))}")
    for name, field in fields.items():
        if field.default is field.empty and name not in values:
            raise JsonError(f"{where}: expected {name}, got none")
    found = {name: _load(types[name], entry, f"{where}.{name}") for name, entry in values.items()}
    try:
        return kind(**found)
    except ValueError as error:
        raise JsonError(f"{where}: {error}") from None


def _load_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return _load(kind, value, where)
            except JsonError as error:
                errors.append(error)
    raise errors[0]


def _load_entries(kinds: tuple[Any, ...], value: Any, where: str) -> list[Any]:
    """`kinds` are of a tuple of fixed length, or one kind, and an ellipsis for tuples, of any number of entries."""
    if not isinstance(value, list):
        raise JsonError(f"{where}: expected a list, got {_quoted.repr(value)}")
    if len(kinds) == 1 or kinds[1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise JsonError(f"{where}: expected {len(kinds)} entries, got {len(value)}")
    return [
        _load(kind, entry, f"{where}[{index}]") for index, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    ]


def _load_scalar(kind: Any, value: Any, where: str) -> Any:
    """A float may also be an int or a text of NOT_FINITE; a bool is neither int nor float."""
    if kind is float and not isinstance(value, bool):
        if isinstance(value, int | float) or value in NOT_FINITE:
            with contextlib.suppress(OverflowError):
                return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise JsonError(f"{where}: expected {NAMES[kind]}, got {_quoted.repr(value)}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JsonError(f"{where}: expected an object, got {_quoted.repr(value)}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no JSON")
