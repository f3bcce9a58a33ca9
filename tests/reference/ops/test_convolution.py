"""Convolutions against torch, transposed ones also as the gradient they are; pooling against torch and plain loops."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

# Sums of at most a hundred products of size one, in another order than torch's.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

CONV: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def values(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def as_padding(pad: list[int]) -> list[int]:
    """MIL's pad, (before, after) a dimension, in F.pad's order: last dimension first."""
    return [amount for i in reversed(range(0, len(pad), 2)) for amount in pad[i : i + 2]]


# Of (x's shape, weight's shape, attributes, padding before and after each dimension).
CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], list[int]]] = [
    ((2, 3, 8), (4, 3, 3), {}, [0, 0]),
    ((2, 3, 8), (4, 3, 3), {"pad_type": "valid", "strides": [2]}, [0, 0]),
    ((2, 3, 8), (4, 3, 3), {"pad_type": "same", "strides": [2]}, [0, 1]),
    ((2, 3, 8), (4, 3, 2), {"pad_type": "same"}, [0, 1]),
    ((2, 3, 8), (4, 3, 3), {"pad_type": "custom", "pad": [2, 0], "dilations": [2]}, [2, 0]),
    ((2, 3, 8), (4, 3, 3), {"pad_type": "custom"}, [0, 0]),
    ((1, 3, 7, 8), (4, 3, 3, 3), {"pad_type": "valid", "pad": [1, 1, 1, 1]}, [0, 0, 0, 0]),
    ((1, 3, 7, 8), (4, 3, 3, 3), {"pad_type": "same"}, [1, 1, 1, 1]),
    ((1, 3, 7, 8), (4, 3, 3, 3), {"pad_type": "same", "strides": [2, 2]}, [1, 1, 0, 1]),
    ((1, 3, 7, 8), (4, 3, 2, 4), {"pad_type": "same"}, [0, 1, 1, 2]),
    ((1, 3, 7, 8), (4, 3, 1, 1), {"pad_type": "same", "strides": [3, 2]}, [0, 0, 0, 0]),
    ((1, 3, 7, 8), (4, 3, 3, 3), {"pad_type": "same", "dilations": [2, 3]}, [2, 2, 3, 3]),
    ((1, 3, 7, 8), (4, 3, 3, 2), {"pad_type": "custom", "pad": [1, 0, 0, 2], "strides": [1, 2]}, [1, 0, 0, 2]),
    ((1, 3, 7, 8), (4, 3, 3, 3), {"pad_type": "custom", "pad": [1, 1, 2, 2], "dilations": [1, 2]}, [1, 1, 2, 2]),
    ((1, 4, 5, 6), (6, 2, 3, 3), {"pad_type": "same", "groups": 2}, [1, 1, 1, 1]),
    ((1, 4, 5, 6), (4, 1, 3, 3), {"pad_type": "custom", "pad": [0, 1, 0, 1], "groups": 4}, [0, 1, 0, 1]),
    ((1, 4, 5, 6), (8, 1, 3, 3), {"groups": 4, "strides": [2, 1]}, [0, 0, 0, 0]),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {}, [0, 0, 0, 0, 0, 0]),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"pad_type": "same", "strides": [1, 2, 2]}, [0, 1, 1, 1, 0, 1]),
    (
        (1, 2, 4, 5, 6),
        (2, 1, 1, 2, 2),
        {"pad_type": "custom", "pad": [0, 0, 1, 0, 0, 1], "groups": 2},
        [0, 0, 1, 0, 0, 1],
    ),
]
LOWER: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], list[int]]] = [
    ((2, 3, 8), (4, 3, 3), {"pad_type": "same_lower", "strides": [2]}, [1, 0]),
    ((1, 3, 7, 8), (4, 3, 2, 4), {"pad_type": "same_lower"}, [1, 0, 2, 1]),
    ((1, 3, 7, 8), (4, 3, 3, 3), {"pad_type": "same_lower", "dilations": [2, 1]}, [2, 2, 1, 1]),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"pad_type": "same_lower", "strides": [1, 2, 2]}, [1, 0, 1, 1, 1, 0]),
]


def torch_conv(x: Array, weight: Array, bias: Array | None, attributes: dict[str, Any], pad: list[int]) -> Tensor:
    padded = F.pad(torch.from_numpy(x), as_padding(pad))
    return CONV[x.ndim - 2](
        padded,
        torch.from_numpy(weight),
        None if bias is None else torch.from_numpy(bias),
        stride=attributes.get("strides", 1),
        dilation=attributes.get("dilations", 1),
        groups=attributes.get("groups", 1),
    )


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("biased", [False, True])
def test_conv(tmp_path: Path, target: str, biased: bool) -> None:
    cases = CONVS if target == "iOS15" else CONVS + LOWER
    inputs = {f"x{shape[1]}_{len(shape)}": values(*shape) for shape, *_ in cases}
    biases = [values(weight[0]) if biased else None for _, weight, *_ in cases]

    def build(**variables: Any) -> tuple[Any, ...]:
        return tuple(
            mb.conv(x=variables[f"x{x[1]}_{len(x)}"], weight=values(*weight), bias=bias, **attributes)
            for (x, weight, attributes, _), bias in zip(cases, biases, strict=True)
        )

    expected = {
        f"{x} with {weight}, {attributes}": torch_conv(values(*x), values(*weight), bias, attributes, pad)
        for (x, weight, attributes, pad), bias in zip(cases, biases, strict=True)
    }
    assert_outputs(run_op(build, inputs, tmp_path, target), expected, **TOLERANCE)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # that it costs a copy
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 4)])
def test_same_padding_of_a_convolution_is_torchs(tmp_path: Path, kernel: tuple[int, int]) -> None:
    x, weight = values(1, 3, 7, 8), values(4, 3, *kernel)
    (output,) = run_op(lambda x: mb.conv(x=x, weight=weight, pad_type="same"), {"x": x}, tmp_path)
    expected = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), padding="same")
    assert_outputs([output], {str(kernel): expected}, **TOLERANCE)


def test_conv_with_weights_made_at_run_time(tmp_path: Path) -> None:
    x, weight, bias = values(1, 4, 5, 6), values(6, 2, 3, 3), values(6)
    attributes: dict[str, Any] = {"groups": 2, "strides": [2, 1], "pad_type": "same"}

    def build(x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        return mb.conv(x=x, weight=weight, **attributes), mb.conv(x=x, weight=weight, bias=bias, **attributes)

    expected = {
        f"{name}": torch_conv(x, weight, given, attributes, [1, 1, 1, 1])
        for name, given in (("no bias", None), ("bias", bias))
    }
    assert_outputs(run_op(build, {"x": x, "weight": weight, "bias": bias}, tmp_path, "iOS17"), expected, **TOLERANCE)


# Of (x's shape, weight's shape, attributes), and torch's padding and output_padding where it can express them.
TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], tuple[int, int]]] = [
    ((2, 3, 5), (3, 4, 3), {}, (0, 0)),
    ((2, 3, 5), (3, 4, 4), {"strides": [2], "pad_type": "custom", "pad": [1, 1]}, (1, 0)),
    ((2, 3, 5), (3, 4, 3), {"strides": [3], "dilations": [2]}, (0, 0)),
    ((1, 4, 3, 5), (4, 2, 3, 3), {"pad_type": "valid", "strides": [2, 2]}, (0, 0)),
    ((1, 4, 3, 5), (4, 2, 2, 2), {"strides": [2, 2]}, (0, 0)),
    ((1, 4, 3, 5), (4, 2, 1, 2), {"strides": [2, 3]}, (0, 0)),
    ((1, 4, 3, 5), (4, 2, 3, 3), {"strides": [2, 1], "pad_type": "custom", "pad": [1, 1, 1, 1], "groups": 2}, (1, 0)),
    ((1, 4, 3, 5), (4, 1, 3, 3), {"groups": 4, "dilations": [2, 1]}, (0, 0)),
    (
        (1, 4, 3, 5),
        (4, 2, 3, 3),
        {"pad_type": "custom", "pad": [1, 1, 1, 1], "strides": [2, 2], "output_shape": [1, 2, 6, 10]},
        (1, 1),
    ),
    ((1, 2, 2, 3, 4), (2, 3, 2, 2, 3), {"strides": [1, 2, 2]}, (0, 0)),
    ((1, 2, 2, 3, 4), (2, 3, 3, 3, 3), {"strides": [2, 2, 2], "pad_type": "custom", "pad": [1] * 6}, (1, 0)),
]


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("biased", [False, True])
def test_conv_transpose(tmp_path: Path, target: str, biased: bool) -> None:
    biases = [values(weight[1] * more.get("groups", 1)) if biased else None for _, weight, more, _ in TRANSPOSED]

    def build(**variables: Any) -> tuple[Any, ...]:
        return tuple(
            mb.conv_transpose(x=variables[f"x{len(x)}"], weight=values(*weight), bias=bias, **attributes)
            for (x, weight, attributes, _), bias in zip(TRANSPOSED, biases, strict=True)
        )

    expected = {
        f"{x} with {weight}, {attributes}": CONV_TRANSPOSE[len(x) - 2](
            torch.from_numpy(values(*x)),
            torch.from_numpy(values(*weight)),
            None if bias is None else torch.from_numpy(bias),
            attributes.get("strides", 1),
            padding,
            output_padding,
            attributes.get("groups", 1),
            attributes.get("dilations", 1),
        )
        for (x, weight, attributes, (padding, output_padding)), bias in zip(TRANSPOSED, biases, strict=True)
    }
    inputs = {f"x{len(shape)}": values(*shape) for shape, *_ in TRANSPOSED}
    assert_outputs(run_op(build, inputs, tmp_path, target), expected, **TOLERANCE)


# Of (weight's shape, attributes, padding of the convolution whose gradient it is, that convolution's input size).
GRADIENTS: list[tuple[tuple[int, ...], dict[str, Any], list[int], tuple[int, int]]] = [
    ((4, 2, 3, 3), {"pad_type": "same"}, [1, 1, 1, 1], (3, 5)),
    ((4, 2, 3, 3), {"pad_type": "same", "strides": [2, 2]}, [0, 1, 0, 1], (6, 10)),
    ((4, 2, 4, 5), {"pad_type": "same", "strides": [2, 2]}, [1, 1, 1, 2], (6, 10)),
    ((4, 2, 2, 1), {"pad_type": "same", "strides": [2, 3]}, [0, 0, 0, 0], (6, 15)),
    ((4, 1, 3, 2), {"pad_type": "same", "strides": [2, 1], "groups": 2, "dilations": [1, 2]}, [0, 1, 1, 1], (6, 5)),
    ((4, 2, 3, 4), {"pad_type": "same", "strides": [2, 2], "output_shape": [1, 2, 5, 9]}, [1, 1, 1, 2], (5, 9)),
    ((4, 2, 3, 3), {"pad_type": "valid", "strides": [2, 2], "output_shape": [1, 2, 8, 12]}, [0, 0, 0, 0], (8, 12)),
    ((4, 2, 3, 3), {"pad_type": "custom", "pad": [0, 1, 2, 0], "strides": [2, 1]}, [0, 1, 2, 0], (6, 5)),
]


@pytest.mark.parametrize("biased", [False, True])
def test_conv_transpose_is_the_gradient_of_the_convolution(tmp_path: Path, biased: bool) -> None:
    x = values(1, 4, 3, 5)

    def bias(channels: int) -> Array | None:
        return values(channels) if biased else None

    def build(x: Any) -> tuple[Any, ...]:
        return tuple(
            mb.conv_transpose(x=x, weight=values(*weight), bias=bias(2), **attributes)
            for weight, attributes, *_ in GRADIENTS
        )

    expected = {}
    for weight, attributes, pad, size in GRADIENTS:
        image = torch.zeros(1, 2, *size, requires_grad=True)
        forward = {name: value for name, value in attributes.items() if name in ("strides", "dilations", "groups")}
        output = torch_conv_of(image, torch.from_numpy(values(*weight)), forward, pad)
        (gradient,) = torch.autograd.grad(output, image, torch.from_numpy(x))
        expected[f"{weight} {attributes}"] = gradient + (torch.from_numpy(values(2))[:, None, None] if biased else 0)
    assert_outputs(run_op(build, {"x": x}, tmp_path), expected, **TOLERANCE)


def torch_conv_of(image: Tensor, weight: Tensor, attributes: dict[str, Any], pad: list[int]) -> Tensor:
    return F.conv2d(
        F.pad(image, as_padding(pad)),
        weight,
        stride=attributes.get("strides", 1),
        dilation=attributes.get("dilations", 1),
        groups=attributes.get("groups", 1),
    )


def pooled(
    x: Array, kernel: list[int], strides: list[int], pad: list[int], function: Callable[[Array, int], Any]
) -> Any:
    """`function` of each window's values inside of x, and of the number of its places that are x or padding."""
    rank = len(kernel)
    sizes = x.shape[2:]
    counts = [(sizes[i] + pad[2 * i] + pad[2 * i + 1] - kernel[i]) // strides[i] + 1 for i in range(rank)]
    output = np.zeros((*x.shape[:2], *counts), np.float32)
    for place in itertools.product(*map(range, counts)):
        starts = [place[i] * strides[i] - pad[2 * i] for i in range(rank)]
        window = tuple(
            slice(max(start, 0), min(start + length, size))
            for start, length, size in zip(starts, kernel, sizes, strict=True)
        )
        for n, c in np.ndindex(*x.shape[:2]):
            output[(n, c, *place)] = function(x[(n, c, *window)], int(np.prod(kernel)))
    return output


# Of (x's shape, kernel, strides, pad_type, padding before and after each dimension).
POOLS: list[tuple[tuple[int, ...], list[int], list[int], str, list[int]]] = [
    ((2, 3, 9), [3], [2], "valid", [0, 0]),
    ((2, 3, 9), [2], [1], "same", [0, 1]),
    ((2, 3, 9), [3], [2], "custom", [2, 0]),
    ((2, 3, 6, 9), [2, 3], [1, 1], "valid", [0, 0, 0, 0]),
    ((2, 3, 6, 9), [3, 2], [2, 1], "same", [0, 1, 0, 1]),
    ((2, 3, 6, 9), [3, 3], [1, 2], "custom", [0, 1, 2, 1]),
    ((2, 3, 6, 9), [2, 2], [2, 2], "custom", [1, 1, 0, 0]),
    ((1, 2, 4, 5, 6), [2, 3, 2], [1, 2, 2], "valid", [0, 0, 0, 0, 0, 0]),
    ((1, 2, 4, 5, 6), [2, 3, 3], [1, 2, 2], "same", [0, 1, 1, 1, 0, 1]),
    ((1, 2, 4, 5, 6), [2, 3, 2], [2, 1, 1], "custom", [1, 0, 1, 1, 0, 1]),
]
LOWER_POOLS = [
    ((2, 3, 9), [2], [1], "same_lower", [1, 0]),
    ((2, 3, 6, 9), [3, 2], [2, 1], "same_lower", [1, 0, 1, 0]),
    ((1, 2, 4, 5, 6), [2, 3, 3], [1, 2, 2], "same_lower", [1, 0, 1, 1, 1, 0]),
]


@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
@pytest.mark.parametrize(
    ("operation", "more", "most_dimensions", "function"),
    [
        pytest.param(mb.max_pool, {}, 3, lambda window, count: window.max(), id="max_pool"),
        pytest.param(mb.avg_pool, {}, 3, lambda window, count: window.sum() / count, id="avg_pool"),
        pytest.param(
            mb.avg_pool,
            {"exclude_padding_from_average": True},
            3,
            lambda window, count: window.mean(),
            id="avg_pool excluding padding",
        ),
        pytest.param(mb.l2_pool, {}, 2, lambda window, count: np.sqrt((window**2).sum()), id="l2_pool"),
    ],
)
def test_pool(
    tmp_path: Path,
    operation: Any,
    more: dict[str, Any],
    most_dimensions: int,
    function: Callable[[Array, int], Any],
    target: str,
) -> None:
    cases = [case for case in (POOLS if target == "iOS15" else POOLS + LOWER_POOLS) if len(case[1]) <= most_dimensions]

    def build(**variables: Any) -> tuple[Any, ...]:
        return tuple(
            operation(
                x=variables[f"x{len(shape)}"],
                kernel_sizes=kernel,
                pad_type=pad_type,
                **({"strides": strides} if set(strides) != {1} else {}),
                **({"pad": pad} if pad_type == "custom" else {}),
                **more,
            )
            for shape, kernel, strides, pad_type, pad in cases
        )

    inputs = {f"x{len(shape)}": values(*shape) for shape, *_ in cases}
    expected = {
        f"{shape} {kernel} {strides} {pad_type} {pad}": pooled(values(*shape), kernel, strides, pad, function)
        for shape, kernel, strides, pad_type, pad in cases
    }
    assert_outputs(run_op(build, inputs, tmp_path, target), expected, **TOLERANCE)


# Of (x's shape, kernel, strides, symmetric padding): partial windows kept, dropped, none.
CEILED: list[tuple[tuple[int, ...], list[int], list[int], list[int]]] = [
    ((2, 3, 8), [3], [2], [0]),
    ((2, 3, 8), [3], [2], [1]),
    ((2, 3, 8), [2], [3], [1]),
    ((2, 3, 8), [3], [3], [1]),
    ((2, 3, 7, 8), [2, 2], [2, 2], [0, 0]),
    ((2, 3, 7, 8), [3, 3], [2, 2], [1, 1]),
    ((2, 3, 7, 8), [3, 2], [3, 2], [1, 1]),
    ((2, 3, 7, 8), [4, 3], [3, 2], [2, 0]),
]


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_rounds_its_size_as_torch_does(tmp_path: Path, ceil_mode: bool) -> None:
    def build(**variables: Any) -> tuple[Any, ...]:
        outputs = []
        for shape, kernel, strides, padding in CEILED:
            common = {
                "x": variables[f"x{len(shape)}"],
                "kernel_sizes": kernel,
                "strides": strides,
                "pad_type": "custom",
                "pad": np.repeat(padding, 2),
                "ceil_mode": ceil_mode,
            }
            outputs += [
                mb.max_pool(**common),
                mb.avg_pool(**common, exclude_padding_from_average=False),
                mb.avg_pool(**common, exclude_padding_from_average=True),
                mb.l2_pool(**common),
            ]
        return tuple(outputs)

    expected: dict[str, Tensor] = {}
    for shape, *geometry in CEILED:
        x = torch.from_numpy(values(*shape))
        maximum: Callable[..., Tensor] = {3: F.max_pool1d, 4: F.max_pool2d}[len(shape)]
        average: Callable[..., Tensor] = {3: F.avg_pool1d, 4: F.avg_pool2d}[len(shape)]
        label = f"{shape} {geometry}"
        expected[f"max {label}"] = maximum(x, *geometry, ceil_mode=ceil_mode)
        for include in (True, False):
            expected[f"average {label} {include=}"] = average(
                x, *geometry, ceil_mode=ceil_mode, count_include_pad=include
            )
        if x.dim() == 3:  # only the average over two dimensions can leave out the division
            x, geometry = x[:, :, None], [[edge, *sizes] for edge, sizes in zip((1, 1, 0), geometry, strict=True)]
        kernel, strides, padding = geometry
        sums = F.avg_pool2d(x * x, kernel, strides, padding, ceil_mode, divisor_override=1)
        expected[f"l2 {label}"] = sums.sqrt().reshape(expected[f"max {label}"].shape)
    inputs = {f"x{len(shape)}": values(*shape) for shape, *_ in CEILED}
    assert_outputs(run_op(build, inputs, tmp_path), expected, **TOLERANCE)
