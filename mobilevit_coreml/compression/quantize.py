"""Quantization of a weight: lookup tables by weighted k-means, and error-compensated rounding (GPTQ)."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format

ITERATIONS = 50  # of k-means; most lookup tables have converged before
BLOCK = 64  # columns between two updates of all the rest
DAMPING = 0.01  # of the mean squared input, on the diagonal: directions that the calibration hardly has


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no truth value
class Encoded:
    """A weight as it is stored in a compressed format.

    `codes` has the weight's shape: int8 integers, uint8 indices, or of a sparse weight the float32 values
    themselves. `values` is float32: scales (out,), lookup tables (groups, 2**bits), or nothing. All real numbers are
    exact in fp16.
    """

    format: Format
    codes: NDArray[Any]
    values: NDArray[np.float32]

    def decode(self) -> NDArray[np.float32]:
        """The weight's values; those of integers are rounded once more, to fp16, in an fp16 package."""
        if self.format.kind == SPARSE:
            return self.codes
        if self.format.kind == INTEGER:
            return self.codes * self.values.reshape(-1, *[1] * (self.codes.ndim - 1))
        indices = self.codes.reshape(len(self.values), -1).astype(np.int64)
        return np.take_along_axis(self.values, indices, axis=1).reshape(self.codes.shape)


@dataclasses.dataclass(frozen=True)
class Compensation:
    """The part of error-compensated rounding (GPTQ, Frantar et al. 2022) that depends on a layer's inputs alone.

    `order` (K,) of the columns, those with the largest inputs first; `factor` (K, K) is the upper Cholesky factor of
    the inverse of their moments in that order: row by row, how later columns compensate the error of a column.
    """

    order: Tensor
    factor: Tensor


def compensation_of(moments: Tensor) -> Compensation:
    """From the moments (K, K): the mean of x x^T over the layer's inputs, in the order of weight.flatten(1)."""
    hessian = moments.double().clone()
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    order = diagonal.argsort(descending=True)  # the largest first, while most columns are left to compensate with
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    return Compensation(order, torch.linalg.cholesky(inverse, upper=True))


def encode(weight: Tensor, format: Format, importance: Tensor, compensation: Compensation | None) -> Encoded:
    """A weight (out, in, ...) in a compressed format, its values fitted where `importance` (same shape) is large.

    Without a compensation each value is rounded on its own.
    """
    matrix, importance = weight.flatten(1).double(), importance.flatten(1).double()
    grid: _Grid | _Mask
    if format.kind == SPARSE:
        grid = _Mask(matrix.abs() * importance, format.zeros)
    else:
        values = _scales(matrix, format) if format.kind == INTEGER else _lookup_tables(matrix, importance, format)
        grid = _Grid(format, values)
    columns = torch.arange(matrix.shape[1])
    codes = grid.codes(matrix, columns) if compensation is None else _compensated(matrix, compensation, grid)
    dtype = {INTEGER: np.int8, PALETTE: np.uint8, SPARSE: np.float32}[format.kind]
    return Encoded(format, codes.reshape(weight.shape).numpy().astype(dtype), grid.values.float().numpy())


class _Grid:
    """The values each output channel can take, as codes."""

    def __init__(self, format: Format, values: Tensor) -> None:
        self.is_integer = format.kind == INTEGER
        self.limit = 2 ** (format.bits - 1) - 1
        self.values = values
        if not self.is_integer:
            self.boundaries = ((values[:, 1:] + values[:, :-1]) / 2).contiguous()

    def codes(self, x: Tensor, _columns: Tensor) -> Tensor:
        """The nearest code of each value (out, n)."""
        if self.is_integer:
            return (x / self.values[:, None]).round().clamp(-self.limit, self.limit)
        grouped = x.reshape(len(self.values), -1).contiguous()
        return torch.searchsorted(self.boundaries, grouped).reshape(x.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """The values of codes (out, n)."""
        if self.is_integer:
            return codes * self.values[:, None]
        return self.values.gather(1, codes.reshape(len(self.values), -1)).reshape(codes.shape)


class _Mask:
    """Values as they are, or zero: the share `zeros` of least importance (out, K)."""

    def __init__(self, importance: Tensor, zeros: float) -> None:
        dropped = importance.flatten().argsort(stable=True)[: round(importance.numel() * zeros)]
        self.kept = torch.ones_like(importance).flatten().index_fill_(0, dropped, 0).reshape(importance.shape)
        self.values = importance.new_empty(0)

    def codes(self, x: Tensor, columns: Tensor) -> Tensor:
        """Values (out, n) of `columns` rounded to fp16, some of them zero."""
        return _half(x) * self.kept[:, columns]

    def decode(self, codes: Tensor) -> Tensor:
        """The same."""
        return codes


def _scales(matrix: Tensor, format: Format) -> Tensor:
    """A scale for each output channel, exact in fp16."""
    scales = matrix.abs().amax(1) / (2 ** (format.bits - 1) - 1)
    return _half(scales).clamp_min(torch.finfo(torch.float16).smallest_normal)


def _lookup_tables(matrix: Tensor, importance: Tensor, format: Format) -> Tensor:
    """(groups, 2**bits) values in ascending order, exact in fp16."""
    groups = 1 if format.group_size is None else len(matrix) // format.group_size
    pairs = zip(matrix.reshape(groups, -1), importance.reshape(groups, -1), strict=True)
    return torch.stack([_half(weighted_kmeans(values, weights, 2**format.bits)) for values, weights in pairs])


def _half(values: Tensor) -> Tensor:
    return values.half().double()


def weighted_kmeans(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """`count` centres (count,) in ascending order for values (n,) with weights (n,), by Lloyd's iterations.

    In one dimension clusters are stretches of the sorted values, so sums over them are differences of
    running sums. Starts from the density that is best for many centres.
    """
    values, order = values.double().sort()
    weights = weights.double()[order] + 1e-12 * weights.double().mean() + torch.finfo(torch.float64).tiny
    mass = torch.cat([values.new_zeros(1), weights.cumsum(0)])
    moment = torch.cat([values.new_zeros(1), (weights * values).cumsum(0)])
    centres = _spread(values, weights, count)
    ends = torch.tensor([0]), torch.tensor([len(values)])
    for _ in range(ITERATIONS):
        edges = torch.cat([ends[0], torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2), ends[1]])
        inside = mass[edges[1:]] - mass[edges[:-1]]
        means = (moment[edges[1:]] - moment[edges[:-1]]) / inside
        moved = torch.where(inside > 0, means, centres).sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _spread(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """`count` of the sorted values, as dense as the cube root of the density of the weights.

    Between two neighbours that root times their distance is weight^(1/3) * distance^(2/3).
    """
    distinct = values.unique()
    if len(distinct) <= count:  # each value can have a centre of its own
        return distinct[torch.arange(count).clamp(max=len(distinct) - 1)]
    between = (weights[1:] + weights[:-1]) / 2
    running = torch.cat([values.new_zeros(1), (between ** (1 / 3) * values.diff() ** (2 / 3)).cumsum(0)])
    places = torch.searchsorted(running, (torch.arange(count, dtype=torch.float64) + 0.5) / count * running[-1])
    return values[places.clamp(max=len(values) - 1)]


def _compensated(matrix: Tensor, compensation: Compensation, grid: _Grid | _Mask) -> Tensor:
    """Codes (out, K), column by column, the error of each spread over those to come as the inputs correlate."""
    order, factor = compensation.order, compensation.factor
    rest = matrix[:, order]
    codes = []
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = []
        for column in range(start, stop):
            x = rest[:, column, None]
            codes.append(grid.codes(x, order[column, None]))
            errors.append((x - grid.decode(codes[-1])) / factor[column, column])
            rest[:, column:stop] -= errors[-1] * factor[column, column:stop]
        rest[:, stop:] -= torch.cat(errors, dim=1) @ factor[start:stop, stop:]
    return torch.cat(codes, dim=1)[:, order.argsort()]
