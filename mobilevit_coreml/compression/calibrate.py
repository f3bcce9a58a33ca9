"""What photographs tell of a network's layers: the inputs they get, and how much the output minds their errors."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.model import FeatureExtractor, Model

MIN_ELEMENTS = 1024  # a smaller weight saves less than its table and its entry in the program cost
PROBES = 4  # random directions of the output, a picture
PROBED = 24  # pictures
BATCH = 4  # pictures
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

    def noise(self, error: Tensor) -> float:
        """Power of the noise at the output, relative to its own, for an error (out, ...) of the weight; first order."""
        projected = torch.einsum("pok,ok->p", self.gradients.float(), error.flatten(1).float())
        return float((projected.double() ** 2).mean())


def layers_of(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers whose weights are worth compressing, by path, and why each of the others is left alone."""
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
    """(B, n): what counts of a model's results for pixels (B, 3, H, W), each picture's at a length of 1.

    Logits, or pooled features and their map, equally.
    """
    result = model(pixels)
    parts = [result.pooled, result.feature_map] if isinstance(model, FeatureExtractor) else [result.logits]
    flat = [part.flatten(1) for part in parts]
    return torch.cat([part / part.detach().norm(dim=1, keepdim=True).clamp_min(TINY) for part in flat], dim=1)


def calibrate(
    model: Model, layers: Mapping[str, Layer], views: Tensor, advance: Callable[[], None] = lambda: None
) -> dict[str, Statistics]:
    """Statistics of the layers of a folded model over views (N, 3, H, W).

    `advance` is called after each of `calibration_steps(len(views))` steps.
    """
    sums = _inputs(model, layers, views, advance)
    gradients = _gradients(model, layers, _spread(views, PROBED), advance)
    return {path: Statistics(*sums[path], gradients[path]) for path in layers}


def calibration_steps(views: int) -> int:
    """How many steps `calibrate` takes."""
    return -(-views // BATCH) + min(views, PROBED)


@torch.no_grad()
def _inputs(
    model: Model, layers: Mapping[str, Layer], views: Tensor, advance: Callable[[], None]
) -> dict[str, tuple[Tensor, Tensor]]:
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def hook(path: str) -> Callable[[Layer, tuple[Tensor], Tensor], None]:
        def add(layer: Layer, inputs: tuple[Tensor], _output: Tensor) -> None:
            rows = input_rows(layer, inputs[0])
            moments, total = rows.T @ rows, rows.sum(0)
            before = sums.get(path)
            if before is not None:
                moments, total = before[0] + moments, before[1] + total
            sums[path] = moments, total, len(rows) + (before[2] if before is not None else 0)

        return add

    handles = [layer.register_forward_hook(hook(path)) for path, layer in layers.items()]
    try:
        for batch in views.split(BATCH):
            model(batch)
            advance()
    finally:
        for handle in handles:
            handle.remove()
    return {path: (moments / count, total / count) for path, (moments, total, count) in sums.items()}


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """Inputs of a layer as the rows (N, K) its weight matrix is multiplied with."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # B K positions
    return columns.transpose(1, 2).flatten(0, 1)


def _gradients(
    model: Model, layers: Mapping[str, Layer], views: Tensor, advance: Callable[[], None]
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    weights = [layer.weight for layer in layers.values()]
    gradients: dict[str, list[Tensor]] = {path: [] for path in layers}
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for view in views:
            y = relative_output(model, view[None])[0]
            for direction in torch.randn(PROBES, len(y), generator=generator):
                found = torch.autograd.grad(y @ direction, weights, retain_graph=True)
                for path, gradient in zip(layers, found, strict=True):
                    gradients[path].append(gradient.flatten(1).bfloat16())
            advance()
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return {path: torch.stack(entries) for path, entries in gradients.items()}


def _spread(views: Tensor, count: int) -> Tensor:
    return views[torch.linspace(0, len(views) - 1, min(count, len(views))).round().long()]


def views_of(pictures: Iterable[Tensor], crop: tuple[int, int], count: int) -> Tensor:
    """About `count` crops (N, 3, H, W) of pictures (3, H', W'): centre and corners, as they are and mirrored."""
    all_views = [list(_crops(picture, crop)) for picture in pictures]
    each = max(1, count // len(all_views))
    return torch.stack([view for views in all_views for view in views[:each]])


def _crops(picture: Tensor, crop: tuple[int, int]) -> Iterator[Tensor]:
    (height, width), (rows, columns) = crop, picture.shape[1:]
    down, right = rows - height, columns - width
    places = [(down // 2, right // 2), (0, 0), (down, right), (0, right), (down, 0)]
    for top, left in dict.fromkeys(places):  # without a margin all are one
        view = picture[:, top : top + height, left : left + width]
        yield view
        yield view.flip(2)
