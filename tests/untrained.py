"""The PyTorch side of packages of untrained weights."""

import dataclasses

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.model import Model


def untrained_model(task: str, size: tuple[int, int]) -> Model:
    """The untrained xxs model of a task for images of (height, width), in eval mode."""
    checkpoint = load_checkpoint("untrained", "xxs", task)
    config = dataclasses.replace(checkpoint.config, image_size=size)
    return dataclasses.replace(checkpoint, config=config).model()
