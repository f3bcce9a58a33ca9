"""JSON schema of the reports, made from their dataclasses: `python -m mobilevit_coreml.report.schema`."""

import dataclasses
import enum
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from mobilevit_coreml.report.values import CompressionReport, ValidationReport

REPORTS = {"validation": ValidationReport, "compression": CompressionReport}
NUMBER = {
    "description": "A number; what JSON has no number for is a text.",
    "anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", "nan"]}],
}
PLAIN = {str: {"type": "string"}, bool: {"type": "boolean"}, types.NoneType: {"type": "null"}, Any: {}}

Schema = dict[str, Any]


def schema_of(report: type) -> Schema:
    """Schema of a report, draft 2020-12; all keys are required, and no others are allowed."""
    definitions: Schema = {"number": NUMBER}
    root = _object(report, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": report.__name__, **root} | {
        "$defs": definitions
    }


def _object(kind: Any, definitions: Schema) -> Schema:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name.rstrip("_"): hints[field.name] for field in dataclasses.fields(kind)}
    return {
        "type": "object",
        "description": " ".join(kind.__doc__.split()),
        "properties": {name: _schema(hint, definitions) for name, hint in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def _schema(kind: Any, definitions: Schema) -> Schema:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        schema = _schema(arguments[0], definitions)
        for extra in arguments[1:]:
            schema = {**schema, **(extra if isinstance(extra, dict) else {"description": extra})}
        return schema
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(one, definitions) for one in arguments]}
    if origin is tuple and arguments[-1] is ...:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(one, definitions) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is Mapping:
        names, values = (_schema(one, definitions) for one in arguments)
        return {"type": "object", "propertyNames": names, "additionalProperties": values}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}  # which a class that contains itself would find
            definitions[name] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return {"enum": [str(member) for member in kind]}
    if kind is int:
        return {"type": "integer", "minimum": 0}  # all are counts, sizes or indices
    return {"$ref": "#/$defs/number"} if kind is float else dict(PLAIN[kind])


if __name__ == "__main__":
    print(json.dumps(schema_of(REPORTS[(sys.argv[1:] or ["validation"])[0]]), indent=2))
