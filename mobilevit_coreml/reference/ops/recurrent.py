"""Recurrent layers of one layer. Shapes: S sequence, N batch, C input channels, H hidden size.

x: (S, N, C), initial states (N, H), weights with their gates along the first dimension. Returns the
outputs (S, N, H), or (1, N, H) without output_sequence, and the final states (N, H). With direction
"reverse" the outputs are in the order of computation, last input first.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops.attributes import choose

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]  # the first is the output

# By coremltools' own tests the parameters of scaled_tanh are 1, of hard_sigmoid 0.2 and 0.5.
_ACTIVATIONS: Mapping[str, Activation] = {
    **dict.fromkeys(("tanh", "scaled_tanh"), torch.tanh),
    **dict.fromkeys(("hard_sigmoid", "sigmoid_hard"), lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "linear": lambda x: x,
}


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> States:
    """h = activation(W_ih x + W_hh h + bias)."""
    act = choose("activation", activation, _ACTIVATIONS)

    def step(row: Tensor, states: States) -> States:
        return (act(row + F.linear(states[0], weight_hh)),)

    return _scan(step, F.linear(_ordered(x, direction), weight_ih, bias), (initial_h,), output_sequence)


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> States:
    """Gates r, o, z: h = (1 - z) * o + z * h. Gate r multiplies h, or with reset_after (iOS18) W_ho h + bias."""
    inner = choose("recurrent_activation", recurrent_activation, _ACTIVATIONS)
    act = choose("activation", activation, _ACTIVATIONS)
    weight_r, weight_o, weight_z = weight_hh.chunk(3)
    bias_r, bias_o, bias_z = (0.0, 0.0, 0.0) if bias is None else bias.chunk(3)

    def step(row: Tensor, states: States) -> States:
        (h,) = states
        row_r, row_o, row_z = row.chunk(3, -1)
        r = inner(row_r + F.linear(h, weight_r) + bias_r)
        z = inner(row_z + F.linear(h, weight_z) + bias_z)
        hidden = r * (F.linear(h, weight_o) + bias_o) if reset_after else F.linear(r * h, weight_o) + bias_o
        return ((1 - z) * act(row_o + hidden) + z * h,)

    return _scan(step, F.linear(_ordered(x, direction), weight_ih, input_bias), (initial_h,), output_sequence)


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> States:
    """Gates i, f, o, z: c = f * c + i * z, clipped to +-clip, and h = o * activation(c); peephole of i, f, o.

    Bidirectional: states (N, 2H) and outputs (S, N, 2H), forward first, in the order of the inputs.
    """
    activations = (
        choose("recurrent_activation", recurrent_activation, _ACTIVATIONS),
        choose("cell_activation", cell_activation, _ACTIVATIONS),
        choose("activation", activation, _ACTIVATIONS),
    )
    if direction != "bidirectional":
        step = _lstm_step(weight_hh, peephole, activations, clip)
        rows = F.linear(_ordered(x, direction), weight_ih, bias)
        return _scan(step, rows, (initial_h, initial_c), output_sequence)
    if weight_ih_back is None or weight_hh_back is None:
        raise UnsupportedError("direction: expected weight_ih_back and weight_hh_back with bidirectional, got neither")
    (h, h_back), (c, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    ahead = _lstm_step(weight_hh, peephole, activations, clip)
    back = _lstm_step(weight_hh_back, peephole_back, activations, clip)
    first = _scan(ahead, F.linear(x, weight_ih, bias), (h, c), output_sequence)
    outputs, *states = _scan(back, F.linear(x.flip(0), weight_ih_back, bias_back), (h_back, c_back), output_sequence)
    return tuple(torch.cat(pair, -1) for pair in zip(first, (outputs.flip(0), *states), strict=True))


def _lstm_step(
    weight_hh: Tensor,
    peephole: Tensor | None,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
) -> Callable[[Tensor, States], States]:
    inner, cell, act = activations
    peep_i, peep_f, peep_o = (0.0, 0.0, 0.0) if peephole is None else peephole.chunk(3)

    def step(row: Tensor, states: States) -> States:
        h, c = states
        gate_i, gate_f, gate_o, gate_z = (row + F.linear(h, weight_hh)).chunk(4, -1)
        c_new = inner(gate_f + peep_f * c) * c + inner(gate_i + peep_i * c) * cell(gate_z)
        c_new = c_new if clip is None else c_new.clamp(-clip, clip)
        return inner(gate_o + peep_o * c_new) * act(c_new), c_new

    return step


def _ordered(x: Tensor, direction: str) -> Tensor:
    return choose("direction", direction, {"forward": x, "reverse": x.flip(0)})


def _scan(
    step: Callable[[Tensor, States], States], rows: Tensor, states: States, output_sequence: bool
) -> tuple[Tensor, ...]:
    """Outputs and final states of the steps along the first dimension of rows."""
    outputs = []
    for row in rows:
        states = step(row, states)
        outputs.append(states[0])
    return (torch.stack(outputs if output_sequence else outputs[-1:]), *states)
