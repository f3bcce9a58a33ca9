import dataclasses
import io
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import ConfigError, InputError
from mobilevit_coreml.preprocessing import Preprocessing, default_preprocessing


def synthetic_photograph(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with edges, gradients and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / width, y * 255 / height, 128 + 127 * np.sin(x / 7) * np.sin(y / 5)], -1)
    values = np.clip(values + rng.normal(0, 20, values.shape), 0, 255).astype(np.uint8)
    values[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    return Image.fromarray(values).convert(mode)


def shorter_edge(preprocessing: Preprocessing) -> int:
    assert isinstance(preprocessing.resize, int)
    return preprocessing.resize


def processor_of(preprocessing: Preprocessing) -> Any:
    """transformers' processor for the same preprocessing."""
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    height, width = preprocessing.crop
    return MobileViTImageProcessorPil(
        size={"shortest_edge": preprocessing.resize},
        crop_size={"height": height, "width": width},
        resample=2,
        do_flip_channel_order=preprocessing.channel_order == "BGR",
        do_reduce_labels=preprocessing.reduce_labels,
    )


def check_against_the_processor(preprocessing: Preprocessing, image: Image.Image, upright: Image.Image) -> None:
    expected = processor_of(preprocessing)(upright, return_tensors="np")["pixel_values"]
    got = preprocessing.pixels(preprocessing.prepare(image))
    assert got.dtype == np.float32
    # the picture itself is the same to the bit; the reference scales in double precision
    assert np.array_equal(np.rint(got * 255), np.rint(expected * 255))
    assert np.abs(got - expected).max() <= 1e-7


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (301, 299), (1023, 257), (100, 37), (256, 256), (3, 900)])
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_crops_are_the_reference_processors(size: tuple[int, int], order: str) -> None:
    image = synthetic_photograph(*size)
    check_against_the_processor(Preprocessing(288, (256, 256), order), image, image)


@pytest.mark.parametrize("size", [(301, 299), (97, 160), (33, 20), (64, 64)])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(544, (512, 512)), (69, (64, 64)), (40, (64, 64)), (41, (64, 97)), (72, (48, 90)), (100, (33, 200))],
)
def test_so_are_other_crops_padded_where_the_picture_ends(
    size: tuple[int, int], resize: int, crop: tuple[int, int]
) -> None:
    image = synthetic_photograph(*size)
    check_against_the_processor(Preprocessing(resize, crop, "BGR"), image, image)


@pytest.mark.parametrize("size", [(301, 200), (97, 160)])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_colour_before_it_is_resized(mode: str, size: tuple[int, int]) -> None:
    # The processor is for three channels: to colour is the first step there, too, and left to its caller.
    image = synthetic_photograph(*size, mode)
    if "A" in mode:  # transparency does not count
        image.putalpha(synthetic_photograph(*size, "L", seed=1))
    preprocessing = default_preprocessing(CLASSIFICATION, (128, 128), "BGR")
    prepared = preprocessing.prepare(image)
    assert (prepared.mode, prepared.size) == ("RGB", (128, 128))
    check_against_the_processor(preprocessing, image, image.convert("RGB"))


def test_a_palettes_transparent_colors_are_colors() -> None:
    image = synthetic_photograph(97, 80, "P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([255, 0, 128]))
    transparent = Image.open(buffer)
    assert "transparency" in transparent.info
    prepare = default_preprocessing(CLASSIFICATION, (64, 64), "BGR").prepare
    assert np.array_equal(np.asarray(prepare(transparent)), np.asarray(prepare(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(orientation: int) -> None:
    image = synthetic_photograph(201, 150)
    image.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(image)
    assert upright.size == ((150, 201) if orientation > 4 else (201, 150))
    check_against_the_processor(Preprocessing(72, (64, 80), "BGR"), image, upright)


def test_a_camera_held_sideways_changes_nothing() -> None:
    image = synthetic_photograph(300, 400)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # rotate by 270 degrees to see it upright
    preprocessing = default_preprocessing(CLASSIFICATION, (256, 256), "BGR")
    assert np.array_equal(np.asarray(preprocessing.prepare(turned)), np.asarray(preprocessing.prepare(image)))


def labelled(width: int, height: int, seed: int = 0) -> Image.Image:
    """A mask with every value that could be taken for another one, in patches as small as a pixel and larger."""
    rng = np.random.default_rng(seed)
    values = np.array([0, 1, 2, 20, 127, 128, 253, 254, 255], np.uint8)
    coarse = np.kron(rng.integers(0, len(values), (-(-height // 5), -(-width // 5))), np.ones((5, 5), np.int64))
    fine = rng.integers(0, len(values), (height, width))
    return Image.fromarray(values[np.where(rng.random((height, width)) < 0.3, fine, coarse[:height, :width])])


@pytest.mark.parametrize("size", [(301, 200), (97, 161), (33, 20), (64, 64), (130, 131)])
@pytest.mark.parametrize(("resize", "crop"), [(68, (64, 64)), (40, (64, 64)), (41, (64, 97)), (72, (48, 90))])
@pytest.mark.parametrize("reduce_labels", [False, True])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_the_reference_processors(
    size: tuple[int, int], resize: int, crop: tuple[int, int], reduce_labels: bool, mode: str
) -> None:
    preprocessing = Preprocessing(resize, crop, "BGR", reduce_labels=reduce_labels)
    mask = labelled(*size)
    if mode == "P":  # as the data sets have them: the value is the index, whatever its colour
        mask.putpalette([(7 * index) % 256 for index in range(768)])
    assert mask.mode == mode
    expected = processor_of(preprocessing)(synthetic_photograph(*size), segmentation_maps=mask, return_tensors="np")[
        "labels"
    ][0]
    got = preprocessing.prepare_mask(mask)
    assert got.dtype == np.uint8
    assert got.shape == crop
    assert np.array_equal(got, expected)


def test_reduced_labels_are_one_less_and_nothing_is_void() -> None:
    values = np.array([[0, 1, 2, 254, 255, 255]], np.uint8)
    mask = Image.fromarray(values)
    assert Preprocessing(1, (1, 6), "RGB", reduce_labels=True).prepare_mask(mask).tolist() == [
        [255, 0, 1, 253, 255, 255]
    ]
    assert Preprocessing(1, (1, 6), "RGB").prepare_mask(mask).tolist() == values.tolist()
    assert np.array_equal(np.asarray(mask), values)  # the caller's is as it was


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1"])
def test_a_mask_of_colours_is_none(mode: str) -> None:
    with pytest.raises(InputError) as error:
        Preprocessing(68, (64, 64), "RGB").prepare_mask(synthetic_photograph(80, 80, mode))
    assert str(error.value) == f"mask: expected a class index per pixel (mode L or P), got mode {mode}"


ODD_SIZES = list(itertools.product((20, 33, 36, 47, 72, 101), repeat=2))  # width and height, pixels


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(36, (32, 32)), (32, (32, 32)), (36, (32, 40)), (36, (40, 32)), (40, (32, 24)), (52, (32, 24)), (34, (32, 60))],
)
def test_a_crop_in_the_package_is_the_crop_outside(size: tuple[int, int], resize: int, crop: tuple[int, int]) -> None:
    outside = Preprocessing(resize, crop, "BGR")
    inside = dataclasses.replace(outside, include_crop=True)
    image = synthetic_photograph(*size)
    prepared = inside.prepare(image)
    assert prepared.size == inside.input_size[::-1]
    assert np.array_equal(inside.pixels(prepared), outside.pixels(outside.prepare(image)))


def filled(image: Image.Image, height: int, width: int) -> Image.Image:
    """What Vision's `.centerCrop` makes of a picture: scaled until it fills the input, and cut from the centre."""
    scale = max(Fraction(width, image.width), Fraction(height, image.height))
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return Image.fromarray(np.asarray(image)[top : top + height, left : left + width])


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize(
    ("task", "side", "resize"), [(CLASSIFICATION, 64, 72), (SEGMENTATION, 64, 68), (FEATURES, 50, 56)]
)
def test_visions_center_crop_is_then_the_evaluation(size: tuple[int, int], task: str, side: int, resize: int) -> None:
    evaluation = default_preprocessing(task, (side, side), "BGR")
    package = dataclasses.replace(evaluation, include_crop=True)
    assert package.input_size == (resize, resize)
    image = synthetic_photograph(*size)
    seen = package.pixels(filled(image, *package.input_size))
    assert np.array_equal(seen, evaluation.pixels(evaluation.prepare(image)))
    if size[0] != size[1]:  # without the crop in the package, Vision shows the network more of the picture
        assert not np.array_equal(evaluation.pixels(filled(image, side, side)), seen)


@pytest.mark.parametrize("size", [(36, 50), (47, 72), (72, 101), (36, 101)])
def test_so_it_is_for_inputs_that_are_not_square_where_the_picture_is_as_long(size: tuple[int, int]) -> None:
    evaluation = Preprocessing(36, (48, 32), "BGR")
    package = dataclasses.replace(evaluation, include_crop=True)
    assert package.input_size == (48, 36)
    image = synthetic_photograph(*size)
    seen = package.pixels(filled(image, *package.input_size))
    assert np.array_equal(seen, evaluation.pixels(evaluation.prepare(image)))


@pytest.mark.parametrize(
    ("resize", "crop", "include_crop", "expected"),
    [
        (288, (256, 256), False, (256, 256)),
        (288, (256, 256), True, (288, 288)),
        (544, (512, 512), True, (544, 544)),
        (288, (320, 256), True, (320, 288)),
        (288, (256, 320), True, (288, 320)),
        (288, (256, 320), False, (256, 320)),
        (256, (256, 256), True, (256, 256)),
        (400, (256, 320), True, (400, 400)),
        (289, (256, 256), True, (288, 288)),
        (288, (320, 255), True, (320, 287)),
    ],
)
def test_input_size_is_what_the_crop_is_cut_from(
    resize: int, crop: tuple[int, int], include_crop: bool, expected: tuple[int, int]
) -> None:
    assert Preprocessing(resize, crop, "BGR", include_crop=include_crop).input_size == expected


def test_there_must_be_something_to_cut_the_crop_from() -> None:
    Preprocessing(255, (256, 320), "BGR")  # padded, then, but by the app
    with pytest.raises(ConfigError) as error:
        Preprocessing(255, (256, 320), "BGR", include_crop=True)
    assert str(error.value) == (
        "include_crop: expected a shorter edge of at least the crop's, 256 pixels, got 255; leave it out"
    )


@pytest.mark.parametrize("size", [(144, 144), (200, 301), (301, 200), (36, 36), (99, 72)])
@pytest.mark.parametrize("crop", [(64, 64), (64, 48), (40, 64)])
@pytest.mark.parametrize("include_crop", [False, True])
def test_covered_is_where_the_crop_was_in_the_picture(
    size: tuple[int, int], crop: tuple[int, int], include_crop: bool
) -> None:
    preprocessing = Preprocessing(72, crop, "RGB", include_crop=include_crop)
    left, top, right, bottom = preprocessing.crop_box(size)
    across, down = (right - left) / crop[1], (bottom - top) / crop[0]  # of the picture's pixels in one of the crop's
    for x0, y0, x1, y1 in ((4, 6, 20, 30), (crop[1] - 24, crop[0] - 18, crop[1] - 6, crop[0] - 2)):
        picture = np.zeros((size[1], size[0], 3), np.uint8)
        rows = slice(round(top + y0 * down), round(top + y1 * down))
        picture[rows, round(left + x0 * across) : round(left + x1 * across)] = 255
        seen = preprocessing.pixels(preprocessing.prepare(Image.fromarray(picture)))[0, 0]
        y, x = np.nonzero(seen > 0.5)
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        # half a pixel of the picture is lost in marking it, half of one of the crop's in finding the mark
        assert np.abs(found - (x0, y0, x1, y1)).max() <= 0.5 + 0.5 / min(across, down)


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((288, 288), (256, 256), (16, 16, 272, 272)),
        ((576, 288), (256, 256), (160, 16, 416, 272)),
        ((576, 1152), (256, 256), (32, 320, 544, 832)),
        ((144, 144), (256, 256), (8, 8, 136, 136)),
        ((288, 288), (320, 256), (16, -16, 272, 304)),
    ],
    ids=["as it is", "long", "twice as large", "half as large", "beyond the edges"],
)
def test_covered_in_the_pictures_pixels(
    size: tuple[int, int], crop: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert Preprocessing(288, crop, "RGB").crop_box(size) == pytest.approx(expected, abs=1e-9)


def test_sixteen_bits_become_eight() -> None:
    eight = synthetic_photograph(300, 300, "L")
    sixteen = Image.fromarray(np.asarray(eight).astype(np.uint16) * 257)
    prepare = default_preprocessing("classification", (256, 256), "BGR").prepare
    assert sixteen.mode == "I;16"
    assert np.array_equal(np.asarray(prepare(sixteen)), np.asarray(prepare(eight)))


def test_pictures_that_cannot_be_prepared() -> None:
    prepare = default_preprocessing("classification", (256, 256), "BGR").prepare
    with pytest.raises(InputError, match="expected integers of 8 or 16 bits, got floating point"):
        prepare(synthetic_photograph(30, 30, "F"))
    with pytest.raises(InputError, match="expected a less extreme aspect ratio, got 1x40000 pixels; crop it first"):
        prepare(Image.new("L", (1, 40000)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": 0}, "expected sizes of 1 to 8192 pixels, got (0, 256, 256)"),
        ({"resize": "x"}, "expected sizes of 1 to 8192 pixels"),
        ({"crop": (256,)}, "expected sizes of 1 to 8192 pixels"),
        (
            {"interpolation": "foo"},
            "interpolation: expected one of nearest, lanczos, bilinear, bicubic, box, hamming, got 'foo'",
        ),
        ({"channel_order": "GRB"}, "channel_order: expected one of BGR, RGB, GRAY, got 'GRB'"),
        ({"scale": 0}, "expected a scale above 0, at most 1000, got 0"),
    ],
)
def test_invalid_preprocessing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Preprocessing(**{"resize": 288, "crop": (256, 256), "channel_order": "BGR", **values})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("task", "side", "resize"),
    [
        (CLASSIFICATION, 256, 288),
        (CLASSIFICATION, 512, 576),
        (CLASSIFICATION, 200, 224),
        (CLASSIFICATION, 320, 360),
        (CLASSIFICATION, 384, 432),
        (FEATURES, 256, 288),
        (SEGMENTATION, 512, 544),
        (SEGMENTATION, 256, 272),
        (SEGMENTATION, 200, 212),
        (SEGMENTATION, 320, 340),
        (SEGMENTATION, 384, 408),
    ],
)
def test_the_margin_is_the_tasks_at_every_size(task: str, side: int, resize: int) -> None:
    assert default_preprocessing(task, (side, side), "BGR").resize == resize
    assert default_preprocessing(task, (side, side + 64), "BGR").resize == resize  # it is the shorter side's
    assert default_preprocessing(task, (side + 64, side), "BGR").resize == resize
    published = default_preprocessing(task, (512, 512) if task == SEGMENTATION else (256, 256), "BGR")
    assert published.with_crop((side, side)) == Preprocessing(resize, (side, side), "BGR")


@pytest.mark.parametrize(
    ("task", "proportion"), [(CLASSIFICATION, 288 / 256), (FEATURES, 288 / 256), (SEGMENTATION, 544 / 512)]
)
def test_margins_are_even_and_keep_their_proportion(task: str, proportion: float) -> None:
    for side in range(32, 1025):
        resize = shorter_edge(default_preprocessing(task, (side, side), "BGR"))
        assert (resize - side) % 2 == 0
        assert abs(resize - side * proportion) <= 1


def test_another_size_keeps_the_margin_and_the_rest() -> None:
    preprocessing = Preprocessing(288, (256, 256), "BGR", "bicubic", 1.0, include_crop=True, reduce_labels=True)
    assert preprocessing.with_crop((512, 512)) == dataclasses.replace(preprocessing, resize=576, crop=(512, 512))
    assert preprocessing.with_crop((320, 256)) == dataclasses.replace(preprocessing, crop=(320, 256), fill=True)
    assert preprocessing.with_crop((512, 384)) == dataclasses.replace(
        preprocessing, resize=432, crop=(512, 384), fill=True
    )
    assert Preprocessing(289, (256, 256), "RGB").with_crop((256, 320)).resize == 289  # as given, odd or not
    assert Preprocessing(224, (256, 256), "RGB").with_crop((128, 128)).resize == 112


@pytest.mark.parametrize("crop", [(64, 96), (96, 64), (33, 97)])
@pytest.mark.parametrize("size", [(100, 100), (177, 100), (100, 177), (640, 360)])
@pytest.mark.parametrize("include_crop", [False, True])
def test_a_crop_that_is_not_square_is_filled(size: tuple[int, int], crop: tuple[int, int], include_crop: bool) -> None:
    square = dataclasses.replace(default_preprocessing(CLASSIFICATION, (64, 64), "RGB"), include_crop=include_crop)
    preprocessing = square.with_crop(crop)
    white = Image.new("RGB", size, "white")
    prepared = preprocessing.prepare(white)
    margin = shorter_edge(preprocessing) - min(crop) if include_crop else 0
    assert prepared.size == (crop[1] + margin, crop[0] + margin)
    assert np.asarray(prepared).min() == 255  # no black beside it
    image = synthetic_photograph(*size)
    inside = preprocessing.pixels(preprocessing.prepare(image))
    outside = dataclasses.replace(preprocessing, include_crop=False)
    assert np.array_equal(inside, outside.pixels(outside.prepare(image)))
    # what Vision's .centerCrop makes of the picture for an input with the margin inside
    whole = dataclasses.replace(preprocessing, include_crop=True)
    assert np.array_equal(whole.pixels(filled(image, *whole.input_size)), inside)
    left, top, right, bottom = preprocessing.crop_box(size)
    assert min(left, top, size[0] - right, size[1] - bottom) >= 0
    assert preprocessing.with_crop((64, 64)) == square
