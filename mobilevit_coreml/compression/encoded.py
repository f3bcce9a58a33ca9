"""A weight as a package stores it."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilevit_coreml.compression.formats import INTEGER, SPARSE, Format


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A weight as it is stored in a format other than half precision.

    `codes` has the weight's shape: int8 integers, uint8 indices, or of a sparse weight the float32
    values themselves. `values` is float32: scales (out,), tables (groups, 2**bits), or nothing. All
    real numbers are exact in half precision.
    """

    format: Format
    codes: NDArray[Any]
    values: NDArray[np.float32]

    def decode(self) -> NDArray[np.float32]:
        """The weight's values; of integers a package in half precision rounds them to that once more."""
        if self.format.kind == SPARSE:
            return self.codes
        channels = self.codes.shape[0]
        if self.format.kind == INTEGER:
            return self.codes * self.values.reshape(channels, *[1] * (self.codes.ndim - 1))
        groups = len(self.values)
        indices = self.codes.reshape(groups, -1).astype(np.int64)
        return np.take_along_axis(self.values, indices, axis=1).reshape(self.codes.shape)
