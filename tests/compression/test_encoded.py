"""Decoding of each kind, entry by entry."""

import numpy as np
import pytest

from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.quantize import Encoded

SHAPES = [(6, 5), (6, 4, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_multiples_of_their_channels_scale(bits: int, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    limit = 2 ** (bits - 1) - 1
    codes = generator.integers(-limit, limit + 1, shape).astype(np.int8)
    scales = generator.uniform(0.01, 2, shape[0]).astype(np.float16).astype(np.float32)
    decoded = Encoded(Format(INTEGER, bits), codes, scales).decode()
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    for place, code in np.ndenumerate(codes):
        assert decoded[place] == np.float32(code) * scales[place[0]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [None, 1, 2, 3, 6])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_indices_are_looked_up_in_their_groups_table(bits: int, group_size: int | None, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(bits)
    channels = group_size or shape[0]
    codes = generator.integers(0, 2**bits, shape).astype(np.uint8)
    codes.flat[0] = 2**bits - 1
    tables = generator.standard_normal((shape[0] // channels, 2**bits)).astype(np.float32)
    decoded = Encoded(Format(PALETTE, bits, group_size), codes, tables).decode()
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    for place, code in np.ndenumerate(codes):
        assert decoded[place] == tables[place[0] // channels, code]


@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_values_are_themselves(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float16).astype(np.float32)
    values[values < 0] = 0
    decoded = Encoded(Format(SPARSE, zeros=0.5), values, np.empty(0, np.float32)).decode()
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values)
