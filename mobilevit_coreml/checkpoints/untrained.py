"""Weights for when there are none: the right sizes and a sane range of values, from a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import CLASSIFICATION, MobileViTConfig
from mobilevit_coreml.model import model_for

SEED = 0
DRAWN_IMAGES = 4
COARSE = 8  # cells a side of the pattern the images are drawn from
GRAIN = 0.3  # share of noise in them: a photograph has edges and texture, too


def untrained_state(config: MobileViTConfig, seed: int = SEED, task: str = CLASSIFICATION) -> dict[str, Tensor]:
    """State dict of a new model for a task whose batch norms have seen a few drawn images.

    With their initial statistics the signal would fade to nothing within a few layers, and a
    package could be compared with its model only in the last digits of fp16.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_for(task, config)
        height, width = config.image_hw
        coarse = torch.rand(DRAWN_IMAGES, config.num_channels, COARSE, COARSE)
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
        images = (1 - GRAIN) * smooth + GRAIN * torch.rand_like(smooth)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None  # the plain mean over what it sees
    with torch.no_grad():
        model(images)
    return model.state_dict()
