"""Preprocessing of images, for model, package and validator."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import CheckpointError, ConfigError, InputError, check_choice

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHANNEL_ORDERS = ("BGR", "RGB")
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's values
# Shorter edge after resizing / crop side, in Apple's evaluations
RESIZE_RATIOS: Mapping[str, Fraction] = {
    Task.CLASSIFICATION: Fraction(288, 256),
    Task.SEGMENTATION: Fraction(544, 512),
    Task.FEATURES: Fraction(288, 256),
}
MAX_SIDE = 8192  # pixels
MAX_SCALE = 1000
MAX_RESIZED = 100_000_000  # pixels of the resized image before the crop


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter edge to `resize` pixels, centre-crop to `crop` (height, width), scale, order channels.

    The package scales and orders channels; with `include_crop` it crops, too; the app does the rest.
    With `fill`, for crops that are not square, images are resized to cover the crop and its margin.
    With `reduce_labels`, values of ground-truth masks are class index + 1, and 0 is ignored.

    Raises ConfigError for values out of range.
    """

    resize: int
    crop: tuple[int, int]
    channel_order: str  # of the network, BGR or RGB
    interpolation: str = "bilinear"
    scale: float = 1 / 255
    include_crop: bool = False
    reduce_labels: bool = False
    fill: bool = False

    def __post_init__(self) -> None:
        sides = (self.resize, *self.crop)
        if len(sides) != 3 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides):
            raise ConfigError(
                f"preprocessing: expected sizes of 1 to {MAX_SIDE} pixels, got {sides}; 288 and 256 are usual"
            )
        check_choice("channel_order", self.channel_order, CHANNEL_ORDERS, ConfigError)
        check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS), ConfigError)
        if not (isinstance(self.scale, int | float) and 0 < self.scale <= MAX_SCALE):
            raise ConfigError(
                f"preprocessing: expected a scale above 0, at most {MAX_SCALE}, got {self.scale!r}; 1/255 is usual"
            )
        if self.include_crop and self.resize < min(self.crop):
            raise ConfigError(
                f"include_crop: expected a shorter edge of at least the crop's, {min(self.crop)} pixels, "
                f"got {self.resize}; leave it out"
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the package's image input, pixels."""
        if not self.include_crop:
            return self.crop
        if self.fill:
            return self._filled
        # even margins: half of an odd margin would shift the crop by a pixel
        height, width = (side + max(self.resize - side, 0) // 2 * 2 for side in self.crop)
        return height, width

    @property
    def _filled(self) -> tuple[int, int]:
        margin = (self.resize - min(self.crop)) // 2 * 2
        return self.crop[0] + margin, self.crop[1] + margin

    def with_crop(self, crop: tuple[int, int]) -> Self:
        """Preprocessing for another crop (height, width) with the same ratio of `resize` to crop.

        Crops that are not square set `fill`; resizing the shorter edge alone could leave black padding.
        """
        fill = self.fill if crop == self.crop else crop[0] != crop[1]
        if min(crop) == min(self.crop):
            return dataclasses.replace(self, crop=crop, fill=fill)
        resize = _resize_edge(min(crop), Fraction(self.resize, min(self.crop)))
        return dataclasses.replace(self, crop=crop, resize=max(resize, 1), fill=fill)

    def prepare(self, image: "Image.Image") -> "Image.Image":
        """Resize and crop an image to an RGB image of `input_size`, for the package's image input.

        Takes 8 or 16 bits per channel and applies the EXIF orientation; images smaller than the crop are
        padded black. Raises InputError for floating-point images and extreme aspect ratios.
        """
        image = upright_rgb(image)
        image = image.resize(self._resized(image.size), INTERPOLATIONS[self.interpolation])
        return _center_crop(image, self.input_size)

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
        return np.array(_center_crop(resized, self.crop))

    def crop_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the crop in an upright image of `size` (width, height), pixels.

        Parts outside the image are padding.
        """
        width, height = self._resized(size)
        left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
        x, y = size[0] / width, size[1] / height
        return left * x, top * y, (left + self.crop[1]) * x, (top + self.crop[0]) * y

    def pixels(self, image: "Image.Image") -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Network input (1, 3, H, W) float32, scaled and in channel order, for an image of `input_size`."""
        import numpy as np

        values = np.asarray(_center_crop(image.convert("RGB"), self.crop), dtype=np.float32)  # H W C
        values = values * np.float32(self.scale)
        if self.channel_order == "BGR":
            values = values[:, :, ::-1]
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after resizing, with the shorter edge at `resize` or, with `fill`, covering the crop."""
        if self.fill:
            height, width = self._filled
            scale = max(Fraction(width, size[0]), Fraction(height, size[1]))
            resized = int(size[0] * scale), int(size[1] * scale)  # fractions keep the limiting side exact
        else:
            short, long = sorted(size)
            edges = self.resize, int(self.resize * long / short)
            resized = edges if size[0] <= size[1] else edges[::-1]
        if resized[0] * resized[1] > MAX_RESIZED:
            raise InputError(
                f"image: expected a less extreme aspect ratio, got {size[0]}x{size[1]} pixels; crop it first"
            )
        return resized


def _center_crop(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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


def from_hugging_face(values: Mapping[str, Any], default: Preprocessing, source: str) -> Preprocessing:
    """Preprocessing from a Hugging Face `preprocessor_config.json`, with `default` for missing values.

    Raises CheckpointError for invalid values and for normalization with mean and standard deviation.
    """
    if values.get("do_normalize"):
        raise CheckpointError(
            f"{source}: do_normalize: expected false, got true; MobileViT is trained on pixels scaled to 0..1 only"
        )
    crop = default.crop
    if values.get("do_center_crop", True) and "crop_size" in values:
        size = values["crop_size"]
        sides = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
        crop = _side(sides[0], "crop_size", source), _side(sides[1], "crop_size", source)
    resize = default.with_crop(crop).resize
    if values.get("do_resize", True) and "size" in values:
        size = values["size"]
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
        resize = _side(edge, "size.shortest_edge", source)
    scale = values.get("rescale_factor", default.scale) if values.get("do_rescale", True) else 1.0
    if not isinstance(scale, int | float) or not 0 < scale <= MAX_SCALE:
        raise CheckpointError(
            f"{source}: rescale_factor: expected a number above 0, at most {MAX_SCALE}, got {scale!r}; 1/255 is usual"
        )
    resample = values.get("resample", INTERPOLATIONS[default.interpolation])
    names = [name for name, number in INTERPOLATIONS.items() if number == resample]
    if not names:
        raise CheckpointError(f"{source}: resample: expected 0 to 5 as in Pillow, got {resample!r}; 2 is bilinear")
    flips = values.get("do_flip_channel_order")
    order = default.channel_order if flips is None else "BGR" if flips else "RGB"
    reduces = values.get("do_reduce_labels", default.reduce_labels)
    return Preprocessing(resize, crop, order, names[0], float(scale), reduce_labels=bool(reduces))


def timm_settings(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Contents of a timm `config.json` with the keys of `pretrained_cfg` moved to the top level."""
    inner = values.get("pretrained_cfg")
    return {**values, **inner} if isinstance(inner, Mapping) else values


def from_timm(values: Mapping[str, Any], default: Preprocessing, source: str) -> Preprocessing:
    """Preprocessing from a timm `config.json`, with `default` for missing values.

    timm resizes the shorter edge to the crop side / crop_pct. Raises CheckpointError for invalid values
    and for normalization with mean and standard deviation.
    """
    settings = timm_settings(values)
    for key, expected in (("mean", 0), ("std", 1)):
        given = settings.get(key, [])
        if not isinstance(given, list) or any(value != expected for value in given):
            raise CheckpointError(
                f"{source}: {key}: expected {expected} for every channel, got {given!r:.60}; "
                "MobileViT is trained on pixels scaled to 0..1 only"
            )
    size, share = settings.get("input_size", [3, *default.crop]), settings.get("crop_pct")
    if not isinstance(size, list) or len(size) != 3:
        raise CheckpointError(f"{source}: input_size: expected channels, height and width, got {size!r:.60}")
    crop = _side(size[1], "input_size", source), _side(size[2], "input_size", source)
    default = default.with_crop(crop)
    resize = default.resize
    if share is not None:
        if not isinstance(share, int | float) or not 0.1 <= share <= 1:
            raise CheckpointError(f"{source}: crop_pct: expected a share, 0.1 to 1, got {share!r}; 0.9 is usual")
        resize = math.floor(min(crop) / share)
    interpolation = settings.get("interpolation", default.interpolation)
    # a tuple, because the JSON value may be unhashable
    check_choice(f"{source}: interpolation", interpolation, tuple(INTERPOLATIONS), CheckpointError)
    return dataclasses.replace(default, resize=resize, interpolation=interpolation)


def _side(value: object, name: str, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
        raise CheckpointError(
            f"{source}: {name}: expected pixels, 1 to {MAX_SIDE}, got {value!r}; 288 and 256 are usual"
        )
    return value
