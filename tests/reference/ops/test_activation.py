"""Activations against numpy in float64, written from the specification's formulas."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

# A few float32 operations and library functions in a row, against float64.
TOLERANCE = {"rtol": 2e-6, "atol": 1e-6}

# Far out on both sides, where formulas overflow; the kinks themselves; and between.
X = np.concatenate([[-100, -20, -0.0, 0, 1, 2, 6, 20, 100], np.linspace(-7, 7, 41)]).astype(np.float32)
WIDE = X.astype(np.float64)


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_activations_of_each_element(tmp_path: Path, target: str) -> None:
    cases: dict[str, tuple[Callable[..., Any], dict[str, Any], Array]] = {
        "relu": (mb.relu, {}, np.where(WIDE > 0, WIDE, 0)),
        "relu6": (mb.relu6, {}, np.minimum(np.maximum(WIDE, 0), 6)),
        "sigmoid": (mb.sigmoid, {}, sigmoid(WIDE)),
        "silu": (mb.silu, {}, WIDE * sigmoid(WIDE)),
        "softplus": (mb.softplus, {}, np.logaddexp(0, WIDE)),
        "softsign": (mb.softsign, {}, WIDE / (1 + np.abs(WIDE))),
        "gelu": (mb.gelu, {}, WIDE * (1 + erf(WIDE / np.sqrt(2))) / 2),
        "gelu EXACT": (mb.gelu, {"mode": "EXACT"}, WIDE * (1 + erf(WIDE / np.sqrt(2))) / 2),
        "gelu mode TANH_APPROXIMATION": (
            mb.gelu,
            {"mode": "TANH_APPROXIMATION"},
            WIDE / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (WIDE + 0.044715 * WIDE**3))),
        ),
        "gelu mode SIGMOID_APPROXIMATION": (mb.gelu, {"mode": "SIGMOID_APPROXIMATION"}, WIDE * sigmoid(1.702 * WIDE)),
        "leaky_relu alpha 0.25": (mb.leaky_relu, {"alpha": 0.25}, np.where(WIDE >= 0, WIDE, 0.25 * WIDE)),
        "leaky_relu alpha 1.5": (mb.leaky_relu, {"alpha": 1.5}, np.where(WIDE >= 0, WIDE, 1.5 * WIDE)),
        "elu alpha 1.0": (mb.elu, {"alpha": 1.0}, np.where(WIDE > 0, WIDE, np.exp(np.minimum(WIDE, 0)) - 1)),
        "elu alpha 0.5": (mb.elu, {"alpha": 0.5}, np.where(WIDE > 0, WIDE, 0.5 * (np.exp(np.minimum(WIDE, 0)) - 1))),
        "thresholded_relu alpha 2.0": (mb.thresholded_relu, {"alpha": 2.0}, np.where(WIDE >= 2, WIDE, 0)),
        "thresholded_relu alpha -1.5": (mb.thresholded_relu, {"alpha": -1.5}, np.where(WIDE >= -1.5, WIDE, 0)),
        "clamped_relu alpha 0.5, beta 6.0": (
            mb.clamped_relu,
            {"alpha": 0.5, "beta": 6.0},
            np.minimum(6, np.where(WIDE >= 0, WIDE, 0.5 * WIDE)),
        ),
        "clamped_relu alpha -0.5, beta 1.0": (
            mb.clamped_relu,
            {"alpha": -0.5, "beta": 1.0},
            np.minimum(1, np.where(WIDE >= 0, WIDE, -0.5 * WIDE)),
        ),
        "linear_activation alpha -1.5, beta 0.25": (
            mb.linear_activation,
            {"alpha": -1.5, "beta": 0.25},
            -1.5 * WIDE + 0.25,
        ),
        "scaled_tanh alpha 1.75, beta 0.5": (mb.scaled_tanh, {"alpha": 1.75, "beta": 0.5}, 1.75 * np.tanh(0.5 * WIDE)),
        "sigmoid_hard alpha 0.25, beta 0.5": (
            mb.sigmoid_hard,
            {"alpha": 0.25, "beta": 0.5},
            np.minimum(np.maximum(0.25 * WIDE + 0.5, 0), 1),
        ),
    }

    def build(x: Any) -> tuple[Any, ...]:
        return tuple(operation(x=x, **attributes) for operation, attributes, _ in cases.values())

    expected = {label: value for label, (_, _, value) in cases.items()}
    assert_outputs(run_op(build, {"x": X}, tmp_path, target), expected, **TOLERANCE)


def values(*shape: int) -> Array:
    return (3 * np.random.default_rng(sum(shape)).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_prelu_has_a_slope_a_channel(tmp_path: Path, target: str) -> None:
    slopes = {  # coremltools takes different slopes with four dimensions only
        3: np.full(3, 0.25, np.float32),
        4: np.array([0.5, -0.25, 2], np.float32),
        5: np.full(3, -1.5, np.float32),
    }
    inputs = {f"x{rank}": values(2, 3, *range(2, rank)) for rank in slopes}

    def build(**variables: Any) -> tuple[Any, ...]:
        return tuple(mb.prelu(x=variables[f"x{rank}"], alpha=alpha) for rank, alpha in slopes.items())

    expected = {}
    for rank, alpha in slopes.items():
        x = inputs[f"x{rank}"]
        expected[f"{rank} dimensions"] = np.where(x > 0, x, x * alpha.reshape(-1, *[1] * (rank - 2)))
    assert_outputs(run_op(build, inputs, tmp_path, target), expected)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 3, 4)])
def test_softplus_parametric_has_two_factors_a_channel(tmp_path: Path, shape: tuple[int, ...], target: str) -> None:
    x = 10 * values(*shape)
    alpha, beta = np.array([0.5, -1, 2], np.float32), np.array([1, 3, -0.5], np.float32)
    (output,) = run_op(lambda x: mb.softplus_parametric(x=x, alpha=alpha, beta=beta), {"x": x}, tmp_path, target)
    a, b = (factor.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2)) for factor in (alpha, beta))
    assert_outputs([output], {"alpha log(1 + exp(beta x))": a * np.logaddexp(0, b * x)}, **TOLERANCE)


def test_softmax(tmp_path: Path) -> None:
    x = 30 * values(2, 3, 4)  # exp overflows unless the greatest value is taken out
    axes = (0, 1, 2, -1, -2, -3)

    def build(x: Any) -> tuple[Any, ...]:
        return mb.softmax(x=x), *(mb.softmax(x=x, axis=axis) for axis in axes)

    expected = {}
    for label, axis in {"default": -1, **{str(axis): axis for axis in axes}}.items():
        logarithms = x - np.logaddexp.reduce(x.astype(np.float64), axis=axis, keepdims=True)
        expected[label] = np.exp(logarithms)
    # a float32 difference of x, of which there are some up to 200, is good to 1e-5, and so is its exponential
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected, rtol=2e-5, atol=1e-7)
