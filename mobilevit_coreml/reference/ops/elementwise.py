"""Element-wise operations."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError

# Operations of one parameter, `x`.
UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": lambda x: torch.exp2(x).to(x.dtype),  # of integers the integer part
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": F.relu,
    "relu6": F.relu6,
    "round": torch.round,  # halves to even
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

# Operations of two parameters, `x` and `y`, broadcast.
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,  # the sign of y
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Quotient; of two integers its integer part."""
    is_real = x.is_floating_point() or y.is_floating_point()
    return x / y if is_real else torch.div(x, y, rounding_mode="trunc")


def cast(x: Tensor, dtype: str) -> Tensor:
    """Conversion to fp16, fp32, an integer type or bool, rounding towards zero."""
    types = {"fp16": torch.float32, "fp32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    types |= dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8", "uint32"), torch.int32)
    if dtype not in types:
        raise UnsupportedError(f"dtype: expected one of {', '.join(types)}, got {dtype!r}")
    return x.to(types[dtype])


def clip(x: Tensor, alpha: float = -math.inf, beta: float = math.inf) -> Tensor:
    return x.clamp(alpha, beta)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return (x + epsilon).log()


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return (x + epsilon).rsqrt()


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.maximum(x, alpha)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point), to int8 or uint8."""
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}.get(output_dtype, (0, 0))
    if not high:
        raise UnsupportedError(f"output_dtype: expected int8 or uint8, got {output_dtype!r}")
    offset = 0 if zero_point is None else _along(zero_point, input, axis)
    return ((input / _along(scale, input, axis)).round() + offset).clamp(low, high).to(torch.int32)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """(input - zero_point) * scale."""
    offset = 0 if zero_point is None else _along(zero_point, input, axis)
    return (input - offset) * _along(scale, input, axis)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar, or a vector along an axis of x, in a shape that broadcasts with x."""
    shape = [-1 if axis is not None and i == axis % x.dim() else 1 for i in range(x.dim())]
    return values.view(shape if values.dim() else ())
