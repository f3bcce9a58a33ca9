"""Products of matrices against numpy, attention against torch's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

# Sums of at most ten products of size one, in another order than numpy's.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def values(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def integers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).integers(-9, 9, shape, np.int32)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("make", [values, integers])
def test_linear(tmp_path: Path, make: Any, target: str) -> None:
    weight, bias = make(4, 5), make(4)
    inputs = {f"x{rank}": make(*(2, 3, 5)[3 - rank :]) for rank in (1, 2, 3)}

    def build(**variables: Any) -> tuple[Any, ...]:
        return tuple(mb.linear(x=x, weight=weight, **more) for x in variables.values() for more in ({}, {"bias": bias}))

    expected = {
        f"{x.shape} {name}": np.einsum("...i,oi->...o", x, weight) + added
        for x in inputs.values()
        for name, added in (("no bias", 0), ("bias", bias))
    }
    assert_outputs(run_op(build, inputs, tmp_path, target), expected, **TOLERANCE)


# Of x's and y's shapes before any transposition.
MATMULS = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((6, 3, 4), (2, 6, 4, 5)),
    ((2, 1, 3, 4), (1, 6, 4, 5)),
]


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("make", [values, integers])
def test_matmul(tmp_path: Path, make: Any, target: str) -> None:
    flags = [(None, None), (False, False), (True, False), (False, True), (True, True)]
    inputs: dict[str, Array] = {}
    expected: dict[str, Array] = {}
    for (x_shape, y_shape), (transpose_x, transpose_y) in ((pair, flag) for pair in MATMULS for flag in flags):
        x, y = make(*x_shape), make(*y_shape)
        label = f"case{len(expected)}"
        inputs[f"{label}_x"] = np.ascontiguousarray(np.swapaxes(x, -1, -2)) if transpose_x else x
        inputs[f"{label}_y"] = np.ascontiguousarray(np.swapaxes(y, -1, -2)) if transpose_y else y
        expected[f"{label} {x_shape} {y_shape} {transpose_x} {transpose_y}"] = np.matmul(x, y)

    def build(**variables: Any) -> tuple[Any, ...]:
        outputs = []
        for index in range(len(expected)):
            transpose_x, transpose_y = flags[index % len(flags)]
            given = {} if transpose_x is None else {"transpose_x": transpose_x, "transpose_y": transpose_y}
            outputs.append(mb.matmul(x=variables[f"case{index}_x"], y=variables[f"case{index}_y"], **given))
        return tuple(outputs)

    assert_outputs(run_op(build, inputs, tmp_path, target), expected, **TOLERANCE)


def test_matmul_of_integers_with_floats(tmp_path: Path) -> None:
    whole, real = np.arange(-3, 3, dtype=np.int32).reshape(2, 3), values(3, 2)
    outputs = run_op(lambda x: (mb.matmul(x=whole, y=x), mb.matmul(x=x, y=whole)), {"x": real}, tmp_path, "iOS17")
    assert_outputs(outputs, {"whole @ real": whole @ real, "real @ whole": real @ whole}, **TOLERANCE)


def test_matmul_of_a_vector_with_a_matrix(tmp_path: Path) -> None:
    """On the left of two dimensions: coremltools infers no shape for it on the right, a wrong one with batches."""
    vector, matrix = values(4), values(4, 5)

    def build(vector: Any, matrix: Any) -> tuple[Any, ...]:
        turned = mb.transpose(x=matrix, perm=[1, 0])
        return mb.matmul(x=vector, y=matrix), mb.matmul(x=vector, y=turned, transpose_y=True)

    outputs = run_op(build, {"vector": vector, "matrix": matrix}, tmp_path)
    assert_outputs(outputs, dict.fromkeys(("as it is", "transposed"), vector @ matrix), **TOLERANCE)


@pytest.mark.parametrize(
    ("equation", "x_shape", "y_shape"),
    [
        ("nchw,nwhu->nchu", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("abcd,adce->abce", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("nchw,nwhu->nchu", (1, 3, 4, 5), (2, 5, 1, 6)),
        ("nchw,nwhu->nchu", (2, 3, 1, 5), (1, 5, 4, 6)),
        ("chw,whr->chr", (3, 4, 5), (5, 4, 6)),
        ("chw,whr->chr", (3, 1, 5), (5, 4, 6)),
        ("xyz,zyw->xyw", (3, 4, 5), (5, 1, 6)),
    ],
)
def test_einsum(tmp_path: Path, equation: str, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> None:
    x, y = values(*x_shape), values(*y_shape)
    outputs = run_op(lambda x, y: mb.einsum(values=(x, y), equation=equation), {"x": x, "y": y}, tmp_path)
    products = np.swapaxes(np.swapaxes(x, -3, -2) @ np.swapaxes(y, -3, -2), -3, -2)  # rows h, matrices c w and w u
    assert_outputs(outputs, {equation: products}, **TOLERANCE)


@pytest.mark.parametrize(
    ("batch", "mask_shape"),
    [((2,), (2, 4, 5)), ((2,), (4, 5)), ((2, 3), (2, 3, 4, 5)), ((2, 3), (1, 1, 4, 5)), ((2, 3), (2, 1, 1, 5))],
)
def test_scaled_dot_product_attention(tmp_path: Path, batch: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    query, key, value = values(*batch, 4, 6), values(*batch, 5, 6), values(*batch, 5, 7)
    added = 3 * values(*mask_shape)
    kept = added > -2
    kept[..., 0] = True  # where nothing takes part there is no answer

    def build(added: Any, kept: Any, **tensors: Any) -> tuple[Any, ...]:
        return (
            mb.scaled_dot_product_attention(**tensors),
            mb.scaled_dot_product_attention(**tensors, attn_mask=added),
            mb.scaled_dot_product_attention(**tensors, attn_mask=kept),
        )

    inputs = {"query": query, "key": key, "value": value}
    q, k, v = map(torch.from_numpy, inputs.values())
    expected = {
        "no mask": F.scaled_dot_product_attention(q, k, v),
        "float mask": F.scaled_dot_product_attention(q, k, v, torch.from_numpy(added)),
        "bool mask": F.scaled_dot_product_attention(q, k, v, torch.from_numpy(kept)),
    }
    outputs = run_op(build, {"added": added, "kept": kept, **inputs}, tmp_path, "iOS18")
    assert not np.allclose(outputs[0], outputs[2])
    assert_outputs(outputs, expected, **TOLERANCE)
