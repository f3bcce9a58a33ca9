"""The pixel contract: from a photograph to the values the network sees. One source for model, package and validator."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

from mobilevit_coreml.errors import CheckpointError, ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHANNEL_ORDERS = ("BGR", "RGB")
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
CLASSIFICATION_MARGIN = Fraction(288, 256)  # shorter edge before the crop, per crop side (Apple's evaluation)
MAX_SIDE = 8192  # pixels
MAX_SCALE = 1000
MAX_RESIZED = 100_000_000  # pixels of the resized picture before the crop


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter edge to `resize` pixels, cut `crop` (height, width) from the centre, scale, order channels.

    The package does the last two itself; resizing and cropping are the app's.
    """

    resize: int
    crop: tuple[int, int]
    channel_order: str  # BGR or RGB
    interpolation: str = "bilinear"
    scale: float = 1 / 255

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

    def with_crop(self, crop: tuple[int, int]) -> Self:
        """The same contract at another size: the margin around the crop keeps its proportion."""
        margin = Fraction(self.resize, min(self.crop))
        return dataclasses.replace(self, crop=crop, resize=max(round(min(crop) * margin), 1))

    def prepare(self, image: "Image.Image") -> "Image.Image":
        """The RGB picture of `crop` size that the package's image input takes.

        Of pictures with 8 or 16 bits a channel; EXIF orientation is applied; what is smaller than the
        crop is padded black. Raises InputError for pictures of other numbers, or far longer than wide.
        """
        image = _upright_rgb(image)
        short, long = sorted(image.size)
        new_long = int(self.resize * long / short)
        if new_long * self.resize > MAX_RESIZED:
            raise InputError(
                f"image: expected one that is not far longer than wide, got {image.width}x{image.height}; crop it first"
            )
        size = (self.resize, new_long) if image.width <= image.height else (new_long, self.resize)
        image = image.resize(size, INTERPOLATIONS[self.interpolation])
        height, width = self.crop
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def pixels(self, image: "Image.Image") -> "np.ndarray[Any, np.dtype[np.float32]]":
        """What the network sees of a picture of `crop` size: (1, 3, H, W) float32 in the channel order."""
        import numpy as np

        values = np.asarray(image.convert("RGB"), dtype=np.float32) * np.float32(self.scale)  # H W C
        if self.channel_order == "BGR":
            values = values[:, :, ::-1]
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _upright_rgb(image: "Image.Image") -> "Image.Image":
    import numpy as np
    from PIL import Image, ImageOps

    if image.mode == "F":
        raise InputError("image: expected integers of 8 or 16 bits, got floating point; convert it first")
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's parsers raise what broken EXIF happens to lead to
        raise InputError(f"image: expected sound EXIF data, got {type(error).__name__}; strip them") from None
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip to 255
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def classification_preprocessing(crop: tuple[int, int], channel_order: str) -> Preprocessing:
    """Apple's evaluation of the classifiers: shorter edge 288, centre 256, or that proportion of another crop."""
    return Preprocessing(round(min(crop) * CLASSIFICATION_MARGIN), crop, channel_order)


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
    return Preprocessing(resize, crop, order, names[0], float(scale))


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
    if interpolation not in INTERPOLATIONS:
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
