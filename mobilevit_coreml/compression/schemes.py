"""Requests for compression, one format for all weights that bear it or a budget, and the images that it uses."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mobilevit_coreml.compression.formats import INTEGER, INTEGER_BITS, PALETTE, PALETTE_BITS, SPARSE, Format
from mobilevit_coreml.errors import ConversionError, check_choice

MAX_PACKAGE_BYTES = 10**9
MAX_SNR_DB = 200
CALIBRATION_IMAGES = 24  # at most
TEST_IMAGES = 24  # at most


@dataclasses.dataclass(frozen=True)
class Palettize:
    """Weights as indices of `bits` (8, 6, 4, 3, 2 or 1) into lookup tables.

    One table a weight, or with `group_size` one for each so many output channels.
    """

    bits: int
    group_size: int | None = None

    def __post_init__(self) -> None:
        check_choice("palettize", self.bits, PALETTE_BITS)
        if self.group_size is not None and self.group_size < 1:
            raise ConversionError(f"group_size: expected at least 1 channel, got {self.group_size}; leave it out")

    @property
    def format(self) -> Format:
        """As compression encodes it."""
        return Format(PALETTE, self.bits, self.group_size)


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Weights as integers, "int8" or "int4", symmetric, with a scale for each output channel."""

    dtype: str

    def __post_init__(self) -> None:
        check_choice("quantize", self.dtype, [f"int{bits}" for bits in INTEGER_BITS])

    @property
    def format(self) -> Format:
        """As compression encodes it."""
        return Format(INTEGER, int(self.dtype.removeprefix("int")))


@dataclasses.dataclass(frozen=True)
class Prune:
    """Weights with this share of them zero, the least important ones; 0 to 1."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConversionError(
                f"prune: expected a share between 0 and 1, got {self.share:g}; 0.5 halves the weights"
            )

    @property
    def format(self) -> Format:
        """As compression encodes it."""
        return Format(SPARSE, zeros=self.share)


@dataclasses.dataclass(frozen=True)
class Budget:
    """A format for each layer, chosen for one of three: a size in bytes, or a quality on images not calibrated with.

    `min_snr` is in dB, of the worst output; `min_agreement` a share, of the images with the same first class or of
    the pixels with the same class.
    """

    max_size: int | None = None
    min_snr: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        limits = {"max_size": MAX_PACKAGE_BYTES, "min_snr": MAX_SNR_DB, "min_agreement": 1}
        given = {name: value for name in limits if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ConversionError(f"budget: expected one of {', '.join(limits)}, got {' and '.join(given) or 'none'}")
        for name, value in given.items():
            if not 0 < value <= limits[name]:
                raise ConversionError(
                    f"{name}: expected a number above 0, at most {limits[name]:g}, got {value:g}; change it"
                )

    def __str__(self) -> str:
        if self.max_size is not None:
            return f"{self.max_size / 1e6:g}MB"
        return f"{self.min_snr:g}dB" if self.min_snr is not None else f"agree{(self.min_agreement or 0) * 100:g}"


Compression = Palettize | Quantize | Prune | Budget


def split(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images to calibrate with, and every third, to test with; of many an even choice."""
    calibration = [path for index, path in enumerate(images) if index % 3 != 2]
    return _evenly(calibration, CALIBRATION_IMAGES), _evenly(images[2::3], TEST_IMAGES)


def _evenly(paths: Sequence[Path], count: int) -> list[Path]:
    return [paths[index * len(paths) // count] for index in range(count)] if len(paths) > count else list(paths)
