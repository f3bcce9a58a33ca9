"""Class maps of segmenters: resizing, class shares, palette images, overlays, legends."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mobilevit_coreml.errors import InputError

VOID = -1  # value of pixels without a class in a class map
VOID_PIXEL, VOID_COLOR = 255, "#E0E0C0"  # index and colour of these pixels in a palette image, as in PASCAL VOC
OPACITY = 0.6  # of an overlay
ROW, SWATCH, MARGIN = 28, 18, 10  # of a legend, pixels

ClassMap = NDArray[np.int32]


def post_process_semantic_segmentation(
    outputs: NDArray[np.generic], target_sizes: Sequence[tuple[int, int]] | None = None
) -> list[ClassMap]:
    """Class maps (height, width) int32 of the target sizes, by default of the size of the outputs.

    outputs: logits or probabilities (B, classes, H, W), resized bilinearly before argmax, or class
    indices (B, H, W), resized to nearest. The same as in transformers' image processor.
    """
    if outputs.ndim not in (3, 4):
        raise InputError(f"outputs: expected 3 or 4 dimensions, got {outputs.ndim}; add a batch dimension")
    if target_sizes is not None and len(target_sizes) != len(outputs):
        raise InputError(
            f"target_sizes: expected {len(outputs)}, one for each output, got {len(target_sizes)}; give as many"
        )
    maps = []
    for index, output in enumerate(outputs):
        size = output.shape[-2:] if target_sizes is None else target_sizes[index]
        if output.ndim == 3:
            scores = torch.from_numpy(output.astype(np.float32))[None]
            if target_sizes is not None:
                scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
            maps.append(scores[0].argmax(0).to(torch.int32).numpy())
        else:
            labels = torch.from_numpy(output.astype(np.float32))[None, None]
            maps.append(F.interpolate(labels, size=size, mode="nearest-exact")[0, 0].to(torch.int32).numpy())
    return maps


def full_size_class_map(
    output: NDArray[np.generic], crop_box: tuple[float, float, float, float], size: tuple[int, int]
) -> ClassMap:
    """Class map (height, width) of a photograph of `size` (width, height), VOID outside the crop.

    output: (classes, H, W) or (H, W) of the crop. crop_box: from `Preprocessing.crop_box`.
    """
    left, top, right, bottom = (round(edge) for edge in crop_box)
    (part,) = post_process_semantic_segmentation(output[None], [(max(bottom - top, 1), max(right - left, 1))])
    whole = np.full((size[1], size[0]), VOID, np.int32)
    x, y = max(left, 0), max(top, 0)
    inside = part[y - top : size[1] - top, x - left : size[0] - left]
    whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return whole


def class_shares(class_map: ClassMap, labels: Sequence[str]) -> dict[str, float]:
    """Share of each class among the pixels that have a class, 0 to 1, in descending order, without zeros."""
    counts = np.bincount(class_map[class_map != VOID], minlength=len(labels))
    order = np.argsort(-counts, kind="stable")
    return {labels[index]: float(counts[index] / counts.sum()) for index in order if counts[index]}


def palette_image(class_map: ClassMap, colors: Sequence[str]) -> Image.Image:
    """Palette image with class indices as pixel values and VOID as 255, the format of PASCAL VOC masks.

    An RGB image for more than 255 classes.
    """
    if len(colors) > VOID_PIXEL:
        return Image.fromarray(_palette(colors)[class_map])
    image = Image.fromarray(np.where(class_map == VOID, VOID_PIXEL, class_map).astype(np.uint8), "L")
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)], palette[VOID_PIXEL] = _palette(colors)[:-1], _palette(colors)[VOID]
    image.putpalette(palette.tobytes())
    return image


def overlay(photograph: Image.Image, class_map: ClassMap, colors: Sequence[str]) -> Image.Image:
    """Class colours blended with an RGB photograph of the map's size; black and VOID are transparent."""
    pixels = np.asarray(photograph, dtype=np.float32)
    paint = _palette(colors)[class_map].astype(np.float32)
    alpha = (paint.any(-1) & (class_map != VOID))[..., None] * np.float32(OPACITY)
    mixed = pixels * (1 - alpha) + paint * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(shares: Mapping[str, float], colors: Mapping[str, str]) -> Image.Image:
    """RGB image with colour, share and name of each class, one per line."""
    font = ImageFont.load_default(SWATCH)
    texts = {label: f"{share:6.1%}  {label}" for label, share in shares.items()}
    left = 2 * MARGIN + SWATCH
    width = left + MARGIN + math.ceil(max((font.getlength(text) for text in texts.values()), default=0))
    image = Image.new("RGB", (width, 2 * MARGIN + ROW * len(texts)), "white")
    draw = ImageDraw.Draw(image)
    for top, (label, text) in zip(itertools.count(MARGIN, ROW), texts.items(), strict=False):
        draw.rectangle((MARGIN, top, MARGIN + SWATCH, top + SWATCH), fill=colors[label], outline="black")
        draw.text((left, top), text, fill="black", font=font)
    return image


def _palette(colors: Sequence[str]) -> NDArray[np.uint8]:
    """Colours (classes + 1, 3) of the classes and, last (index VOID), of VOID."""
    return np.array([ImageColor.getrgb(color)[:3] for color in (*colors, VOID_COLOR)], np.uint8)
