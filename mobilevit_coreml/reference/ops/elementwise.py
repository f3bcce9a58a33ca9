"""Operations on each element alone, and on pairs of elements with broadcasting."""

import builtins
import math

import torch
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError

# One value.


def abs(x: Tensor) -> Tensor:
    return x.abs()


def acos(x: Tensor) -> Tensor:
    return x.acos()


def asin(x: Tensor) -> Tensor:
    return x.asin()


def atan(x: Tensor) -> Tensor:
    return x.atan()


def atanh(x: Tensor) -> Tensor:
    return x.atanh()


def cast(x: Tensor, dtype: str) -> Tensor:
    """To fp16, fp32, an integer type or bool; a fraction is dropped."""
    types = {"fp16": torch.float32, "fp32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    types |= dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8", "uint32"), torch.int32)
    if dtype not in types:
        raise UnsupportedError(f"dtype: expected one of {', '.join(types)}, got {dtype!r}")
    return x.to(types[dtype])


def ceil(x: Tensor) -> Tensor:
    return x.ceil()


def clip(x: Tensor, alpha: float = -math.inf, beta: float = math.inf) -> Tensor:
    return x.clamp(alpha, beta)


def cos(x: Tensor) -> Tensor:
    return x.cos()


def cosh(x: Tensor) -> Tensor:
    return x.cosh()


def erf(x: Tensor) -> Tensor:
    return x.erf()


def exp(x: Tensor) -> Tensor:
    return x.exp()


def exp2(x: Tensor) -> Tensor:
    """Of integers the integer part."""
    return x.exp2().to(x.dtype)


def floor(x: Tensor) -> Tensor:
    return x.floor()


def identity(x: Tensor) -> Tensor:
    return x


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return (x + epsilon).log()


def logical_not(x: Tensor) -> Tensor:
    return x.logical_not()


def round(x: Tensor) -> Tensor:
    """To the nearest integer, halves to the even one."""
    return x.round()


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return (x + epsilon).rsqrt()


def sign(x: Tensor) -> Tensor:
    return x.sign()


def sin(x: Tensor) -> Tensor:
    return x.sin()


def sinh(x: Tensor) -> Tensor:
    return x.sinh()


def sqrt(x: Tensor) -> Tensor:
    return x.sqrt()


def square(x: Tensor) -> Tensor:
    return x * x


def tan(x: Tensor) -> Tensor:
    return x.tan()


def tanh(x: Tensor) -> Tensor:
    return x.tanh()


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.maximum(x, alpha)


# Two values.


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.floor_divide(x, y)


def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return x.logical_and(y)


def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return x.logical_or(y)


def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return x.logical_xor(y)


def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


def mod(x: Tensor, y: Tensor) -> Tensor:
    """The remainder with the sign of y."""
    return torch.remainder(x, y)


def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


def pow(x: Tensor, y: Tensor) -> Tensor:
    return x.pow(y)


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """The quotient; of two integers its integer part."""
    is_real = x.is_floating_point() or y.is_floating_point()
    return x / y if is_real else torch.div(x, y, rounding_mode="trunc")


def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


# More.


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point), to int8 or uint8."""
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}.get(output_dtype, (0, 0))
    if not high:
        raise UnsupportedError(f"output_dtype: expected int8 or uint8, got {output_dtype!r}")
    shape = _along(input, axis)
    offset = 0 if zero_point is None else zero_point.view(shape if zero_point.dim() else ())
    rounded = (input / scale.view(shape if scale.dim() else ())).round() + offset
    return rounded.clamp(low, high).to(torch.int32)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """(input - zero_point) * scale."""
    shape = _along(input, axis)
    offset = 0 if zero_point is None else zero_point.view(shape if zero_point.dim() else ())
    return (input - offset) * scale.view(shape if scale.dim() else ())


def _along(x: Tensor, axis: int | None) -> list[int]:
    return [-1 if axis is not None and i == axis % x.dim() else 1 for i in builtins.range(x.dim())]
