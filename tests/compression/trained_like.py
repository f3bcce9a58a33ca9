"""Weights that compress as badly as trained ones: heavy tails, and channels of very different scale."""

import dataclasses
from functools import cache

import torch
from torch import nn

from mobilevit_coreml.checkpoints.load import Checkpoint, load_checkpoint
from mobilevit_coreml.images import synthetic_images

SPREAD = 0.6  # standard deviation of the logarithm of a channel's scale
TAIL = 4.0  # degrees of freedom of Student's t: the fewer, the heavier the tails


@cache
@torch.no_grad()
def trained_like(size: tuple[int, int], task: str = "features", seed: int = 0) -> Checkpoint:
    """An xxs checkpoint whose layers mind compression, and not all alike.

    Batch norms are given the statistics of synthetic images, so that the signal stays alive.
    """
    checkpoint = load_checkpoint("untrained", "xxs", task)
    checkpoint = dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(checkpoint.config, image_size=size),
        preprocessing=checkpoint.preprocessing.with_crop(size),
    )
    model = checkpoint.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tails = torch.distributions.StudentT(TAIL)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                columns = (
                    torch.randn(module.weight.shape[1])
                    .mul(SPREAD)
                    .exp()
                    .reshape(1, -1, *[1] * (module.weight.dim() - 2))
                )
                module.weight.copy_(tails.sample(module.weight.shape) * columns / module.weight[0].numel() ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(len(module.weight)).mul(SPREAD).exp() / 2)
                module.bias.normal_(0, 0.3)
                module.momentum = None
                module.train()
        pixels = [checkpoint.preprocessing.pixels(image) for image in synthetic_images(*size, 6)]
        model(torch.cat([torch.from_numpy(one) for one in pixels]))
    return dataclasses.replace(checkpoint, state=model.state_dict())
