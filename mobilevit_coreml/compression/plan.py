"""The storage format of each weight of a network, for one format or a budget, and the model with its weights so."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mobilevit_coreml.compression.calibrate import Layer, Statistics, calibrate, layers_of
from mobilevit_coreml.compression.formats import FLOAT, FP16, INTEGER, PALETTE, SPARSE, UNCOMPRESSED, Format, blob_bytes
from mobilevit_coreml.compression.quantize import Compensation, Encoded, compensation_of, encode
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.compression.search import MAX_STEPS, Candidate, Choice, Point, Quality, meet
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.model import Model
from mobilevit_coreml.progress import Progress

# Of a budget, beside uncompressed. All are iOS16's: grouped lookup tables are not worth their bytes.
COMPRESSED = (Format(INTEGER, 8), *(Format(PALETTE, bits) for bits in (8, 6, 4, 2)))


@dataclasses.dataclass(frozen=True)
class StoredLayer:
    """A layer that could be compressed: its format, its number of weights, their bytes, about.

    `noise` is the power it puts at the output, relative to the output's own; None without calibration.
    """

    path: str
    format: str
    weights: int
    bytes: int
    noise: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The weights that are compressed, by the path of their module, and what goes with them.

    `images` are those of the calibration. `bias_shifts` (out,) compensate what the compression does to the mean
    output of a layer. `left` has the reason why each of the other layers is kept uncompressed. `curve`, of a budget,
    has (bytes, dB, agreement) of other choices, scored in PyTorch, their bytes predicted, and of the chosen one, as
    its package was measured.
    """

    scheme: str
    images: int
    encoded: Mapping[str, Encoded]
    bias_shifts: Mapping[str, Tensor]
    layers: tuple[StoredLayer, ...]
    left: Mapping[str, str]
    curve: tuple[tuple[int, float, float | None], ...] = ()

    def summary(self) -> dict[str, Any]:
        """For the package's record: the modules by format and by reason."""
        return {
            "scheme": self.scheme,
            "pictures": self.images,
            "layers": _inverted({layer.path: layer.format for layer in self.layers}),
            "left": _inverted(self.left),
            "curve": [[size, round(snr, 2), agreement] for size, snr, agreement in self.curve],
        }


def _inverted(values: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, value in values.items():
        found.setdefault(value, []).append(path)
    return found


def uniform_plan(
    scheme: Format, model: Model, precision: str, crops: Tensor | None, images: int, progress: Progress
) -> Plan:
    """All layers of a folded model in one format; without calibration crops each value is rounded on its own.

    Raises ConversionError where a group size does not divide a layer's channels.
    """
    layers, left = layers_of(model)
    _check_groups(scheme, layers)
    statistics = calibrate(model, layers, crops, progress) if crops is not None else {}
    candidates = _candidates(layers, (scheme,), precision, statistics, progress)
    return _plan(str(scheme), images, {path: one for path, (one,) in candidates.items()}, layers, left, statistics)


def budget_plan(
    budget: Budget,
    model: Model,
    precision: str,
    crops: Tensor,
    images: int,
    package_bytes: int,
    score: Callable[[Model], Quality],
    build: Callable[[Plan], tuple[int, Quality]],
    progress: Progress,
) -> Plan:
    """Each layer of a folded model in the format that serves a budget best.

    `package_bytes` is a guess of the package without its weights; a good one saves building a second package.
    `score` is the quality of the model with weights as they are going to be stored, in PyTorch; `build` makes a
    package by a plan, and measures its bytes and its quality. Both are on images without a part in the calibration.

    Raises ConversionError where no package meets the budget.
    """
    layers, left = layers_of(model)
    statistics = calibrate(model, layers, crops, progress)
    candidates = _candidates(layers, (UNCOMPRESSED[precision], *COMPRESSED), precision, statistics, progress)
    done = itertools.count(1)

    def plan_of(choice: Choice) -> Plan:
        return _plan(str(budget), images, choice, layers, left, statistics)

    def scored(choice: Choice) -> Quality:
        quality = score(apply_plan(plan_of(choice), model))
        progress("search", min(next(done), MAX_STEPS), MAX_STEPS)
        return quality

    def built(choice: Choice) -> Point:
        point = Point(choice, *build(plan_of(choice)))
        progress("search", min(next(done), MAX_STEPS), MAX_STEPS)
        return point

    rest = package_bytes + _other_weights(model, layers, precision)
    chosen, curve = meet(budget, candidates, rest, scored, built)
    points = tuple((point.bytes, point.quality.snr, point.quality.agreement) for point in curve)
    return dataclasses.replace(plan_of(chosen.choice), curve=points)


def apply_plan(plan: Plan, model: Model) -> Model:
    """A copy of a folded model that computes with the weights as they are stored."""
    copied = copy.deepcopy(model)
    layers, _ = layers_of(copied)
    for path, encoded in plan.encoded.items():
        layers[path].weight.data = torch.from_numpy(encoded.decode()).reshape(layers[path].weight.shape)
    for path, shift in plan.bias_shifts.items():
        layers[path].bias.data += shift  # type: ignore[union-attr]  # those that have none get no shift
    return copied


def _plan(
    scheme: str,
    images: int,
    choice: Choice,
    layers: Mapping[str, Layer],
    left: Mapping[str, str],
    statistics: Mapping[str, Statistics],
) -> Plan:
    encoded = {path: one.encoded for path, one in choice.items() if one.encoded is not None}
    stored = tuple(
        StoredLayer(path, str(one.format), layers[path].weight.numel(), one.bytes, one.noise if statistics else None)
        for path, one in choice.items()
    )
    return Plan(scheme, images, encoded, _bias_shifts(layers, encoded, statistics), stored, left)


def _other_weights(model: Model, layers: Mapping[str, Layer], precision: str) -> int:
    """Bytes of the weights that are not of the layers; in a package equal ones are stored once."""
    of_layers = {id(layer.weight) for layer in layers.values()}
    others = (parameter for parameter in model.parameters() if id(parameter) not in of_layers)
    width = UNCOMPRESSED[precision].bits // 8
    return sum(blob_bytes(width * parameter.numel()) for parameter in others)


def _check_groups(scheme: Format, layers: Mapping[str, Layer]) -> None:
    channels = {path: len(layer.weight) for path, layer in layers.items()}
    wrong = [path for path, count in channels.items() if count % (scheme.group_size or count)]
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        raise ConversionError(
            f"group_size: expected a divisor of every layer's output channels, such as {math.gcd(*channels.values())}, "
            f"got {scheme.group_size}, no divisor of {channels[first]} ({first}, and {more} layers more); choose one"
        )


def _candidates(
    layers: Mapping[str, Layer],
    formats: Sequence[Format],
    precision: str,
    statistics: Mapping[str, Statistics],
    progress: Progress,
) -> dict[str, list[Candidate]]:
    """The weight of each layer in each format."""
    candidates = {}
    for done, (path, layer) in enumerate(layers.items(), 1):
        candidates[path] = _candidates_of(layer.weight.detach(), formats, precision, statistics.get(path))
        progress("encode", done, len(layers))
    return candidates


def _candidates_of(
    weight: Tensor, formats: Sequence[Format], precision: str, statistics: Statistics | None
) -> list[Candidate]:
    """A weight in each format, encoded with the least noise; without statistics noise is unknown, NaN."""
    compensation = None if statistics is None else compensation_of(statistics.moments)
    encodings = [
        (format, encoded) for format in formats for encoded in _encodings(weight, format, statistics, compensation)
    ]
    noises = [math.nan] * len(encodings)
    if statistics is not None:
        noises = statistics.noises([_stored(weight, format, encoded) - weight for format, encoded in encodings])
    best: dict[Format, Candidate] = {}
    for (format, encoded), noise in zip(encodings, noises, strict=True):
        if format not in best or noise < best[format].noise:
            best[format] = Candidate(format, format.stored_bytes(tuple(weight.shape), precision), noise, encoded)
    return list(best.values())


def _encodings(
    weight: Tensor, format: Format, statistics: Statistics | None, compensation: Compensation | None
) -> list[Encoded | None]:
    """A weight in a format, its values fitted in one way or two."""
    if format.kind == FLOAT:
        return [None]
    return [encode(weight, format, importance, compensation) for importance in _importances(weight, format, statistics)]


def _stored(weight: Tensor, format: Format, encoded: Encoded | None) -> Tensor:
    if encoded is not None:
        return torch.from_numpy(encoded.decode())
    return weight.half().float() if format == FP16 else weight


def _importances(weight: Tensor, format: Format, statistics: Statistics | None) -> Sequence[Tensor]:
    """Weights of the fit of a format's values: all equal, or by their inputs' power and their outputs' sensitivity.

    Half of the latter, in decibels: all of it makes lookup tables for few weights, and leaves the others far from any
    value.
    """
    equal = torch.ones_like(weight)
    if statistics is None or format.kind == INTEGER:
        return [equal]
    inputs = statistics.moments.diagonal()
    if format.kind == SPARSE:  # Wanda's measure (Sun et al. 2023)
        return [inputs.sqrt().expand(len(weight), -1).reshape(weight.shape)]
    outputs = (statistics.gradients.float() ** 2).mean((0, 2))
    return [equal, (outputs[:, None] * inputs).sqrt().reshape(weight.shape)]


def _bias_shifts(
    layers: Mapping[str, Layer], encoded: Mapping[str, Encoded], statistics: Mapping[str, Statistics]
) -> dict[str, Tensor]:
    return {
        path: (layers[path].weight.detach() - torch.from_numpy(one.decode())).flatten(1) @ statistics[path].means
        for path, one in encoded.items()
        if layers[path].bias is not None and path in statistics
    }
