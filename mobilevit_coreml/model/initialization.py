"""Weights before training."""

import torch
from torch import nn


@torch.no_grad()
def initialize(model: nn.Module, std: float) -> None:
    """Fill a new model: weights from N(0, std), biases zero, norms the identity, from torch's generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
