"""What each step of a compression brings, at equal sizes, measured on the saved packages.

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
from mobilevit_coreml.compression.encoded import Encoded
from mobilevit_coreml.compression.formats import Format
from mobilevit_coreml.compression.quantize import encode
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.conversion import Conversion, convert, split
from mobilevit_coreml.options import ConversionOptions


def nearest(weight: Tensor, form: Format, statistics: Statistics | None) -> tuple[Encoded, float | None]:
    """Plain tables and scales, each weight rounded on its own."""
    return with_noise(encode(weight, form, torch.ones_like(weight), None), weight, statistics)


def nearest_with_tables(weight: Tensor, form: Format, statistics: Statistics | None) -> tuple[Encoded, float | None]:
    """The better of the tables the calibration suggests, each weight rounded on its own."""
    assert statistics is not None
    options = [encode(weight, form, importance, None) for importance in plan._importances(weight, form, statistics)]
    pairs = [with_noise(option, weight, statistics) for option in options]
    return min(pairs, key=lambda pair: pair[1] or 0.0)


def compensated(weight: Tensor, form: Format, statistics: Statistics | None) -> tuple[Encoded, float | None]:
    """Plain tables, rounding that makes up for its errors."""
    assert statistics is not None
    return with_noise(encode(weight, form, torch.ones_like(weight), statistics.moments), weight, statistics)


def with_noise(encoded: Encoded, weight: Tensor, statistics: Statistics | None) -> tuple[Encoded, float | None]:
    """A weight and its noise at the output, where that can be told."""
    assert statistics is not None  # a search has them
    return encoded, statistics.noise(torch.from_numpy(encoded.decode()) - weight)


@contextmanager
def steps(encoding: object, shifts: bool) -> Iterator[None]:
    """The search with some of its steps only."""
    with mock.patch.object(plan, "_encoded", encoding):
        if shifts:
            yield
        else:
            with mock.patch.object(plan, "_bias_shifts", return_value={}):
                yield


ROWS = (
    ("a format for each layer, rounded to nearest", nearest, False),
    ("… with tables by the calibration", nearest_with_tables, False),
    ("… with compensated rounding, plain tables", compensated, False),
    ("… both", plan._encoded, False),
    ("… and biases for the mean output: what `convert` does", plan._encoded, True),
)


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
    base = {"task": values.task, "attention": "packed", "force": True}
    with tempfile.TemporaryDirectory() as directory:
        base["output"] = Path(directory)
        for name, options in (
            ("int8 for every layer", {"quantize": "int8"}),
            ("8-bit palettes for every layer", {"palettize": 8}),
            ("6-bit palettes for every layer", {"palettize": 6}),
            ("4-bit palettes for every layer", {"palettize": 4}),
        ):
            for how, calibrates in (("", False), (", calibrated", True)):
                start = time.perf_counter()
                tests_only: AbstractContextManager[object] = mock.patch.object(
                    conversion, "split", lambda pictures: ([], split(pictures)[1])
                )
                with nullcontext() if calibrates else tests_only:
                    made = convert(values.weights, **base, **options, images=values.images)
                print(line(name + how, made, time.perf_counter() - start), flush=True)
        for size in filter(None, values.sizes.split(",")):
            for name, encoding, shifts in ROWS:
                start = time.perf_counter()
                with steps(encoding, shifts):
                    made = convert(
                        values.weights,
                        options=ConversionOptions(compression=Budget(max_size=round(float(size) * 1e6))),
                        **base,
                        images=values.images,
                    )
                print(line(f"{size} MB: {name}", made, time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
