"""Conditions and loops against the same in Python, one within the other too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilevit_coreml._coremltools import ct, mb
from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.ops import control
from tests.reference.one_op import assert_outputs, run_op, save_op

X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)


@pytest.mark.parametrize("factor", [1, -1])
def test_cond_runs_one_of_its_blocks(factor: int, tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        positive = mb.greater(x=mb.reduce_sum(x=x, axes=[0, 1]), y=np.float32(0))
        shifted = mb.add(x=x, y=np.float32(1))
        return mb.cond(
            pred=positive,
            _true_fn=lambda: (mb.mul(x=shifted, y=np.float32(2)), mb.exp(x=x)),
            _false_fn=lambda: (x, mb.mul(x=shifted, y=shifted)),
        )

    x = factor * X
    expected = (2 * (x + 1), np.exp(x)) if x.sum() > 0 else (x, (x + 1) ** 2)
    assert_outputs(run_op(build, {"x": x}, tmp_path), {"first": expected[0], "second": expected[1]}, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_while_loop(count: int, tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        step = mb.mul(x=x, y=np.float32(0.5))  # read by the loop's body
        return mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.int32(count)),
            _body=lambda i, y: (mb.add(x=i, y=np.int32(1)), mb.add(x=y, y=step)),
            loop_vars=(np.int32(0), mb.identity(x=x)),
        )

    assert_outputs(run_op(build, {"x": X}, tmp_path), {"i": np.array(count), "y": X + count * 0.5 * X}, rtol=1e-6)


def test_a_loop_with_a_condition_and_a_loop_within(tmp_path: Path) -> None:
    def body(i: Any, y: Any) -> Any:
        even = mb.equal(x=mb.mod(x=i, y=np.int32(2)), y=np.int32(0))
        y = mb.cond(
            pred=even,
            _true_fn=lambda: mb.add(x=y, y=np.float32(1)),
            _false_fn=lambda: mb.while_loop(
                _cond=lambda j, z: mb.less(x=j, y=i),
                _body=lambda j, z: (mb.add(x=j, y=np.int32(1)), mb.mul(x=z, y=np.float32(2))),
                loop_vars=(np.int32(0), y),
            )[1],
        )
        return mb.add(x=i, y=np.int32(1)), y

    def build(x: Any) -> Any:
        less = mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.int32(5)), _body=body, loop_vars=(np.int32(0), mb.identity(x=x))
        )
        return less[1]

    expected = X
    for i in range(5):
        expected = expected + 1 if i % 2 == 0 else expected * 2**i
    assert_outputs(run_op(build, {"x": X}, tmp_path), {"y": expected}, rtol=1e-6)


class Grow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() < 100):
            x = x * 2
        return x


def test_a_scripted_model(tmp_path: Path) -> None:
    package = ct.convert(
        torch.jit.script(Grow()),
        convert_to="mlprogram",
        inputs=[ct.TensorType("x", (2, 3))],
        outputs=[ct.TensorType("y")],
        skip_model_load=True,
    )
    package.save(str(tmp_path / "x.mlpackage"))
    output = ReferenceEvaluator(tmp_path / "x.mlpackage").run({"x": X})["y"]
    assert np.array_equal(output, Grow()(torch.from_numpy(X)).numpy())


def test_a_loop_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_ITERATIONS", 20)
    build = lambda x: mb.while_loop(  # noqa: E731
        _cond=lambda y: mb.less(x=np.float32(0), y=mb.reduce_max(x=mb.abs(x=y), axes=[0, 1])),
        _body=lambda y: (mb.mul(x=y, y=np.float32(1.5)),),
        loop_vars=(x,),
    )
    with pytest.raises(UnsupportedError, match=r"while_loop '.*': expected a loop that ends, got more than 20 iter"):
        run_op(build, {"x": X}, tmp_path)


def test_an_operation_nobody_implemented_within_a_block_is_named(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x, axes=[0, 1]), y=np.float32(0)),
            _true_fn=lambda: mb.random_normal(shape=np.array([2, 3], np.int32)),
            _false_fn=lambda: mb.identity(x=x),
        )

    path = save_op(build, {"x": X}, tmp_path)
    with pytest.raises(UnsupportedError, match=r", cond '.*': operation 1 of 1, random_normal '.*': expected an impl"):
        ReferenceEvaluator(path)
