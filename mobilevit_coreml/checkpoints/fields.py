"""Fields of the files beside weights: each is read, without effect on inference, or refused by its name."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.preprocessing import MAX_SCALE, MAX_SIDE, is_side


@dataclass(frozen=True)
class Fields:
    """The fields of one kind of file.

    `read` are used, by their reader; names in a row. `unused` are without effect on inference: names, with `*` for any
    text, by the reason. `fixed` have values that a package has anyway; with others they are refused.
    """

    read: str
    unused: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def reads(self, name: str) -> bool:
        """True if a field is read."""
        return name in self.read.split()

    def knows(self, name: str) -> bool:
        """True if a field is read, without effect, or of a fixed value."""
        patterns = (pattern for names in self.unused.values() for pattern in names.split())
        return self.reads(name) or name in self.fixed or any(fnmatch.fnmatchcase(name, one) for one in patterns)

    def select(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The fields of a file that are read; null is as good as none.

        Raises CheckpointError, naming `source`, for a field that may change the result and is not read.
        """
        for name, value in values.items():
            allowed = self.fixed.get(name)
            if value is None or (allowed is None and self.knows(name)):
                continue
            if allowed is None:
                raise CheckpointError(
                    f"{source}: {name}: expected a field that is known, got {value!r:.80}; remove it if inference does "
                    "not depend on it"
                )
            if value not in allowed:
                expected = " or ".join(repr(one) for one in allowed) or "none"
                raise CheckpointError(
                    f"{source}: {name}: expected {expected}, got {value!r:.80}; other values cannot be converted"
                )
        return {name: value for name, value in values.items() if self.reads(name) and value is not None}


def mapping_of(value: object, name: str, source: str) -> Mapping[Any, Any]:
    """An object of JSON; raises CheckpointError for anything else."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{source}: {name}: expected names and values, got {value!r:.60}; check the file")
    return value


def number_of(value: object, name: str, source: str, low: float, high: float, usual: str) -> float:
    """A number from `low` to `high`; raises CheckpointError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CheckpointError(f"{source}: {name}: expected a number, {low:g} to {high:g}, got {value!r:.60}; {usual}")
    return value


def sides_of(value: object, name: str, source: str) -> tuple[int, int]:
    """(height, width) in pixels of one number, or two; raises CheckpointError for anything else."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or not all(is_side(side) for side in sides):
        raise CheckpointError(
            f"{source}: {name}: expected pixels, 1 to {MAX_SIDE}, got {value!r:.60}; 288 and 256 are usual"
        )
    return sides


def numbers_of(value: object, name: str, source: str) -> tuple[float, ...]:
    """A list of numbers, or one; raises CheckpointError for anything else."""
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    kinds = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    if not values or not kinds or not all(abs(one) <= MAX_SCALE for one in values):
        raise CheckpointError(
            f"{source}: {name}: expected a number for each channel, got {value!r:.60}; check the file"
        )
    return tuple(float(one) for one in values)
