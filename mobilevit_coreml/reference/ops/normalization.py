"""Normalization. Shapes: N batch, C channels, *D spatial dimensions."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.reference.ops.attributes import Ints

TABLE: Mapping[str, Callable[..., Tensor]] = {
    "l2_norm": lambda x, epsilon=1e-6: x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt(),
}


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """x: (N, C, *D); mean, variance, gamma, beta: (C,)."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x: (N, C, *D), normalized over D."""
    return _affine(_standardized(x, tuple(range(2, x.dim())), epsilon), [-1] + [1] * (x.dim() - 2), gamma, beta)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x: (N, C, *D), across channels; of rank 3 across the first dimension, as coremltools' tests expect of Core ML."""
    batch = x[None] if x.dim() == 3 else x
    return F.local_response_norm(batch, size, alpha, beta, k).view(x.shape)


def layer_norm(
    x: Tensor, axes: Ints = (), gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Normalized over `axes`, all axes if empty; gamma and beta have the shape of these axes."""
    rank = x.dim()
    axes = tuple(sorted(axis % rank for axis in axes)) or tuple(range(rank))
    shape = [x.shape[axis] for axis in axes]
    if axes == tuple(range(rank - len(axes), rank)):
        return F.layer_norm(x, shape, gamma, beta, epsilon)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _affine(_standardized(x, axes, epsilon), shape, gamma, beta)


def _standardized(x: Tensor, axes: Ints, epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()


def _affine(x: Tensor, shape: list[int], gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    scaled = x if gamma is None else x * gamma.view(shape)
    return scaled if beta is None else scaled + beta.view(shape)
