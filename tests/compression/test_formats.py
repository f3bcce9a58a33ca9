"""Formats: names, targets, and the bytes they are taken for against those of saved packages."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from mobilevit_coreml.compression.formats import FLOAT, FP16, INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.quantize import encode
from mobilevit_coreml.package.files import size_of
from tests.compression.packages import FORMATS_BY_TARGET, SHAPES, layer_weight, two_layers

LISTED = {
    FP16: ("fp16", "iOS15"),
    Format(PALETTE, 8): ("8bit", "iOS16"),
    Format(PALETTE, 6): ("6bit", "iOS16"),
    Format(PALETTE, 4): ("4bit", "iOS16"),
    Format(PALETTE, 3): ("3bit", "iOS18"),
    Format(PALETTE, 2): ("2bit", "iOS16"),
    Format(PALETTE, 1): ("1bit", "iOS16"),
    Format(PALETTE, 4, group_size=16): ("4bit_g16", "iOS18"),
    Format(INTEGER, 8): ("int8", "iOS16"),
    Format(INTEGER, 4): ("int4", "iOS18"),
    Format(SPARSE, zeros=0.5): ("sparse50", "iOS16"),
    Format(SPARSE, zeros=0.125): ("sparse12.5", "iOS16"),
}


@pytest.mark.parametrize("format", LISTED, ids=str)
def test_names_and_targets(format: Format) -> None:
    assert (str(format), format.target) == LISTED[format]


def test_names_tell_formats_apart() -> None:
    assert len({str(format) for format, _ in FORMATS_BY_TARGET}) == len({format for format, _ in FORMATS_BY_TARGET})


@cache
def in_half_precision(target: str, directory: Path) -> int:
    return size_of(two_layers({}, target, directory / f"{target}.mlpackage"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.mark.parametrize(("format", "target"), FORMATS_BY_TARGET, ids=str)
def test_bytes_are_those_a_package_saves(format: Format, target: str, directory: Path) -> None:
    encodings = {name: encode(layer_weight(name), format, torch.ones(shape), None) for name, shape in SHAPES.items()}
    made = size_of(two_layers(encodings, target, directory / f"{target}_{format}.mlpackage"))
    saved = in_half_precision(target, directory) - made
    expected = sum(FP16.stored_bytes(shape, "fp16") - format.stored_bytes(shape, "fp16") for shape in SHAPES.values())
    # Names in the program differ by some bytes; so does a table of few values, which goes there, too.
    few = format.kind == PALETTE and format.bits <= 3 and format.group_size is None
    assert abs(saved - expected) <= (80 if few else 40) * len(SHAPES)
    assert saved > 1500  # far from the tolerance


@pytest.mark.parametrize("format", [format for format in LISTED if format.kind != FLOAT], ids=str)
@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (16, 33), (48, 96, 1, 1)])
def test_bytes_are_no_less_than_the_bits(format: Format, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    bits = (1 - format.zeros) * 16 + 1 if format.kind == SPARSE else format.bits
    tables = {
        INTEGER: 2 * shape[0],
        SPARSE: 0,
        PALETTE: 2 * 2**format.bits * shape[0] // (format.group_size or shape[0]),
    }
    least = size * bits / 8 + tables[format.kind]
    # three blobs at most, each with a header and up to 63 bytes before the next
    assert least <= format.stored_bytes(shape, "fp16") <= least + 130 + 3 * 128
