"""How the operations of a program are named after the PyTorch modules they come from."""

import functools
from collections.abc import Collection


def without_backbone(path: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of a module's path without the `backbone` they nearly all begin with."""
    return path[1:] if path[:1] == ("backbone",) else path


@functools.cache
def operation_name(path: str) -> str:
    """What the operation of a module is called that has just one; `path` is the module's in the model."""
    return "_".join(without_backbone(tuple(path.split("."))))


def module_of(name: str, paths: Collection[str]) -> str:
    """The path of the module an operation is named after, the longest that fits; "" where none does."""
    stems = {path: operation_name(path) for path in paths}
    matches = [path for path, stem in stems.items() if stem and f"{name}_".startswith(f"{stem}_")]
    return max(matches, key=lambda path: len(stems[path]), default="")
