"""Conversion of inputs (PIL images, arrays) to tensors, and of outputs to arrays, PIL images and class labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.reference.reader import Feature

MODES = {"RGB": "RGB", "BGR": "RGB", "GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}  # Pillow mode by colour layout


def to_program(features: Mapping[str, Feature], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs as tensors: images (1, C, H, W), 0 to 255, in the declared channel order.

    Raises InputError for missing or unknown inputs, another type, size or mode, or NaN.
    """
    missing = [name for name, feature in features.items() if name not in inputs and not feature.optional]
    unknown = [name for name in inputs if name not in features]
    if missing or unknown:
        raise InputError(
            f"inputs: expected {', '.join(features)}, got {', '.join(inputs) or 'none'}; "
            f"{'add ' + ', '.join(missing) if missing else 'leave out ' + ', '.join(unknown)}"
        )
    return {
        name: _image(features[name], value) if features[name].kind == "image" else _array(features[name], value)
        for name, value in inputs.items()
    }


def _image(feature: Feature, image: Any) -> Tensor:
    layout = feature.color_layout or ""
    if not isinstance(image, Image.Image):
        raise InputError(
            f"input {feature.name}: expected a PIL image, got {type(image).__name__}; the package takes images"
        )
    if image.mode != MODES[layout]:
        raise InputError(
            f"input {feature.name}: expected an image of mode {MODES[layout]}, got {image.mode}; "
            f"convert it with image.convert({MODES[layout]!r})"
        )
    if not _fits(feature, (image.height, image.width)):
        height, width = feature.shape
        raise InputError(
            f"input {feature.name}: expected an image of {width}x{height} pixels, got {image.width}x{image.height}; "
            "resize and crop it first, as predict does"
        )
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"input {feature.name}: expected finite values, got NaN or infinity; check the image")
    if values.ndim == 2:
        return torch.from_numpy(values.copy())[None, None]
    if layout == "BGR":
        values = values[:, :, ::-1]
    return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]


def _array(feature: Feature, value: Any) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"input {feature.name}: expected an array of numbers, got {type(value).__name__}")
    if not _fits(feature, array.shape):
        raise InputError(
            f"input {feature.name}: expected an array of shape {feature.shape}, got {array.shape}; reshape it"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"input {feature.name}: expected numbers, got NaN; check the array")
    if feature.dtype in ("int32", "int8"):
        return torch.from_numpy(array.astype(np.int32))
    return torch.from_numpy(array.astype(np.float32))


def _fits(feature: Feature, shape: tuple[int, ...]) -> bool:
    if feature.shape_range:
        return len(shape) == len(feature.shape_range) and all(
            low <= size and (high < 0 or size <= high)
            for size, (low, high) in zip(shape, feature.shape_range, strict=True)
        )
    return shape == feature.shape or shape in feature.other_shapes or not feature.shape


def from_program(feature: Feature, value: Any) -> Any:
    """An output in the type Core ML returns: class labels, arrays of the declared type, PIL images.

    fp16 arrays are returned as float32, like by coremltools' predict. Image values are rounded and
    clipped to 0 to 255.
    """
    if feature.kind in ("label", "probabilities"):
        return value
    if feature.kind == "array":
        return value.numpy().astype("float32" if feature.dtype == "float16" else feature.dtype)
    planes = value.reshape(-1, *value.shape[-2:]).numpy()  # C H W
    if feature.color_layout == "GRAYSCALE_FLOAT16":
        return Image.fromarray(planes[0].astype(np.float32))
    pixels = np.clip(np.rint(planes), 0, 255).astype(np.uint8)
    if feature.color_layout == "GRAYSCALE":
        return Image.fromarray(pixels[0])
    rgb = pixels[::-1] if feature.color_layout == "BGR" else pixels
    return Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0)))
