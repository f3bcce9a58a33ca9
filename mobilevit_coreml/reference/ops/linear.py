"""Matrix products and attention."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

TABLE: Mapping[str, Callable[..., Tensor]] = {
    "einsum": lambda values, equation: torch.einsum(equation, *values),
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),  # x: (*B, D_in), weight: (D_out, D_in)
}


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched matrix product with broadcasting; transpose_x and transpose_y swap the last two dimensions.

    Of an integer and a floating-point matrix (iOS17) the result is floating-point.
    """
    if x.dtype != y.dtype:
        x, y = x.float(), y.float()
    return (x.mT if transpose_x and x.dim() > 1 else x) @ (y.mT if transpose_y and y.dim() > 1 else y)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V; a boolean mask is True for the keys to attend to."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value
