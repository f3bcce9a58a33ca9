"""Stateful models, as coremltools writes them: a state read and written, over several predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilevit_coreml._coremltools import ct, mb, types
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.reference import ReferenceEvaluator

X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)


class Sum(nn.Module):
    """Adds each input to its state, and returns twice the sum."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 2


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> ReferenceEvaluator:
    path = tmp_path_factory.mktemp("state") / "x.mlpackage"
    package = ct.convert(
        torch.jit.trace(Sum().eval(), torch.zeros(2, 3)),
        convert_to="mlprogram",
        inputs=[ct.TensorType("x", (2, 3), dtype=np.float16)],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    package.save(str(path))
    return ReferenceEvaluator(path)


def test_a_state_lasts_from_one_prediction_to_the_next(evaluator: ReferenceEvaluator) -> None:
    state, other = evaluator.make_state(), evaluator.make_state()
    for count in (1, 2, 3):
        assert np.array_equal(evaluator.run({"x": X}, state=state)["y"], 2 * count * X)
        assert np.array_equal(state.read_state("total"), count * X)
    assert np.array_equal(evaluator.run({"x": X}, state=other)["y"], 2 * X)
    state.write_state("total", 10 * X)
    assert np.array_equal(evaluator.run({"x": X}, state=state)["y"], 22 * X)
    read = state.read_state("total")
    read[:] = 0
    assert np.array_equal(state.read_state("total"), 11 * X)


def test_the_states_are_declared(evaluator: ReferenceEvaluator) -> None:
    (feature,) = evaluator.states.values()
    assert (feature.name, feature.shape, feature.dtype) == ("total", (2, 3), "float16")
    assert list(evaluator.inputs) == ["x"]


def test_an_update_written_and_read_at_once(tmp_path: Path) -> None:
    """read_state and coreml_update_state, which is saved as write_state and read_state."""
    specs = [mb.TensorSpec((2, 3), dtype=types.fp16), mb.StateTensorSpec((2, 3), dtype=types.fp16)]

    def build(x: Any, kept: Any) -> Any:
        before = mb.read_state(input=kept)
        after = mb.coreml_update_state(state=kept, value=mb.add(x=before, y=x))
        return mb.sub(x=after, y=mb.mul(x=before, y=np.float16(3)))

    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(build)
    package = ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18, skip_model_load=True
    )
    package.save(str(tmp_path / "x.mlpackage"))
    evaluator = ReferenceEvaluator(tmp_path / "x.mlpackage")
    assert {"read_state", "write_state"} <= {operation.type for operation in evaluator.function.operations}
    state = evaluator.make_state()
    for count in range(3):
        (output,) = evaluator.run({"x": X}, state=state).values()
        assert np.array_equal(output, (count + 1) * X - 3 * count * X)


def test_what_does_not_fit(evaluator: ReferenceEvaluator) -> None:
    with pytest.raises(
        InputError, match=r"state: expected one of make_state\(\), got none; the model's states are tot"
    ):
        evaluator.run({"x": X})
    state = evaluator.make_state()
    with pytest.raises(InputError, match="state: expected one of total, got none; choose one of these"):
        state.read_state("none")
    with pytest.raises(InputError, match=r"input total: expected an array of shape \(2, 3\), got \(3, 2\)"):
        state.write_state("total", X.T)
