"""Element-wise operations."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.reference.ops.attributes import along, choose

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


# Operations of other parameters.
TABLE: Mapping[str, Callable[..., Tensor]] = {
    "clip": lambda x, alpha=-math.inf, beta=math.inf: x.clamp(alpha, beta),
    "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
    "log": lambda x, epsilon=1e-45: (x + epsilon).log(),
    "rsqrt": lambda x, epsilon=1e-12: (x + epsilon).rsqrt(),
    "select": lambda cond, a, b: torch.where(cond, a, b),
}


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Quotient; of two integers its integer part."""
    is_real = x.is_floating_point() or y.is_floating_point()
    return x / y if is_real else torch.div(x, y, rounding_mode="trunc")


def cast(x: Tensor, dtype: str) -> Tensor:
    """Conversion to fp16, fp32, an integer type or bool, rounding towards zero."""
    types = {"fp16": torch.float32, "fp32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    types |= dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8", "uint32"), torch.int32)
    return x.to(choose("dtype", dtype, types))


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.maximum(x, alpha)


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point), to int8 or uint8."""
    low, high = choose("output_dtype", output_dtype, {"int8": (-128, 127), "uint8": (0, 255)})
    offset = 0 if zero_point is None else _along(zero_point, input, axis)
    return ((input / _along(scale, input, axis)).round() + offset).clamp(low, high).to(torch.int32)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """(input - zero_point) * scale."""
    offset = 0 if zero_point is None else _along(zero_point, input, axis)
    return (input - offset) * _along(scale, input, axis)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar, or a vector along an axis of x, in a shape that broadcasts with x."""
    return values.reshape(()) if axis is None or not values.dim() else along(values, axis, x.dim())
