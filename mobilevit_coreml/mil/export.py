"""Model with the pre- and postprocessing of a package, to be traced."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mobilevit_coreml.config import MobileViTConfig, Task
from mobilevit_coreml.model import Model
from mobilevit_coreml.model.ops import resize_bilinear
from mobilevit_coreml.package.interface import (
    LABELS,
    LOGITS,
    MASK,
    NETWORK,
    PROBABILITIES,
    SCORES,
    VALUES,
    OutputOptions,
)
from mobilevit_coreml.preprocessing import Preprocessing


class ExportModel(nn.Module):
    """Scaled pixels (1, C, *input_size) in the network's channel order -> the package's outputs, in its order.

    Classifier: probabilities (1, classes), from which Core ML makes two outputs, logits or values. Segmenter:
    `segmentation_output`. Feature extractor: pooled features, feature map, `options.hidden_states` stages.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Model, task: str, options: OutputOptions, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.options = options
        self.crop = model.config.image_hw
        sides = zip(preprocessing.input_size, self.crop, strict=True)
        self.margin = tuple((side - crop) // 2 for side, crop in sides)
        self.normalizes = preprocessing.normalizes
        for name, values in (("mean", preprocessing.mean), ("deviation", preprocessing.std)):
            per_channel = torch.tensor(values, dtype=torch.float32).expand(preprocessing.channels)  # red, green, blue
            ordered = per_channel.flip(0) if preprocessing.channel_order == "BGR" else per_channel
            self.register_buffer(name, ordered.reshape(1, -1, 1, 1).clone(), persistent=False)
        self.train(model.training)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        (height, width), (top, left) = self.crop, self.margin
        if top or left:
            pixels = pixels[:, :, top : top + height, left : left + width]
        if self.normalizes:  # before the first convolution pads with zeros: folded into it, borders would differ
            pixels = (pixels - self.mean) / self.deviation
        output = self.model(pixels)
        match self.task:
            case Task.CLASSIFICATION:
                return CLASSIFIER_OUTPUTS[self.options.type](output.logits)
            case Task.SEGMENTATION:
                return segmentation_output(output.logits, self.options, self.model.config)
            case _:
                return (output.pooled, output.feature_map, *output.hidden_states[: self.options.hidden_states])


# of logits (1, classes); those of `names_classes` are probabilities
CLASSIFIER_OUTPUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    LABELS: lambda logits: logits.softmax(1),
    SCORES: lambda logits: logits.sigmoid(),
    LOGITS: lambda logits: logits,
    VALUES: lambda logits: logits,
}


def segmentation_output(logits: Tensor, options: OutputOptions, config: MobileViTConfig) -> Tensor:
    """Output of a segmenter's package for the network's logits (1, classes, h, w).

    Class indices (H, W) int32 or (1, 1, H, W) float32, or logits or probabilities (1, classes, H, W); (H, W)
    is (h, w) or the image size.
    """
    if options.size != NETWORK:
        logits = resize_bilinear(logits, config.image_hw)
    return SEGMENTATION_OUTPUTS[options.type](logits)


SEGMENTATION_OUTPUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    LOGITS: lambda logits: logits,
    PROBABILITIES: lambda logits: logits.softmax(1),
    MASK: lambda logits: logits.argmax(1, keepdim=True).float(),  # 1 1 H W
    LABELS: lambda logits: logits.argmax(1).squeeze(0).to(torch.int32),  # H W
}
