"""What the program of a package computes, as modules to trace: the network, and the form its results take."""

import torch
from torch import Tensor, nn

from mobilevit_coreml.config import CLASSIFICATION, SEGMENTATION, MobileViTConfig
from mobilevit_coreml.model import Model
from mobilevit_coreml.model.ops import resize_bilinear
from mobilevit_coreml.package.interface import LOGITS, MASK, NETWORK, PROBABILITIES, OutputOptions


class ExportModel(nn.Module):
    """Pixels (1, 3, H, W) of the input's size, scaled and ordered -> the package's outputs, in its order.

    A classifier's probabilities (1, classes), from which Core ML makes its two outputs; a segmenter's
    mask in the asked-for form; a feature extractor's pooled features, map and perhaps stages.
    """

    def __init__(self, model: Model, task: str, form: OutputOptions, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.form = form
        self.crop = model.config.image_hw
        self.margin = tuple((side - crop) // 2 for side, crop in zip(input_size, self.crop, strict=True))
        self.train(model.training)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        (height, width), (top, left) = self.crop, self.margin
        if top or left:
            pixels = pixels[:, :, top : top + height, left : left + width]
        result = self.model(pixels)
        if self.task == CLASSIFICATION:
            return result.logits.softmax(1)
        if self.task == SEGMENTATION:
            return segmentation_output(result.logits, self.form, self.model.config)
        return (result.pooled, result.feature_map, *result.hidden_states[: self.form.hidden_states])


def segmentation_output(logits: Tensor, form: OutputOptions, config: MobileViTConfig) -> Tensor:
    """What a segmenter's package puts out for the logits (1, classes, H, W) of the network's map."""
    if form.size != NETWORK:
        logits = resize_bilinear(logits, config.image_hw)
    if form.type == LOGITS:
        return logits
    if form.type == PROBABILITIES:
        return logits.softmax(1)
    if form.type == MASK:
        return logits.argmax(1, keepdim=True).float()  # 1 1 H W
    return logits.argmax(1).squeeze(0).to(torch.int32)  # H W
