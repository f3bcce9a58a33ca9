"""Reductions and running sums against numpy, in float64 where they are real-valued."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

# Sums and products of at most 24 float32 values of size one, against float64.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}

REDUCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "reduce_l1_norm": (mb.reduce_l1_norm, lambda x, **over: np.sum(np.abs(x), **over)),
    "reduce_l2_norm": (mb.reduce_l2_norm, lambda x, **over: np.sqrt(np.sum(x * x, **over))),
    "reduce_log_sum": (mb.reduce_log_sum, lambda x, **over: np.log(np.sum(x, **over))),
    "reduce_log_sum_exp": (mb.reduce_log_sum_exp, lambda x, **over: np.log(np.sum(np.exp(x), **over))),
    "reduce_max": (mb.reduce_max, np.max),
    "reduce_mean": (mb.reduce_mean, np.mean),
    "reduce_min": (mb.reduce_min, np.min),
    "reduce_prod": (mb.reduce_prod, np.prod),
    "reduce_sum": (mb.reduce_sum, np.sum),
    "reduce_sum_square": (mb.reduce_sum_square, lambda x, **over: np.sum(x * x, **over)),
}
AXES = [None, [0], [1], [2], [-1], [-3], [0, 1], [2, 0], [-1, -2], [1, -1], [0, 1, 2]]
KINDS = {
    # of either sign where a sum has no logarithm to be taken
    "reals": np.random.default_rng(0).uniform(-2, 2, (2, 3, 4)).astype(np.float32),
    "positive reals": np.random.default_rng(1).uniform(0.5, 2, (2, 3, 4)).astype(np.float32),
    "integers": np.random.default_rng(2).integers(1, 4, (2, 3, 4), np.int32),
    "integers of either sign": np.random.default_rng(3).integers(-4, 4, (2, 3, 4), np.int32),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_dims", [None, False, True])
def test_reductions(tmp_path: Path, kind: str, keep_dims: bool | None) -> None:
    x = KINDS[kind]
    table = {name: pair for name, pair in REDUCTIONS.items() if x.min() > 0 or name != "reduce_log_sum"}

    def build(x: Any) -> tuple[Any, ...]:
        kept = {} if keep_dims is None else {"keep_dims": keep_dims}
        return tuple(
            operation(x=x, **({} if axes is None else {"axes": axes}), **kept)
            for operation, _ in table.values()
            for axes in AXES
        )

    expected = {}
    for name, (_, function) in table.items():
        for axes in AXES:
            over = {"axis": None if axes is None else tuple(axes), "keepdims": bool(keep_dims)}
            # what is no integer of integers is cut to one, as type inference has it
            expected[f"{name} {axes}"] = function(x.astype(np.float64), **over).astype(x.dtype)
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected, **TOLERANCE)


def test_log_sum_exp_of_large_values(tmp_path: Path) -> None:
    x = np.array([[1000, 1000], [-1000, -1000], [0, 1000]], np.float32)
    outputs = run_op(lambda x: mb.reduce_log_sum_exp(x=x, axes=[1]), {"x": x}, tmp_path)
    assert_outputs(outputs, {"rows": np.logaddexp(x[:, 0], x[:, 1])}, **TOLERANCE)


def test_sums_of_integers_too_large_for_floats(tmp_path: Path) -> None:
    x = np.array([[2**24 + 1, 2], [-(2**25) - 1, 1]], np.int32)

    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.reduce_sum(x=x, axes=[1]),
            mb.reduce_max(x=x),
            mb.reduce_l1_norm(x=x, axes=[1]),
            mb.cumsum(x=x, axis=1),
        )

    expected = {"sum": x.sum(1), "max": x.max(), "l1": np.abs(x).sum(1), "cumsum": x.cumsum(1)}
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected)


@pytest.mark.parametrize(
    ("target", "dtype"), [("iOS15", None), ("iOS17", None), ("iOS17", "int32"), ("iOS17", "uint16")]
)
@pytest.mark.parametrize("kind", ["reals", "distinct integers"])
def test_index_of_the_greatest_and_least(tmp_path: Path, kind: str, target: str, dtype: str | None) -> None:
    """Without ties, of which the specification promises nothing."""
    x = (
        KINDS["reals"]
        if kind == "reals"
        else np.random.default_rng(4).permutation(24).astype(np.int32).reshape(2, 3, 4)
    )
    forms: list[dict[str, Any]] = [
        {},
        {"keep_dims": True},
        *({"axis": axis, "keep_dims": keep_dims} for axis in (0, 1, 2, -1, -3) for keep_dims in (False, True)),
    ]

    def build(x: Any) -> tuple[Any, ...]:
        more = {} if dtype is None else {"output_dtype": dtype}
        return tuple(
            operation(x=x, **form, **more) for operation in (mb.reduce_argmax, mb.reduce_argmin) for form in forms
        )

    expected = {
        f"{function.__name__} {form}": function(
            x, axis=form.get("axis", -1), keepdims=form.get("keep_dims", False)
        ).astype(np.int32)
        for function in (np.argmax, np.argmin)
        for form in forms
    }
    assert_outputs(run_op(build, {"x": x}, tmp_path, target), expected)


@pytest.mark.parametrize("kind", ["reals", "integers"])
def test_cumsum(tmp_path: Path, kind: str) -> None:
    x = KINDS[kind]
    forms: list[dict[str, Any]] = [
        {},
        *(
            {"axis": axis, "exclusive": exclusive, "reverse": reverse}
            for axis in (0, 1, 2, -1)
            for exclusive in (False, True)
            for reverse in (False, True)
        ),
    ]
    expected = {}
    for form in forms:
        values = np.moveaxis(x.astype(np.float64), form.get("axis", 0), 0)
        sums = np.zeros_like(values)
        for i in range(len(values)):
            before, after = (0, i) if form.get("exclusive") else (0, i + 1)
            if form.get("reverse"):
                before, after = (i + 1 if form.get("exclusive") else i), len(values)
            sums[i] = values[before:after].sum(0)
        expected[str(form)] = np.moveaxis(sums, 0, form.get("axis", 0)).astype(x.dtype)
    outputs = run_op(lambda x: tuple(mb.cumsum(x=x, **form) for form in forms), {"x": x}, tmp_path)
    assert_outputs(outputs, expected, **TOLERANCE)


def test_exclusive_cumsum_leaves_the_element_out_rather_than_subtracting_it(tmp_path: Path) -> None:
    x = np.array([1, 1e30, np.inf], np.float32)

    def build(x: Any) -> tuple[Any, ...]:
        return mb.cumsum(x=x, exclusive=True), mb.cumsum(x=x, exclusive=True, reverse=True)

    expected: dict[str, Array] = {"forward": np.array([0, 1, 1e30]), "reverse": np.array([np.inf, np.inf, 0])}
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected, **TOLERANCE)
