import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageColor

from mobilevit_coreml.labels import colors, voc_labels
from mobilevit_coreml.labels.colors import class_colors, distinct_colors


def cielab(names: tuple[str, ...]) -> NDArray[np.float64]:
    """CIELAB of sRGB colors under D65, by CIE 15 and IEC 61966-2-1, (N, 3)."""
    srgb = np.array([ImageColor.getrgb(name) for name in names]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def least_distance(names: tuple[str, ...]) -> float:
    """Delta E 1976 of the two colors that are most alike."""
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(cielab(names), 2))


def test_the_measure_itself() -> None:
    """CIE's values for the sRGB primaries, as colorimetry tables print them."""
    known = [(100.0, 0.0, 0.0), (53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86), (0, 0, 0)]
    measured = cielab(("#FFFFFF", "#FF0000", "#00FF00", "#0000FF", "#000000"))
    assert measured == pytest.approx(np.array(known), abs=0.05)  # tables differ in the last digits of the matrix


def test_voc_classes_have_vocs_colors() -> None:
    """VOC's development kit makes them from the bits of the class index: three a level, from the highest down."""

    def color(index: int) -> str:
        channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
        return "#{:02X}{:02X}{:02X}".format(*channels)

    assert class_colors(voc_labels()) == class_colors(list(voc_labels())) == tuple(map(color, range(21)))


@pytest.mark.parametrize("name", ["background", "Background"])
def test_only_a_first_class_called_background_is_black(name: str) -> None:
    others = class_colors([name, "a", "b"])
    assert others[0] == "#000000"
    assert others[1:] == distinct_colors(2)
    assert class_colors(["a", name, "b"]) == distinct_colors(3)
    assert "#000000" not in distinct_colors(100)


def test_own_colors_are_told_apart() -> None:
    """More than twice as well as VOC's own; a Delta E of 2.3 is just noticeable."""
    voc = least_distance(class_colors(voc_labels()))
    assert voc == pytest.approx(8.8, abs=0.05)
    own = class_colors(["background", *(f"class {index}" for index in range(20))])
    assert len(own) == 21
    assert least_distance(own) > 2.5 * voc  # 2.9
    ade20k = class_colors([f"class {index}" for index in range(150)])
    assert least_distance(ade20k) > 0.9 * voc  # 0.95: 150 colors are told apart nearly as well as VOC's 21


def test_no_color_is_too_dark_to_see_over_a_photograph() -> None:
    assert cielab(distinct_colors(1000))[:, 0].min() > 25  # of 100; black is 0


def test_colors_are_the_same_each_time() -> None:
    """Packages store them, and masks of two of the same classes must look alike."""
    assert distinct_colors(4) == ("#FFFFFF", "#6000FF", "#008F00", "#FF0060")
    first = distinct_colors(300)
    distinct_colors.cache_clear()
    assert distinct_colors(300) == first
    assert distinct_colors(20) == first[:20]  # a class more changes none of the others


def test_thousands_of_classes_have_colors() -> None:
    many = distinct_colors(5000)
    assert len(many) == 5000
    assert all(len(color) == 7 and ImageColor.getrgb(color) for color in many[:: 5000 // 20])
    assert len(set(many)) > 3000
    assert many[: len(set(many))] == tuple(dict.fromkeys(many))  # none twice before all have come once


def test_no_classes_have_no_colors() -> None:
    assert distinct_colors(0) == ()
    assert class_colors(["background"]) == (colors.BLACK,)
