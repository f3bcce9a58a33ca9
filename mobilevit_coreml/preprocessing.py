"""Preprocessing of images, for model, package and validator."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import ConfigError, InputError, check_choice

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHANNEL_ORDERS = ("BGR", "RGB")
GRAY = "GRAY"  # one channel, ITU-R 601 luma as Pillow and Core ML have it
ROUNDINGS = ("down", "even")
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's values
# Shorter edge after resizing / crop side, in Apple's evaluations
RESIZE_RATIOS: Mapping[str, Fraction] = {
    Task.CLASSIFICATION: Fraction(288, 256),
    Task.SEGMENTATION: Fraction(544, 512),
    Task.FEATURES: Fraction(288, 256),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue
MAX_SIDE = 8192  # pixels
MAX_SCALE = 1000
MAX_RESIZED = 100_000_000  # pixels of the resized image before the crop


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize an image, cut `crop` (height, width) from its centre, scale, normalize, order the channels.

    `resize` is the shorter edge, pixels; or (height, width), which the image is stretched to, or with `fill` covers
    in its own proportions; or None, for an image as large as it is. With `fill` and a shorter edge it covers the crop
    and its margin. `rounding` is that of half pixels: "down", as transformers rounds, or "even", as torchvision and
    timm do, to the nearest even one.

    The network's input is (pixel * scale - mean) / std; `mean` and `std` are one number or one for each of red,
    green and blue. The package does this, and orders channels; with `include_crop` it crops, too; the app does the
    rest. With `reduce_labels`, values of ground-truth masks are class index + 1, and 0 is ignored.

    Raises ConfigError for values out of range.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    channel_order: str  # of the network, BGR, RGB or GRAY
    interpolation: str = "bilinear"
    scale: float = 1 / 255
    include_crop: bool = False
    reduce_labels: bool = False
    fill: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    rounding: str = "down"

    def __post_init__(self) -> None:
        for name in ("resize", "crop", "mean", "std"):
            if isinstance(getattr(self, name), list):  # of JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        edges = self.resize if isinstance(self.resize, tuple) else () if self.resize is None else (self.resize,)
        if len(self.crop) != 2 or len(edges) > 2 or not all(is_side(side) for side in (*edges, *self.crop)):
            raise ConfigError(
                f"preprocessing: expected sizes of 1 to {MAX_SIDE} pixels, got {(*edges, *self.crop)}; "
                "288 and 256 are usual"
            )
        check_choice("channel_order", self.channel_order, (*CHANNEL_ORDERS, GRAY), ConfigError)
        check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS), ConfigError)
        check_choice("rounding", self.rounding, ROUNDINGS, ConfigError)
        if not (isinstance(self.scale, int | float) and 0 < self.scale <= MAX_SCALE):
            raise ConfigError(
                f"preprocessing: expected a scale above 0, at most {MAX_SCALE}, got {self.scale!r}; 1/255 is usual"
            )
        check_normalization(self.mean, self.std, self.channels)
        if self.include_crop and not self.covers_crop:
            raise ConfigError(
                f"include_crop: expected a shorter edge of at least the crop's, {min(self.crop)} pixels, "
                f"got {self.resize}; leave it out"
            )

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return 1 if self.channel_order == GRAY else 3

    @property
    def mode(self) -> str:
        """Pillow's mode of prepared images."""
        return "L" if self.channel_order == GRAY else "RGB"

    @property
    def normalizes(self) -> bool:
        """True if `mean` or `std` change anything."""
        return any(self.mean) or any(value != 1 for value in self.std)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the package's image input, pixels."""
        if not self.include_crop:
            return self.crop
        if self.fill and isinstance(self.resize, int):
            return self._filled
        edges = self.resize if isinstance(self.resize, tuple) else (self.resize or 0,) * 2
        # even margins: half of an odd margin would shift the crop by a pixel
        height, width = (crop + max(edge - crop, 0) // 2 * 2 for edge, crop in zip(edges, self.crop, strict=True))
        return height, width

    @property
    def covers_crop(self) -> bool:
        """True if resized images are at least as large as the crop, on its shorter side."""
        if isinstance(self.resize, tuple):
            return self.resize[0] >= self.crop[0] and self.resize[1] >= self.crop[1]
        return self.resize is not None and self.resize >= min(self.crop)

    @property
    def _filled(self) -> tuple[int, int]:
        assert isinstance(self.resize, int)
        margin = (self.resize - min(self.crop)) // 2 * 2
        return self.crop[0] + margin, self.crop[1] + margin

    def with_crop(self, crop: tuple[int, int]) -> Self:
        """Preprocessing for another crop (height, width) with the same ratio of `resize` to crop.

        Where the shorter edge alone is resized, crops that are not square set `fill`; else they could leave black
        padding.
        """
        if isinstance(self.resize, tuple):
            ratios = (Fraction(edge, side) for edge, side in zip(self.resize, self.crop, strict=True))
            height, width = (max(_resize_edge(side, ratio), 1) for side, ratio in zip(crop, ratios, strict=True))
            return dataclasses.replace(self, crop=crop, resize=(height, width) if crop != self.crop else self.resize)
        if self.resize is None:
            return dataclasses.replace(self, crop=crop)
        fill = self.fill if crop == self.crop else crop[0] != crop[1]
        if min(crop) == min(self.crop):
            return dataclasses.replace(self, crop=crop, fill=fill)
        resize = _resize_edge(min(crop), Fraction(self.resize, min(self.crop)))
        return dataclasses.replace(self, crop=crop, resize=max(resize, 1), fill=fill)

    def prepare(self, image: "Image.Image") -> "Image.Image":
        """Resize and crop an image to an RGB or gray image of `input_size`, for the package's image input.

        Takes 8 or 16 bits per channel and applies the EXIF orientation; images smaller than the crop are
        padded black. Raises InputError for floating-point images and extreme aspect ratios.
        """
        image = upright_rgb(image)
        image = image.convert(self.mode)
        image = image.resize(self._resized(image.size), INTERPOLATIONS[self.interpolation])
        return self._center_crop(image, self.input_size)

    def prepare_mask(self, mask: "Image.Image") -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """Resize and crop a ground-truth mask to class indices (H, W) uint8 of `crop` size; 255 is void.

        mask: 8 bits per pixel, class indices or a palette image. Padded with 0, as in transformers.
        Raises InputError for masks of other modes.
        """
        import numpy as np
        from PIL import Image

        if mask.mode not in ("L", "P"):
            raise InputError(f"mask: expected a class index per pixel (mode L or P), got mode {mask.mode}")
        indices = np.asarray(mask)
        if self.reduce_labels:
            indices = np.where(indices == 0, 255, np.where(indices == 255, 255, indices - 1)).astype(np.uint8)
        resized = Image.fromarray(indices).resize(self._resized(mask.size), INTERPOLATIONS["nearest"])
        return np.array(self._center_crop(resized, self.crop))

    def crop_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the crop in an upright image of `size` (width, height), pixels.

        Parts outside the image are padding.
        """
        width, height = self._resized(size)
        left, top = self._offset(width - self.crop[1]), self._offset(height - self.crop[0])
        x, y = size[0] / width, size[1] / height
        return left * x, top * y, (left + self.crop[1]) * x, (top + self.crop[0]) * y

    def pixels(self, image: "Image.Image") -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Network input (1, C, H, W) float32 for an image of `input_size`."""
        import numpy as np

        values = np.asarray(self._center_crop(image.convert(self.mode), self.crop), dtype=np.float32)
        values = values.reshape(*self.crop, self.channels) * np.float32(self.scale)  # H W C
        if self.normalizes:
            mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
            values = (values - mean) / std
        if self.channel_order == "BGR":
            values = values[:, :, ::-1]
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of an image of `size` (width, height) after resizing."""
        if self.resize is None:
            return size
        if isinstance(self.resize, tuple) and not self.fill:
            resized = self.resize[1], self.resize[0]
        elif self.fill:
            height, width = self.resize if isinstance(self.resize, tuple) else self._filled
            if self.rounding == "even":  # timm's ResizeKeepRatio, whose quotients are floating-point numbers
                ratio = min(size[1] / height, size[0] / width)
                resized = round(size[0] / ratio), round(size[1] / ratio)
            else:
                scale = max(Fraction(width, size[0]), Fraction(height, size[1]))  # keeps the limiting side exact
                resized = int(size[0] * scale), int(size[1] * scale)
        else:
            assert isinstance(self.resize, int)
            short, long = sorted(size)
            edges = self.resize, int(self.resize * long / short)
            resized = edges if size[0] <= size[1] else edges[::-1]
        if resized[0] * resized[1] > MAX_RESIZED:
            raise InputError(
                f"image: expected a less extreme aspect ratio, got {size[0]}x{size[1]} pixels; crop it first"
            )
        return resized

    def _offset(self, margin: int) -> int:
        return round(margin / 2) if self.rounding == "even" and margin > 0 else margin // 2

    def _center_crop(self, image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
        """Cut (height, width) around the crop, whose place in the image does not depend on what is cut with it."""
        height, width = size
        left = self._offset(image.width - self.crop[1]) - (width - self.crop[1]) // 2
        top = self._offset(image.height - self.crop[0]) - (height - self.crop[0]) // 2
        return image.crop((left, top, left + width, top + height))


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raise ConfigError for a mean or standard deviation that is not one finite number, or one for each channel."""
    for name, values, least in (("mean", mean, -MAX_SCALE), ("std", std, 0)):
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        if len(values) not in (1, channels) or not numbers or not all(least < value <= MAX_SCALE for value in values):
            above = "" if name == "mean" else " above 0"
            raise ConfigError(
                f"{name}: expected a number{above} for each of {channels} channels, at most {MAX_SCALE}, "
                f"got {', '.join(map(str, values)) or 'none'}; ImageNet's are "
                f"{' '.join(map(str, IMAGENET_MEAN if name == 'mean' else IMAGENET_STD))}"
            )


def is_side(value: object) -> bool:
    """True for a number of pixels that an edge of an image can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def upright_rgb(image: "Image.Image") -> "Image.Image":
    """Image with 8 or 16 bits per channel as RGB, with EXIF orientation applied and without transparency.

    Raises InputError for floating-point images and damaged EXIF data.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if image.mode == "F":
        raise InputError("image: expected integers of 8 or 16 bits, got floating point; convert it first")
    try:
        with warnings.catch_warnings(action="ignore"):  # about EXIF data that are still readable
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # parsers raise all kinds of exceptions for damaged data
        raise InputError(f"image: expected valid EXIF data, got {type(error).__name__}; remove them") from None
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip to 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # of a palette image, for which Pillow would warn
        image = image.convert("RGBA")
    return image.convert("RGB")


def default_preprocessing(task: str, crop: tuple[int, int], channel_order: str) -> Preprocessing:
    """Preprocessing of Apple's evaluations, with the same ratio of `resize` to crop.

    Classifiers: resize 288, crop 256; segmenters: resize 544, crop 512.
    """
    return Preprocessing(_resize_edge(min(crop), RESIZE_RATIOS[task]), crop, channel_order)


def _resize_edge(side: int, ratio: Fraction) -> int:
    return side + 2 * round(side * (ratio - 1) / 2)  # the same margin on both sides
