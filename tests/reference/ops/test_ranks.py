"""Every operation that takes them at rank 0, with an axis of no elements and at rank 5, against numpy and torch."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml._coremltools import mb
from mobilevit_coreml.reference import OPERATIONS
from mobilevit_coreml.reference.ops import elementwise, reduction
from tests.reference.one_op import Array, assert_outputs, run_op

SHAPES = [(), (1,), (0,), (2, 0, 3), (2, 1, 3, 2, 2)]
RNG = np.random.default_rng(0)
erf = np.vectorize(math.erf, otypes=[np.float32])


def softplus(x: Array) -> Array:
    return np.asarray(np.log1p(np.exp(x)))


UNARY: Mapping[str, Callable[[Array], Any]] = {
    **{name: getattr(np, name) for name in ("abs", "ceil", "cos", "cosh", "exp", "exp2", "floor", "sign", "sin")},
    **{name: getattr(np, name) for name in ("sinh", "sqrt", "square", "tan", "tanh")},
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "erf": erf,
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "round": np.round,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    # with their attributes
    "clip": lambda x: x,
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "inverse": lambda x: 1 / (x + 1e-4),
    "log": np.log,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
WITH_ATTRIBUTES: Mapping[str, tuple[Mapping[str, Any], Callable[[Array], Any]]] = {
    "cast": ({"dtype": "int32"}, lambda x: x.astype(np.int32)),
    "clamped_relu": ({"alpha": 0.5, "beta": 0.3}, lambda x: np.minimum(np.where(x < 0, x / 2, x), 0.3)),
    "elu": ({"alpha": 0.5}, lambda x: np.where(x < 0, 0.5 * np.expm1(x), x)),
    "fill_like": ({"value": torch.tensor(3.0)}, lambda x: np.full_like(x, 3)),
    "leaky_relu": ({"alpha": 0.5}, lambda x: np.where(x < 0, x / 2, x)),
    "linear_activation": ({"alpha": 2.0, "beta": 1.0}, lambda x: 2 * x + 1),
    "scaled_tanh": ({"alpha": 2.0, "beta": 0.5}, lambda x: 2 * np.tanh(x / 2)),
    "shape": ({}, lambda x: np.array(x.shape, np.int32)),
    "sigmoid_hard": ({"alpha": 0.2, "beta": 0.5}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "threshold": ({"alpha": torch.tensor(0.25)}, lambda x: np.maximum(x, 0.25)),
    "thresholded_relu": ({"alpha": 0.25}, lambda x: np.where(x >= 0.25, x, 0)),
    "quantize": (
        {"scale": torch.tensor(0.01), "output_dtype": "int8"},
        lambda x: np.clip(np.round(x / np.float32(0.01)), -128, 127).astype(np.int32),
    ),
    "dequantize": ({"scale": torch.tensor(0.01)}, lambda x: x * np.float32(0.01)),
    # shapes
    "expand_dims": ({"axes": (0, -1)}, lambda x: x[None, ..., None]),
    "reshape": ({"shape": (-1,)}, lambda x: x.reshape(-1) if x.size else np.zeros(0)),
    "reverse": ({}, np.flip),
    "squeeze": ({}, np.squeeze),
    "non_zero": ({}, np.argwhere),
    "flatten2d": ({"axis": 0}, lambda x: x.reshape(1, x.size)),
}
BINARY: Mapping[str, Callable[[Array, Array], Any]] = {
    **{name: getattr(np, name) for name in ("add", "equal", "greater", "greater_equal", "less", "less_equal")},
    **{name: getattr(np, name) for name in ("maximum", "minimum", "not_equal", "mod")},
    "floor_div": np.floor_divide,
    "mul": np.multiply,
    "pow": np.power,
    "real_div": np.divide,
    "sub": np.subtract,
}
LOGICAL = {name: getattr(np, name) for name in ("logical_and", "logical_or", "logical_xor")}
REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, axes, keep: np.abs(x).sum(axes, keepdims=keep),
    "reduce_l2_norm": lambda x, axes, keep: np.sqrt(np.square(x).sum(axes, keepdims=keep)),
    "reduce_log_sum": lambda x, axes, keep: np.log(x.sum(axes, keepdims=keep)),
    "reduce_log_sum_exp": lambda x, axes, keep: np.log(np.exp(x).sum(axes, keepdims=keep)),
    "reduce_max": lambda x, axes, keep: x.max(axes, keepdims=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdims=keep),
    "reduce_min": lambda x, axes, keep: x.min(axes, keepdims=keep),
    "reduce_prod": lambda x, axes, keep: x.prod(axes, keepdims=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdims=keep),
    "reduce_sum_square": lambda x, axes, keep: np.square(x).sum(axes, keepdims=keep),
}


def values(shape: tuple[int, ...]) -> Array:
    """Of 0.1 to 0.9, which every function has in its domain."""
    return np.asarray(RNG.uniform(0.1, 0.9, shape), np.float32)


def close(output: Tensor, expected: Any, rtol: float = 2e-6) -> None:
    """Same shape, and the same values but for the last digits of float32 in other libraries' functions."""
    wanted = np.asarray(expected)
    assert tuple(output.shape) == wanted.shape
    assert (output.dtype == torch.bool) == (wanted.dtype == bool)
    np.testing.assert_allclose(output.numpy(), wanted, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*UNARY, *WITH_ATTRIBUTES])
def test_of_one_value(name: str, shape: tuple[int, ...]) -> None:
    attributes, expected = WITH_ATTRIBUTES.get(name) or ({}, UNARY[name])
    x = values(shape)
    argument = {"fill_like": "ref_tensor", "quantize": "input", "dequantize": "input"}.get(name, "x")
    close(OPERATIONS[name](**{argument: torch.from_numpy(x)}, **attributes), expected(x), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*BINARY, *LOGICAL])
def test_of_two_values(name: str, shape: tuple[int, ...]) -> None:
    x, y = (values(shape), values(shape)) if name in BINARY else (values(shape) > 0.5, values(shape) > 0.5)
    x, y = np.asarray(x), np.asarray(y)  # numpy compares arrays of rank 0 to scalars
    scalar = values(()) if name in BINARY else np.asarray(True)
    function, expected = OPERATIONS[name], BINARY.get(name) or LOGICAL[name]
    for a, b in ((x, y), (x, scalar), (scalar, x)):
        close(function(x=torch.from_numpy(a), y=torch.from_numpy(b)), expected(a, b))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, shape: tuple[int, ...], keep: bool) -> None:
    x = values(shape)
    if 0 in shape and name in ("reduce_max", "reduce_min"):
        with pytest.raises((IndexError, RuntimeError)):  # numpy: zero-size array to reduction operation
            OPERATIONS[name](x=torch.from_numpy(x))
        return
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of the mean of nothing
        close(OPERATIONS[name](x=torch.from_numpy(x), keep_dims=keep), REDUCTIONS[name](x, None, keep), rtol=1e-5)
        for axis in range(len(shape)):
            if shape[axis]:
                result = OPERATIONS[name](x=torch.from_numpy(x), axes=(axis,), keep_dims=keep)
                close(result, REDUCTIONS[name](x, axis, keep), rtol=1e-5)


def test_each_element_wise_operation_and_reduction_is_here() -> None:
    assert set(elementwise.UNARY) <= {*UNARY, "logical_not"}
    assert set(elementwise.BINARY) <= {*BINARY, *LOGICAL}
    assert set(reduction.REDUCTIONS) == set(REDUCTIONS)


EMPTY, WIDE = torch.zeros(2, 0, 3), torch.from_numpy(values((2, 1, 3, 2, 2)))
SCALAR = torch.tensor(2.5)
INDICES = torch.zeros(0, dtype=torch.int32)
SHAPED: Mapping[str, tuple[str, Mapping[str, Any], Tensor]] = {
    "concat of scalars": ("concat", {"values": [SCALAR, SCALAR + 1], "axis": 0}, torch.tensor([2.5, 3.5])),
    "concat of scalars from the end": ("concat", {"values": [SCALAR], "axis": -1}, torch.tensor([2.5])),
    "concat of scalars in turn": (
        "concat",
        {"values": [SCALAR, SCALAR + 1], "axis": 0, "interleave": True},
        torch.tensor([2.5, 3.5]),
    ),
    "concat of none": ("concat", {"values": [EMPTY, torch.ones(2, 1, 3)], "axis": 1}, torch.ones(2, 1, 3)),
    "concat at rank 5": ("concat", {"values": [WIDE, WIDE], "axis": -3}, torch.cat([WIDE, WIDE], 2)),
    "stack of scalars": ("stack", {"values": [SCALAR, SCALAR + 1], "axis": 0}, torch.tensor([2.5, 3.5])),
    "select of scalars": ("select", {"cond": torch.tensor(True), "a": SCALAR, "b": SCALAR + 1}, SCALAR),
    "fill": ("fill", {"shape": (), "value": SCALAR}, SCALAR),
    "fill of none": ("fill", {"shape": (2, 0), "value": SCALAR}, torch.zeros(2, 0)),
    "transpose of a scalar": ("transpose", {"x": SCALAR, "perm": ()}, SCALAR),
    "transpose at rank 5": ("transpose", {"x": WIDE, "perm": (4, 2, 0, 1, 3)}, WIDE.permute(4, 2, 0, 1, 3)),
    "reshape to a scalar": ("reshape", {"x": torch.ones(1, 1), "shape": ()}, torch.tensor(1.0)),
    "tile of none": ("tile", {"x": EMPTY, "reps": (1, 2, 2)}, torch.zeros(2, 0, 6)),
    "tile at rank 5": ("tile", {"x": WIDE, "reps": (1, 2, 1, 1, 2)}, WIDE.repeat(1, 2, 1, 1, 2)),
    "gather of a scalar index": ("gather", {"x": WIDE, "indices": torch.tensor(1), "axis": 2}, WIDE[:, :, 1]),
    "gather of none": ("gather", {"x": WIDE, "indices": INDICES, "axis": 3}, WIDE[:, :, :, []]),
    "gather_along_axis of none": (
        "gather_along_axis",
        {"x": WIDE[0, 0, 0, 0], "indices": INDICES, "axis": 0},
        torch.zeros(0),
    ),
    "gather_nd at rank 5": (
        "gather_nd",
        {"x": WIDE, "indices": torch.tensor([[1, 0, 2, 1, 0]])},
        WIDE[1, 0, 2, 1, 0].reshape(1),
    ),
    "scatter of none": (
        "scatter",
        {"data": WIDE, "indices": INDICES, "updates": WIDE[[]], "mode": "update"},
        WIDE,
    ),
    "one_hot of a scalar": (
        "one_hot",
        {"indices": torch.tensor(2), "one_hot_vector_size": 4},
        torch.tensor([0, 0, 1, 0]),
    ),
    "softmax of a scalar": ("softmax", {"x": SCALAR}, torch.tensor(1.0)),
    "softmax of none": ("softmax", {"x": EMPTY, "axis": 1}, EMPTY),
    "cumsum of none": ("cumsum", {"x": EMPTY, "axis": 1, "exclusive": True, "reverse": True}, EMPTY),
    "cumsum at rank 5": ("cumsum", {"x": WIDE, "axis": -3}, WIDE.cumsum(2)),
    "topk of none": ("topk", {"x": EMPTY, "k": -1, "axis": 1, "return_indices": False}, EMPTY),
    "argsort of none": ("argsort", {"x": EMPTY, "axis": 1}, EMPTY.int()),
    "argsort of a scalar": ("argsort", {"x": SCALAR}, torch.tensor(0)),
    "reduce_argmax at rank 5": ("reduce_argmax", {"x": WIDE, "axis": -3}, WIDE.argmax(2)),
    "slice_by_index of none": (
        "slice_by_index",
        {"x": WIDE[0, 0, :, 0], "begin": (1, 0), "end": (1, 2)},
        WIDE[0, 0, 1:1, 0],
    ),
    "slice_by_size of none": ("slice_by_size", {"x": EMPTY, "begin": (0, 0, 1), "size": (-1, -1, 2)}, EMPTY[..., 1:]),
    "slice_update of none": (
        "slice_update",
        {"x": WIDE[0, 0, 0], "update": torch.zeros(0, 2), "begin": (1, 0), "end": (1, 2)},
        WIDE[0, 0, 0],
    ),
    "pad of none": ("pad", {"x": EMPTY, "pad": (1, 1, 0, 0), "constant_val": 2.0}, torch.full((2, 2, 3), 2.0)),
    "pad at rank 5": ("pad", {"x": WIDE, "pad": (1, 1), "mode": "reflect"}, WIDE[..., [1, 0, 1, 0]]),
    "range_1d of none": (
        "range_1d",
        {"start": torch.tensor(3), "end": torch.tensor(3), "step": torch.tensor(1)},
        torch.zeros(0, dtype=torch.int64),
    ),
    "matmul of none": ("matmul", {"x": torch.zeros(2, 3, 0), "y": torch.zeros(2, 0, 4)}, torch.zeros(2, 3, 4)),
    "matmul at rank 5": ("matmul", {"x": WIDE, "y": WIDE, "transpose_y": True}, WIDE @ WIDE.mT),
    "linear of none": ("linear", {"x": EMPTY, "weight": torch.ones(4, 3)}, torch.zeros(2, 0, 4)),
    "linear at rank 5": ("linear", {"x": WIDE, "weight": torch.ones(4, 2)}, F.linear(WIDE, torch.ones(4, 2))),
    "einsum of none": ("einsum", {"values": [EMPTY, EMPTY], "equation": "abc,abd->acd"}, torch.zeros(2, 3, 3)),
    "layer_norm at rank 5": ("layer_norm", {"x": WIDE, "axes": (-2, -1)}, F.layer_norm(WIDE, (2, 2))),
    "layer_norm of none": ("layer_norm", {"x": EMPTY, "axes": (-1,)}, EMPTY),
    "batch_norm at rank 5": (
        "batch_norm",
        {"x": WIDE, "mean": torch.zeros(1), "variance": torch.ones(1)},
        F.batch_norm(WIDE, torch.zeros(1), torch.ones(1)),
    ),
    "band_part at rank 5": ("band_part", {"x": WIDE, "lower": 0, "upper": 0}, WIDE * torch.eye(2)),
    "reverse_sequence at rank 5": (
        "reverse_sequence",
        {"x": WIDE, "lengths": torch.tensor([2, 3]), "seq_axis": 2, "batch_axis": 0},
        torch.stack([WIDE[0][:, [1, 0, 2]], WIDE[1][:, [2, 1, 0]]]),
    ),
    "upsample at rank 5": (
        "upsample_nearest_neighbor",
        {"x": WIDE, "scale_factor_height": 2.0, "scale_factor_width": 1.0},
        WIDE.repeat_interleave(2, -2),
    ),
    "attention at rank 5": (
        "scaled_dot_product_attention",
        {"query": WIDE, "key": WIDE, "value": WIDE},
        F.scaled_dot_product_attention(WIDE, WIDE, WIDE),
    ),
}


@pytest.mark.parametrize("case", SHAPED)
def test_shapes(case: str) -> None:
    name, attributes, expected = SHAPED[case]
    output = OPERATIONS[name](**attributes)
    close(output[0] if isinstance(output, tuple) else output, expected)


def test_split_of_none() -> None:
    parts = OPERATIONS["split"](x=EMPTY, axis=2, split_sizes=(1, 0, 2))
    assert [tuple(part.shape) for part in parts] == [(2, 0, 1), (2, 0, 0), (2, 0, 2)]


def test_scalars_within_a_program(tmp_path: Path) -> None:
    """shape -> gather -> concat -> what takes a shape: how coremltools writes a dynamic expand or zeros."""
    x = values((2, 3))

    def build(x: Any) -> tuple[Any, ...]:
        rows = mb.gather(x=mb.shape(x=x), indices=0, axis=0)
        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        size = mb.concat(values=[rows, np.int32(2)], axis=0)
        return (
            mb.identity(x=size),
            mb.fill(shape=size, value=1.5),
            mb.reshape(x=total, shape=mb.concat(values=[np.int32(1), np.int32(1)], axis=0)),
            mb.tile(x=x, reps=size),
            mb.stack(values=[total, total], axis=0),
            mb.expand_dims(x=mb.exp(x=mb.mul(x=total, y=np.float32(0.5))), axes=[0]),
        )

    total = x.sum()
    answers = {
        "concat": np.array([2, 2]),
        "fill": np.full((2, 2), 1.5),
        "reshape": total.reshape(1, 1),
        "tile": np.tile(x, (2, 2)),
        "stack": np.array([total, total]),
        "expand_dims": np.exp(total / 2).reshape(1),
    }
    assert_outputs(run_op(build, {"x": x}, tmp_path), answers, rtol=1e-6)
