"""The weights a package stores against the checkpoint's, tensor by tensor."""

import copy
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit_coreml.model import Model
from mobilevit_coreml.model.layers import ChannelLayerNorm
from mobilevit_coreml.operation_names import operation_name
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.reference.comparison import snr
from mobilevit_coreml.reference.reader import Function, Operation, Ref

PLAIN = ("fp16", "fp32")  # formats of tensors that are not encoded
MAX_ULP = 1.0  # another machine may round the folding of batch norm otherwise
# dB that an encoded weight may be under the best choice among the values it is stored as. Without calibration that
# choice is made; with it errors make up for each other, which cost 7.1 dB at most in the networks that were tried.
MARGIN_DB, CALIBRATED_MARGIN_DB = 1.0, 10.0
MIN_DB_PER_BIT = 2.5  # for each bit but the first that the stored values have to allow; a table of zeros allows 0

_PARAMETERS = {"weight": "weight", "bias": "bias"}  # the module's name of a tensor, and its operation's
_NORM_PARAMETERS = {"weight": "gamma", "bias": "beta", "eps": "epsilon"}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A weight, bias, scale or epsilon of an operation beside the one of the module it comes from.

    `format` is the one in the package's record, fp16 or fp32 of tensors that are not encoded. `snr` is in dB,
    `units` the largest difference in ULP of that precision. `stored` is None, and the figures NaN, where the
    program has no such constant, or one of another shape.
    """

    operation: str
    type: str
    module: str
    parameter: str
    format: str
    snr: float
    units: float
    passed: bool
    stored: Tensor | None


def stored_tensors(function: Function, model: Model, record: PackageRecord) -> Iterator[StoredTensor]:
    """The tensors that the operations of a program store, in its order; `model` is folded for inference."""
    operations = {operation.name: index for index, operation in enumerate(function.operations)}
    formats = {path: name for name, paths in record.compression.get("layers", {}).items() for path in paths}
    margin = CALIBRATED_MARGIN_DB if record.compression.get("pictures") else MARGIN_DB
    modules = [
        (operations.get(operation_name(path), -1), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | ChannelLayerNorm)
    ]
    for index, path, module in sorted(modules, key=lambda entry: entry[0]):
        operation = function.operations[index] if index >= 0 else None
        name, kind = (operation_name(path), "") if operation is None else (operation.name, operation.type)
        format = formats.get(path, record.precision)
        parameters = _NORM_PARAMETERS if isinstance(module, ChannelLayerNorm) else _PARAMETERS
        for attribute, parameter in parameters.items():
            if getattr(module, attribute) is not None:
                own = torch.as_tensor(getattr(module, attribute)).detach()
                stored = None if operation is None else _constant(operation, parameter, function, own.shape)
                figures = (math.nan, math.nan, False)
                if stored is not None:
                    figures = _compared(own, stored, attribute, format, margin)
                yield StoredTensor(name, kind, path, attribute, format, *figures, stored)


def _constant(operation: Operation, parameter: str, function: Function, shape: torch.Size) -> Tensor | None:
    value = operation.inputs.get(parameter)
    value = function.constants.get(value.name) if isinstance(value, Ref) else value
    if isinstance(value, Tensor) and value.numel() == shape.numel():
        return value.reshape(shape).float()
    return None


def _compared(own: Tensor, stored: Tensor, attribute: str, format: str, margin: float) -> tuple[float, float, bool]:
    """SNR in dB, difference in ULP, and True if that is the original as far as the format allows."""
    figures = snr(own, stored), _ulp(own, stored, np.float32 if format == "fp32" else np.float16)
    if format in PLAIN:
        return *figures, figures[1] <= MAX_ULP
    if attribute != "weight":
        return *figures, bool(stored.isfinite().all())  # makes up for the weight's error, and may be anything
    attainable = snr(own, _best(own, stored, format))
    bits = 1 if format.startswith("sparse") else int(re.findall(r"\d+", format)[0])
    return *figures, attainable >= MIN_DB_PER_BIT * (bits - 1) and figures[0] >= attainable - margin


def _ulp(own: Tensor, stored: Tensor, dtype: type[np.floating]) -> float:
    expected = own.numpy().astype(dtype)
    difference = np.abs(stored.numpy().astype(np.float64) - expected.astype(np.float64))
    return float((difference / np.spacing(np.abs(expected)).astype(np.float64)).max())


def _best(own: Tensor, stored: Tensor, format: str) -> Tensor:
    """The nearest to a weight (out, in, ...) with as many zeros, or with the values, that are stored."""
    if format.startswith("sparse"):
        kept = own.abs().flatten().topk(int((stored != 0).sum())).indices
        return torch.zeros(own.numel()).index_copy(0, kept, own.flatten()[kept]).reshape(own.shape)
    sharing = 1 if format.startswith("int") else int(format.partition("_g")[2] or len(own))  # channels with one table
    rows = []
    for ours, theirs in zip(own.split(sharing), stored.split(sharing), strict=True):
        values = theirs.unique()
        above = torch.searchsorted(values, ours.contiguous()).clamp(max=len(values) - 1)
        below = (above - 1).clamp(min=0)
        nearer = (values[above] - ours).abs() < (values[below] - ours).abs()
        rows.append(torch.where(nearer, values[above], values[below]))
    return torch.cat(rows)


def with_stored(model: Model, tensors: Iterable[StoredTensor]) -> Model:
    """The model with a package's stored weights in place of its own."""
    changed = copy.deepcopy(model)
    for one in tensors:
        if one.stored is not None:
            value = nn.Parameter(one.stored.clone(), requires_grad=False)
            module = changed.get_submodule(one.module)
            setattr(module, one.parameter, float(value) if one.parameter == "eps" else value)
    return changed
