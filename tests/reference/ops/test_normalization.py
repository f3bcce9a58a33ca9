"""Normalizations against numpy in float64, written from the specification's formulas."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

# Statistics of at most some hundred float32 values, against float64.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def values(*shape: int) -> Array:
    """Off centre and of another scale than one, so that a forgotten mean or variance shows."""
    return (3 + 2 * np.random.default_rng(sum(shape)).standard_normal(shape)).astype(np.float32)


def affine_forms(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Neither gamma nor beta, gamma, both: of beta alone coremltools' layer_norm knows nothing."""
    gamma, beta = values(*shape), -values(*shape)[::-1].copy()
    return [{}, {"gamma": gamma}, {"gamma": gamma, "beta": beta}]


def channel_forms() -> list[dict[str, Any]]:
    return [*affine_forms((3,)), {"beta": values(3)}]


def channelwise(x: Array, values: Array) -> Array:
    return values.reshape(-1, *[1] * (x.ndim - 2))


def affine(normed: Array, forms: dict[str, Any], shape: tuple[int, ...]) -> Array:
    gamma = forms["gamma"].reshape(shape) if "gamma" in forms else 1
    return normed * gamma + (forms["beta"].reshape(shape) if "beta" in forms else 0)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_batch_norm(tmp_path: Path, shape: tuple[int, ...], target: str) -> None:
    x, mean, variance = values(*shape), values(3), np.abs(values(3)) + 0.1
    cases = [{**forms, **more} for forms in channel_forms() for more in ({}, {"epsilon": 0.25})]

    def build(x: Any) -> tuple[Any, ...]:
        return tuple(mb.batch_norm(x=x, mean=mean, variance=variance, **case) for case in cases)

    expected = {}
    for case in cases:
        scale = np.sqrt(np.float64(1) * variance + case.get("epsilon", 1e-5))
        normed = (x - channelwise(x, mean)) / channelwise(x, scale)
        expected[str(case)] = affine(normed, case, (3, *[1] * (x.ndim - 2)))
    assert_outputs(run_op(build, {"x": x}, tmp_path, target), expected, **TOLERANCE)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 3, 1, 1)])
def test_instance_norm(tmp_path: Path, shape: tuple[int, ...], target: str) -> None:
    x = values(*shape)
    cases = [{**forms, **more} for forms in channel_forms() for more in ({}, {"epsilon": 0.25})]

    def build(x: Any) -> tuple[Any, ...]:
        return tuple(mb.instance_norm(x=x, **case) for case in cases)

    expected = {}
    for case in cases:
        wide, axes = x.astype(np.float64), tuple(range(2, x.ndim))
        scale = np.sqrt(wide.var(axes, keepdims=True) + case.get("epsilon", 1e-5))
        normed = (wide - wide.mean(axes, keepdims=True)) / scale
        expected[str(case)] = affine(normed, case, (3, *[1] * (x.ndim - 2)))
    assert_outputs(run_op(build, {"x": x}, tmp_path, target), expected, **TOLERANCE)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("axes", [[-1], [3], [1], [-3], [2, 3], [3, 2], [1, 2], [-1, -3], [0, 2], [0, 1, 2, 3]])
def test_layer_norm(tmp_path: Path, axes: list[int], target: str) -> None:
    x = values(2, 3, 4, 5)
    over = tuple(sorted(axis % 4 for axis in axes))
    cases = [
        {"axes": axes, **forms, **more}
        for forms in affine_forms(tuple(x.shape[axis] for axis in over))
        for more in ({}, {"epsilon": 0.25})
    ]

    def build(x: Any) -> tuple[Any, ...]:
        return tuple(mb.layer_norm(x=x, **case) for case in cases)

    expected = {}
    for case in cases:
        wide = x.astype(np.float64)
        scale = np.sqrt(wide.var(over, keepdims=True) + case.get("epsilon", 1e-5))
        normed = (wide - wide.mean(over, keepdims=True)) / scale
        shape = tuple(size if axis in over else 1 for axis, size in enumerate(x.shape))
        expected[str(case)] = affine(normed, case, shape)
    assert_outputs(run_op(build, {"x": x}, tmp_path, target), expected, **TOLERANCE)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_l2_norm(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = values(*shape)

    def build(x: Any) -> tuple[Any, ...]:
        return mb.l2_norm(x=x), mb.l2_norm(x=x, epsilon=50.0)

    energy = (x.astype(np.float64) ** 2).sum((-3, -2, -1), keepdims=True)
    expected = {str(epsilon): x / np.sqrt(energy + epsilon) for epsilon in (1e-6, 50.0)}
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected, **TOLERANCE)


def test_l2_norm_of_zeros_is_zero(tmp_path: Path) -> None:
    zeros = np.zeros((1, 2, 3), np.float32)
    assert_outputs(run_op(lambda x: mb.l2_norm(x=x), {"x": zeros}, tmp_path), {"zeros": zeros})


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 4)])
def test_local_response_norm(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = values(*shape)
    cases: list[dict[str, Any]] = [
        {"size": size, **more} for size in (1, 2, 3, 4, 5) for more in ({}, {"alpha": 0.5, "beta": 1.5, "k": 2.0})
    ]

    def build(x: Any) -> tuple[Any, ...]:
        return tuple(mb.local_response_norm(x=x, **case) for case in cases)

    expected = {}
    axis = len(shape) - 3  # of rank 3 the first, which the specification does not say, but coremltools tests
    square = np.moveaxis(x.astype(np.float64) ** 2, axis, 0)
    for case in cases:
        size = case["size"]
        # of an even number of neighbours the one more is before, as in torch; the specification does not say
        energy = [square[max(c - size // 2, 0) : c + (size - 1) // 2 + 1].sum(0) for c in range(shape[axis])]
        scale = case.get("k", 1.0) + case.get("alpha", 1e-4) / size * np.stack(energy, axis)
        expected[str(case)] = x / scale ** case.get("beta", 0.75)
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected, **TOLERANCE)


def test_local_response_norm_as_coremltools_tests_it_on_core_ml(tmp_path: Path) -> None:
    x = np.array([[[1.0, -7.0], [5.0, -6.0], [-3.0, -5.0]]], np.float32)
    answers = {
        2: [[[0.99996257, -6.98716545], [4.99531746, -5.99191284], [-2.99898791, -4.99531746]]],
        3: [[[0.99997497, -6.99143696], [4.99687672, -5.99460602], [-2.99932504, -4.99687672]]],
    }
    outputs = run_op(lambda x: tuple(mb.local_response_norm(x=x, size=size) for size in answers), {"x": x}, tmp_path)
    assert_outputs(outputs, {str(size): np.array(answer) for size, answer in answers.items()}, rtol=1e-6)
