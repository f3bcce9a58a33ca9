"""Operations that move values, against numpy and the specification's formulas written out index by index."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilevit_coreml._coremltools import mb
from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops import shape
from tests.reference.one_op import Array, run_op
from tests.reference.ops.cases import Case, check

X = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
M = np.arange(1, 7, dtype=np.int32).reshape(2, 3)
AXES = range(-4, 4)


def test_reshape(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"shape": (6, 20)}, X.reshape(6, 20)),
        ({"shape": (4, -1)}, X.reshape(4, 30)),
        ({"shape": (-1,)}, X.reshape(120)),
        ({"shape": (0, 0, -1, 2)}, X.reshape(2, 3, 10, 2)),
        ({"shape": (-1, 0, 0, 10)}, X.reshape(1, 3, 4, 10)),
        ({"shape": (1, 2, 1, 3, 20)}, X.reshape(1, 2, 1, 3, 20)),
    ]
    check(mb.reshape, cases, {"x": X}, tmp_path)
    check(mb.reshape, [({"shape": (3, -1)}, M.reshape(3, 2))], {"x": M}, tmp_path)


def test_reshape_matches_zeros_from_the_right(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"shape": (-1, 0)}, X.reshape(24, 5)),
        ({"shape": (0, -1)}, X.reshape(4, 30)),
        ({"shape": (6, 0, 0)}, X.reshape(6, 4, 5)),
        ({"shape": (0, 1, -1, 0, 0)}, X.reshape(1, 1, 6, 4, 5)),
        ({"shape": (0, 0, 0, 0)}, X),
    ]
    check(mb.reshape, cases, {"x": X}, tmp_path, "iOS17")
    documented = np.arange(100, dtype=np.float32).reshape(2, 50)
    check(
        mb.reshape, [({"shape": (1, 0, -1, 0)}, documented.reshape(1, 1, 2, 50))], {"x": documented}, tmp_path, "iOS17"
    )


def test_reshape_to_a_shape_that_is_computed(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        batch, *_ = mb.split(x=mb.shape(x=x), num_splits=4, axis=0)
        return mb.reshape(x=x, shape=mb.concat(values=[batch, np.array([-1, 10], dtype=np.int32)], axis=0))

    (output,) = run_op(build, {"x": X}, tmp_path)
    np.testing.assert_array_equal(output, X.reshape(2, 6, 10))


def test_reshape_like(tmp_path: Path) -> None:
    def build(x: Any, like: Any, other: Any) -> list[Any]:
        return [
            mb.reshape_like(x=x, ref_tensors=tensors, begins=begins, ends=ends, end_masks=masks)
            for tensors, begins, ends, masks in (
                ((like, other), (0, 1), (2, 0), (False, True)),
                ((like,), (-4,), (4,), (False,)),
                ((other, like), (0, 0), (0, -2), (True, False)),
            )
        ]

    inputs: dict[str, Array] = {
        "x": np.arange(180, dtype=np.float32),
        "like": np.ones((2, 3, 5, 6), np.float32),
        "other": np.ones((1, 5, 6), np.int32),
    }
    outputs = run_op(build, inputs, tmp_path, "iOS16")
    assert all((output.flatten() == inputs["x"]).all() for output in outputs)
    assert [output.shape for output in outputs] == [(2, 3, 5, 6), (2, 3, 5, 6), (1, 5, 6, 2, 3)]


def test_transpose(tmp_path: Path) -> None:
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1), (-1, -4, -2, -3), (1, -1, 0, -2)]
    letters = [("abcd", "".join("abcd"[axis] for axis in order)) for order in orders]
    cases: list[Case] = [
        ({"perm": order}, np.einsum(f"{before}->{after}", X))
        for order, (before, after) in zip(orders, letters, strict=True)
    ]
    check(mb.transpose, cases, {"x": X}, tmp_path)


ALL = (False,) * 4
SLICES: list[tuple[dict[str, Any], Array]] = [
    ({"begin": (0, 1, 1, 2), "end": (2, 3, 3, 4)}, X[:, 1:3, 1:3, 2:4]),
    ({"begin": (-1, -2, 0, -5), "end": (2, -1, -1, 99)}, X[-1:2, -2:-1, 0:-1, -5:]),
    ({"begin": (0, 0, 0, 0), "end": (2, 3, 4, 5), "stride": (1, 2, 3, 2)}, X[:, ::2, ::3, ::2]),
    ({"begin": (1, 2, -1, 4), "end": (0, -3, 0, 1), "stride": (-1, -1, -1, -2)}, X[1:0:-1, 2:0:-1, 3:0:-1, 4:1:-2]),
    ({"begin": (1, 1, 1, 1), "end": (2, 2, 2, 2), "begin_mask": (True, False, True, False)}, X[:2, 1:2, :2, 1:2]),
    ({"begin": (1, 1, 1, 1), "end": (2, 2, 2, 2), "end_mask": (False, True, False, True)}, X[1:2, 1:, 1:2, 1:]),
    (
        {
            "begin": (7, 7, 7, 0),
            "end": (7, 7, 7, 5),
            "stride": (1, -1, -2, 1),
            "begin_mask": (True, True, True, False),
            "end_mask": (True, True, True, False),
        },
        X[:, ::-1, ::-2],
    ),
    (
        {"begin": (1, 0, -1, 0), "end": (0, 3, 0, 5), "squeeze_mask": (True, False, True, False)},
        X[1, :, -1, :],
    ),
    (
        {
            "begin": (0, -3, 2, 1),
            "end": (0, 0, 0, 4),
            "stride": (1, 1, 1, 2),
            "end_mask": (True, False, False, False),
            "squeeze_mask": (False, True, True, False),
        },
        X[:, -3, 2, 1:4:2],
    ),
]


def test_slice_by_index(tmp_path: Path) -> None:
    check(mb.slice_by_index, SLICES, {"x": X}, tmp_path)
    check(mb.slice_by_index, [({"begin": (1, 0), "end": (2, -1)}, M[1:2, :-1])], {"x": M}, tmp_path)


def test_slice_by_index_at_places_that_are_computed(tmp_path: Path) -> None:
    inputs = {"x": M, "begin": np.array([1, -2], dtype=np.int32), "end": np.array([2, 3], dtype=np.int32)}
    check(mb.slice_by_index, [({}, M[1:, -2:]), ({"end_mask": (True, True)}, M[1:, -2:])], inputs, tmp_path)


@pytest.mark.parametrize("case", range(len(SLICES)))
def test_slice_update(case: int, tmp_path: Path) -> None:
    attributes, places = SLICES[case]
    update = -1 - np.arange(places.size, dtype=np.float32).reshape(places.shape)
    expected = X.copy()
    expected.flat[places.astype(int)] = update  # X holds its own places
    check(mb.slice_update, [(attributes, expected)], {"x": X, "update": update}, tmp_path, "iOS18")


def test_slice_by_size(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"begin": (0, 1, 2, 3), "size": (2, 1, 2, 2)}, X[:, 1:2, 2:4, 3:5]),
        ({"begin": (1, 0, 1, 2), "size": (-1, 2, -1, -1)}, X[1:, :2, 1:, 2:]),
        ({"begin": (-1, -3, -2, 0), "size": (1, 2, 1, 5)}, X[-1:, :2, -2:-1]),
    ]
    check(mb.slice_by_size, cases, {"x": X}, tmp_path)


def test_concat(tmp_path: Path) -> None:
    y, z = X + 1000, X[:, :, :1] - 1000

    def build(x: Any, y: Any, z: Any, axis: int, three: bool = False, **attributes: Any) -> Any:
        return mb.concat(values=(x, z, y) if three else (x, y), axis=axis, **attributes)

    interleaved = [
        np.stack([X, y], axis % 4 + 1).reshape([s * (1 + (i == axis % 4)) for i, s in enumerate(X.shape)])
        for axis in AXES
    ]
    cases: list[Case] = [({"axis": axis}, np.concatenate([X, y], axis)) for axis in AXES]
    cases += [({"axis": axis, "three": True}, np.concatenate([X, z, y], axis)) for axis in (2, -2)]
    cases += [({"axis": axis, "interleave": True}, answer) for axis, answer in zip(AXES, interleaved, strict=True)]
    check(build, cases, {"x": X, "y": y, "z": z}, tmp_path)


def test_concat_interleaves_as_documented(tmp_path: Path) -> None:
    first, second = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 10], [11, 12]])
    cases: list[Case] = [
        ({"interleave": False}, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]),
        ({"interleave": True}, [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]),
    ]
    check(
        lambda a, b, interleave: mb.concat(values=(a, b), axis=0, interleave=interleave),
        [(attributes, np.array(answer)) for attributes, answer in cases],
        {"a": first, "b": second},
        tmp_path,
    )


def test_split(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"axis": 0, "num_splits": 2}, (X[:1], X[1:])),
        ({"axis": -1, "num_splits": 5}, tuple(X[..., i : i + 1] for i in range(5))),
        ({"axis": 2, "split_sizes": (1, 3)}, (X[:, :, :1], X[:, :, 1:])),
        ({"axis": -3, "num_splits": 2, "split_sizes": (2, 1)}, (X[:, :2], X[:, 2:])),
    ]
    check(mb.split, cases, {"x": X}, tmp_path)


def test_stack(tmp_path: Path) -> None:
    def build(x: Any, y: Any, axis: int) -> Any:
        return mb.stack(values=(x, y, x), axis=axis)

    cases: list[Case] = [({"axis": axis}, np.stack([M, M * 10, M], axis)) for axis in range(-3, 3)]
    check(build, cases, {"x": M, "y": M * 10}, tmp_path)


def test_expand_dims(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"axes": axes}, np.expand_dims(M, axes)) for axes in [(0,), (2,), (-1,), (-3,), (0, 2), (-1, 0), (3, 1, -5)]
    ]
    check(mb.expand_dims, cases, {"x": M}, tmp_path)


def test_squeeze(tmp_path: Path) -> None:
    x = X.reshape(1, 6, 1, 20, 1)
    cases: list[Case] = [
        ({}, x.reshape(6, 20)),
        ({"axes": (0,)}, x.reshape(6, 1, 20, 1)),
        ({"axes": (-1, 2)}, x.reshape(1, 6, 20)),
        ({"axes": (-5, 4)}, x.reshape(6, 1, 20)),
        ({"axes": (0, 1, 3)}, x.reshape(6, 1, 20, 1)),  # others than ones stay
    ]
    check(mb.squeeze, cases, {"x": x}, tmp_path)


def test_tile(tmp_path: Path) -> None:
    check(
        mb.tile, [({"reps": reps}, np.tile(M, reps)) for reps in [(1, 1), (3, 1), (1, 2), (2, 3)]], {"x": M}, tmp_path
    )
    reps = np.array([3, 2], dtype=np.int32)
    check(mb.tile, [({}, np.tile(M, (3, 2)))], {"x": M, "reps": reps}, tmp_path)


PADDING = [(1, 2), (0, 1), (2, 2), (1, 0), (3, 1)]  # before and after, of up to five dimensions
PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}  # MIL's and numpy's


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_pad(rank: int, tmp_path: Path) -> None:
    x = np.random.default_rng(rank).standard_normal((3, 2, 4, 3, 5)[-rank:]).astype(np.float32)
    cases: list[Case] = []
    for count, mode in itertools.product(range(1, rank + 1), PAD_MODES):
        amounts = [(0, 0)] * (rank - count) + PADDING[-count:]
        numpy_options: dict[str, Any] = {"constant_values": -2.5} if mode == "constant" else {}
        options: dict[str, Any] = {"constant_val": np.float32(-2.5)} if mode == "constant" else {}
        flat = tuple(amount for pair in PADDING[-count:] for amount in pair)
        expected = np.pad(x, amounts, mode=PAD_MODES[mode], **numpy_options)  # type: ignore[call-overload]
        cases.append(({"pad": flat, "mode": mode} | options, expected))
    cases.append(({"pad": (0, 0) * rank}, x))
    cases.append(({"pad": (0, 0) * (rank - 1) + (1, 1)}, np.pad(x, [(0, 0)] * (rank - 1) + [(1, 1)])))
    check(mb.pad, cases, {"x": x}, tmp_path)


@pytest.mark.parametrize("mode", PAD_MODES)
def test_pad_by_amounts_that_are_computed(mode: str, tmp_path: Path) -> None:
    x = X[0]
    amounts = [(1, 0), (2, 2), (0, 3)]
    expected = np.pad(x, amounts, mode=PAD_MODES[mode])  # type: ignore[call-overload]
    check(mb.pad, [({"mode": mode}, expected)], {"x": x, "pad": np.array(amounts).flatten()}, tmp_path)


def test_pad_names_an_unknown_mode() -> None:
    with pytest.raises(UnsupportedError, match="^mode: expected constant, reflect or replicate, got 'wrap'$"):
        shape.pad(torch.ones(3), (1, 1), "wrap")


def blocks(x: Array, size: int) -> Array:
    """tf.nn.space_to_depth with channels first."""
    batch, channels, rows, columns = x.shape
    y = np.zeros((batch, channels * size**2, rows // size, columns // size), x.dtype)
    for n, c, h, w in np.ndindex(*x.shape):
        y[n, (h % size * size + w % size) * channels + c, h // size, w // size] = x[n, c, h, w]
    return y


@pytest.mark.parametrize("size", [2, 3])
def test_space_to_depth_and_back(size: int, tmp_path: Path) -> None:
    spatial = np.arange(2 * 3 * 6 * 12, dtype=np.float32).reshape(2, 3, 6, 12)
    depth = blocks(spatial, size)
    check(mb.space_to_depth, [({"block_size": size}, depth)], {"x": spatial}, tmp_path)
    check(mb.depth_to_space, [({"block_size": size}, spatial)], {"x": depth}, tmp_path)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_and_back(factor: int, tmp_path: Path) -> None:
    small = np.arange(2 * 36 * 2 * 3, dtype=np.float32).reshape(2, 36, 2, 3)
    large = np.zeros((2, 36 // factor**2, 2 * factor, 3 * factor), np.float32)
    for n, c, h, w in np.ndindex(*large.shape):
        channel = c * factor**2 + h % factor * factor + w % factor
        large[n, c, h, w] = small[n, channel, h // factor, w // factor]
    check(mb.pixel_shuffle, [({"upscale_factor": factor}, large)], {"x": small}, tmp_path)
    check(mb.pixel_unshuffle, [({"downscale_factor": np.uint32(factor)}, small)], {"x": large}, tmp_path, "iOS16")


def batches(x: Array, block: tuple[int, int], padding: Array) -> Array:
    """tf.space_to_batch with channels first."""
    padded = np.pad(x, [(0, 0), (0, 0), *padding.tolist()])
    batch, channels, rows, columns = padded.shape
    y = np.zeros((batch * block[0] * block[1], channels, rows // block[0], columns // block[1]), x.dtype)
    for n, c, h, w in np.ndindex(*padded.shape):
        place = h % block[0] * block[1] + w % block[1]
        y[place * batch + n, c, h // block[0], w // block[1]] = padded[n, c, h, w]
    return y


def test_space_to_batch_and_back(tmp_path: Path) -> None:
    spatial = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    forms = [
        ((2, 2), [[0, 0], [0, 0]]),
        ((2, 3), [[0, 0], [2, 1]]),
        ((1, 2), [[1, 0], [0, 2]]),
        ((3, 4), [[1, 1], [0, 2]]),
    ]
    for block, amounts in forms:
        padding = np.array(amounts, dtype=np.int32)
        batched = batches(spatial, block, padding)
        check(mb.space_to_batch, [({"block_shape": block, "paddings": padding}, batched)], {"x": spatial}, tmp_path)
        check(mb.batch_to_space, [({"block_shape": block, "crops": padding}, spatial)], {"x": batched}, tmp_path)


def test_sliding_windows(tmp_path: Path) -> None:
    def windows(axis: int, size: int, stride: int) -> Array:
        starts = range(0, X.shape[axis] - size + 1, stride)
        return np.stack([np.take(X, range(start, start + size), axis) for start in starts], axis % 4)

    attributes = [(3, 2, 1), (-1, 2, 2), (2, 3, 1), (-4, 1, 1), (1, 3, 2), (-2, 2, 2)]
    cases: list[Case] = [
        ({"axis": a, "size": size, "stride": stride}, windows(a, size, stride)) for a, size, stride in attributes
    ]
    check(mb.sliding_windows, [*cases, ({"axis": 2, "size": 2}, windows(2, 2, 1))], {"x": X}, tmp_path)


def test_reverse(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({}, X[::-1, ::-1, ::-1, ::-1]),
        ({"axes": (0,)}, X[::-1]),
        ({"axes": (-1, 1)}, X[:, ::-1, :, ::-1]),
        ({"axes": (2, -4)}, X[::-1, :, ::-1]),
    ]
    check(mb.reverse, cases, {"x": X}, tmp_path)


@pytest.mark.parametrize(("seq_axis", "batch_axis"), [(1, 0), (0, 1), (3, 0), (2, 3), (-1, -3), (1, 2)])
def test_reverse_sequence(seq_axis: int, batch_axis: int, tmp_path: Path) -> None:
    lengths = np.array([length % (X.shape[seq_axis] + 1) for length in (2, 0, 3, 1, 7)][: X.shape[batch_axis]])
    expected = np.zeros_like(X)
    for place in np.ndindex(*X.shape):
        source = list(place)
        length = lengths[place[batch_axis]]
        if place[seq_axis] < length:
            source[seq_axis] = length - 1 - place[seq_axis]
        expected[place] = X[tuple(source)]
    attributes = {"seq_axis": seq_axis, "batch_axis": batch_axis}
    check(mb.reverse_sequence, [(attributes, expected)], {"x": X, "lengths": lengths}, tmp_path)


def test_band_part(tmp_path: Path) -> None:
    def band(x: Array, lower: int, upper: int) -> Array:
        m, n = np.ogrid[: x.shape[-2], : x.shape[-1]]
        return x * (((lower < 0) | (m - n <= lower)) & ((upper < 0) | (n - m <= upper)))

    bands = [(-1, -1), (0, -1), (-1, 0), (0, 0), (1, 2), (2, -1), (-1, 3), (9, 0)]
    for x in (X + 1, M):
        cases: list[Case] = [({"lower": lower, "upper": upper}, band(x, lower, upper)) for lower, upper in bands]
        check(mb.band_part, [*cases, ({}, x)], {"x": x}, tmp_path)


def test_fill(tmp_path: Path) -> None:
    def build(x: Any, given: tuple[int, ...] = (), **attributes: Any) -> Any:
        return mb.fill(shape=given or mb.shape(x=x), **attributes)

    cases: list[Case] = [
        ({"given": (2, 3)}, np.zeros((2, 3), np.float32)),
        ({"given": (3,), "value": np.float32(1.5)}, np.full(3, 1.5, np.float32)),
        ({"given": (1, 2, 1), "value": np.int32(-7)}, np.full((1, 2, 1), -7)),
        ({"value": np.int32(4)}, np.full(X.shape, 4)),
    ]
    check(build, cases, {"x": X}, tmp_path)


def test_fill_like(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({}, np.zeros((2, 3), np.float32)),
        ({"value": np.float32(0.25)}, np.full((2, 3), 0.25, np.float32)),
        ({"value": np.int32(9)}, np.full((2, 3), 9)),
    ]
    check(mb.fill_like, cases, {"ref_tensor": M}, tmp_path, "iOS16")


@pytest.mark.parametrize(
    ("start", "end", "step"), [(0, 5, 1), (2, 11, 3), (5, -4, -2), (0.5, 2.0, 0.5), (1.0, 0.1, -0.25), (0.0, 1.0, 0.3)]
)
def test_range_1d(start: float, end: float, step: float, tmp_path: Path) -> None:
    dtype = np.int32 if isinstance(start, int) else np.float32
    names: dict[str, Array] = {"start": np.array(start), "end": np.array(end), "step": np.array(step)}
    inputs = {name: value.reshape(1).astype(dtype) for name, value in names.items()}

    def build(**variables: Any) -> Any:
        return mb.range_1d(**{name: mb.squeeze(x=variable) for name, variable in variables.items()})

    check(build, [({}, np.arange(start, end, step).astype(dtype))], inputs, tmp_path, atol=1e-6)  # sums of steps


def test_shape(tmp_path: Path) -> None:
    check(mb.shape, [({}, np.array([2, 3, 4, 5]))], {"x": X}, tmp_path)
    check(mb.shape, [({}, np.array([2, 3]))], {"x": M}, tmp_path)


DOCUMENTED: list[tuple[tuple[int, ...], int, tuple[int, int]]] = [
    ((3,), -1, (1, 3)),
    ((3,), 1, (3, 1)),
    ((4, 3), -1, (4, 3)),
    ((2, 3, 2), -1, (6, 2)),
    ((5, 5, 2), 1, (5, 10)),
    ((2, 3, 4), 0, (1, 24)),
    ((2, 3, 4), -3, (1, 24)),
    ((2, 3, 4), 3, (24, 1)),
]


@pytest.mark.parametrize(("given", "axis", "flat"), DOCUMENTED)
def test_flatten2d(given: tuple[int, ...], axis: int, flat: tuple[int, int], tmp_path: Path) -> None:
    x = np.arange(np.prod(given), dtype=np.float32).reshape(given)
    default = x.reshape(given[0], -1)
    check(mb.flatten2d, [({"axis": axis}, x.reshape(flat)), ({}, default)], {"x": x}, tmp_path)


@pytest.mark.parametrize(
    ("operation", "move"),
    [
        (lambda x: mb.reshape(x=x, shape=(3, 2)), lambda x: x.reshape(3, 2)),
        (lambda x: mb.transpose(x=x, perm=(1, 0)), lambda x: x.T),
        (lambda x: mb.concat(values=(x, x), axis=0), lambda x: np.concatenate([x, x])),
        (lambda x: mb.tile(x=x, reps=(2, 1)), lambda x: np.tile(x, (2, 1))),
        (lambda x: mb.reverse(x=x, axes=(1,)), lambda x: x[:, ::-1]),
        (lambda x: mb.band_part(x=x, lower=0, upper=1), lambda x: x & np.array([[1, 1, 0], [0, 1, 1]], bool)),
        (lambda x: mb.slice_by_index(x=x, begin=(0, 0), end=(2, 3), stride=(1, 2)), lambda x: x[:, ::2]),
    ],
)
def test_booleans_move_too(operation: Callable[[Any], Any], move: Callable[[Array], Array], tmp_path: Path) -> None:
    x = np.array([[True, True, False], [True, False, True]])
    (output,) = run_op(lambda x: mb.cast(x=operation(x), dtype="int32"), {"x": x}, tmp_path)
    np.testing.assert_array_equal(output, move(x))


@pytest.mark.parametrize("begin", [3, -4])
def test_a_squeezed_index_is_in_range(begin: int) -> None:
    with pytest.raises(IndexError):
        shape.slice_by_index(torch.ones(3), (begin,), (0,), squeeze_mask=(True,))
