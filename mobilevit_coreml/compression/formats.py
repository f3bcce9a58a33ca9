"""Storage formats of a layer's weight: uncompressed, sparse, integers, or indices into lookup tables (LUT)."""

import dataclasses
import math

FLOAT, INTEGER, PALETTE, SPARSE = "float", "integer", "palette", "sparse"
PALETTE_BITS = (8, 6, 4, 3, 2, 1)
INTEGER_BITS = (8, 4)
BLOB_ALIGNMENT = 64  # bytes: each blob of weight.bin has a header of that size, and starts at a multiple of it
SMALLEST_BLOB = 10  # values: fewer stand in the program itself
ENTRY_BYTES = {INTEGER: 154, PALETTE: 116, SPARSE: 125}  # of the program for a second and a third blob, to some tens
SMALL_ENTRY_BYTES = 85  # with a lookup table that stands in the program itself


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to store a weight (out, in, ...).

    "float" is uncompressed, in the package's precision. "integer" is `bits` wide, symmetric, with a scale for each
    output channel. "palette" is indices of `bits` into a lookup table (LUT), one for the whole weight, or one for
    each `group_size` output channels. "sparse" leaves out the share `zeros` of the values. Scales, lookup tables and
    sparse values have the package's precision.
    """

    kind: str
    bits: int = 16
    group_size: int | None = None
    zeros: float = 0.0

    def __str__(self) -> str:
        if self.kind == PALETTE:
            return f"{self.bits}bit" + ("" if self.group_size is None else f"_g{self.group_size}")
        return {FLOAT: f"fp{self.bits}", INTEGER: f"int{self.bits}", SPARSE: f"sparse{self.zeros * 100:g}"}[self.kind]

    @property
    def target(self) -> str:
        """The least deployment target that has it."""
        if self.kind == FLOAT:
            return "iOS15"
        if self.group_size is not None or (self.kind, self.bits) in ((PALETTE, 3), (INTEGER, 4)):
            return "iOS18"
        return "iOS16"

    def stored_bytes(self, shape: tuple[int, ...], precision: str) -> int:
        """Bytes that a weight of this shape takes in a package of a precision, fp16 or fp32, to some tens."""
        size, width = math.prod(shape), UNCOMPRESSED[precision].bits // 8
        if self.kind == FLOAT:
            return blob_bytes(width * size)
        if self.kind == SPARSE:
            values, codes = size - round(size * self.zeros), math.ceil(size / 8)
        else:
            values = shape[0] if self.kind == INTEGER else 2**self.bits * (shape[0] // (self.group_size or shape[0]))
            codes = math.ceil(size * self.bits / 8)
        if values < SMALLEST_BLOB:
            return blob_bytes(codes) + SMALL_ENTRY_BYTES
        return blob_bytes(codes) + blob_bytes(width * values) + ENTRY_BYTES[self.kind]


def blob_bytes(size: int) -> int:
    """Bytes of weight.bin that a constant of so many takes."""
    return BLOB_ALIGNMENT + math.ceil(size / BLOB_ALIGNMENT) * BLOB_ALIGNMENT


FP16, FP32 = Format(FLOAT, 16), Format(FLOAT, 32)
UNCOMPRESSED = {"fp16": FP16, "fp32": FP32}  # by the package's precision
