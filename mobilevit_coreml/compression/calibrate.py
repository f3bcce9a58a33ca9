"""Calibration with images: the inputs of each layer, and its sensitivity: the noise at the output for its errors."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.images import read_image
from mobilevit_coreml.model import FeatureExtractor, Model
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.progress import Progress, silent

CALIBRATION_PIXELS = 120 * 256**2  # of all crops
MIN_ELEMENTS = 1024  # a smaller weight saves less than its lookup table and its entry in the program cost
PROBES = 4  # random directions of the output, an image
PROBED = 24  # crops
BATCH = 4  # crops
SEED = 0
TINY = 1e-30

Layer = nn.Conv2d | nn.Linear


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one layer. `moments` (K, K) and `means` (K,) are of its inputs, K in the order of weight.flatten(1).

    `gradients` (probes, out, K) are those of random directions of the `relative_output`: the mean
    square of <gradient, error> estimates the share of noise that an error of the weight puts there.
    """

    moments: Tensor
    means: Tensor
    gradients: Tensor

    def noises(self, errors: Sequence[Tensor]) -> list[float]:
        """Noise power at the output, relative to its own, for each error (out, ...) of the weight; first order."""
        stacked = torch.stack([error.flatten() for error in errors]).float()
        projected = self.gradients.flatten(1).float() @ stacked.T  # probes, errors
        return [float(noise) for noise in (projected.double() ** 2).mean(0)]


def calibration_crops(preprocessing: Preprocessing, images: Sequence[Path]) -> Tensor:
    """Crops (N, 3, H, W) of images as the network gets them: the more of each, the smaller they are."""
    height, width = preprocessing.crop
    whole = dataclasses.replace(preprocessing, include_crop=preprocessing.covers_crop)
    uncropped = dataclasses.replace(whole, include_crop=False, crop=whole.input_size)
    tensors = (torch.from_numpy(uncropped.pixels(whole.prepare(read_image(path))))[0] for path in images)
    return crops_of(tensors, preprocessing.crop, max(CALIBRATION_PIXELS // (height * width), len(images)))


def crops_of(images: Iterable[Tensor], size: tuple[int, int], count: int) -> Tensor:
    """About `count` crops (N, 3, *size) of images (3, H', W'): centre and corners, as they are and mirrored."""
    crops = [list(_crops(image, size)) for image in images]
    each = max(1, count // len(crops))
    return torch.stack([crop for of_image in crops for crop in of_image[:each]])


def _crops(image: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    (height, width), (rows, columns) = size, image.shape[1:]
    down, right = rows - height, columns - width
    places = [(down // 2, right // 2), (0, 0), (down, right), (0, right), (down, 0)]
    for top, left in dict.fromkeys(places):  # without a margin all are one
        crop = image[:, top : top + height, left : left + width]
        yield crop
        yield crop.flip(2)


def layers_of(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers whose weights are worth compressing, by path, and the reason why each other one is kept as it is."""
    chosen: dict[str, Layer] = {}
    kept: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Layer):
            continue
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            kept[path] = "depthwise"
        elif path.startswith("backbone.stem."):
            kept[path] = "first convolution"
        elif module.weight.numel() < MIN_ELEMENTS:
            kept[path] = f"under {MIN_ELEMENTS} weights"
        else:
            chosen[path] = module
    return chosen, kept


def relative_output(model: Model, pixels: Tensor) -> Tensor:
    """(B, n): the results of a model for pixels (B, 3, H, W) that count, each image's at a length of 1.

    Logits, or pooled features and their map, equally.
    """
    result = model(pixels)
    parts = [result.pooled, result.feature_map] if isinstance(model, FeatureExtractor) else [result.logits]
    flat = [part.flatten(1) for part in parts]
    return torch.cat([part / part.detach().norm(dim=1, keepdim=True).clamp_min(TINY) for part in flat], dim=1)


def calibrate(
    model: Model, layers: Mapping[str, Layer], crops: Tensor, progress: Progress = silent
) -> dict[str, Statistics]:
    """Statistics of the layers of a folded model over crops (N, 3, H, W)."""
    batches = crops.split(BATCH)
    probed = crops[torch.linspace(0, len(crops) - 1, min(PROBED, len(crops))).round().long()]
    total, done = len(batches) + len(probed), itertools.count(1)

    def advance() -> None:
        progress("calibrate", next(done), total)

    sums = _inputs(model, layers, batches, advance)
    gradients = _gradients(model, layers, probed, advance)
    return {path: Statistics(*sums[path], gradients[path]) for path in layers}


@torch.no_grad()
def _inputs(
    model: Model, layers: Mapping[str, Layer], batches: Sequence[Tensor], advance: Callable[[], None]
) -> dict[str, tuple[Tensor, Tensor]]:
    sizes = {path: layer.weight[0].numel() for path, layer in layers.items()}
    moments = {path: torch.zeros(size, size) for path, size in sizes.items()}
    totals = {path: torch.zeros(size) for path, size in sizes.items()}
    counts = dict.fromkeys(layers, 0)

    def hook(path: str) -> Callable[[Layer, tuple[Tensor], Tensor], None]:
        def add(layer: Layer, inputs: tuple[Tensor], _output: Tensor) -> None:
            for columns in input_columns(layer, inputs[0]):
                moments[path].addmm_(columns, columns.T)
                totals[path] += columns.sum(1)
                counts[path] += columns.shape[1]

        return add

    with contextlib.ExitStack() as hooks:
        for path, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(hook(path)))
        for batch in batches:
            model(batch)
            advance()
    return {path: (moments[path] / counts[path], totals[path] / counts[path]) for path in layers}


def input_columns(layer: Layer, x: Tensor) -> Iterable[Tensor]:
    """Inputs of a layer as matrices (K, N), whose columns its weight matrix is multiplied with."""
    if isinstance(layer, nn.Linear):
        return [x.reshape(-1, x.shape[-1]).T]
    assert not isinstance(layer.padding, str)
    if (*layer.kernel_size, *layer.stride, *layer.padding) == (1, 1, 1, 1, 0, 0):
        return x.flatten(2)
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # B K positions


def _gradients(
    model: Model, layers: Mapping[str, Layer], crops: Tensor, advance: Callable[[], None]
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    weights = [layer.weight for layer in layers.values()]
    gradients: dict[str, list[Tensor]] = {path: [] for path in layers}
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for crop in crops:
            y = relative_output(model, crop[None])[0]
            for direction in torch.randn(PROBES, len(y), generator=generator):
                found = torch.autograd.grad(y @ direction, weights, retain_graph=True)
                for path, gradient in zip(layers, found, strict=True):
                    gradients[path].append(gradient.flatten(1).bfloat16())
            advance()
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return {path: torch.stack(entries) for path, entries in gradients.items()}
