"""Conversion of inputs (PIL images, arrays) to tensors, and of outputs to arrays, PIL images and class labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.reference.reader import Feature

Array = npt.NDArray[Any]

MODES = {"RGB": "RGB", "BGR": "RGB", "GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}  # Pillow mode by colour layout


def to_program(features: Mapping[str, Feature], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs as tensors: images (1, C, H, W), 0 to 255, in the declared channel order.

    Raises InputError for missing or unknown inputs, or another type, size or mode.
    """
    defaults = {name: feature.default for name, feature in features.items() if feature.default is not None}
    missing = [name for name in features if name not in inputs and name not in defaults]
    unknown = [name for name in inputs if name not in features]
    if missing or unknown:
        raise InputError(
            f"inputs: expected {', '.join(features)}, got {', '.join(inputs) or 'none'}; "
            f"{'add ' + ', '.join(missing) if missing else 'leave out ' + ', '.join(unknown)}"
        )
    convert = {name: _image if feature.kind == "image" else _array for name, feature in features.items()}
    filled = {name: np.full(features[name].shape, default) for name, default in defaults.items()}
    tensors = {}
    for name, value in (filled | dict(inputs)).items():
        try:
            tensors[name] = torch.from_numpy(convert[name](features[name], value))
        except ValueError as error:
            raise InputError(f"input {name}: {error}") from None
    return tensors


def _image(feature: Feature, image: Any) -> Array:
    mode = MODES[feature.color_layout or ""]
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a PIL image, got {type(image).__name__}; the package takes images")
    if image.mode != mode:
        raise ValueError(f"expected an image of mode {mode}, got {image.mode}; convert it with image.convert({mode!r})")
    if not _fits(feature, (image.height, image.width)):
        raise ValueError(
            f"expected an image of {_sizes(feature)} pixels, got {image.width}x{image.height}; "
            "resize and crop it first, as predict does"
        )
    values = np.array(image, dtype=np.float32)
    if values.ndim == 2:
        return values[None, None]
    channels_last = values[:, :, ::-1] if feature.color_layout == "BGR" else values
    return channels_last.transpose(2, 0, 1)[None].copy()


def _array(feature: Feature, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected an array of numbers, got {type(value).__name__}")
    if not _fits(feature, array.shape):
        raise ValueError(f"expected an array of shape {_shapes(feature)}, got {array.shape}; reshape it")
    return array.astype(np.int32 if feature.dtype in ("int32", "int8") else np.float32)


def _fits(feature: Feature, shape: tuple[int, ...]) -> bool:
    if feature.shape_range:
        return len(shape) == len(feature.shape_range) and all(
            low <= size and (high < 0 or size <= high)
            for size, (low, high) in zip(shape, feature.shape_range, strict=True)
        )
    return shape == feature.shape or shape in feature.other_shapes or not feature.shape


def _shapes(feature: Feature) -> str:
    """The shapes an array may have."""
    if feature.shape_range:
        return f"({', '.join(_sides(feature))})"
    return " or ".join(map(str, dict.fromkeys((feature.shape, *feature.other_shapes))))


def _sizes(feature: Feature) -> str:
    """The sizes an image may have, width first."""
    if feature.shape_range:
        height, width = _sides(feature)
        return f"width {width} and height {height}"
    sizes = dict.fromkeys((feature.shape, *feature.other_shapes))
    return " or ".join(f"{width}x{height}" for height, width in sizes)


def _sides(feature: Feature) -> list[str]:
    return [
        str(low) if low == high else f"{low} to {high}" if high >= 0 else f"{low} or more"
        for low, high in feature.shape_range
    ]


def from_program(feature: Feature, value: Any) -> Any:
    """An output in the type Core ML returns: class labels, arrays of the declared type, PIL images.

    Scalars are arrays of shape (1,). fp16 arrays are returned as float32, like by coremltools' predict.
    Image values are rounded and clipped to 0 to 255.
    """
    if feature.kind in ("label", "probabilities"):
        return value
    if feature.kind == "array":
        array = value.numpy().astype("float32" if feature.dtype == "float16" else feature.dtype)
        return array.reshape(array.shape or (1,))
    planes = value.reshape(-1, *value.shape[-2:]).numpy()  # C H W
    if feature.color_layout == "GRAYSCALE_FLOAT16":
        return Image.fromarray(planes[0].astype(np.float32))
    pixels = np.clip(np.rint(planes), 0, 255).astype(np.uint8)
    if feature.color_layout == "GRAYSCALE":
        return Image.fromarray(pixels[0])
    rgb = pixels[::-1] if feature.color_layout == "BGR" else pixels
    return Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0)))
