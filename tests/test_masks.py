"""Masks of made-up scores and classes: an untrained network's are of one class, which would hide misplacing."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.labels import voc_colors, voc_labels
from mobilevit_coreml.labels.colors import class_colors, distinct_colors
from mobilevit_coreml.masks import (
    VOID,
    class_shares,
    full_size_class_map,
    legend,
    overlay,
    palette_image,
    post_process_semantic_segmentation,
)
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.validation.framework_worker import make_torchvision_importable

make_torchvision_importable()

SIZES = [(64, 48), (31, 57), (7, 9), (16, 12)]  # height, width: larger, not in proportion, smaller, the same


def scores(batch: int = 4, classes: int = 5, height: int = 16, width: int = 12) -> Tensor:
    return torch.randn(batch, classes, height, width, generator=torch.Generator().manual_seed(0))


def indices(height: int, width: int, classes: int = 21) -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(classes, size=(height, width), dtype=np.int32)


def patches(height: int, width: int, classes: int = 5) -> NDArray[np.int32]:
    """A map of areas a few pixels large."""
    coarse = indices(height // 8 + 1, width // 8 + 1, classes)
    return np.kron(coarse, np.ones((8, 8), np.int32))[:height, :width]


def transformers_post_processing(logits: Tensor, target_sizes: list[tuple[int, int]] | None) -> list[Tensor]:
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    outputs = SimpleNamespace(logits=logits)
    maps: list[Tensor] = MobileViTImageProcessorPil().post_process_semantic_segmentation(outputs, target_sizes)
    return maps


@pytest.mark.parametrize("target_sizes", [None, SIZES])
def test_scores_become_classes_as_in_transformers(target_sizes: list[tuple[int, int]] | None) -> None:
    maps = post_process_semantic_segmentation(scores().numpy(), target_sizes)
    expected = transformers_post_processing(scores(), target_sizes)
    assert len(maps) == len(expected) == 4
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.dtype == np.int32
        assert np.array_equal(ours, theirs.numpy())


def test_half_precision_scores_become_the_classes_of_the_same_numbers() -> None:
    """Bilinear weights in half precision would decide between near scores by chance."""
    halves = scores().half()
    maps = post_process_semantic_segmentation(halves.numpy(), SIZES)
    for ours, theirs in zip(maps, transformers_post_processing(halves.float(), SIZES), strict=True):
        assert np.array_equal(ours, theirs.numpy())


def ties(before: int, after: int) -> NDArray[np.bool_]:
    """Where the middle of a pixel falls between two, equally near: the rounding of a program decides."""
    return (2 * np.arange(after) + 1) * before % (2 * after) == 0


@pytest.mark.parametrize("size", [(64, 48), (31, 57), (7, 9), (100, 23)])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32])
def test_classes_are_resized_to_the_nearest(size: tuple[int, int], dtype: type[np.generic]) -> None:
    classes = indices(16, 12)
    (ours,) = post_process_semantic_segmentation(classes[None].astype(dtype), [size])
    pillows = Image.fromarray(classes.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    assert ours.dtype == np.int32
    rows, columns = (~ties(before, after) for before, after in zip(classes.shape, size, strict=True))
    assert min(rows.mean(), columns.mean()) > 0.6
    assert np.array_equal(ours[rows][:, columns], np.asarray(pillows)[rows][:, columns])


def test_classes_of_their_own_size_stay_as_they_are() -> None:
    """Many of them too: a byte would hold 256."""
    classes = indices(16, 12, classes=60_000)
    for target_sizes in (None, [(16, 12)]):
        (ours,) = post_process_semantic_segmentation(classes[None], target_sizes)
        assert np.array_equal(ours, classes)


def pasted(part: NDArray[np.int32], left: int, top: int, size: tuple[int, int]) -> NDArray[np.int32]:
    """By Pillow, whose paste cuts off what is beyond the edges."""
    whole = Image.new("I", size, VOID)
    whole.paste(Image.fromarray(part), (left, top))
    return np.asarray(whole)


@pytest.mark.parametrize(
    ("covered", "size"),
    [
        ((30, 20, 110, 84), (140, 100)),  # within
        ((0, 0, 80, 64), (80, 64)),  # all of it
        ((-20, 0, 60, 64), (40, 64)),  # padded left and right
        ((0, -13, 80, 51), (80, 39)),  # above and below
        ((-7, -9, 73, 55), (66, 46)),  # all around
        ((-7, 9, 73, 73), (66, 90)),  # padded in one direction, cut in the other
    ],
)
@pytest.mark.parametrize("kind", ["classes", "scores"])
def test_the_part_the_network_saw_is_put_where_it_was(
    covered: tuple[int, int, int, int], size: tuple[int, int], kind: str
) -> None:
    left, top, right, bottom = covered
    if kind == "classes":
        output = patches(64, 80)
        part = output
    else:
        logits = scores(1, 5, 16, 20)
        output = logits[0].numpy()
        part = F.interpolate(logits, (64, 80), mode="bilinear")[0].argmax(0).to(torch.int32).numpy()
    assert (right - left, bottom - top) == (80, 64)
    whole = full_size_class_map(output, covered, size)
    assert whole.dtype == np.int32
    assert whole.shape == (size[1], size[0])
    assert np.array_equal(whole, pasted(part, left, top, size))


@pytest.mark.parametrize("size", [(200, 133), (133, 200), (1000, 750), (60, 40), (300, 40), (40, 300)])
@pytest.mark.parametrize("sizes", [(136, (128, 160)), (136, (128, 128)), (128, (128, 128)), (64, (128, 96))])
def test_classes_land_on_what_they_are_of(size: tuple[int, int], sizes: tuple[int, tuple[int, int]]) -> None:
    """A segmenter that sees brightness in 16 steps finds them where a photograph that gets brighter has them."""
    preprocessing = Preprocessing(*sizes, "BGR")
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    for ramp in (x, y):
        photograph = Image.fromarray((ramp * 255).astype(np.uint8)).convert("RGB")
        seen = np.asarray(preprocessing.prepare(photograph))[..., 0] // 16
        class_map = full_size_class_map(seen, preprocessing.crop_box(size), size)
        brightness = np.asarray(photograph)[..., 0].astype(int)
        known = class_map != VOID
        # Edges are rounded to whole pixels of the photograph, and one of the crop can be several of those.
        pixel = max(1, min(size) / sizes[0])
        tolerance = 2 * pixel * 256 / (size[0] if ramp is x else size[1])
        off = np.abs(class_map * 16 + 7.5 - brightness)[known]
        assert off.max() <= 8 + tolerance
        left, top, right, bottom = preprocessing.crop_box(size)
        expected = (min(right, size[0]) - max(left, 0)) * (min(bottom, size[1]) - max(top, 0))
        assert known.sum() == pytest.approx(expected, rel=2 / min(size))  # edges are rounded


def test_shares_are_of_the_pixels_that_have_a_class() -> None:
    class_map = np.array([[0, 0, 2, VOID], [2, 2, 4, VOID]], np.int32)
    shares = class_shares(class_map, ["a", "b", "c", "d", "e"])
    assert list(shares.items()) == [("c", 3 / 6), ("a", 2 / 6), ("e", 1 / 6)]


def test_shares_against_counting() -> None:
    class_map = patches(60, 90, classes=21)
    class_map[:10] = VOID
    shares = class_shares(class_map, voc_labels())
    names, counts = np.unique([voc_labels()[index] for index in class_map[10:].flat], return_counts=True)
    assert shares == pytest.approx(dict(zip(names, counts / (50 * 90), strict=True)))
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_a_map_of_nothing_has_no_shares() -> None:
    assert class_shares(np.full((3, 4), VOID, np.int32), ["a", "b"]) == {}


def written(image: Image.Image, path: Path) -> Image.Image:
    image.save(path)
    with Image.open(path) as opened:
        opened.load()
    return opened


def test_a_mask_is_written_as_pascal_voc_has_them(tmp_path: Path) -> None:
    class_map = patches(40, 60, classes=21)
    class_map[5:9, 20:50] = VOID
    mask = written(palette_image(class_map, voc_colors()), tmp_path / "mask.png")
    assert mask.mode == "P"
    assert mask.size == (60, 40)
    values = np.asarray(mask)
    assert np.array_equal(np.where(values == 255, VOID, values.astype(int)), class_map)
    palette = np.array(mask.getpalette()).reshape(-1, 3)
    assert palette[[0, 1, 15, 20, 255]].tolist() == [  # VOC's aeroplane, person, tvmonitor and void
        [0, 0, 0],
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    colors = np.asarray(mask.convert("RGB"))
    assert np.array_equal(colors[class_map != VOID], palette[class_map[class_map != VOID]])
    assert (colors[class_map == VOID] == (224, 224, 192)).all()


@pytest.mark.parametrize(("classes", "mode"), [(2, "P"), (255, "P"), (256, "RGB"), (300, "RGB")])
def test_a_mask_of_so_many_classes(tmp_path: Path, classes: int, mode: str) -> None:
    """255 is void, and no class's."""
    class_map = np.arange(-1, classes, dtype=np.int32)[None]
    colors = distinct_colors(classes)
    mask = written(palette_image(class_map, colors), tmp_path / "mask.png")
    assert mask.mode == mode
    expected = [(224, 224, 192), *map(ImageColor.getrgb, colors)]
    assert [tuple(pixel) for pixel in np.asarray(mask.convert("RGB"))[0].tolist()] == expected
    if mode == "P":
        assert np.asarray(mask).tolist() == [[255, *range(classes)]]


def test_an_overlay_mixes_the_colors_in() -> None:
    """As Pillow blends with a picture of the colors, but that Pillow cuts off fractions."""
    (photograph,) = synthetic_images(40, 60, 1)
    class_map = patches(40, 60, classes=21)
    overlaid = np.asarray(overlay(photograph, class_map, voc_colors())).astype(int)
    paint = np.array([ImageColor.getrgb(color) for color in voc_colors()], np.uint8)[class_map]
    blended = np.asarray(Image.blend(photograph, Image.fromarray(paint), 0.6)).astype(int)
    painted = class_map > 0
    assert painted.any()
    assert np.abs(overlaid - blended)[painted].max() <= 1
    exact = 0.4 * np.asarray(photograph) + 0.6 * paint
    assert np.abs(overlaid - exact)[painted].max() <= 0.5 + 1e-4  # rounded to the nearest, of float32 numbers


def test_an_overlay_leaves_black_and_void_alone() -> None:
    (photograph,) = synthetic_images(40, 60, 1)
    class_map = patches(40, 60, classes=21)
    class_map[5:9, 20:50] = VOID
    alone = class_map <= 0
    assert 0 < alone.sum() - 120 < alone.size - 120
    image = overlay(photograph, class_map, voc_colors())
    assert (image.mode, image.size) == ("RGB", (60, 40))
    before, after = np.asarray(photograph), np.asarray(image)
    assert np.array_equal(after[alone], before[alone])
    assert (after[~alone] != before[~alone]).any(-1).mean() > 0.99
    nothing = np.full((40, 60), VOID, np.int32)
    assert np.array_equal(np.asarray(overlay(photograph, nothing, voc_colors())), before)


def swatches(image: Image.Image) -> list[tuple[int, ...]]:
    """The colors down the middle of the swatches, of three pixels at least, without their frames."""
    column = [tuple(pixel) for pixel in np.asarray(image)[:, 19].tolist()]
    runs = [column[row] for row in range(2, len(column)) if column[row - 2] == column[row - 1] == column[row]]
    colors = [color for before, color in zip([None, *runs], runs, strict=False) if color != before]
    return [color for color in colors if color != (255, 255, 255)]


def test_a_legend_has_the_color_of_each_class_from_the_top() -> None:
    colors = dict(zip(voc_labels(), voc_colors(), strict=True))
    shares = {"cat": 0.6, "background": 0.3, "sofa": 0.1}
    assert swatches(legend(shares, colors)) == [ImageColor.getrgb(colors[label]) for label in shares]


def ink(image: Image.Image) -> NDArray[np.bool_]:
    return (np.asarray(image) != 255).any(-1)


@pytest.mark.parametrize("label", ["cat", "a very long name, " * 20, "Wjgpq|ÄÅ", "M" * 200, "i"])
def test_a_legend_is_wide_enough(label: str) -> None:
    """White all around, as on a legend with more room."""
    image = legend({label: 1.0, "x": 1e-4}, {label: "#FF0000", "x": "#00FF00"})
    marks = ink(image)
    assert not marks[:, -6:].any()
    assert not marks[:, :6].any()
    assert not marks[:6].any()
    assert not marks[-6:].any()
    columns = np.flatnonzero(marks.any(0))
    assert image.width - 20 < columns[-1]  # and no wider
    wider = legend({label: 1.0, label + " and more": 1e-4}, {label: "#FF0000", label + " and more": "#00FF00"})
    row = slice(0, 38)  # up to the second class
    assert np.array_equal(ink(image)[row, columns], ink(wider)[row, columns])


def test_a_legend_says_the_name_and_the_share() -> None:
    colors = dict.fromkeys(["cat", "dog"], "#FF0000")
    pictures = {legend({label: share}, colors).tobytes() for label in colors for share in (0.25, 0.5)}
    assert len(pictures) == 4


def test_a_legend_of_nothing_is_a_picture(tmp_path: Path) -> None:
    image = written(legend({}, {}), tmp_path / "legend.png")
    assert min(image.size) > 0
    assert not ink(image).any()


def test_colors_and_masks_of_own_classes_fit() -> None:
    labels = ["background", "road", "sky"]
    class_map = patches(40, 60, classes=3)
    image = overlay(Image.new("RGB", (60, 40), "#808080"), class_map, class_colors(labels))
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_each_output_needs_a_target_size(count: int) -> None:
    with pytest.raises(InputError, match=f"expected 2, one for each output, got {count}; give as many"):
        post_process_semantic_segmentation(np.zeros((2, 4, 4), np.int32), [(8, 8)] * count)
