"""Activation functions with parameters; those without are in `elementwise.UNARY`."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.reference.ops.attributes import along, choose

TABLE: Mapping[str, Callable[..., Tensor]] = {
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "linear_activation": lambda x, alpha, beta=0.0: alpha * x + beta,
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
}

_GELU: Mapping[str, Callable[[Tensor], Tensor]] = {
    "EXACT": F.gelu,
    "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
    "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
}


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    return choose("mode", mode, _GELU)(x)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """alpha: (C,), C is dimension 1 of x."""
    return F.prelu(x, alpha)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha, beta: (C,), C is dimension 1 of x."""
    return along(alpha, 1, x.dim()) * F.softplus(along(beta, 1, x.dim()) * x)
