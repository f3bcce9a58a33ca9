"""Resizing, cropping and resampling: torch where it has the same, else the specification's formulas pixel by pixel."""

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilevit_coreml._coremltools import mb
from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops import resizing
from tests.reference.one_op import Array, run_op
from tests.reference.ops.cases import Case, check

X = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
ROUNDING = 2e-6  # of interpolating values up to 4 by weights that are float32 in one of the two
COUNTING = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


def points(source: float, target: int, mode: str) -> list[float]:
    """Of resize_bilinear's documentation; numpy.linspace's single point is its first, as NeuralNetwork.proto says."""

    def spaced(first: float, spacing: float) -> list[float]:
        return [min(source - 1, max(0.0, first + i * spacing)) for i in range(target)]

    if mode == "ALIGN_CORNERS" and target == 1:
        return [(source - 1) / 2]
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        return spaced(0, (source - 1) / (target - 1) if target > 1 else 0)
    if mode == "DEFAULT":
        return spaced(0, (source - source / target) / (target - 1) if target > 1 else 0)
    if mode == "OFFSET_CORNERS":
        delta = max(1, source - 1) / target
        return spaced(0.5 * delta, delta)
    assert mode == "UNALIGN_CORNERS"
    return spaced(0.5 * source / target - 0.5, source / target)


def sampled(x: Array, axis: int, places: list[float]) -> Array:
    """Linear interpolation along an axis, in float64."""
    slices = []
    for place in places:
        low = math.floor(place)
        high = min(low + 1, x.shape[axis] - 1)
        weight = place - low
        slices.append(np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight)
    return np.stack(slices, axis)


def resized(x: Array, height: int, width: int, mode: str) -> Array:
    x = sampled(x.astype(np.float64), x.ndim - 2, points(x.shape[-2], height, mode))
    return sampled(x, x.ndim - 1, points(x.shape[-1], width, mode))


DOCUMENTED_POINTS = {
    ("UNALIGN_CORNERS", 5): [0, 0.1, 0.5, 0.9, 1],
    ("STRICT_ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("DEFAULT", 5): [0, 0.4, 0.8, 1, 1],
    ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
    ("UNALIGN_CORNERS", 6): [0, 0, 0.33, 0.67, 1, 1],
    ("STRICT_ALIGN_CORNERS", 6): [0, 0.2, 0.4, 0.6, 0.8, 1],
    ("ALIGN_CORNERS", 6): [0, 0.2, 0.4, 0.6, 0.8, 1],
    ("DEFAULT", 6): [0, 0.33, 0.67, 1, 1, 1],
    ("OFFSET_CORNERS", 6): [0.08, 0.25, 0.42, 0.58, 0.75, 0.92],
}
SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def test_resize_bilinear_at_the_documented_points(tmp_path: Path) -> None:
    interval = np.array([[[0], [1]]], dtype=np.float32) * np.ones((1, 2, 2), np.float32)
    interval = np.stack([interval[0], interval[0].T])  # down the first plane, and along the second
    for (mode, count), expected in DOCUMENTED_POINTS.items():
        attributes = {"target_size_height": count, "target_size_width": count, "sampling_mode": mode}
        rows = np.repeat(np.array(expected)[:, None], count, 1)
        check(mb.resize_bilinear, [(attributes, np.stack([rows, rows.T]))], {"x": interval}, tmp_path, atol=0.005)


@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_resize_bilinear(mode: str, tmp_path: Path) -> None:
    sizes = [(5, 7), (10, 14), (3, 4), (8, 3), (1, 1), (1, 9), (13, 1), (2, 2)]
    for x in (X, X[0], X[None, :, :, :1], X[..., :1]):
        cases: list[Case] = [
            ({"target_size_height": h, "target_size_width": w, "sampling_mode": mode}, resized(x, h, w, mode))
            for h, w in sizes
        ]
        check(mb.resize_bilinear, cases, {"x": x}, tmp_path, atol=ROUNDING)


def test_resize_bilinear_by_default(tmp_path: Path) -> None:
    cases: list[Case] = [
        ({"target_size_height": 4, "target_size_width": 9}, resized(X, 4, 9, "DEFAULT")),
        ({}, X[..., :1, :1]),
    ]
    check(mb.resize_bilinear, cases, {"x": X}, tmp_path, atol=ROUNDING)


@pytest.mark.parametrize("align", [True, False])
def test_upsample_bilinear(align: bool, tmp_path: Path) -> None:
    factors = [(2, 3), (1, 1), (2.5, 1.5), (1.3, 2.9), (3, 0.5)]
    cases: list[Case] = []
    for height, width in factors:
        size = (math.floor(5 * height), math.floor(7 * width))
        answer = F.interpolate(torch.from_numpy(X), size, mode="bilinear", align_corners=align).numpy()
        kind = np.int32 if (height, width) == (2, 3) else np.float32
        given = {"scale_factor_height": kind(height), "scale_factor_width": kind(width), "align_corners": align}
        cases.append((given, answer))
    check(mb.upsample_bilinear, cases, {"x": X}, tmp_path, atol=ROUNDING)
    rank_3: list[Case] = [(given, answer[0]) for given, answer in cases]
    check(mb.upsample_bilinear, rank_3, {"x": X[0]}, tmp_path, atol=ROUNDING)


def test_upsample_bilinear_by_default(tmp_path: Path) -> None:
    answer = F.interpolate(torch.from_numpy(X), (10, 7), mode="bilinear", align_corners=True).numpy()
    check(mb.upsample_bilinear, [({"scale_factor_height": 2.0}, answer), ({}, X)], {"x": X}, tmp_path, atol=ROUNDING)


@pytest.mark.parametrize(
    ("align", "centres", "mode"),
    [
        (True, False, "STRICT_ALIGN_CORNERS"),
        (False, True, "UNALIGN_CORNERS"),
        (False, False, "DEFAULT"),
        (True, None, "STRICT_ALIGN_CORNERS"),
        (False, None, "UNALIGN_CORNERS"),
    ],
)
def test_upsample_bilinear_by_pixel_centres(align: bool, centres: bool | None, mode: str, tmp_path: Path) -> None:
    options = {"align_corners": align} | ({} if centres is None else {"half_pixel_centers": centres})
    cases: list[Case] = [
        (
            {"scale_factor_height": np.float32(h), "scale_factor_width": np.float32(w)} | options,
            resized(X, math.floor(5 * h), math.floor(7 * w), mode),
        )
        for h, w in [(2, 3), (1.5, 2.25)]
    ]
    check(mb.upsample_bilinear, cases, {"x": X}, tmp_path, "iOS16", atol=ROUNDING)


def test_resize_nearest_neighbor(tmp_path: Path) -> None:
    sizes = [(10, 14), (3, 4), (1, 1), (12, 5), (5, 7), (7, 49), (3, 1), (8, 20)]
    for x in (X, X[0]):
        # tf.raw_ops.ResizeNearestNeighbor(half_pixel_centers=True), which coremltools translates to it
        cases: list[Case] = [
            (
                {"target_size_height": height, "target_size_width": width},
                x[..., [math.floor((h + 0.5) * 5 / height) for h in range(height)], :][
                    ..., [math.floor((w + 0.5) * 7 / width) for w in range(width)]
                ],
            )
            for height, width in sizes
        ]
        check(mb.resize_nearest_neighbor, cases, {"x": x}, tmp_path)


def test_upsample_nearest_neighbor(tmp_path: Path) -> None:
    for x in (X, X[0]):
        cases: list[Case] = [({}, x)]
        for height, width in [(2, 3), (1.5, 2.5), (1, 1), (0.5, 1.2)]:
            size = (math.floor(5 * height), math.floor(7 * width))
            answer = F.interpolate(torch.from_numpy(x).view(-1, 3, 5, 7), size, mode="nearest").numpy()
            factors = {"scale_factor_height": np.float32(height), "scale_factor_width": np.float32(width)}
            cases.append((factors, answer.reshape(*x.shape[:-2], *size)))
        check(mb.upsample_nearest_neighbor, cases, {"x": x}, tmp_path)


@pytest.mark.parametrize("size", range(1, 40))
def test_nearest_neighbors_of_every_size(size: int) -> None:
    for length in (12, 13):
        x = torch.arange(float(length)).view(1, 1, length)
        centres = [(2 * index + 1) * length // (2 * size) for index in range(size)]
        assert resizing.resize_nearest_neighbor(x, 1, size).flatten().tolist() == centres
        for mode in ("DEFAULT", "UNALIGN_CORNERS"):
            assert resizing.resize(x, (size,), 1, "NEAREST_NEIGHBOR", mode).flatten().tolist() == centres
        aligned = [index * (length - 1) / max(size - 1, 1) for index in range(size)]
        nearest = resizing.resize(x, (size,), 1, "NEAREST_NEIGHBOR", "STRICT_ALIGN_CORNERS").flatten().tolist()
        assert all(abs(place - true) <= 0.5 for place, true in zip(nearest, aligned, strict=True))


@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_resize(mode: str, tmp_path: Path) -> None:
    def answer(sizes: tuple[int, ...]) -> Array:
        x = X.astype(np.float64)
        for axis, size in enumerate(sizes, start=4 - len(sizes)):
            x = sampled(x, axis, points(x.shape[axis], size, mode))
        return x

    forms: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = [
        ((1, 6, 8), 2, (6, 8)),
        ((1, 0, 0), 2, (5, 7)),
        ((4, 0), 2, (4, 7)),
        ((9, 9, 9, 3), 1, (3,)),
        ((2, 0, 11), 3, (2, 5, 11)),
        ((3, 2, 4, 9), 4, (3, 2, 4, 9)),
    ]
    cases: list[Case] = [
        ({"shape": np.array(given, np.int32), "resized_dims": np.uint32(dims), "sampling_mode": mode}, answer(sizes))
        for given, dims, sizes in forms
    ]
    check(mb.resize, cases, {"x": X}, tmp_path, "iOS17", atol=ROUNDING)


def test_resize_as_coremltools_tests_it(tmp_path: Path) -> None:
    nearest = {"resized_dims": np.uint32(2), "interpolation_mode": "NEAREST_NEIGHBOR", "sampling_mode": "DEFAULT"}
    pair = np.array([-6.174, 9.371], dtype=np.float32).reshape(1, 1, 1, 2, 1)
    expected = np.array([pair.min()] * 2 + [pair.max()] * 4).reshape(1, 1, 1, 3, 2)
    check(mb.resize, [({"shape": [1, 1, 3, 2]} | nearest, expected)], {"x": pair}, tmp_path, "iOS17")


def test_resize_to_a_shape_that_is_computed(tmp_path: Path) -> None:
    inputs = {"x": X, "shape": np.array([3, 0, 9], dtype=np.int32)}
    linear: list[Case] = [({"resized_dims": np.uint32(2)}, resized(X, 5, 9, "DEFAULT"))]
    check(mb.resize, linear, inputs, tmp_path, "iOS17", atol=ROUNDING)
    attributes = {"resized_dims": np.uint32(1), "interpolation_mode": "NEAREST_NEIGHBOR"}
    columns = [math.floor((index + 0.5) * 7 / 9) for index in range(9)]
    check(mb.resize, [(attributes, X[..., columns])], inputs, tmp_path, "iOS17")


def test_crop(tmp_path: Path) -> None:
    for x in (X, X[0]):
        cases: list[Case] = [
            ({"crop_height": (1, 2), "crop_width": (0, 3)}, x[..., 1:3, :4]),
            ({"crop_height": (0, 0), "crop_width": (2, 0)}, x[..., 2:]),
            ({"crop_height": (4, 0), "crop_width": (3, 3)}, x[..., 4:, 3:4]),
        ]
        check(mb.crop, cases, {"x": x}, tmp_path)


CORNERS: dict[str, Callable[[Any], tuple[float, float, float, float]]] = {  # to top, left, bottom, right
    "CORNERS_HEIGHT_FIRST": lambda b: (b[0], b[1], b[2], b[3]),
    "CORNERS_WIDTH_FIRST": lambda b: (b[1], b[0], b[3], b[2]),
    "CENTER_SIZE_HEIGHT_FIRST": lambda b: (b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2),
    "CENTER_SIZE_WIDTH_FIRST": lambda b: (b[1] - b[3] / 2, b[0] - b[2] / 2, b[1] + b[3] / 2, b[0] + b[2] / 2),
}
# As each mode has them, within X's 5 rows and 7 columns: of many pixels, of less than one, and up to the last.
CORNER_BOXES = [(0.5, 1.25, 3, 4), (1, 1, 1.5, 1.75), (0, 0, 4, 4)]
CENTER_BOXES = [(2, 2, 2.5, 3), (1.5, 2.5, 0.5, 0.25), (2, 2, 4, 4)]


def cropped(
    images: Array, box: Any, size: tuple[int, int], form: str, mode: str, scale: float = 1, pad: float = 0
) -> Array:
    """A box of images: in each dimension resize_bilinear's points for an input as long as the box, from its start."""
    edges = CORNERS[form](np.asarray(box, dtype=np.float64) * scale)
    result = images.astype(np.float64)
    for axis, target in ((2, size[0]), (3, size[1])):
        start, end = edges[axis - 2], edges[axis]
        places = [start + place for place in points(end - start + 1, target, mode)]
        limit = images.shape[axis] - 1
        result = sampled(result, axis, [min(max(place, 0), limit) for place in places])
        for number, place in enumerate(places):
            if not -1e-9 <= place <= limit + 1e-9:
                result[(slice(None),) * axis + (number,)] = pad
    return result


def boxes_of(form: str) -> Array:
    return np.array(CORNER_BOXES if form.startswith("CORNERS") else CENTER_BOXES, dtype=np.float32)


@pytest.mark.parametrize("form", CORNERS)
@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_crop_resize(form: str, mode: str, tmp_path: Path) -> None:
    boxes = boxes_of(form)
    given = {"box_coordinate_mode": form, "sampling_mode": mode}
    cases: list[Case] = []
    for size, scale in itertools.product([(3, 4), (1, 1), (7, 9)], [1, 0.5]):
        attributes = {"target_height": size[0], "target_width": size[1], "spatial_scale": np.float32(scale)} | given
        answer = np.stack([cropped(X, box, size, form, mode, scale) for box in boxes])
        cases.append((attributes, answer))
    check(mb.crop_resize, cases, {"x": X, "roi": boxes.reshape(-1, 1, 4, 1, 1)}, tmp_path, atol=ROUNDING)

    indices = np.array([1, 0, 1], dtype=np.int32)
    picked: list[Case] = [(a, np.stack([answer[n, i] for n, i in enumerate(indices)])) for a, answer in cases]
    inputs: dict[str, Array] = {"x": X, "boxes": boxes, "box_indices": indices}
    check(mb.crop_resize, picked, inputs, tmp_path, "iOS17", atol=ROUNDING)


def test_crop_resize_of_the_images_its_boxes_name(tmp_path: Path) -> None:
    boxes = boxes_of("CORNERS_HEIGHT_FIRST")
    image = X[:1]  # coremltools infers a result of all images for these too
    roi = np.concatenate([np.zeros((3, 1), np.float32), boxes], 1).reshape(3, 1, 5, 1, 1)
    answer = np.stack([cropped(image, box, (3, 4), "CORNERS_HEIGHT_FIRST", "DEFAULT") for box in boxes])
    attributes = {"target_height": 3, "target_width": 4}
    check(mb.crop_resize, [(attributes, answer)], {"x": image, "roi": roi}, tmp_path, atol=ROUNDING)

    roi[:, 0, 0, 0, 0] = [1, 0, 1]
    several = resizing.crop_resize(torch.from_numpy(X), torch.from_numpy(roi), 3, 4).numpy()
    for number, index in enumerate([1, 0, 1]):
        box = cropped(X[index : index + 1], boxes[number], (3, 4), "CORNERS_HEIGHT_FIRST", "DEFAULT")
        np.testing.assert_allclose(several[number], box, atol=ROUNDING, err_msg=f"box {number}")


@pytest.mark.parametrize("form", CORNERS)
def test_crop_resize_by_normalized_coordinates(form: str, tmp_path: Path) -> None:
    width_first = "WIDTH" in form
    extent = np.array([6, 4, 6, 4] if width_first else [4, 6, 4, 6], dtype=np.float32)
    boxes = boxes_of(form) / extent
    attributes = {
        "target_height": 4,
        "target_width": 3,
        "normalized_coordinates": True,
        "box_coordinate_mode": form,
        "sampling_mode": "ALIGN_CORNERS",
    }
    answer = np.stack([cropped(X, box, (4, 3), form, "ALIGN_CORNERS") for box in boxes_of(form)])
    check(mb.crop_resize, [(attributes, answer)], {"x": X, "roi": boxes.reshape(-1, 1, 4, 1, 1)}, tmp_path, atol=1e-5)


def test_crop_resize_of_boxes_beyond_the_image(tmp_path: Path) -> None:
    boxes = np.array([(-1, 2, 3, 8), (3, -2.5, 6, 1)], dtype=np.float32)
    for pad, mode in itertools.product((0.0, -3.5), SAMPLING_MODES):
        attributes = {"target_height": 5, "target_width": 4, "sampling_mode": mode, "pad_value": np.float32(pad)}
        answer = np.stack([cropped(X, box, (5, 4), "CORNERS_HEIGHT_FIRST", mode, pad=pad) for box in boxes])
        roi = boxes.reshape(-1, 1, 4, 1, 1)
        check(mb.crop_resize, [(attributes, answer)], {"x": X, "roi": roi}, tmp_path, "iOS16", atol=ROUNDING)


@pytest.mark.parametrize("box", [(-1, 2, 3, 6), (0, 2, 3, 6.5)])
@pytest.mark.parametrize("normalized", [True, False])
def test_crop_resize_beyond_the_image_needs_a_pad_value(box: Any, normalized: bool, tmp_path: Path) -> None:
    roi = np.array(box, np.float32).reshape(1, 1, 4, 1, 1)
    roi = roi / np.array([4, 6, 4, 6], np.float32).reshape(roi.shape) if normalized else roi
    build = functools.partial(mb.crop_resize, target_height=2, target_width=2, normalized_coordinates=normalized)
    sizes = {"sampling_mode": "ALIGN_CORNERS"}
    with pytest.raises(UnsupportedError, match=r"roi: expected boxes within the image, got \[.*\] without pad_value"):
        run_op(functools.partial(build, **sizes), {"x": X, "roi": roi}, tmp_path)


def test_crop_resize_of_as_many_boxes_as_images(tmp_path: Path) -> None:
    boxes = boxes_of("CORNERS_HEIGHT_FIRST")[:2]
    answer = [cropped(X[i : i + 1], boxes[i], (2, 2), "CORNERS_HEIGHT_FIRST", "DEFAULT") for i in range(2)]
    attributes = {"target_height": 2, "target_width": 2}
    inputs: dict[str, Array] = {"x": X, "boxes": boxes}
    check(mb.crop_resize, [(attributes, np.concatenate(answer))], inputs, tmp_path, "iOS17", atol=ROUNDING)
    without = resizing.crop_resize(torch.from_numpy(X), None, 2, 2, boxes=torch.from_numpy(boxes))
    np.testing.assert_allclose(without.numpy(), np.concatenate(answer), atol=ROUNDING)


# Values of coremltools' own tests, run on Core ML.
TESTED = [
    ([1, 1, 2, 2], (2, 2), [6.0, 7, 10, 11]),
    ([1, 1, 2, 2], (1, 1), [8.5]),
    ([2, 2, 1, 1], (2, 2), [11.0, 10, 7, 6]),
    ([1, 1, 2, 2], (2, 4), [6, 6 + 1 / 3, 6 + 2 / 3, 7, 10, 10 + 1 / 3, 10 + 2 / 3, 11]),
]


@pytest.mark.parametrize(("box", "size", "expected"), TESTED)
def test_crop_resize_as_coremltools_tests_it(
    box: list[float], size: tuple[int, int], expected: list[float], tmp_path: Path
) -> None:
    inputs: dict[str, Array] = {"x": COUNTING, "roi": np.array(box, np.float32).reshape(1, 1, 4, 1, 1)}
    attributes = {"target_height": size[0], "target_width": size[1], "sampling_mode": "ALIGN_CORNERS"}
    check(mb.crop_resize, [(attributes, np.reshape(expected, (1, 1, 1, *size)))], inputs, tmp_path, atol=1e-5)


def test_crop_resize_pads_as_coremltools_tests_it(tmp_path: Path) -> None:
    boxes = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], dtype=np.float32)
    expected = np.array([3.1, 5.2, 10.0, 10.0, 10.0, 7.9, 10.0, 13.9, 2.2, 3.1, 9.4, 10.3]).reshape(3, 1, 2, 2)
    attributes = {
        "target_height": 2,
        "target_width": 2,
        "normalized_coordinates": True,
        "sampling_mode": "ALIGN_CORNERS",
        "pad_value": np.float32(10),
    }
    inputs: dict[str, Array] = {"x": COUNTING, "boxes": boxes, "box_indices": np.zeros(3, np.int32)}
    check(mb.crop_resize, [(attributes, expected)], inputs, tmp_path, "iOS17", atol=1e-5)


GRID = np.random.default_rng(1).uniform(-1.4, 1.4, (2, 4, 6, 2)).astype(np.float32)
PADDING = {"constant": "zeros", "border": "border", "reflection": "reflection"}  # MIL's and torch's
RESAMPLED = 5e-6  # coordinates are float32 too


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resample(sampling: str, align: bool, tmp_path: Path) -> None:
    size = np.array([7, 5], dtype=np.float32)
    pixels = (GRID + 1) / 2 * (size - 1) if align else ((GRID + 1) * size - 1) / 2
    aligned = torch.from_numpy(2 * pixels / (size - 1) - 1)  # MIL reflects at pixels' centres, torch only aligned
    forms: dict[str, Array] = {
        "normalized_minus_one_to_one": GRID,
        "normalized_zero_to_one": (GRID + 1) / 2,
        "unnormalized": pixels,
    }
    for form, coordinates in forms.items():
        cases: list[Case] = []
        for padding in PADDING:
            attributes = {
                "sampling_mode": sampling,
                "padding_mode": padding,
                "padding_value": np.float32(0),
                "coordinates_mode": form,
                "align_corners": align,
            }
            grid, aligns = (aligned, True) if padding == "reflection" else (torch.from_numpy(GRID), align)
            answer = F.grid_sample(torch.from_numpy(X), grid, sampling, PADDING[padding], aligns).numpy()
            cases.append((attributes, answer))
        check(mb.resample, cases, {"x": X, "coordinates": coordinates}, tmp_path, atol=RESAMPLED)


def test_resample_pads_with_a_value(tmp_path: Path) -> None:
    attributes = {
        "sampling_mode": "bilinear",
        "padding_mode": "constant",
        "padding_value": np.float32(-6),
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": True,
    }
    border = np.pad(X, [(0, 0), (0, 0), (9, 9), (9, 9)], constant_values=-6)
    size = np.array([6, 4], dtype=np.float32)
    wide = GRID * size / (size + 18)  # the same places in the padded image
    answer = F.grid_sample(torch.from_numpy(border), torch.from_numpy(wide), align_corners=True).numpy()
    check(mb.resample, [(attributes, answer)], {"x": X, "coordinates": GRID}, tmp_path, atol=1e-4)


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resample_of_a_symmetric_image(sampling: str, tmp_path: Path) -> None:
    attributes = {
        "sampling_mode": sampling,
        "padding_mode": "symmetric",
        "padding_value": np.float32(0),
        "coordinates_mode": "unnormalized",
        "align_corners": False,
    }
    coordinates = np.random.default_rng(5).uniform(-4, 9, (2, 4, 6, 2)).astype(np.float32)
    border = np.pad(X, [(0, 0), (0, 0), (5, 5), (5, 5)], mode="symmetric")  # edges repeat
    place = 2 * (coordinates + 5) / np.array([16, 14], np.float32) - 1
    answer = F.grid_sample(torch.from_numpy(border), torch.from_numpy(place), sampling, align_corners=True).numpy()
    check(mb.resample, [(attributes, answer)], {"x": X, "coordinates": coordinates}, tmp_path, atol=1e-5)


def test_resample_at_whole_pixels(tmp_path: Path) -> None:
    attributes = {
        "sampling_mode": "nearest",
        "padding_mode": "constant",
        "padding_value": np.float32(0),
        "coordinates_mode": "unnormalized",
        "align_corners": False,
    }
    coordinates = np.random.default_rng(2).integers(0, 5, (2, 3, 4, 2), dtype=np.int32)
    answer = np.zeros((2, 3, 3, 4), np.float32)
    for n, c, h, w in np.ndindex(*answer.shape):
        column, row = coordinates[n, h, w]
        answer[n, c, h, w] = X[n, c, row, column]
    inputs: dict[str, Array] = {"x": X, "coordinates": coordinates}
    check(mb.resample, [(attributes, answer)], inputs, tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_affine(count: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    matrices = (np.array([1, 0, 0, 0, 1, 0]) + generator.uniform(-0.4, 0.4, (count, 6))).astype(np.float32)
    theta = torch.from_numpy(matrices).view(-1, 2, 3).expand(2, 2, 3)
    cases: list[Case] = []
    for height, width in [(5, 7), (3, 9)]:
        grid = F.affine_grid(theta, [2, 3, height, width], align_corners=True)
        attributes = {
            "output_height": height,
            "output_width": width,
            "sampling_mode": "bilinear",
            "padding_mode": "constant",
            "padding_value": np.float32(0),
            "coordinates_mode": "normalized_minus_one_to_one",
            "align_corners": True,
        }
        cases.append((attributes, F.grid_sample(torch.from_numpy(X), grid, align_corners=True).numpy()))
    check(mb.affine, cases, {"x": X, "transform_matrix": matrices}, tmp_path, atol=RESAMPLED)


ONES = torch.ones(1, 1, 2, 2)
MATRIX = torch.ones(1, 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: resizing.resize_bilinear(ONES, 2, 2, "CUBIC"),
            "sampling_mode: expected one of STRICT_ALIGN_CORNERS, ",
        ),
        (
            lambda: resizing.resize(ONES, (2,), 1, "CUBIC"),
            "interpolation_mode: expected one of LINEAR, NEAREST_NEIGHBOR, ",
        ),
        (lambda: resizing.crop_resize(ONES), "crop_resize: expected roi or boxes, got neither"),
        (
            lambda: resizing.crop_resize(ONES, torch.ones(1, 4), box_coordinate_mode="POLAR"),
            "box_coordinate_mode: expected one of CORNERS_HEIGHT_FIRST, ",
        ),
        (
            lambda: resizing.resample(ONES, torch.ones(1, 1, 1, 2), "bilinear", "wrap", 0, "unnormalized", True),
            "padding_mode: expected one of constant, border, reflection, symmetric, got 'wrap'",
        ),
        (
            lambda: resizing.resample(ONES, torch.ones(1, 1, 1, 2), "bilinear", "border", 0, "polar", True),
            "coordinates_mode: expected one of unnormalized, ",
        ),
        (
            lambda: resizing.affine(ONES, MATRIX, 2, 2, "bilinear", "constant", 0, "unnormalized", True),
            "coordinates_mode: expected normalized_minus_one_to_one, got 'unnormalized'",
        ),
    ],
)
def test_what_is_not_implemented_is_named(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        build()
    assert str(caught.value).startswith(message)
