"""Names of a program's operations, made from the paths of the PyTorch modules they come from."""

import functools
from collections.abc import Collection


def without_backbone(path: tuple[str, ...]) -> tuple[str, ...]:
    """Parts of a module's path without a leading `backbone`."""
    return path[1:] if path[:1] == ("backbone",) else path


@functools.cache
def operation_name(path: str) -> str:
    """Name of the operation of a module that has one operation; `path` is the module's path in the model."""
    return "_".join(without_backbone(tuple(path.split("."))))


def belongs_to(name: str, path: str) -> bool:
    """True if an operation is named after the module at `path` or a submodule of it."""
    stem = operation_name(path)
    return bool(stem) and f"{name}_".startswith(f"{stem}_")


def module_of(name: str, paths: Collection[str]) -> str:
    """The longest module path an operation is named after, or ""."""
    return max((path for path in paths if belongs_to(name, path)), key=lambda p: len(operation_name(p)), default="")
