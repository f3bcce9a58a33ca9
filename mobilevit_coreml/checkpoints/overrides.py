"""What a user says of a checkpoint, in place of its files."""

import dataclasses
import os
from typing import Any

PIXELS = ("channel_order", "mean", "std", "resize", "interpolation")
NETWORK = ("problem_type", "hidden_act", "num_attention_heads", "patch_size", "output_stride", "atrous_rates")
Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class CheckpointOverrides:
    """Settings of a checkpoint that a user gives; what is None is as its files have it, or the default.

    `labels` is a file as in `read_labels`, `channel_order` BGR or RGB; `mean` and `std` are one number or one for
    each of red, green and blue, of pixels from 0 to 1. `resize` is the shorter edge before the crop, pixels, and
    `interpolation` a filter of Pillow. `image_sizes` are (height, width) in pixels. `problem_type`, `hidden_act`,
    `num_attention_heads`, `patch_size`, `output_stride` and `atrous_rates` are fields of MobileViTConfig. `ema` takes
    the average of the weights, or not, where a file has both.
    """

    labels: str | os.PathLike[str] | None = None
    channel_order: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    interpolation: str | None = None
    image_sizes: tuple[Size, ...] = ()
    problem_type: str | None = None
    hidden_act: str | None = None
    num_attention_heads: int | None = None
    patch_size: int | None = None
    output_stride: int | None = None
    atrous_rates: tuple[int, ...] | None = None
    ema: bool | None = None

    def config(self) -> dict[str, Any]:
        """Fields of the configuration that are given."""
        fields = {name: getattr(self, name) for name in NETWORK}
        if self.image_sizes:
            fields["image_size"] = self.image_sizes[0]
        return {name: value for name, value in fields.items() if value is not None}

    def preprocessing(self) -> dict[str, Any]:
        """Fields of the preprocessing that are given."""
        fields = {name: getattr(self, name) for name in PIXELS}
        return {name: value for name, value in fields.items() if value is not None}

    def recorded(self) -> dict[str, Any]:
        """What a package's record keeps: all but sizes, and of labels that there were some; it has these anyway."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(CheckpointOverrides)}
        kept = {name: value for name, value in fields.items() if value is not None and name != "image_sizes"}
        return {**kept, "labels": True} if "labels" in kept else kept
