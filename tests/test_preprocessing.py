from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit_coreml.errors import ConfigError, InputError
from mobilevit_coreml.preprocessing import Preprocessing, default_preprocessing


def drawn(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with edges, gradients and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / width, y * 255 / height, 128 + 127 * np.sin(x / 7) * np.sin(y / 5)], -1)
    values = np.clip(values + rng.normal(0, 20, values.shape), 0, 255).astype(np.uint8)
    values[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (301, 299), (1023, 257), (100, 37), (256, 256), (3, 900)])
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_crops_are_the_reference_processors(size: tuple[int, int], order: str) -> None:
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    processor = MobileViTImageProcessorPil(
        size={"shortest_edge": 288},
        crop_size={"height": 256, "width": 256},
        resample=2,
        do_flip_channel_order=order == "BGR",
    )
    image = drawn(*size)
    expected = processor(image, return_tensors="np")["pixel_values"]
    preprocessing = Preprocessing(288, (256, 256), order)
    got = preprocessing.pixels(preprocessing.prepare(image))
    assert got.dtype == np.float32
    # the picture itself is the same to the bit; the reference scales in double precision
    assert np.array_equal(np.rint(got * 255), np.rint(expected * 255))
    assert np.abs(got - expected).max() <= 1e-7


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_every_mode_becomes_colour(mode: str) -> None:
    prepared = default_preprocessing("classification", (256, 256), "BGR").prepare(drawn(300, 400, mode))
    assert (prepared.mode, prepared.size) == ("RGB", (256, 256))


def test_sixteen_bits_become_eight() -> None:
    eight = drawn(300, 300, "L")
    sixteen = Image.fromarray(np.asarray(eight).astype(np.uint16) * 257)
    prepare = default_preprocessing("classification", (256, 256), "BGR").prepare
    assert sixteen.mode == "I;16"
    assert np.array_equal(np.asarray(prepare(sixteen)), np.asarray(prepare(eight)))


def test_pictures_that_cannot_be_prepared() -> None:
    prepare = default_preprocessing("classification", (256, 256), "BGR").prepare
    with pytest.raises(InputError, match="expected integers of 8 or 16 bits, got floating point"):
        prepare(drawn(30, 30, "F"))
    with pytest.raises(InputError, match="expected one that is not far longer than wide, got 1x40000; crop it first"):
        prepare(Image.new("L", (1, 40000)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": 0}, "expected sizes of 1 to 8192 pixels, got (0, 256, 256)"),
        ({"resize": "x"}, "expected sizes of 1 to 8192 pixels"),
        ({"crop": (256,)}, "expected sizes of 1 to 8192 pixels"),
        ({"interpolation": "foo"}, "got 'BGR' and 'foo'"),
        ({"channel_order": "GRB"}, "got 'GRB' and 'bilinear'"),
        ({"scale": 0}, "expected a scale above 0, at most 1000, got 0"),
    ],
)
def test_a_contract_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Preprocessing(**{"resize": 288, "crop": (256, 256), "channel_order": "BGR", **values})
    assert message in str(error.value)


def test_orientation_is_applied() -> None:
    image = drawn(300, 400)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # rotate by 270 degrees to see it upright
    preprocessing = default_preprocessing("classification", (256, 256), "BGR")
    assert np.array_equal(np.asarray(preprocessing.prepare(turned)), np.asarray(preprocessing.prepare(image)))


def test_another_size_keeps_the_margin() -> None:
    preprocessing = default_preprocessing("classification", (256, 256), "BGR")
    assert preprocessing.resize == 288
    assert preprocessing.with_crop((512, 512)).resize == 576
    assert preprocessing.with_crop((320, 256)).resize == 288
    assert Preprocessing(224, (256, 256), "RGB").with_crop((128, 128)).resize == 112
