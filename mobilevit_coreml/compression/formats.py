"""How a layer's weight can be stored: in half precision, whole or sparse, as integers, or as indices into tables."""

import dataclasses
import math

FLOAT, INTEGER, PALETTE, SPARSE = "float", "integer", "palette", "sparse"
PALETTE_BITS = (8, 6, 4, 3, 2, 1)
INTEGER_BITS = (8, 4)
BLOB_ALIGNMENT = 64  # bytes: each blob of weight.bin has a header of that size, and starts at a multiple of it
SMALLEST_BLOB = 10  # values: fewer stand in the program itself
ENTRY_BYTES = 130  # what a second and a third blob add to the program, about


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to store a weight (out, in, ...).

    "float" is half precision. "integer" is `bits` wide, symmetric, with a scale for each output channel.
    "palette" is indices of `bits` into a table of values, one for the whole weight, or one for each
    `group_size` output channels. "sparse" is half precision with the share `zeros` of the values left out.
    """

    kind: str
    bits: int = 16
    group_size: int | None = None
    zeros: float = 0.0

    def __str__(self) -> str:
        if self.kind == PALETTE:
            return f"{self.bits}bit" + ("" if self.group_size is None else f"_g{self.group_size}")
        return {FLOAT: "fp16", INTEGER: f"int{self.bits}", SPARSE: f"sparse{self.zeros * 100:g}"}[self.kind]

    @property
    def target(self) -> str:
        """The least deployment target that has it."""
        if self.kind == FLOAT:
            return "iOS15"
        if self.group_size is not None or (self.kind, self.bits) in ((PALETTE, 3), (INTEGER, 4)):
            return "iOS18"
        return "iOS16"

    def fits(self, channels: int) -> bool:
        """Whether the group size divides the output channels."""
        return self.group_size is None or channels % self.group_size == 0

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a package that a weight of this shape takes, nearly."""
        size = math.prod(shape)
        if self.kind == FLOAT:
            return _blob(2 * size)
        if self.kind == SPARSE:
            return _blob(2 * (size - round(size * self.zeros))) + _blob(math.ceil(size / 8)) + ENTRY_BYTES
        values = 2 * (shape[0] if self.kind == INTEGER else 2**self.bits * (shape[0] // (self.group_size or shape[0])))
        stored = values if values < 2 * SMALLEST_BLOB else _blob(values)
        return _blob(math.ceil(size * self.bits / 8)) + stored + ENTRY_BYTES


def _blob(size: int) -> int:
    return BLOB_ALIGNMENT + math.ceil(size / BLOB_ALIGNMENT) * BLOB_ALIGNMENT


FP16 = Format(FLOAT)
