"""Initial weights."""

import torch
from torch import nn


@torch.no_grad()
def initialize(model: nn.Module, std: float) -> None:
    """Initialize weights of convolutions and linear layers from N(0, std) and biases to zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
