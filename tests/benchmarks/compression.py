"""The gain of each step of a compression, at equal sizes, measured on the saved packages.

    python -m tests.benchmarks.compression WEIGHTS IMAGES [--sizes 1.2,1.0,0.85] [--task features]

Two of three photographs in IMAGES calibrate, every third tests. The figures are the SNR of the worst output and, of
features, of the pooled ones, against PyTorch in fp32.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from mobilevit_coreml import conversion
from mobilevit_coreml.compression import plan
from mobilevit_coreml.compression.calibrate import Statistics
from mobilevit_coreml.compression.formats import FLOAT, Format
from mobilevit_coreml.compression.quantize import Compensation, Encoded, encode
from mobilevit_coreml.compression.schemes import Budget, Palettize, Quantize, split
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.options import ConversionOptions


def encodings(compensates: bool, calibrates: bool) -> object:
    """A stand-in for `plan._encodings` without compensated rounding, or without calibrated lookup tables."""

    def encoded(
        weight: Tensor, format: Format, statistics: Statistics, compensation: Compensation
    ) -> list[Encoded | None]:
        if format.kind == FLOAT:
            return [None]
        importances = plan._importances(weight, format, statistics) if calibrates else [torch.ones_like(weight)]
        return [encode(weight, format, one, compensation if compensates else None) for one in importances]

    return encoded


@contextmanager
def steps(encoding: object, shifts: bool) -> Iterator[None]:
    """The search with some of its steps only."""
    without: AbstractContextManager[object] = mock.patch.object(plan, "_bias_shifts", return_value={})
    with mock.patch.object(plan, "_encodings", encoding), nullcontext() if shifts else without:
        yield


ROWS = (
    ("a format for each layer, rounded to nearest", encodings(False, False), False),
    ("… with lookup tables by the calibration", encodings(False, True), False),
    ("… with error-compensated rounding, plain lookup tables", encodings(True, False), False),
    ("… both", encodings(True, True), False),
    ("… and biases for the mean output: what `convert` does", encodings(True, True), True),
)
UNIFORM = (Quantize("int8"), Palettize(8), Palettize(6), Palettize(4))


def line(name: str, made: Conversion, seconds: float) -> str:
    """A row of the table."""
    signals = next(iter(made.quality.values())).signals
    figures = " ".join(f"{signal} {entry.snr:.1f} dB" for signal, entry in signals.items())
    return f"| {name} | {made.bytes / 1e6:.3f} MB | {figures} | {seconds:.0f} s |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("images", type=Path)
    parser.add_argument("--sizes", default="1.2,1.0,0.85")
    parser.add_argument("--task", default="features")
    values = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:

        def show(name: str, compression: Palettize | Quantize | Budget) -> None:
            start = time.perf_counter()
            options = ConversionOptions(task=values.task, attention="packed", compression=compression)
            made = convert(values.weights, options=options, output=directory, force=True, images=values.images)
            print(line(name, made, time.perf_counter() - start), flush=True)

        for scheme in UNIFORM:
            show(f"{scheme.format} for every layer, calibrated", scheme)
            with mock.patch.object(conversion, "split", lambda images: ([], split(images)[1])):
                show(f"{scheme.format} for every layer", scheme)
        for size in filter(None, values.sizes.split(",")):
            for name, encoding, shifts in ROWS:
                with steps(encoding, shifts):
                    show(f"{size} MB: {name}", Budget(max_size=round(float(size) * 1e6)))


if __name__ == "__main__":
    main()
