"""How each weight of a network is going to be stored, for one format or a budget, and the model that has it so."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mobilevit_coreml.compression.budget import Point, budget_steps, meet
from mobilevit_coreml.compression.calibrate import Layer, Statistics, calibrate, calibration_steps, layers_of
from mobilevit_coreml.compression.encoded import Encoded
from mobilevit_coreml.compression.formats import FP16, INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.quantize import encode
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.compression.search import Candidate
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.model import Model

# What a budget chooses from. All are iOS16's: grouped tables bring no more there than their bytes are worth elsewhere.
CHOICES = (FP16, Format(INTEGER, 8), *(Format(PALETTE, bits) for bits in (8, 6, 4, 2)))

Steps = Callable[[str, int], AbstractContextManager[Callable[[], None]]]  # a bar: its name and length to its advance


@dataclasses.dataclass(frozen=True)
class StoredLayer:
    """A layer that could be encoded: its format, how many weights it has, their bytes, about.

    `noise` is the power it puts at the output, relative to the output's own; None without calibration.
    """

    path: str
    format: str
    weights: int
    bytes: int
    noise: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The weights that are encoded, by the path of their module, and what goes with them.

    `bias_shifts` (out,) make up for what the encoding does to the mean output of a layer. `left` says
    why each of the other layers was left alone. `curve` has (bytes, dB, agreement) of each package that
    was built on the way to a budget.
    """

    scheme: str
    pictures: int  # calibrated with
    encoded: Mapping[str, Encoded]
    bias_shifts: Mapping[str, Tensor]
    layers: tuple[StoredLayer, ...]
    left: Mapping[str, str]
    curve: tuple[tuple[int, float, float | None], ...] = ()

    def summary(self) -> dict[str, Any]:
        """For the package's record: the modules by format and by reason."""
        return {
            "scheme": self.scheme,
            "pictures": self.pictures,
            "layers": _inverted({layer.path: layer.format for layer in self.layers}),
            "left": _inverted(self.left),
            "curve": [[size, round(snr, 2), agreement] for size, snr, agreement in self.curve],
        }


def _inverted(values: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, value in values.items():
        found.setdefault(value, []).append(path)
    return found


def uniform_plan(scheme: Format, model: Model, views: Tensor | None, pictures: int, steps: Steps) -> Plan:
    """All layers of a folded model in one format; without views each value is rounded on its own.

    Raises ConversionError where a group size does not divide a layer's channels.
    """
    layers, left = layers_of(model)
    _check_groups(scheme, layers)
    statistics = _calibrated(model, layers, views, steps) if views is not None else {}
    encoded, stored = {}, []
    with steps("encode", len(layers)) as advance:
        for path, layer in layers.items():
            encoded[path], noise = _encoded(layer.weight.detach(), scheme, statistics.get(path))
            stored.append(_stored(path, layer, scheme, noise))
            advance()
    return Plan(str(scheme), pictures, encoded, _bias_shifts(layers, encoded, statistics), tuple(stored), left)


def budget_plan(
    scheme: Budget,
    model: Model,
    views: Tensor,
    pictures: int,
    build: Callable[[Plan], tuple[int, float, float | None]],
    steps: Steps,
) -> Plan:
    """Each layer of a folded model in the format that serves a budget best.

    `build` makes a package by a plan, and measures its bytes, dB and agreement on other pictures.
    Raises ConversionError where no package meets the budget.
    """
    layers, left = layers_of(model)
    statistics = _calibrated(model, layers, views, steps)
    candidates: dict[str, list[Candidate]] = {}
    with steps("encode", len(layers)) as advance:
        for path, layer in layers.items():
            weight = layer.weight.detach()
            candidates[path] = [_candidate(weight, form, statistics[path]) for form in CHOICES]
            advance()

    def plan_of(choice: Mapping[str, Candidate], curve: tuple[Point, ...] = ()) -> Plan:
        encoded = {path: one.encoded for path, one in choice.items() if one.encoded is not None}
        stored = tuple(_stored(path, layers[path], one.format, one.noise) for path, one in choice.items())
        points = tuple((point.bytes, point.snr, point.agreement) for point in curve)
        shifts = _bias_shifts(layers, encoded, statistics)
        return Plan(str(scheme), pictures, encoded, shifts, stored, left, points)

    with steps("search", budget_steps()) as advance:
        chosen, curve = meet(scheme, candidates, lambda choice: Point(choice, *build(plan_of(choice))), advance)
    return plan_of(chosen.choice, curve)


def _stored(path: str, layer: Layer, form: Format, noise: float | None) -> StoredLayer:
    shape = tuple(layer.weight.shape)
    return StoredLayer(path, str(form), math.prod(shape), form.stored_bytes(shape), noise)


def apply_plan(plan: Plan, model: Model) -> Model:
    """A copy of a folded model that computes with the weights as they are stored."""
    copied = copy.deepcopy(model)
    layers, _ = layers_of(copied)
    for path, encoded in plan.encoded.items():
        layers[path].weight.data = torch.from_numpy(encoded.decode()).reshape(layers[path].weight.shape)
    for path, shift in plan.bias_shifts.items():
        layers[path].bias.data += shift  # type: ignore[union-attr]  # those that have none get no shift
    return copied


def _calibrated(model: Model, layers: Mapping[str, Layer], views: Tensor, steps: Steps) -> dict[str, Statistics]:
    with steps("calibrate", calibration_steps(len(views))) as advance:
        return calibrate(model, layers, views, advance)


def _check_groups(scheme: Format, layers: Mapping[str, Layer]) -> None:
    wrong = {path: len(layer.weight) for path, layer in layers.items() if not scheme.fits(len(layer.weight))}
    if wrong:
        path, channels = next(iter(wrong.items()))
        divisor = math.gcd(*(len(layer.weight) for layer in layers.values()))
        raise ConversionError(
            f"group_size: expected a divisor of every layer's output channels, such as {divisor}, got "
            f"{scheme.group_size}, no divisor of {channels} ({path}, and {len(wrong) - 1} layers more); choose one"
        )


def _encoded(weight: Tensor, form: Format, statistics: Statistics | None) -> tuple[Encoded, float | None]:
    """A weight in a format and its noise: with statistics the best of the tables they suggest, by that."""
    if statistics is None:
        return encode(weight, form, torch.ones_like(weight), None), None
    options = [
        encode(weight, form, importance, statistics.moments) for importance in _importances(weight, form, statistics)
    ]
    noises = [statistics.noise(torch.from_numpy(option.decode()) - weight) for option in options]
    best = min(range(len(options)), key=noises.__getitem__)
    return options[best], noises[best]


def _candidate(weight: Tensor, form: Format, statistics: Statistics) -> Candidate:
    size = form.stored_bytes(tuple(weight.shape))
    if form == FP16:
        return Candidate(form, size, statistics.noise(weight.half().float() - weight), None)
    encoded, noise = _encoded(weight, form, statistics)
    assert noise is not None
    return Candidate(form, size, noise, encoded)


def _importances(weight: Tensor, form: Format, statistics: Statistics) -> Sequence[Tensor]:
    """What tables are fitted by: all weights alike, or by their inputs' power and their outputs' sensitivity.

    Half of the latter, in decibels: all of it makes tables for few weights, and leaves the others far from any value.
    """
    alike = torch.ones_like(weight)
    if form.kind == INTEGER:
        return [alike]
    inputs = statistics.moments.diagonal()
    if form.kind == SPARSE:  # Wanda's measure (Sun et al. 2023)
        return [inputs.sqrt().expand(len(weight), -1).reshape(weight.shape)]
    outputs = (statistics.gradients.float() ** 2).mean((0, 2))
    return [alike, (outputs[:, None] * inputs).sqrt().reshape(weight.shape)]


def _bias_shifts(
    layers: Mapping[str, Layer], encoded: Mapping[str, Encoded], statistics: Mapping[str, Statistics]
) -> dict[str, Tensor]:
    shifts = {}
    for path, one in encoded.items():
        layer = layers[path]
        if layer.bias is not None and path in statistics:
            error = layer.weight.detach() - torch.from_numpy(one.decode())
            shifts[path] = error.flatten(1) @ statistics[path].means
    return shifts
