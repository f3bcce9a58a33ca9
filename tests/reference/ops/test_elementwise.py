"""Operations on elements against numpy, in float64 where they are real-valued."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

# One float32 operation or library function, against float64 rounded once.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}

REAL = np.array([-5.5, -2.5, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 3.2, 5.5], np.float32)
WIDE = REAL.astype(np.float64)
INTEGERS = np.array([-7, -2, -1, 0, 1, 3, 9, 30], np.int32)


def erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


def test_functions_of_reals(tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[..., Any], Callable[[Array], Array]]] = {
        "abs": (mb.abs, np.abs),
        "atan": (mb.atan, np.arctan),
        "ceil": (mb.ceil, np.ceil),
        "cos": (mb.cos, np.cos),
        "cosh": (mb.cosh, np.cosh),
        "erf": (mb.erf, erf),
        "exp": (mb.exp, np.exp),
        "exp2": (mb.exp2, np.exp2),
        "floor": (mb.floor, np.floor),
        "identity": (mb.identity, np.array),
        "round": (mb.round, np.round),  # halves to even, as type inference has it
        "sign": (mb.sign, np.sign),
        "sin": (mb.sin, np.sin),
        "sinh": (mb.sinh, np.sinh),
        "square": (mb.square, np.square),
        "tan": (mb.tan, np.tan),
        "tanh": (mb.tanh, np.tanh),
    }
    outputs = run_op(lambda x: tuple(operation(x=x) for operation, _ in cases.values()), {"x": REAL}, tmp_path)
    assert_outputs(outputs, {label: function(WIDE) for label, (_, function) in cases.items()}, **TOLERANCE)


def test_functions_of_a_part_of_the_reals(tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[..., Any], Callable[[Array], Array]]] = {
        "acos": (mb.acos, np.arccos),
        "asin": (mb.asin, np.arcsin),
        "atanh": (mb.atanh, np.arctanh),
        "sqrt": (mb.sqrt, np.sqrt),
    }
    x = np.linspace(0, 0.96875, 32).astype(np.float32)
    outputs = run_op(lambda x: tuple(operation(x=x) for operation, _ in cases.values()), {"x": x}, tmp_path)
    expected = {label: function(x.astype(np.float64)) for label, (_, function) in cases.items()}
    assert_outputs(outputs, expected, **TOLERANCE)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_functions_with_epsilon(tmp_path: Path, target: str) -> None:
    x = np.array([0, 1e-6, 1e-4, 0.5, 1, 3, 1e4], np.float32)
    wide = x.astype(np.float64)

    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.inverse(x=x),
            mb.inverse(x=x, epsilon=0.5),
            mb.rsqrt(x=x),
            mb.rsqrt(x=x, epsilon=0.5),
            mb.log(x=x),
            mb.log(x=x, epsilon=0.5),
        )

    expected = {
        "inverse": 1 / (wide + 1e-4),
        "inverse epsilon=0.5": 1 / (wide + 0.5),
        "rsqrt": 1 / np.sqrt(wide + 1e-12),
        "rsqrt epsilon=0.5": 1 / np.sqrt(wide + 0.5),
        "log": np.log(wide + float(np.float32(1e-45))),
        "log epsilon=0.5": np.log(wide + 0.5),
    }
    assert_outputs(run_op(build, {"x": x}, tmp_path, target), expected, **TOLERANCE)


def test_without_epsilon_a_pole_is_infinite(tmp_path: Path) -> None:
    x = np.zeros(1, np.float32)

    def build(x: Any) -> tuple[Any, ...]:
        return mb.inverse(x=x, epsilon=0.0), mb.rsqrt(x=x, epsilon=0.0), mb.log(x=x, epsilon=0.0)

    expected = {"inverse": [np.inf], "rsqrt": [np.inf], "log": [-np.inf]}
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected)


def test_functions_of_integers_stay_integers(tmp_path: Path) -> None:
    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.abs(x=x),
            mb.sign(x=x),
            mb.square(x=x),
            mb.threshold(x=x, alpha=np.int32(2)),
            mb.identity(x=x),
            mb.exp2(x=x),
        )

    expected = {
        "abs": np.abs(INTEGERS),
        "sign": np.sign(INTEGERS),
        "square": INTEGERS**2,
        "threshold": np.maximum(INTEGERS, 2),
        "identity": INTEGERS,
        "exp2": np.exp2(INTEGERS).astype(np.int32),  # 2 to the -1 is 0
    }
    assert_outputs(run_op(build, {"x": INTEGERS}, tmp_path), expected)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_clip_and_threshold(tmp_path: Path, target: str) -> None:
    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.clip(x=x, alpha=-1.0, beta=2.0),
            mb.clip(x=x, alpha=0.0, beta=np.float32(np.inf)),
            mb.clip(x=x, alpha=np.float32(-np.inf), beta=-0.5),
            mb.threshold(x=x, alpha=-0.5),
        )

    expected = {
        "both": np.minimum(np.maximum(REAL, -1), 2),
        "below": np.maximum(REAL, 0),
        "above": np.minimum(REAL, -0.5),
        "threshold": np.maximum(REAL, -0.5),
    }
    assert_outputs(run_op(build, {"x": REAL}, tmp_path, target), expected)


CASTS: dict[str, tuple[str, ...]] = {
    "iOS15": ("fp16", "fp32", "int32", "bool"),
    "iOS17": ("fp16", "fp32", "int32", "bool", "int8", "uint8", "int16", "uint16"),
}


@pytest.mark.parametrize(("target", "dtype"), [(target, dtype) for target, names in CASTS.items() for dtype in names])
def test_cast(tmp_path: Path, target: str, dtype: str) -> None:
    """Of every type to every other; what the other cannot hold is not in question."""
    least = 0 if dtype.startswith("u") else -100
    real = np.array([least, least + 0.75, -0.5, -0.0, 0.25, 0.5, 1.5, 2.5, 99.75, 127], np.float32)
    integers, booleans = np.array([least, 0, 1, 100], np.int32), np.array([False, True])
    narrow = CASTS[target][4:]

    def build(real: Any, integers: Any, booleans: Any) -> tuple[Any, ...]:
        sources = [real, mb.cast(x=real, dtype="fp16"), integers, booleans]
        sources += [mb.cast(x=mb.abs(x=integers), dtype=name) for name in narrow]
        return tuple(mb.cast(x=source, dtype=dtype) for source in sources)

    def converted(x: Array) -> Array:
        if dtype == "bool":
            return x != 0
        return x.astype(np.float32) if dtype.startswith("fp") else np.trunc(x).astype(np.int32)

    expected = {"fp32": converted(real), "fp16": converted(real)}
    expected |= {"int32": converted(integers), "bool": converted(booleans.astype(np.int32))}
    expected |= {name: converted(np.abs(integers)) for name in narrow}
    inputs = {"real": real, "integers": integers, "booleans": booleans}
    assert_outputs(run_op(build, inputs, tmp_path, target), expected)


def test_logical_operations(tmp_path: Path) -> None:
    x, y = np.array([[False], [True]]), np.array([False, True])

    def build(x: Any, y: Any) -> tuple[Any, ...]:
        return mb.logical_not(x=x), mb.logical_and(x=x, y=y), mb.logical_or(x=x, y=y), mb.logical_xor(x=x, y=y)

    expected = {"not": ~x, "and": x & y, "or": x | y, "xor": x ^ y}
    assert_outputs(run_op(build, {"x": x, "y": y}, tmp_path), expected)


PAIRS: dict[str, tuple[Callable[..., Any], Callable[[Array, Array], Array]]] = {
    "add": (mb.add, np.add),
    "sub": (mb.sub, np.subtract),
    "mul": (mb.mul, np.multiply),
    "maximum": (mb.maximum, np.maximum),
    "minimum": (mb.minimum, np.minimum),
    "equal": (mb.equal, np.equal),
    "not_equal": (mb.not_equal, np.not_equal),
    "greater": (mb.greater, np.greater),
    "greater_equal": (mb.greater_equal, np.greater_equal),
    "less": (mb.less, np.less),
    "less_equal": (mb.less_equal, np.less_equal),
}
DIVISIONS: dict[str, tuple[Callable[..., Any], Callable[[Array, Array], Array]]] = {
    "floor_div": (mb.floor_div, np.floor_divide),
    "mod": (mb.mod, np.mod),
    "real_div": (mb.real_div, lambda x, y: np.trunc(x / y).astype(np.int32) if x.dtype.kind == "i" else x / y),
}
NOT_ZERO = {"f": REAL[REAL != 0], "i": INTEGERS[INTEGERS != 0]}


@pytest.mark.parametrize("x", [REAL, INTEGERS])
def test_pairs_of_numbers(tmp_path: Path, x: Array) -> None:
    """Every value with every other; the quotients with every other but zero."""
    column, row, divisors = x[:, None], x[None, None], NOT_ZERO[x.dtype.kind]

    def build(column: Any, row: Any, divisors: Any) -> tuple[Any, ...]:
        return (
            *(operation(x=column, y=row) for operation, _ in PAIRS.values()),
            *(operation(x=column, y=divisors) for operation, _ in DIVISIONS.values()),
        )

    outputs = run_op(build, {"column": column, "row": row, "divisors": divisors}, tmp_path)
    expected = {label: function(column, row) for label, (_, function) in PAIRS.items()}
    expected |= {label: function(column, divisors) for label, (_, function) in DIVISIONS.items()}
    assert_outputs(outputs, expected, **TOLERANCE)


@pytest.mark.parametrize("x", [REAL.reshape(2, 8), INTEGERS.reshape(2, 4)])
def test_a_number_on_either_side(tmp_path: Path, x: Array) -> None:
    two = np.array(2, x.dtype)[()]
    divisors = np.where(x == 0, x.dtype.type(5), x)

    def build(x: Any, divisors: Any) -> tuple[Any, ...]:
        operations = [operation for operation, _ in PAIRS.values()]
        quotients = [operation for operation, _ in DIVISIONS.values()]
        return (
            *(operation(x=x, y=two) for operation in operations + quotients),
            *(operation(x=two, y=x) for operation in operations),
            *(operation(x=two, y=divisors) for operation in quotients),
        )

    every = PAIRS | DIVISIONS
    expected = {f"{label} on the right": function(x, two) for label, (_, function) in every.items()}
    for label, (_, function) in every.items():
        expected[f"{label} on the left"] = function(np.full_like(x, two), divisors if label in DIVISIONS else x)
    assert_outputs(run_op(build, {"x": x, "divisors": divisors}, tmp_path), expected, **TOLERANCE)


def test_integers_too_large_for_floats(tmp_path: Path) -> None:
    """2**24 + 1 is no float32: integer arithmetic has to be just that."""
    large = np.array([2**24 + 1, -(2**24) - 1, 2**31 - 2], np.int32)

    def build(x: Any) -> tuple[Any, ...]:
        one = np.int32(1)
        return (
            mb.add(x=x, y=one),
            mb.sub(x=x, y=one),
            mb.mul(x=x, y=one),
            mb.real_div(x=x, y=one),
            mb.floor_div(x=x, y=one),
            mb.mod(x=x, y=np.int32(1000)),
            mb.maximum(x=x, y=one),
        )

    expected = {"add": large + 1, "sub": large - 1, "mul": large, "real_div": large, "floor_div": large}
    expected |= {"mod": large % 1000, "maximum": np.maximum(large, 1)}
    assert_outputs(run_op(build, {"x": large}, tmp_path), expected)


def test_real_quotients_by_zero(tmp_path: Path) -> None:
    x, zero = np.array([-2, 3], np.float32), np.zeros(1, np.float32)
    outputs = run_op(lambda x, y: mb.real_div(x=x, y=y), {"x": x, "y": zero}, tmp_path)
    assert_outputs(outputs, {"real_div": np.array([-np.inf, np.inf])})


def test_pow(tmp_path: Path) -> None:
    base, exponent = np.array([[0.25], [1], [3.5]], np.float32), np.array([-2, -0.5, 0, 0.5, 1, 3], np.float32)
    negative, whole = np.array([[-2], [-1.5]], np.float32), np.array([-1, 0, 2, 3], np.float32)
    integers, powers = np.array([[-3], [0], [7]], np.int32), np.array([0, 1, 2, 5], np.int32)
    inputs = {
        "base": base,
        "exponent": exponent,
        "negative": negative,
        "whole": whole,
        "integers": integers,
        "powers": powers,
    }

    def build(**v: Any) -> tuple[Any, ...]:
        return (
            mb.pow(x=v["base"], y=v["exponent"]),
            mb.pow(x=v["negative"], y=v["whole"]),
            mb.pow(x=v["integers"], y=v["powers"]),
            mb.pow(x=v["negative"], y=2.0),
        )

    expected = {
        "positive": base.astype(np.float64) ** exponent,
        "negative": negative.astype(np.float64) ** whole,
        "integers": integers**powers,
        "square": negative**2,
    }
    assert_outputs(run_op(build, inputs, tmp_path), expected, **TOLERANCE)


def test_select(tmp_path: Path) -> None:
    condition = np.array([[True], [False]])
    full = np.array([[True, False, True], [False, False, True]])
    a, b = np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([[-1, -2, np.inf], [-4, -5, -6]], np.float32)
    integers = np.array([7, 8, 9], np.int32)

    def build(condition: Any, full: Any, a: Any, b: Any, integers: Any) -> tuple[Any, ...]:
        return (
            mb.select(cond=full, a=a, b=b),
            mb.select(cond=full, a=b, b=a),
            mb.select(cond=condition, a=a, b=b),
            mb.select(cond=full, a=a, b=0.0),
            mb.select(cond=full, a=mb.expand_dims(x=integers, axes=[0]), b=np.array([[-1], [-2]], np.int32)),
            mb.select(cond=full, a=full, b=mb.logical_not(x=full)),
        )

    inputs = {"condition": condition, "full": full, "a": a, "b": b, "integers": integers}
    expected = {
        "all there": np.where(full, a, b),
        "the other way": np.where(full, b, a),
        "broadcast condition": np.where(condition, a, b),
        "a number": np.where(full, a, 0),
        "integers": np.where(full, integers, np.array([[-1], [-2]], np.int32)),
        "booleans": np.ones_like(full),
    }
    assert_outputs(run_op(build, inputs, tmp_path), expected)


# A step of a quarter puts halves to round on the way; beyond the ends the values saturate.
QUANTIZED = (np.arange(-300, 300, 5).reshape(2, 3, 20) / 8).astype(np.float32)
STEP = np.float32(0.25)
STEPS = np.array([0.25, 0.5, 0.125], np.float32)
RANGES: dict[str, tuple[int, int, int]] = {"int8": (-128, 127, -3), "uint8": (0, 255, 130)}


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_quantize(tmp_path: Path, dtype: str, target: str) -> None:
    low, high, middle = RANGES[dtype]
    zero = np.array(middle, dtype)[()]
    zeros = np.array([middle, middle + 1, middle + 50], dtype)

    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.quantize(input=x, scale=STEP, output_dtype=dtype),
            mb.quantize(input=x, scale=STEP, zero_point=zero, output_dtype=dtype),
            mb.quantize(input=x, scale=STEPS, axis=1, output_dtype=dtype),
            mb.quantize(input=x, scale=STEPS, zero_point=zeros, axis=-2, output_dtype=dtype),
        )

    def quantized(scale: Any, offset: Any) -> Array:
        return np.clip(np.rint(QUANTIZED / scale) + offset, low, high).astype(np.int32)

    expected = {
        "one scale": quantized(STEP, 0),
        "one scale and zero point": quantized(STEP, middle),
        "a scale each": quantized(STEPS[:, None], 0),
        "a scale and a zero point each": quantized(STEPS[:, None], zeros[:, None].astype(np.int32)),
    }
    assert_outputs(run_op(build, {"x": QUANTIZED}, tmp_path, target), expected)


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_dequantize(tmp_path: Path, dtype: str, target: str) -> None:
    low, high, middle = RANGES[dtype]
    x = np.linspace(low, high, 120).astype(np.int32).reshape(2, 3, 20)
    zero = np.array(middle, dtype)[()]
    zeros = np.array([middle, middle + 1, middle + 50], dtype)

    def build(x: Any) -> tuple[Any, ...]:
        small = mb.cast(x=x, dtype=dtype)
        return (
            mb.dequantize(input=small, scale=STEP),
            mb.dequantize(input=small, scale=STEP, zero_point=zero),
            mb.dequantize(input=small, scale=STEPS, axis=1),
            mb.dequantize(input=small, scale=STEPS, zero_point=zeros, axis=-2),
        )

    expected = {
        "one scale": x * STEP,
        "one scale and zero point": (x - middle) * STEP,
        "a scale each": x * STEPS[:, None],
        "a scale and a zero point each": (x - zeros[:, None].astype(np.int32)) * STEPS[:, None],
    }
    assert_outputs(run_op(build, {"x": x}, tmp_path, target), expected)
