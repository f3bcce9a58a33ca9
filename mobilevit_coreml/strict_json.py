"""JSON that every parser reads: numbers it does not have are the texts "inf", "-inf" and "nan"."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists, keys as texts, and texts that can be encoded ("?" for what cannot)."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
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
