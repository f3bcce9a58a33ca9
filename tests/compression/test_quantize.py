"""Lookup tables against scikit-learn's, codes against brute force, error-compensated rounding against nearest."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.quantize import Encoded, compensation_of, encode, weighted_kmeans
from tests.compression.packages import FORMATS

PALETTES = [format for format in FORMATS if format.kind == PALETTE]
INTEGERS = [format for format in FORMATS if format.kind == INTEGER]
SPARSES = [format for format in FORMATS if format.kind == SPARSE]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(size: int, seed: int = 0) -> Tensor:
    """As weights of a layer whose channels differ in size."""
    return normal(size, seed=seed) * torch.exp(0.5 * normal(size, seed=seed + 1))


def importances(kind: str, size: int) -> Tensor:
    if kind == "alike":
        return torch.ones(size)
    return torch.exp(normal(size, seed=9)) if kind == "spread" else (normal(size, seed=9) > 0).float()


def inertia(values: Tensor, weights: Tensor, centres: Tensor) -> float:
    distances = (values.double()[:, None] - centres.double()).abs().amin(1)
    return float((weights.double() * distances**2).sum())


def against_the_best_of_scikit_learn(values: Tensor, weights: Tensor, count: int, restarts: int) -> float:
    """Our inertia as a multiple of theirs."""
    theirs = KMeans(count, n_init=restarts, random_state=0).fit(values[:, None].numpy(), sample_weight=weights.numpy())
    best = inertia(values, weights, torch.from_numpy(theirs.cluster_centers_[:, 0]))
    return inertia(values, weights, weighted_kmeans(values, weights, count)) / best


@pytest.mark.parametrize("kind", ["alike", "spread", "half of them none"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_lookup_tables_of_few_values_are_as_good_as_scikit_learns(count: int, kind: str) -> None:
    values = heavy_tailed(4096)
    assert against_the_best_of_scikit_learn(values, importances(kind, 4096), count, 5) < 1.08  # neither finds the best


@pytest.mark.parametrize(("count", "most"), [(64, 1.15), (256, 1.5)])
def test_lookup_tables_of_many_values_are_as_good_as_scikit_learns(count: int, most: float) -> None:
    values = heavy_tailed(4096)
    assert against_the_best_of_scikit_learn(values, importances("spread", 4096), count, 1) < most


@pytest.mark.parametrize("kind", ["alike", "spread", "half of them none"])
def test_lookup_tables_ascend_within_the_values(kind: str) -> None:
    values = heavy_tailed(1000)
    centres = weighted_kmeans(values, importances(kind, 1000), 16)
    assert (centres.shape, centres.dtype) == ((16,), torch.float64)
    assert bool((centres.diff() >= 0).all())
    assert values.min() - 1e-6 <= centres.min() <= centres.max() <= values.max() + 1e-6


@pytest.mark.parametrize("count", [1, 2])
def test_values_that_are_few_are_the_lookup_table(count: int) -> None:
    values = torch.tensor([-0.5, 0.25])[normal(400).gt(0).long() % count]
    for entries in (2, 4, 16):
        assert inertia(values, torch.ones(400), weighted_kmeans(values, torch.ones(400), entries)) < 1e-20


def test_one_centre_is_the_weighted_mean() -> None:
    values, weights = normal(300), importances("spread", 300)
    expected = np.average(values.double().numpy(), weights=weights.double().numpy())
    np.testing.assert_allclose(weighted_kmeans(values, weights, 1).numpy(), [expected], rtol=1e-9)


@pytest.mark.parametrize("format", PALETTES, ids=str)
def test_without_compensation_each_value_takes_the_nearest_of_its_lookup_table(format: Format) -> None:
    weight = normal(16, 6, 3, 1)
    encoded = encode(weight, format, torch.ones_like(weight), None)
    channels = format.group_size or 16
    assert encoded.values.shape == (16 // channels, 2**format.bits)
    assert encoded.codes.shape == weight.shape
    assert encoded.codes.dtype == np.uint8
    decoded = encoded.decode()
    for place, value in np.ndenumerate(weight.numpy()):
        table = encoded.values[place[0] // channels]
        assert abs(decoded[place] - value) <= np.abs(table - value).min() * (1 + 1e-6)


@pytest.mark.parametrize("format", INTEGERS, ids=str)
def test_integers_use_all_their_range_and_are_nearest(format: Format) -> None:
    weight = normal(12, 40) * torch.logspace(-2, 1, 12)[:, None]  # channels of very different sizes
    weight[3] = 0
    encoded = encode(weight, format, torch.ones_like(weight), None)
    limit = {8: 127, 4: 7}[format.bits]
    largest = np.abs(weight.numpy()).max(1)
    nonzero = largest > 0
    np.testing.assert_allclose(encoded.values[nonzero], largest[nonzero] / limit, rtol=2**-11)
    assert encoded.codes.dtype == np.int8
    assert np.abs(encoded.codes).max(1).tolist() == [limit if some else 0 for some in nonzero]
    np.testing.assert_array_equal(encoded.decode()[3], 0)
    grid = np.arange(-limit, limit + 1)[:, None, None] * encoded.values[:, None].astype(np.float64)
    nearest = np.abs(grid - weight.double().numpy()).min(0)
    np.testing.assert_allclose(np.abs(encoded.decode() - weight.numpy()), nearest, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("zeros", [0.1, 0.333, 0.5, 0.9])
@pytest.mark.parametrize("compensated", [False, True])
def test_a_sparse_weight_has_its_share_of_zeros_exactly(zeros: float, compensated: bool) -> None:
    weight, importance = normal(10, 7, 3), torch.exp(normal(10, 7, 3, seed=1))
    compensation = compensation_of(correlated(21)) if compensated else None
    encoded = encode(weight, Format(SPARSE, zeros=zeros), importance, compensation)
    assert int((encoded.codes == 0).sum()) == round(210 * zeros)
    kept = encoded.codes != 0
    score = (weight.abs() * importance).numpy()
    assert score[kept].min() >= score[~kept].max()
    if not compensated:
        np.testing.assert_array_equal(encoded.codes[kept], weight.half().float().numpy()[kept])


def test_importance_shapes_the_lookup_table() -> None:
    weight = normal(8, 64)
    importance = torch.where(weight > 1, 100.0, 1.0)
    format = Format(PALETTE, 3)
    errors = {
        name: (torch.from_numpy(encode(weight, format, by, None).decode()) - weight)[weight > 1].square().mean()
        for name, by in (("fitted", importance), ("alike", torch.ones_like(weight)))
    }
    assert errors["fitted"] < 0.5 * errors["alike"]


def test_groups_have_lookup_tables_of_their_own() -> None:
    weight = normal(16, 64) * torch.tensor([1.0, 8.0]).repeat_interleave(8)[:, None]
    format = Format(PALETTE, 3, group_size=8)
    grouped = encode(weight, format, torch.ones_like(weight), None)
    for group in range(2):
        rows = slice(8 * group, 8 * group + 8)
        alone = encode(weight[rows], Format(PALETTE, 3), torch.ones(8, 64), None)
        np.testing.assert_array_equal(grouped.values[group], alone.values[0])
        np.testing.assert_array_equal(grouped.codes[rows], alone.codes)


def correlated(size: int) -> Tensor:
    """Moments of inputs that go together, with a mean, as those after an activation."""
    mixed = normal(4 * size, size // 4 + 1, seed=5) @ normal(size // 4 + 1, size, seed=6)
    inputs = mixed + 0.3 * normal(4 * size, size, seed=7) + 0.5
    return inputs.T @ inputs / len(inputs)


def output_error(encoded: Encoded, weight: Tensor, moments: Tensor) -> float:
    """tr(D H D^T): the mean square of what an error of the weight does to the outputs, summed."""
    error = (torch.from_numpy(encoded.decode()) - weight).flatten(1).double()
    return float(torch.einsum("ok,kl,ol->", error, moments.double(), error))


# More columns than one block, and a number that no block divides.
@pytest.mark.parametrize("format", [format for format in FORMATS if format.bits < 8 or format.kind == INTEGER], ids=str)
def test_compensated_rounding_errs_less_where_inputs_correlate(format: Format) -> None:
    weight = normal(16, 50, 3, 1)
    moments = correlated(150)
    alike = torch.ones_like(weight)
    nearest, compensated = encode(weight, format, alike, None), encode(weight, format, alike, compensation_of(moments))
    if format.kind != SPARSE:
        np.testing.assert_array_equal(nearest.values, compensated.values)
    ratio = output_error(compensated, weight, moments) / output_error(nearest, weight, moments)
    assert ratio < (0.7 if format.bits == 1 else 0.5)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_compensated_rounding_is_nearest_where_inputs_do_not_correlate(format: Format) -> None:
    weight = normal(16, 50, 3, 1)
    moments = torch.diag(torch.exp(normal(150, seed=3)))
    alike = torch.ones_like(weight)
    np.testing.assert_array_equal(
        encode(weight, format, alike, compensation_of(moments)).codes, encode(weight, format, alike, None).codes
    )


def test_inputs_that_are_always_zero() -> None:
    weight, moments = normal(16, 40), correlated(40)
    moments[:5], moments[:, :5] = 0, 0
    encoded = encode(weight, Format(PALETTE, 4), torch.ones_like(weight), compensation_of(moments))
    assert np.isfinite(encoded.decode()).all()
    assert output_error(encoded, weight, moments) < output_error(
        encode(weight, Format(PALETTE, 4), torch.ones_like(weight), None), weight, moments
    )
    silent = encode(weight, Format(PALETTE, 4), torch.zeros_like(weight), compensation_of(torch.zeros(40, 40)))
    assert np.isfinite(silent.decode()).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_real_numbers_are_exact_in_fp16_and_the_same_each_time(format: Format) -> None:
    weight, importance, moments = normal(16, 30) / 3, torch.exp(normal(16, 30, seed=1)), correlated(30)
    encoded = encode(weight, format, importance, compensation_of(moments))
    for array in (encoded.values, encoded.codes) if format.kind == SPARSE else (encoded.values,):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, array.astype(np.float16))
    torch.manual_seed(123)
    again = encode(weight, format, importance, compensation_of(moments))
    np.testing.assert_array_equal(again.codes, encoded.codes)
    np.testing.assert_array_equal(again.values, encoded.values)


def test_arguments_are_not_changed() -> None:
    weight, importance, moments = normal(16, 30), torch.ones(16, 30), correlated(30)
    before = [tensor.clone() for tensor in (weight, importance, moments)]
    for format in FORMATS:
        encode(weight, format, importance, compensation_of(moments))
    for tensor, copy in zip((weight, importance, moments), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("count", [4, 16, 64])
def test_a_weight_that_has_a_lookup_table_already_keeps_its_values(count: int) -> None:
    table = heavy_tailed(count, seed=4).half().float()
    weight = table[torch.randint(count, (32, 40), generator=torch.Generator().manual_seed(0))]
    bits = {4: 2, 16: 4, 64: 6}[count]
    encoded = encode(weight, Format(PALETTE, bits), torch.ones_like(weight), None)
    np.testing.assert_array_equal(encoded.decode(), weight.numpy())
