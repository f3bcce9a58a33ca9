"""The pixel contract: from a photograph to the values the network sees. One source for model, package and validator."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import CheckpointError, ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHANNEL_ORDERS = ("BGR", "RGB")
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
# Shorter edge before the crop, per crop side (Apple's evaluations)
MARGINS: Mapping[str, Fraction] = {
    CLASSIFICATION: Fraction(288, 256),
    SEGMENTATION: Fraction(544, 512),
    FEATURES: Fraction(288, 256),
}
MAX_SIDE = 8192  # pixels
MAX_SCALE = 1000
MAX_RESIZED = 100_000_000  # pixels of the resized image before the crop


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter edge to `resize` pixels, cut `crop` (height, width) from the centre, scale, order channels.

    The package does the last two itself; resizing and cropping are the app's, or with `include_crop`
    only the resizing: the package then takes what the crop is cut from. With `fill`, as for crops that
    are not square, an image is resized until it covers the crop and that margin on either axis. In
    masks that are made with `reduce_labels` the value of a class is one more than its index, and 0
    does not count.
    """

    resize: int
    crop: tuple[int, int]
    channel_order: str  # BGR or RGB
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
        if self.channel_order not in CHANNEL_ORDERS or self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"preprocessing: expected one of {', '.join(CHANNEL_ORDERS)} and one of {', '.join(INTERPOLATIONS)}, "
                f"got {self.channel_order!r} and {self.interpolation!r}; BGR and bilinear are usual"
            )
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
        """(height, width) of the image the package takes, pixels."""
        if not self.include_crop:
            return self.crop
        if self.fill:
            return self._filled
        # by an even margin, since halves of odd ones would shift the crop by a pixel
        height, width = (side + max(self.resize - side, 0) // 2 * 2 for side in self.crop)
        return height, width

    @property
    def _filled(self) -> tuple[int, int]:
        margin = (self.resize - min(self.crop)) // 2 * 2
        return self.crop[0] + margin, self.crop[1] + margin

    def with_crop(self, crop: tuple[int, int]) -> Self:
        """The same contract at another size: the margin around the crop keeps its proportion.

        One that is not square fills its crop: by the shorter edge alone it would be padded black.
        """
        fill = self.fill if crop == self.crop else crop[0] != crop[1]
        if min(crop) == min(self.crop):
            return dataclasses.replace(self, crop=crop, fill=fill)
        resize = _with_margin(min(crop), Fraction(self.resize, min(self.crop)))
        return dataclasses.replace(self, crop=crop, resize=max(resize, 1), fill=fill)

    def prepare(self, image: "Image.Image") -> "Image.Image":
        """The RGB image of `input_size` that the package's image input takes.

        Of images with 8 or 16 bits a channel; EXIF orientation is applied; what is smaller than the
        crop is padded black. Raises InputError for images of other numbers, or far longer than wide.
        """
        image = upright_rgb(image)
        image = image.resize(self._resized(image.size), INTERPOLATIONS[self.interpolation])
        return _center_crop(image, self.input_size)

    def prepare_mask(self, mask: "Image.Image") -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The class indices (H, W) uint8 of a mask, of `crop` size, that belong to `prepare`'s image; 255 is void.

        `mask` has 8 bits a pixel, as class indices or as a palette's. Beyond its edges it is 0, as the
        reference has it.
        """
        import numpy as np
        from PIL import Image

        if mask.mode not in ("L", "P"):
            raise InputError(f"mask: expected a class index a pixel (mode L or P), got mode {mask.mode}")
        indices = np.asarray(mask)
        if self.reduce_labels:
            indices = np.where(indices == 0, 255, np.where(indices == 255, 255, indices - 1)).astype(np.uint8)
        resized = Image.fromarray(indices).resize(self._resized(mask.size), INTERPOLATIONS["nearest"])
        return np.array(_center_crop(resized, self.crop))

    def crop_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the crop in an upright image of `size` (width, height), in its pixels.

        What is beyond the edges is padding.
        """
        width, height = self._resized(size)
        left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
        x, y = size[0] / width, size[1] / height
        return left * x, top * y, (left + self.crop[1]) * x, (top + self.crop[0]) * y

    def pixels(self, image: "Image.Image") -> "np.ndarray[Any, np.dtype[np.float32]]":
        """What the network sees of an image of `input_size`: (1, 3, H, W) float32 in the channel order."""
        import numpy as np

        values = np.asarray(_center_crop(image.convert("RGB"), self.crop), dtype=np.float32)  # H W C
        values = values * np.float32(self.scale)
        if self.channel_order == "BGR":
            values = values[:, :, ::-1]
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) with the shorter edge at `resize`, or of what fills the crop and its margin."""
        if self.fill:
            height, width = self._filled
            scale = max(Fraction(width, size[0]), Fraction(height, size[1]))
            new = int(size[0] * scale), int(size[1] * scale)  # of fractions: the side that decides is exact
            if new[0] * new[1] > MAX_RESIZED:
                raise _too_long(size)
            return new
        short, long = sorted(size)
        new_long = int(self.resize * long / short)
        if new_long * self.resize > MAX_RESIZED:
            raise _too_long(size)
        return (self.resize, new_long) if size[0] <= size[1] else (new_long, self.resize)


def _too_long(size: tuple[int, int]) -> InputError:
    return InputError(f"image: expected one that is not far longer than wide, got {size[0]}x{size[1]}; crop it first")


def _center_crop(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def upright_rgb(image: "Image.Image") -> "Image.Image":
    """An image of 8 or 16 bits a channel as RGB, turned as its EXIF data say; raises InputError for other numbers.

    Transparency is dropped, as by transformers' image processor.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if image.mode == "F":
        raise InputError("image: expected integers of 8 or 16 bits, got floating point; convert it first")
    try:
        with warnings.catch_warnings(action="ignore"):  # of EXIF data that can be read nevertheless
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's parsers raise what broken EXIF happens to lead to
        raise InputError(f"image: expected sound EXIF data, got {type(error).__name__}; strip them") from None
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip to 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # of a palette, which Pillow would warn of
        image = image.convert("RGBA")
    return image.convert("RGB")


def default_preprocessing(task: str, crop: tuple[int, int], channel_order: str) -> Preprocessing:
    """Apple's evaluation: shorter edge 288 and centre 256 of the classifiers, 544 and 512 of the segmenters.

    At another crop the margin keeps its proportion, in whole pixels on either side.
    """
    return Preprocessing(_with_margin(min(crop), MARGINS[task]), crop, channel_order)


def _with_margin(side: int, proportion: Fraction) -> int:
    return side + 2 * round(side * (proportion - 1) / 2)


def from_hugging_face(values: Mapping[str, Any], default: Preprocessing, source: str) -> Preprocessing:
    """The contract in a Hugging Face `preprocessor_config.json`; what it leaves out is as in `default`.

    Raises CheckpointError for steps that are not MobileViT's, such as a mean and a deviation.
    """
    if values.get("do_normalize"):
        raise CheckpointError(
            f"{source}: expected no mean and deviation (do_normalize), got them switched on; "
            "MobileViT is trained on pixels scaled to 0..1 only"
        )
    crop = default.crop
    if values.get("do_center_crop", True) and "crop_size" in values:
        crop = _crop(values["crop_size"], source)
    resize = default.with_crop(crop).resize
    if values.get("do_resize", True) and "size" in values:
        resize = _shorter_edge(values["size"], source)
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
    """A timm `config.json` with what it keeps under `pretrained_cfg` brought up beside the rest."""
    inner = values.get("pretrained_cfg")
    return {**values, **inner} if isinstance(inner, Mapping) else values


def from_timm(values: Mapping[str, Any], default: Preprocessing, source: str) -> Preprocessing:
    """The contract in a timm `config.json`; what it leaves out is as in `default`.

    timm resizes the shorter edge to the crop's divided by `crop_pct`. Raises CheckpointError for a
    mean or a deviation, which MobileViT does not have.
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
    if interpolation not in tuple(INTERPOLATIONS):  # of a tuple, since JSON may have a list there, without a hash
        raise CheckpointError(
            f"{source}: interpolation: expected one of {', '.join(INTERPOLATIONS)}, got {interpolation!r:.60}; "
            "bicubic is usual"
        )
    return dataclasses.replace(default, resize=resize, interpolation=interpolation)


def _crop(value: object, source: str) -> tuple[int, int]:
    sides = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else (value, value)
    return _side(sides[0], "crop_size", source), _side(sides[1], "crop_size", source)


def _shorter_edge(value: object, source: str) -> int:
    return _side(value.get("shortest_edge") if isinstance(value, Mapping) else value, "size.shortest_edge", source)


def _side(value: object, name: str, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
        raise CheckpointError(
            f"{source}: {name}: expected pixels, 1 to {MAX_SIDE}, got {value!r}; 288 and 256 are usual"
        )
    return value
