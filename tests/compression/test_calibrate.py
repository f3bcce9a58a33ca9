"""Statistics of layers against what the layers themselves do with an error of their weights."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.compression import calibrate as calibration
from mobilevit_coreml.compression.calibrate import MIN_ELEMENTS, Layer, calibrate, crops_of, layers_of, relative_output
from mobilevit_coreml.model import FeatureExtractor, Model
from tests.compression.packages import network
from tests.peers import images

TASKS = ("classification", "segmentation", "features")


class Layers(nn.Module):
    """One of each kind of layer, one after the other, with something in between that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(3, 8, 1)
        self.strided = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(6, 5, 3, padding=2, dilation=2)
        self.heads = nn.Conv2d(1, 4, (5, 1))  # channels as rows, as the attention's output has them
        self.linear = nn.Linear(4 * 6, 7)
        for parameter in self.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.requires_grad_(False).normal_(generator=generator).mul_(0.5)

    def forward(self, pixels: Tensor) -> Any:
        x = F.silu(self.dilated(F.silu(self.strided(F.silu(self.pointwise(pixels))))))
        x = F.silu(self.heads(x.flatten(2)[:, None]))  # B 4 1 positions
        return SimpleNamespace(logits=self.linear(x.flatten(2).transpose(1, 2).reshape(len(x), -1, 24)[:, :4]))


def layers(model: nn.Module) -> dict[str, Layer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Layer)}


def inputs_and_outputs(model: nn.Module, path: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    found: list[tuple[Tensor, Tensor]] = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda _, given, output: found.append((given[0], output)))
    model(pixels)
    handle.remove()
    return found[0]


def outputs_of_error(layer: Layer, x: Tensor, error: Tensor) -> Tensor:
    """(N, out): what an error of the weight adds to each output, by the layer itself."""
    changed = copy.deepcopy(layer).double()
    changed.weight.copy_(error)
    assert changed.bias is not None
    changed.bias.zero_()
    output = changed(x.double())
    return output.reshape(-1, output.shape[-1]) if isinstance(layer, nn.Linear) else output.transpose(0, 1).flatten(1).T


@pytest.mark.parametrize("path", ["pointwise", "strided", "dilated", "heads", "linear"])
def test_moments_and_means_tell_what_an_error_does_to_a_layers_outputs(path: str) -> None:
    model = Layers()
    crops = images(6, 12, 8)  # more than one batch, and one that is not full
    statistics = calibrate(cast(Model, model), layers(model), crops)[path]
    layer = layers(model)[path]
    x, _ = inputs_and_outputs(model, path, crops)
    error = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)).double()
    added = outputs_of_error(layer, x, error)
    matrix = error.flatten(1)
    predicted = torch.einsum("ok,kl,ol->o", matrix, statistics.moments.double(), matrix)
    torch.testing.assert_close(predicted, added.square().mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(matrix @ statistics.means.double(), added.mean(0), rtol=1e-4, atol=1e-5)


def test_moments_of_a_network_tell_what_an_error_does_to_a_layers_outputs() -> None:
    model, crops = network(), images(5, 64, 64)
    paths = ("backbone.stage3.1.local.conv", "backbone.stage4.0.reduce.conv", "backbone.stage5.1.layers.0.mlp_out")
    chosen = {path: layer for path, layer in layers_of(model)[0].items() if path in paths}
    assert len(chosen) == 3
    for path, statistics in calibrate(model, chosen, crops).items():
        x, _ = inputs_and_outputs(model, path, crops)
        error = torch.randn(chosen[path].weight.shape, generator=torch.Generator().manual_seed(2)).double()
        added = outputs_of_error(chosen[path], x, error)
        predicted = torch.einsum("ok,kl,ol->o", error.flatten(1), statistics.moments.double(), error.flatten(1))
        torch.testing.assert_close(predicted, added.square().mean(0), rtol=1e-3, atol=0)


def relative_noise(model: Model, changed: Model, crops: Tensor) -> float:
    """Mean over crops of the noise at the output, relative to what each of its parts was."""
    with torch.no_grad():
        results, others = model(crops), changed(crops)
    parts = ["pooled", "feature_map"] if isinstance(model, FeatureExtractor) else ["logits"]
    total = 0.0
    for part in parts:
        before, after = getattr(results, part).double().flatten(1), getattr(others, part).double().flatten(1)
        total += float(((after - before).norm(dim=1) / before.norm(dim=1)).square().mean())
    return total


SENSITIVE = {
    "features": (
        "backbone.stage2.1.expand.conv",
        "backbone.stage3.1.layers.0.attention.qkv",
        "backbone.stage4.1.layers.2.attention.out",
        "backbone.stage4.1.fusion.conv",
        "backbone.stage5.1.layers.1.mlp_in",
        "backbone.expand.conv",
    ),
    "classification": ("backbone.stage3.0.reduce.conv", "backbone.stage5.1.project_in", "classifier"),
}


@pytest.mark.parametrize("task", SENSITIVE)
def test_noise_is_that_at_the_output_for_a_small_error(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PROBES", 16)  # an estimate from 128 directions is within 1 dB, mostly
    model, crops = network(task), images(8, 64, 64)
    chosen = {path: layer for path, layer in layers_of(model)[0].items() if path in SENSITIVE[task]}
    assert len(chosen) == len(SENSITIVE[task])
    statistics = calibrate(model, chosen, crops)
    for path, layer in chosen.items():
        error = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)) * layer.weight.std() / 300
        changed = copy.deepcopy(model)
        changed.get_submodule(path).get_parameter("weight").data += error
        ratio = statistics[path].noises([error])[0] / relative_noise(model, changed, crops)
        assert abs(10 * torch.tensor(ratio).log10()) < 1.5, path


def test_an_error_that_scales_the_output_is_noise_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PROBES", 64)
    model = network("classification")
    classifier = layers_of(model)[0]["classifier"]
    assert classifier.bias is not None
    assert not classifier.bias.any()
    (statistics,) = calibrate(model, {"classifier": classifier}, images(2, 64, 64)).values()
    assert statistics.noises([0.1 * classifier.weight]) == [pytest.approx(0.01, rel=0.4)]


@pytest.mark.parametrize("task", TASKS)
def test_layers_kept_in_fp16_are_depthwise_or_first_or_small(task: str) -> None:
    model = network(task)
    chosen, left = layers_of(model)
    assert chosen.keys() | left.keys() == layers(model).keys()
    assert not chosen.keys() & left.keys()
    for path, module in layers(model).items():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        expected = (
            "depthwise"
            if depthwise
            else "first convolution"
            if path == "backbone.stem.conv"
            else f"under {MIN_ELEMENTS} weights"
            if module.weight.numel() < 1024
            else None
        )
        assert left.get(path) == expected, path
    assert set(left.values()) == {"depthwise", "first convolution", "under 1024 weights"}
    assert ("classifier" in chosen) == (task == "classification")
    assert any(path.startswith("head.") for path in chosen) == (task == "segmentation")


@pytest.mark.parametrize("task", TASKS)
def test_relative_outputs_have_a_length_of_one_each(task: str) -> None:
    model, crops = network(task), images(3, 64, 64)
    with torch.no_grad():
        output, result = relative_output(model, crops), model(crops)
    parts = [result.pooled, result.feature_map] if task == "features" else [result.logits]
    start = 0
    for part in parts:
        for crop in range(3):
            expected = part[crop].flatten() / part[crop].norm()
            torch.testing.assert_close(output[crop, start : start + expected.numel()], expected)
        start += part[0].numel()
    assert output.shape == (3, start)


def test_no_gradient_and_no_hook_is_left_on() -> None:
    model, crops = Layers(), images(3, 12, 8)

    def given_up(stage: str, done: int = 0, total: int = 0) -> None:
        raise KeyboardInterrupt

    def given_up_late(stage: str, done: int = 0, total: int = 0) -> None:
        if done == total:
            raise KeyboardInterrupt

    calibrate(cast(Model, model), layers(model), crops)
    for progress in (given_up, given_up_late):
        with pytest.raises(KeyboardInterrupt):
            calibrate(cast(Model, model), layers(model), crops, progress)
    for module in model.modules():
        assert not module._forward_hooks
        for parameter in module.parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None


@pytest.mark.parametrize("crops", [1, 4, 5, 30])
def test_steps_are_as_many_as_announced(crops: int) -> None:
    model, steps = Layers(), []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        steps.append((stage, done, total))

    calibrate(cast(Model, model), layers(model), images(crops, 12, 8), progress)
    assert steps == [("calibrate", done, len(steps)) for done in range(1, len(steps) + 1)]


def test_calibration_is_the_same_each_time() -> None:
    model, crops = Layers(), images(3, 12, 8)
    first = calibrate(cast(Model, model), layers(model), crops)
    torch.manual_seed(5)
    second = calibrate(cast(Model, model), layers(model), crops)
    for path, statistics in first.items():
        assert torch.equal(statistics.moments, second[path].moments)
        assert torch.equal(statistics.gradients, second[path].gradients)


def test_of_many_crops_those_probed_are_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PROBED", 3)
    model, crops = Layers(), images(9, 12, 8)
    spread = calibrate(cast(Model, model), layers(model), crops)
    alone = calibrate(cast(Model, model), layers(model), crops[[0, 4, 8]])
    for path, statistics in spread.items():
        assert len(statistics.gradients) == 3 * calibration.PROBES
        assert torch.equal(statistics.gradients, alone[path].gradients)


def test_crops_are_centre_and_corners_and_mirrored() -> None:
    image = torch.arange(3 * 8 * 10).float().reshape(3, 8, 10)
    crops = crops_of([image], (4, 6), 10)
    assert crops.shape == (10, 3, 4, 6)
    places = [(2, 2), (0, 0), (4, 4), (0, 4), (4, 0)]
    for (top, left), crop, mirrored in zip(places, crops[::2], crops[1::2], strict=True):
        expected = image[:, top : top + 4, left : left + 6]
        assert torch.equal(crop, expected)
        assert torch.equal(mirrored, expected.flip(2))


@pytest.mark.parametrize(("count", "each"), [(1, 1), (3, 1), (7, 2), (30, 10), (100, 10)])
def test_crops_are_shared_out_evenly(count: int, each: int) -> None:
    images = [torch.full((3, 8, 8), float(number)) for number in range(3)]
    crops = crops_of(images, (6, 6), count)
    assert crops[:, 0, 0, 0].tolist() == [float(number) for number in range(3) for _ in range(each)]


def test_images_without_a_margin_have_two_crops() -> None:
    image = torch.arange(3 * 4 * 4).float().reshape(3, 4, 4)
    crops = crops_of([image], (4, 4), 10)
    assert torch.equal(crops, torch.stack([image, image.flip(2)]))
