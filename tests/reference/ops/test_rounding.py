"""Rounding to fp16: after each operation of an fp16 program with precision "fp16", never with "fp32"."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevit_coreml._coremltools import mb
from mobilevit_coreml.reference import ReferenceEvaluator
from tests.reference.one_op import Array, assert_outputs, run_op, save_op

# Neither is an fp16, so both are rounded on their way in.
X = np.random.default_rng(0).uniform(0.1, 40, (4, 6)).astype(np.float32)
Y = np.random.default_rng(1).uniform(0.1, 40, (4, 6)).astype(np.float32)

# One float32 operation each, correctly rounded but for torch's vector sqrt, which is 1 ULP off on some processors.
ONE_ULP = 2.0**-23
OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[[Array, Array], Array]]] = {
    "add": (lambda x, y: mb.add(x=x, y=y), np.add),
    "sub": (lambda x, y: mb.sub(x=x, y=y), np.subtract),
    "mul": (lambda x, y: mb.mul(x=x, y=y), np.multiply),
    "real_div": (lambda x, y: mb.real_div(x=x, y=y), np.divide),
    "sqrt": (lambda x, y: mb.sqrt(x=x), lambda x, y: np.sqrt(x)),
    "relu": (lambda x, y: mb.relu(x=x), lambda x, y: x),
    "twice rounded": (lambda x, y: mb.mul(x=mb.mul(x=x, y=y), y=x), lambda x, y: half(x * y) * x),
}


def half(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def evaluate(build: Callable[..., Any], inputs: dict[str, Array], tmp_path: Path, precision: str) -> list[Array]:
    """An iOS16 program with fp16 inputs, given float32 values."""
    package = save_op(build, {name: array.astype(np.float16) for name, array in inputs.items()}, tmp_path, "iOS16")
    return list(ReferenceEvaluator(package, precision=precision).run(inputs).values())


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # what the test is about
@pytest.mark.parametrize("name", OPERATIONS)
def test_fp16_rounds_inputs_and_the_result_of_each_operation(tmp_path: Path, name: str) -> None:
    build, function = OPERATIONS[name]
    outputs = evaluate(build, {"x": X, "y": Y}, tmp_path, "fp16")
    expected = half(function(half(X), half(Y)))
    assert_outputs(outputs, {name: expected})  # 1 ULP of float32 is far from the next fp16 for these values
    assert (function(X, Y) != expected).any()


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"twice rounded"}))
def test_fp32_rounds_nothing(tmp_path: Path, name: str) -> None:
    build, function = OPERATIONS[name]
    outputs = evaluate(build, {"x": X, "y": Y}, tmp_path, "fp32")
    assert_outputs(outputs, {name: function(X, Y)}, rtol=ONE_ULP if name == "sqrt" else 0)


def test_sums_within_an_operation_are_rounded_once(tmp_path: Path) -> None:
    """4096 + 1 + … + 1 (eight of these) is 4104; rounded to fp16 at each step it would stay at 4096."""
    x = np.array([[4096, *[1] * 8]], np.float32)

    def build(x: Any) -> tuple[Any, ...]:
        return mb.reduce_sum(x=x, axes=[1]), mb.matmul(x=x, y=np.ones((9, 1), np.float16))

    outputs = evaluate(build, {"x": x}, tmp_path, "fp16")
    assert_outputs(outputs, {"reduce_sum": np.array([4104.0]), "matmul": np.array([[4104.0]])})


def test_beyond_65504_is_infinite(tmp_path: Path) -> None:
    x = np.array([65504, -65504, 30000, 1, 0], np.float32)

    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.mul(x=x, y=np.float16(3)),
            mb.add(x=x, y=np.float16(15)),
            mb.add(x=x, y=np.float16(16)),
            mb.square(x=x),
        )

    expected = {
        "mul": np.array([np.inf, -np.inf, np.inf, 3, 0]),
        "add 15": np.array([65504.0, -65504, 30016, 16, 15]),  # 65519 is still nearer to 65504 than to 65536
        "add 16": np.array([np.inf, -65472, 30016, 17, 16]),
        "square": np.array([np.inf, np.inf, np.inf, 1, 0]),
    }
    assert_outputs(evaluate(build, {"x": x}, tmp_path, "fp16"), expected)
    finite = evaluate(build, {"x": x}, tmp_path, "fp32")
    assert_outputs(finite, {"mul": 3 * x, "add 15": x + 15, "add 16": x + 16, "square": x * x})


def test_below_fp16s_subnormals_is_zero(tmp_path: Path) -> None:
    x = np.array([2.0**-12, 2.0**-14, 2.0**-24], np.float32)
    (output,) = evaluate(lambda x: mb.mul(x=x, y=x), {"x": x}, tmp_path, "fp16")
    assert_outputs([output], {"squares": np.array([2.0**-24, 0, 0])})


def test_an_fp32_program_is_not_rounded(tmp_path: Path) -> None:
    package = save_op(lambda x, y: mb.mul(x=x, y=y), {"x": X, "y": Y}, tmp_path)
    for precision in ("fp16", "fp32"):
        outputs = list(ReferenceEvaluator(package, precision=precision).run({"x": X, "y": Y}).values())
        assert_outputs(outputs, {precision: X * Y})


def test_a_cast_rounds(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")

    (rounded,) = ReferenceEvaluator(save_op(build, {"x": X}, tmp_path), precision="fp16").run({"x": X}).values()
    assert_outputs([rounded], {"fp16": half(X)})
    assert_outputs(run_op(build, {"x": X}, tmp_path), {"fp32": X})
