"""Random weights with realistic activations, from a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig, Task
from mobilevit_coreml.model import model_for

SEED = 0
IMAGE_COUNT = 4
COARSE = 8  # height and width of the random pattern that is scaled up, cells
NOISE = 0.3  # share of noise in the images


def untrained_state(config: MobileViTConfig, seed: int = SEED, task: str = Task.CLASSIFICATION) -> dict[str, Tensor]:
    """State dict of a new model, with batch norm statistics of a few random images.

    With the initial statistics activations would vanish within a few layers, and the outputs of
    package and model would differ only in the last bits of fp16.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_for(task, config)
        height, width = config.image_hw
        coarse = torch.rand(IMAGE_COUNT, config.num_channels, COARSE, COARSE)
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
        images = (1 - NOISE) * smooth + NOISE * torch.rand_like(smooth)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None  # cumulative average
    with torch.no_grad():
        model(images)
    return model.state_dict()
