"""Operations on places given by indices, against numpy and the specification's formulas written out index by index."""

import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilevit_coreml._coremltools import mb
from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops import indexing
from tests.reference.one_op import Array, run_op
from tests.reference.ops.cases import Case, check

X = np.random.default_rng(0).permutation(120).astype(np.float32).reshape(2, 3, 4, 5)
AXES = range(-4, 4)


def places(size: int, shape: tuple[int, ...], seed: int = 0, low: int | None = None) -> Array:
    """Indices into a dimension, negative ones among them unless `low` is 0."""
    return np.random.default_rng(seed).integers(-size if low is None else low, size, shape, dtype=np.int32)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_gather(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = X[0] if len(shape) == 3 else X  # Core ML has ranks up to 5
    attributes: list[dict[str, Any]] = [
        {"axis": axis, "indices": places(x.shape[axis], shape, axis + 9)} for axis in range(-x.ndim, x.ndim)
    ]
    attributes.append({"indices": places(x.shape[0], shape)})
    if shape == ():
        attributes = [{**entry, "indices": np.int32(entry["indices"])} for entry in attributes]
    cases = [(entry, np.take(x, entry["indices"], entry.get("axis", 0))) for entry in attributes]
    check(mb.gather, cases, {"x": x}, tmp_path)
    integers: list[Case] = [(entry, answer.astype(np.int32)) for entry, answer in cases]
    check(mb.gather, integers, {"x": x.astype(np.int32)}, tmp_path)


def test_gather_one_element(tmp_path: Path) -> None:
    def build(x: Any, index: int) -> Any:
        return mb.expand_dims(x=mb.gather(x=x, indices=np.int32(index)), axes=(0,))

    check(build, [({"index": index}, X[0, 0, 0, [index]]) for index in (3, -1)], {"x": X[0, 0, 0]}, tmp_path)


def test_gather_at_places_that_are_computed(tmp_path: Path) -> None:
    indices = np.array([[1, -1], [0, -3]], dtype=np.int32)
    cases: list[Case] = [({"axis": axis}, np.take(X, indices, axis)) for axis in (1, 2, -1)]
    check(mb.gather, cases, {"x": X, "indices": indices}, tmp_path)


def gathered(x: Array, indices: Array, axis: int, batch_dims: int) -> Array:
    """tf.gather, element by element."""
    inner = indices.ndim - batch_dims
    y = np.zeros((*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]), x.dtype)
    for place in np.ndindex(*y.shape):
        index = indices[place[:batch_dims] + place[axis : axis + inner]]
        y[place] = x[(*place[:axis], index, *place[axis + inner :])]
    return y


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize(
    ("shape", "axis", "batch_dims"),
    [((2,), 1, 1), ((2, 3), 1, 1), ((2, 2, 2), 3, 1), ((2, 3), 2, 2), ((2, 3, 1, 2), 3, 2), ((2, 3, 4), 3, 3)],
)
def test_gather_in_batches(shape: tuple[int, ...], axis: int, batch_dims: int, target: str, tmp_path: Path) -> None:
    indices = places(X.shape[axis], shape, low=0)
    answer = gathered(X, indices, axis, batch_dims)
    axes = [{"axis": axis, "batch_dims": batch_dims}, {"axis": axis - 4, "batch_dims": batch_dims}]
    check(mb.gather, [(attributes, answer) for attributes in axes], {"x": X, "indices": indices}, tmp_path, target)


def test_gather_with_small_and_with_validated_indices(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"indices": np.array([2, 0], dtype=dtype), "axis": 1, "validate_indices": validate}, X[:, [2, 0]])
        for dtype in (np.int16, np.uint16, np.int8, np.uint8, np.int32)
        for validate in (False, True)
    ]
    check(mb.gather, cases, {"x": X}, tmp_path, "iOS17")


@pytest.mark.parametrize(("index", "validate", "low"), [(5, True, 0), (5, False, -4), (-5, False, -4), (-1, True, 0)])
@pytest.mark.parametrize("operation", [mb.gather, mb.gather_along_axis, mb.gather_nd])
def test_places_outside_are_refused(
    operation: Callable[..., Any], index: int, validate: bool, low: int, tmp_path: Path
) -> None:
    inputs: dict[str, Array] = {"x": X[0, 0, :4, :1], "indices": np.full((4, 1), index, np.int32)}
    with pytest.raises(UnsupportedError, match=rf"indices: expected {low} to 3, got {index} to {index}; the spec"):
        run_op(partial(operation, validate_indices=validate), inputs, tmp_path, "iOS17")


@pytest.mark.parametrize(("index", "validate", "low"), [(5, True, 0), (5, False, -4), (-5, False, -4), (-1, True, 0)])
@pytest.mark.parametrize(("operation", "rank"), [(mb.scatter, 1), (mb.scatter_along_axis, 2), (mb.scatter_nd, 2)])
def test_updates_outside_are_refused(
    operation: Callable[..., Any], rank: int, index: int, validate: bool, low: int, tmp_path: Path
) -> None:
    data, indices = X[0, 0, :4, :1], np.full((4, 1)[:rank], index, np.int32)
    inputs: dict[str, Array] = {"data": data, "indices": indices, "updates": data}
    with pytest.raises(UnsupportedError, match=rf"indices: expected {low} to 3, got {index} to {index}; the spec"):
        run_op(partial(operation, validate_indices=validate), inputs, tmp_path, "iOS17")


@pytest.mark.parametrize("axis", AXES)
def test_gather_along_axis(axis: int, tmp_path: Path) -> None:
    for count, target in ((1, "iOS15"), (X.shape[axis], "iOS15"), (7, "iOS17")):
        shape = tuple(count if place == axis % 4 else size for place, size in enumerate(X.shape))
        indices = places(X.shape[axis], shape, count, low=0 if target == "iOS17" else None)
        options = {"validate_indices": True} if target == "iOS17" else {}
        answer = np.zeros(shape, X.dtype)
        for place in np.ndindex(*shape):
            source = list(place)
            source[axis] = indices[place]
            answer[place] = X[tuple(source)]
        check(
            mb.gather_along_axis, [({"axis": axis} | options, answer)], {"x": X, "indices": indices}, tmp_path, target
        )


def tuples(shape: tuple[int, ...], sizes: tuple[int, ...], low: int | None = None) -> Array:
    """Indices of several dimensions, stacked in the last."""
    return np.stack([places(size, shape, seed, low) for seed, size in enumerate(sizes)], -1)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_gather_nd(depth: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    indices = tuples(shape, X.shape[:depth])
    answer = np.array([X[tuple(index)] for index in indices.reshape(-1, depth)]).reshape(*shape, *X.shape[depth:])
    check(mb.gather_nd, [({}, answer)], {"x": X, "indices": indices}, tmp_path)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize(
    ("batch_dims", "depth", "shape"),
    [(1, 1, (2, 3)), (1, 2, (2,)), (2, 1, (2, 3, 4)), (2, 2, (2, 3)), (3, 1, (2, 3, 4, 2))],
)
def test_gather_nd_in_batches(batch_dims: int, depth: int, shape: tuple[int, ...], target: str, tmp_path: Path) -> None:
    indices = tuples(shape, X.shape[batch_dims : batch_dims + depth], low=0)
    answer = np.zeros((*shape, *X.shape[batch_dims + depth :]), X.dtype)
    for place in np.ndindex(*shape):
        answer[place] = X[(*place[:batch_dims], *indices[place])]
    options = {"validate_indices": False} if target == "iOS17" else {}
    check(
        mb.gather_nd, [({"batch_dims": batch_dims} | options, answer)], {"x": X, "indices": indices}, tmp_path, target
    )


MODES: dict[str, Callable[[Any, Any], Any]] = {
    "update": lambda old, new: new,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": lambda old, new: int(old / new) if isinstance(old, np.integer) else old / new,
    "max": max,
    "min": min,
}
DTYPES = (np.float32, np.int32)
SUMS = 1e-4  # a few additions or products of numbers below 200 in another order


def numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Neither zero nor so great that products of a few leave the type."""
    generator = np.random.default_rng(seed)
    magnitude = generator.integers(1, 9, shape) if dtype == np.int32 else generator.uniform(0.5, 3, shape)
    return np.where(generator.random(shape) < 0.5, -1, 1).astype(dtype) * magnitude.astype(dtype)


def scattered(data: Array, targets: list[tuple[Any, Any]], mode: str) -> Array:
    """The data with each (place, value) brought in, one after the other."""
    result = data.copy()
    for place, value in targets:
        result[place] = MODES[mode](result[place], value)
    return result


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter(axis: int, dtype: Any, target: str, tmp_path: Path) -> None:
    data = numbers((4, 3, 5), dtype, 0)
    for indices in ([2, 0], [0, -1] if target == "iOS15" else [0, 2], [1, 1, 1]):
        shape = [len(indices) if place == axis % 3 else size for place, size in enumerate(data.shape)]
        updates = numbers(tuple(shape), dtype, 1)
        writes: list[tuple[Any, Any]] = []
        for place in np.ndindex(*updates.shape):
            to = list(place)
            to[axis] = indices[place[axis]]
            writes.append((tuple(to), updates[place]))
        modes = [mode for mode in MODES if mode != "update" or len(set(indices)) == len(indices)]
        cases: list[Case] = [({"axis": axis, "mode": mode}, scattered(data, writes, mode)) for mode in modes]
        cases.append(({"axis": axis}, scattered(data, writes, "add")))
        inputs = {"data": data, "indices": np.array(indices), "updates": updates}
        check(mb.scatter, cases, inputs, tmp_path, target, atol=SUMS)


def test_scatter_as_documented(tmp_path: Path) -> None:
    inputs = {"data": [[1, 2, 3], [4, 5, 6]], "indices": [1, 0], "updates": [[5, 6, 7], [8, 9, 10]]}
    answer = np.array([[9, 11, 13], [9, 11, 13]])
    arrays = {name: np.array(value) for name, value in inputs.items()}
    check(mb.scatter, [({"axis": 0, "mode": "add"}, answer)], arrays, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 2, -2])
def test_scatter_along_axis(axis: int, dtype: Any, tmp_path: Path) -> None:
    data = numbers((4, 3, 5), dtype, 2)
    size = data.shape[axis]
    shape = tuple(size - 1 if place == axis % 3 else length for place, length in enumerate(data.shape))
    # Each place once and in another order along each line, for `update`; and any places, for the others.
    once = np.random.default_rng(3).permuted(
        np.broadcast_to(np.arange(size), (*np.delete(shape, axis % 3), size)), axis=-1
    )
    orders = {True: np.moveaxis(once[..., : size - 1], -1, axis), False: places(size, shape)}
    for distinct, indices in orders.items():
        updates = numbers(shape, dtype, 4)
        writes: list[tuple[Any, Any]] = []
        for place in np.ndindex(*shape):
            to = list(place)
            to[axis] = indices[place]
            writes.append((tuple(to), updates[place]))
        modes = [mode for mode in MODES if distinct or mode != "update"]
        cases: list[Case] = [({"axis": axis, "mode": mode}, scattered(data, writes, mode)) for mode in modes]
        cases.append(({"axis": axis}, scattered(data, writes, "add")))
        check(mb.scatter_along_axis, cases, {"data": data, "indices": indices, "updates": updates}, tmp_path, atol=SUMS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(depth: int, dtype: Any, tmp_path: Path) -> None:
    data = numbers((4, 3, 5), dtype, 5)
    every = np.array(list(np.ndindex(*data.shape[:depth])), dtype=np.int32)
    distinct = np.random.default_rng(6).permutation(every)[:4].reshape(2, 2, depth)
    for indices in (distinct, tuples((2, 3), data.shape[:depth])):
        updates = numbers((*indices.shape[:-1], *data.shape[depth:]), dtype, 7)
        writes: list[tuple[Any, Any]] = []
        for place in np.ndindex(*updates.shape):
            lead = indices.ndim - 1
            writes.append(((*indices[place[:lead]], *place[lead:]), updates[place]))
        modes = [mode for mode in MODES if indices is distinct or mode != "update"]
        cases: list[Case] = [({"mode": mode}, scattered(data, writes, mode)) for mode in modes]
        cases.append(({}, scattered(data, writes, "add")))
        check(mb.scatter_nd, cases, {"data": data, "indices": indices, "updates": updates}, tmp_path, atol=SUMS)


def test_scatter_names_an_unknown_mode() -> None:
    with pytest.raises(UnsupportedError, match="^mode: expected update, .*, got 'average'$"):
        indexing.scatter(torch.zeros(3), torch.tensor([1]), torch.ones(1), mode="average")


@pytest.mark.parametrize("indices", [np.array([1, 0, 3]), np.array([[1, 2, 0], [3, 3, 1]])])
def test_one_hot(indices: Array, tmp_path: Path) -> None:
    def hot(axis: int, on: Any, off: Any, size: int = 4) -> Array:
        rank = indices.ndim + 1
        shape = list(indices.shape)
        shape.insert(axis % rank, size)
        y = np.full(shape, off)
        for place, index in np.ndenumerate(indices):
            at = list(place)
            at.insert(axis % rank, index)
            y[tuple(at)] = on
        return y

    cases: list[Case] = [
        ({"axis": axis, "one_hot_vector_size": 4}, hot(axis, np.int32(1), np.int32(0)))
        for axis in range(-indices.ndim - 1, indices.ndim + 1)
    ]
    on, off = np.float32(2.5), np.float32(-0.1)
    cases += [
        ({"one_hot_vector_size": 4}, hot(-1, np.int32(1), np.int32(0))),
        ({"one_hot_vector_size": 6, "on_value": on, "off_value": off}, hot(-1, on, off, 6)),
        ({"one_hot_vector_size": 4, "axis": 0, "on_value": np.int32(7), "off_value": np.int32(9)}, hot(0, 7, 9)),
    ]
    check(mb.one_hot, cases, {"indices": indices}, tmp_path)


def test_one_hot_has_no_place_for_an_index_outside(tmp_path: Path) -> None:
    indices = np.array([-1, 2, 3, -4])  # as tf.one_hot, which coremltools translates to it one to one
    answer = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    check(mb.one_hot, [({"one_hot_vector_size": 3}, answer)], {"indices": indices}, tmp_path)


def test_one_hot_of_a_size_that_is_computed(tmp_path: Path) -> None:
    def build(indices: Any, size: Any, **attributes: Any) -> Any:
        return mb.one_hot(indices=indices, one_hot_vector_size=mb.squeeze(x=size), **attributes)

    cases: list[Case] = [({"on_value": 1, "off_value": 9}, np.array([[9, 1, 9, 9], [1, 9, 9, 9]]))]
    check(build, cases, {"indices": np.array([1, 0]), "size": np.array([4])}, tmp_path)


TIED = np.array([[3, 1, 3, 2], [0, 0, 5, 5]], dtype=np.float32)


def ordered(x: Array, axis: int, ascending: bool) -> Array:
    """Places in order, the first first among equals."""
    return np.argsort(x if ascending else -x, axis=axis, kind="stable").astype(np.int32)


def best(x: Array, k: int = 1, axis: int = -1, ascending: bool = False) -> tuple[Array, Array]:
    order = np.take(ordered(x, axis, ascending), range(k), axis)
    return np.take_along_axis(x, order, axis), order


@pytest.mark.parametrize("x", [X, TIED, X.astype(np.int32)])
def test_argsort(x: Array, tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"axis": axis, "ascending": ascending}, ordered(x, axis, ascending))
        for axis in range(-x.ndim, x.ndim)
        for ascending in (False, True)
    ]
    check(mb.argsort, [*cases, ({}, ordered(x, -1, False))], {"x": x}, tmp_path)


@pytest.mark.parametrize("x", [X, TIED, X.astype(np.int32)])
def test_topk(x: Array, tmp_path: Path) -> None:
    attributes: list[dict[str, Any]] = [{"k": k, "axis": axis} for k, axis in [(2, 0), (1, 1), (3, -1), (2, -2)]]
    attributes += [{**entry, "ascending": True} for entry in attributes] + [{}, {"ascending": True}]
    check(mb.topk, [(entry, best(x, **entry)) for entry in attributes], {"x": x}, tmp_path)


def test_topk_without_order_or_indices(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"k": 2, "sort": True, "return_indices": True}, best(X, 2)),
        ({"k": 2, "axis": 1, "sort": True, "return_indices": False}, best(X, 2, 1)[0]),
        ({"k": 3, "ascending": True, "return_indices": False}, best(X, 3, ascending=True)[0]),
    ]
    check(mb.topk, cases, {"x": X}, tmp_path, "iOS16")
    values, order = run_op(lambda x: mb.topk(x=x, k=3, sort=False), {"x": X}, tmp_path, "iOS16")
    np.testing.assert_array_equal(np.sort(values), np.sort(best(X, 3)[0]))
    np.testing.assert_array_equal(np.take_along_axis(X, order, -1), values)


def test_topk_of_small_indices(tmp_path: Path) -> None:
    def build(x: Any, **attributes: Any) -> Any:
        values, order = mb.topk(x=x, **attributes)
        return values, mb.cast(x=order, dtype="int32")

    cases: list[Case] = [
        ({"k": np.int16(2), "output_indices_dtype": "uint16"}, best(X, 2)),
        ({"k": np.int8(2), "axis": 2, "output_indices_dtype": "int32"}, best(X, 2, 2)),
    ]
    check(build, cases, {"x": X}, tmp_path, "iOS17")


def test_topk_of_all() -> None:
    values, order = indexing.topk(torch.from_numpy(X), k=-1, axis=1)  # coremltools infers a size of -1 for it
    answer, places_of_it = best(X, 3, 1)
    np.testing.assert_array_equal(values.numpy(), answer)
    np.testing.assert_array_equal(order.numpy(), places_of_it)


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_zero(dtype: Any, tmp_path: Path) -> None:
    x = np.where(X.astype(int) % 3 == 0, X, 0).astype(dtype)
    check(mb.non_zero, [({}, np.argwhere(x).astype(np.int32))], {"x": x}, tmp_path)
