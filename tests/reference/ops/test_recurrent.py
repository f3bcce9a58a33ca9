"""lstm, gru and rnn against torch's modules; what torch does not have against its cells written out."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilevit_coreml._coremltools import ct, mb
from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.ops import recurrent
from tests.peers import randomize
from tests.reference.one_op import Array, assert_outputs, run_op

S, N, C, H = 5, 2, 3, 4
ORDERS = [*itertools.product(["forward", "reverse"], [True, False])]
RNG = np.random.default_rng(0)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # sums of 7 products and 5 steps in float32
X, H0, C0 = (RNG.standard_normal(shape).astype(np.float32) for shape in [(S, N, C), (N, H), (N, H)])


def weights(gates: int) -> dict[str, Any]:
    return {
        "weight_ih": RNG.standard_normal((gates * H, C)).astype(np.float32),
        "weight_hh": RNG.standard_normal((gates * H, H)).astype(np.float32),
        "bias": RNG.standard_normal(gates * H).astype(np.float32),
    }


def in_order(values: Array, order: list[int]) -> Tensor:
    """Gates of MIL in torch's order."""
    parts = np.split(values, len(order))
    return torch.from_numpy(np.concatenate([parts[index] for index in order]))


def fill(module: nn.Module, given: dict[str, Any], order: list[int], suffix: str = "") -> nn.Module:
    state = {f"{key}_l0{suffix}": in_order(given[key], order) for key in ("weight_ih", "weight_hh")}
    state[f"bias_ih_l0{suffix}"] = in_order(given["bias"], order)
    state[f"bias_hh_l0{suffix}"] = torch.zeros(len(order) * H)
    module.load_state_dict(state, strict=False)
    return module


IFOZ = [0, 1, 3, 2]  # torch's i, f, g, o


def run(operation: Any, tmp_path: Path, states: int = 1, target: str = "iOS15", **attributes: Any) -> list[Array]:
    inputs = {"x": X, "initial_h": H0, "initial_c": C0}
    inputs = dict(list(inputs.items())[: states + 1])
    return run_op(lambda **variables: operation(**variables, **attributes), inputs, tmp_path, target)


@pytest.mark.parametrize(("direction", "sequence"), ORDERS)
def test_lstm(direction: str, sequence: bool, tmp_path: Path) -> None:
    given = weights(4)
    module = fill(nn.LSTM(C, H), given, IFOZ)
    x = torch.from_numpy(X[::-1].copy() if direction == "reverse" else X)
    outputs, (h, c) = module(x, (torch.from_numpy(H0)[None], torch.from_numpy(C0)[None]))
    expected = {"outputs": outputs if sequence else outputs[-1:], "h": h[0], "c": c[0]}
    actual = run(mb.lstm, tmp_path, 2, direction=direction, output_sequence=sequence, **given)
    assert_outputs(actual, {key: value.detach() for key, value in expected.items()}, **TOLERANCE)


@pytest.mark.parametrize("sequence", [True, False])
def test_lstm_in_both_directions(sequence: bool, tmp_path: Path) -> None:
    given, back = weights(4), weights(4)
    module = fill(fill(nn.LSTM(C, H, bidirectional=True), given, IFOZ), back, IFOZ, "_reverse")
    h0, c0 = (RNG.standard_normal((2, N, H)).astype(np.float32) for _ in range(2))
    outputs, (h, c) = module(torch.from_numpy(X), (torch.from_numpy(h0), torch.from_numpy(c0)))
    if not sequence:  # the last step of each direction
        outputs = torch.cat([outputs[-1:, :, :H], outputs[:1, :, H:]], -1)
    expected = {"outputs": outputs, "h": torch.cat(list(h), -1), "c": torch.cat(list(c), -1)}
    attributes = given | {f"{key}_back": value for key, value in back.items()}
    attributes |= {"direction": "bidirectional", "output_sequence": sequence}
    inputs = {"x": X, "initial_h": np.concatenate(list(h0), -1), "initial_c": np.concatenate(list(c0), -1)}
    actual = run_op(lambda **variables: mb.lstm(**variables, **attributes), inputs, tmp_path)
    assert_outputs(actual, {key: value.detach() for key, value in expected.items()}, **TOLERANCE)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


FUNCTIONS: dict[str, Callable[[Array], Any]] = {
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "scaled_tanh": np.tanh,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("names", [("sigmoid", "relu", "linear"), ("hard_sigmoid", "tanh", "scaled_tanh")])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_lstm_with_a_peephole_a_clip_and_other_activations(
    names: tuple[str, str, str], clip: float | None, tmp_path: Path
) -> None:
    given = weights(4) | {"peephole": RNG.standard_normal(3 * H).astype(np.float32)}
    inner, cell, outer = (FUNCTIONS[name] for name in names)
    peep_i, peep_f, peep_o = np.split(given["peephole"], 3)
    h, c, outputs = H0, C0, []
    for row in X:
        gates = row @ given["weight_ih"].T + h @ given["weight_hh"].T + given["bias"]
        i, f, o, z = np.split(gates, 4, -1)
        before = c
        c = inner(f + peep_f * before) * before + inner(i + peep_i * before) * cell(z)
        c = c if clip is None else np.clip(c, -clip, clip)
        h = inner(o + peep_o * c) * outer(c)
        outputs.append(h)
    attributes: dict[str, Any] = dict(
        zip(("recurrent_activation", "cell_activation", "activation"), names, strict=True), output_sequence=True
    )
    attributes |= {} if clip is None else {"clip": np.float32(clip)}
    actual = run(mb.lstm, tmp_path, 2, **given, **attributes)
    assert_outputs(actual, {"outputs": np.stack(outputs), "h": h, "c": c}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("direction", "sequence"), ORDERS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn(activation: str, direction: str, sequence: bool, tmp_path: Path) -> None:
    given = weights(1)
    module = fill(nn.RNN(C, H, nonlinearity=activation), given, [0])
    x = torch.from_numpy(X[::-1].copy() if direction == "reverse" else X)
    outputs, h = module(x, torch.from_numpy(H0)[None])
    expected = {"outputs": (outputs if sequence else outputs[-1:]).detach(), "h": h[0].detach()}
    attributes: dict[str, Any] = {"direction": direction, "output_sequence": sequence, "activation": activation}
    assert_outputs(run(mb.rnn, tmp_path, **given, **attributes), expected, **TOLERANCE)


@pytest.mark.parametrize(("direction", "sequence"), ORDERS)
@pytest.mark.parametrize("names", [("sigmoid", "tanh"), ("tanh", "sigmoid")])
def test_gru(names: tuple[str, str], direction: str, sequence: bool, tmp_path: Path) -> None:
    given = weights(3)
    inner, outer = (FUNCTIONS[name] for name in names)
    (ir, io, iz), (hr, ho, hz), (br, bo, bz) = (np.split(given[key], 3) for key in ("weight_ih", "weight_hh", "bias"))
    h, outputs = H0, []
    for row in X[::-1] if direction == "reverse" else X:
        r, z = inner(row @ ir.T + h @ hr.T + br), inner(row @ iz.T + h @ hz.T + bz)
        h = (1 - z) * outer(row @ io.T + (r * h) @ ho.T + bo) + z * h
        outputs.append(h)
    expected = {"outputs": np.stack(outputs if sequence else outputs[-1:]), "h": h}
    attributes: dict[str, Any] = {"direction": direction, "output_sequence": sequence}
    attributes |= {"recurrent_activation": names[0], "activation": names[1]}
    assert_outputs(run(mb.gru, tmp_path, **given, **attributes), expected, **TOLERANCE)


def test_gru_that_resets_after_the_product(tmp_path: Path) -> None:
    given, input_bias = weights(3), RNG.standard_normal(3 * H).astype(np.float32)
    order = [0, 2, 1]  # torch's r, z, n
    module = fill(nn.GRU(C, H), given | {"bias": input_bias}, order)
    module.bias_hh_l0.data = in_order(given["bias"], order)
    outputs, h = module(torch.from_numpy(X), torch.from_numpy(H0)[None])
    attributes: dict[str, Any] = {"reset_after": True, "input_bias": input_bias, "output_sequence": True}
    actual = run(mb.gru, tmp_path, target="iOS18", **given, **attributes)
    assert_outputs(actual, {"outputs": outputs.detach(), "h": h[0].detach()}, **TOLERANCE)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's check of the input's size
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_converted_lstm_of_two_layers(bidirectional: bool, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(C, H, 2, batch_first=True, bidirectional=bidirectional)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.lstm(x)[0]
            return outputs

    model, x = randomize(Net()).eval(), torch.from_numpy(X)
    package = ct.convert(
        torch.jit.trace(model, x),
        convert_to="mlprogram",
        inputs=[ct.TensorType("x", X.shape)],
        outputs=[ct.TensorType("y")],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    package.save(str(tmp_path / "x.mlpackage"))
    outputs = ReferenceEvaluator(tmp_path / "x.mlpackage", "fp32").run({"x": X})
    np.testing.assert_allclose(outputs["y"], model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_not_implemented_is_named() -> None:
    x, h, weight = torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1)
    with pytest.raises(UnsupportedError, match="direction: expected one of forward, reverse, got 'bidirectional'"):
        recurrent.rnn(x, h, weight, weight, direction="bidirectional")
    with pytest.raises(UnsupportedError, match="activation: expected one of tanh, .*, got 'mish'"):
        recurrent.rnn(x, h, weight, weight, activation="mish")
    with pytest.raises(UnsupportedError, match="direction: expected weight_ih_back and weight_hh_back"):
        recurrent.lstm(x, h, h, torch.zeros(4, 1), torch.zeros(4, 1), direction="bidirectional")
