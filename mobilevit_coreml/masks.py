"""Class maps: from a segmenter's output to a photograph's size, to colours, and to shares of the image."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mobilevit_coreml.errors import InputError

VOID = -1  # in a class map: no class
VOID_PIXEL, VOID_COLOR = 255, "#E0E0C0"  # in an image of one, as in PASCAL VOC
OPACITY = 0.6  # of the colours over a photograph
ROW, SWATCH, MARGIN = 28, 18, 10  # pixels of a legend

ClassMap = NDArray[np.int32]


def post_process_semantic_segmentation(
    outputs: NDArray[np.generic], target_sizes: Sequence[tuple[int, int]] | None = None
) -> list[ClassMap]:
    """Class maps (height, width) of the target sizes, or of the outputs' own.

    `outputs` is (B, classes, H, W), logits or probabilities, which are resized bilinearly before the
    largest is taken, or class indices (B, H, W), which are resized to the nearest. As transformers' image
    processor does it.
    """
    if outputs.ndim not in (3, 4):
        raise InputError(f"outputs: expected 3 or 4 dimensions, got {outputs.ndim}; add one for the batch")
    if target_sizes is not None and len(target_sizes) != len(outputs):
        raise InputError(
            f"target_sizes: expected one for each of {len(outputs)} outputs, got {len(target_sizes)}; give as many"
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
    output: NDArray[np.generic], covered: tuple[float, float, float, float], size: tuple[int, int]
) -> ClassMap:
    """The class map (height, width) of a whole photograph, VOID where the network did not see it.

    `output` is (classes, H, W) or (H, W) for the part `covered`, as `Preprocessing.crop_box` has it, of
    a photograph of `size` (width, height).
    """
    left, top, right, bottom = (round(edge) for edge in covered)
    (part,) = post_process_semantic_segmentation(output[None], [(max(bottom - top, 1), max(right - left, 1))])
    whole = np.full((size[1], size[0]), VOID, np.int32)
    x, y = max(left, 0), max(top, 0)
    inside = part[y - top : size[1] - top, x - left : size[0] - left]
    whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return whole


def class_shares(class_map: ClassMap, labels: Sequence[str]) -> dict[str, float]:
    """Share of each class that occurs, of the pixels that have one, largest first."""
    counts = np.bincount(class_map[class_map != VOID], minlength=len(labels))
    order = np.argsort(-counts, kind="stable")
    return {labels[index]: float(counts[index] / counts.sum()) for index in order if counts[index]}


def palette_image(class_map: ClassMap, colors: Sequence[str]) -> Image.Image:
    """An image with a palette whose pixel values are the class indices, as PASCAL VOC's masks are.

    VOID is 255, so of more than 255 classes it is the plain colours.
    """
    if len(colors) > VOID_PIXEL:
        return Image.fromarray(_palette(colors)[class_map])
    image = Image.fromarray(np.where(class_map == VOID, VOID_PIXEL, class_map).astype(np.uint8), "L")
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)], palette[VOID_PIXEL] = _palette(colors)[:-1], _palette(colors)[VOID]
    image.putpalette(palette.tobytes())
    return image


def overlay(photograph: Image.Image, class_map: ClassMap, colors: Sequence[str]) -> Image.Image:
    """The classes' colours over an RGB photograph of the map's size; black ones and VOID leave it as it is."""
    pixels = np.asarray(photograph, dtype=np.float32)
    paint = _palette(colors)[class_map].astype(np.float32)
    shown = (paint.any(-1) & (class_map != VOID))[..., None] * np.float32(OPACITY)
    mixed = pixels * (1 - shown) + paint * shown
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(shares: Mapping[str, float], colors: Mapping[str, str]) -> Image.Image:
    """A swatch, the name and the share of each class, one below the other."""
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
    """(classes + 1, 3): the colour of each class, and at the end, where VOID points to, of none."""
    return np.array([ImageColor.getrgb(color)[:3] for color in (*colors, VOID_COLOR)], np.uint8)
