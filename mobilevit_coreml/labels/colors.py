"""Colours of the classes in masks."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from mobilevit_coreml.labels import voc_colors, voc_labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVELS = 17  # of red, green and blue, in the grid of candidates
MIN_LIGHTNESS = 0.4  # in OKLab, 0 to 1; darker colours look black over a photograph
BLACK = "#000000"


def class_colors(labels: Sequence[str]) -> tuple[str, ...]:
    """`#RRGGBB` of each class: the colours of PASCAL VOC for its classes, otherwise distinct colours.

    A first class named background is black; other colours are far from black.
    """
    if tuple(labels) == voc_labels():
        return voc_colors()
    has_background = labels[0].lower() == "background"
    return (BLACK, *distinct_colors(len(labels) - 1)) if has_background else distinct_colors(len(labels))


@cache
def distinct_colors(count: int) -> tuple[str, ...]:
    """Greedy choice of the colour farthest from black and all earlier colours in OKLab (Ottosson 2020).

    Colours repeat if there are more than a few thousand.
    """
    import numpy as np

    levels = np.linspace(0, 255, LEVELS).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    points = _oklab(grid / 255)
    grid, points = grid[points[:, 0] >= MIN_LIGHTNESS], points[points[:, 0] >= MIN_LIGHTNESS]
    nearest = (points**2).sum(1)  # from black
    chosen: list[int] = []
    for _ in range(min(count, len(grid))):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    colors = ["#{:02X}{:02X}{:02X}".format(*map(int, grid[index])) for index in chosen]
    return tuple(colors[index % len(colors)] for index in range(count))


def _oklab(srgb: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """sRGB colours (N, 3), 0 to 1, in OKLab: lightness and two opponent axes."""
    import numpy as np

    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = [  # cone responses
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab)
