"""Pixels of the network's input against timm's and transformers' own transforms of the same images, through the files.

Both take 8-bit pixels of one resized and cropped image, which must be the same to the bit; they scale and normalize in
an order of their own, which may differ in the last bits of single precision.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mobilevit_coreml.checkpoints import hugging_face, timm
from mobilevit_coreml.config import CLASSIFICATION, VARIANTS, MobileViTConfig
from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, default_preprocessing
from mobilevit_coreml.validation.framework_worker import make_torchvision_importable
from tests.test_preprocessing import synthetic_photograph

make_torchvision_importable()

SIZES = [(101, 101), (120, 90), (91, 143), (160, 97), (70, 301), (99, 66), (64, 64), (47, 33)]  # width and height
GRAY = MobileViTConfig(num_channels=1)
Pixels = npt.NDArray[np.float32]


def check(preprocessing: Preprocessing, image: Image.Image, expected: Pixels) -> None:
    """The same 8-bit pixels, and the same values to 4 ULP of the largest."""
    got = preprocessing.pixels(preprocessing.prepare(image))
    assert got.shape == expected.shape
    mean, std = (
        np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    if preprocessing.channel_order == "BGR":
        mean, std = mean[:, ::-1], std[:, ::-1]
    levels = [np.rint((values * std + mean) / np.float32(preprocessing.scale)) for values in (got, expected)]
    assert np.array_equal(*levels)
    assert np.abs(got - expected).max() <= 4 * np.spacing(np.abs(expected).max())


def read_timm(settings: dict[str, Any], config: MobileViTConfig = VARIANTS["xxs"]) -> Preprocessing:
    return timm.read({"pretrained_cfg": settings}, {}, config, "x")[1]


def by_timm(settings: dict[str, Any], image: Image.Image) -> Pixels:
    """timm's evaluation transform of an image, as resolve_data_config and create_transform make it."""
    from timm.data import create_transform, resolve_data_config
    from timm.models._pretrained import PretrainedCfg

    whole = PretrainedCfg(**{"input_size": (3, 224, 224), **settings}).to_dict()
    transform: Any = create_transform(**resolve_data_config({}, pretrained_cfg=whole))
    pixels: Pixels = transform(image.convert("L" if whole["input_size"][0] == 1 else "RGB")).numpy()[None]
    return pixels


PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}
IMAGENET = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.9, 0.875, 0.61])
@pytest.mark.parametrize("crop", [(64, 64), (63, 63), (33, 33), (64, 48), (40, 63), (57, 32)])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_crops_are_timms(size: tuple[int, int], crop: tuple[int, int], crop_pct: float, mode: str) -> None:
    settings = {"input_size": [3, *crop], "crop_pct": crop_pct, "crop_mode": mode, **PLAIN}
    image = synthetic_photograph(*size)
    check(read_timm(settings), image, by_timm(settings, image))


def test_some_of_these_margins_are_odd_and_each_way_of_rounding_is_seen() -> None:
    settings = {"input_size": [3, 64, 64], "crop_pct": 0.95, **PLAIN}
    preprocessing, image = read_timm(settings), synthetic_photograph(91, 143)
    assert preprocessing.resize == 67  # 3 pixels more: 1.5 on each side, to the even one
    other = Preprocessing(67, (64, 64), "RGB", "bicubic", rounding="down")
    assert not np.array_equal(other.pixels(other.prepare(image)), by_timm(settings, image))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("settings", [PLAIN, IMAGENET, {"mean": [0.5] * 3, "std": [0.5] * 3}, {}], ids=str)
def test_filters_and_normalization_are_timms(interpolation: str, settings: dict[str, Any]) -> None:
    settings = {"input_size": [3, 64, 64], "interpolation": interpolation, **settings}
    image = synthetic_photograph(120, 90)
    check(read_timm(settings), image, by_timm(settings, image))


def test_a_config_that_says_nothing_is_timms_default() -> None:
    image = synthetic_photograph(301, 257)
    check(read_timm({}), image, by_timm({}, image))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_gray_images_are_timms(mode: str) -> None:
    settings = {"input_size": [1, 64, 64], "mean": [0.4], "std": [0.3]}
    image = synthetic_photograph(120, 90).convert(mode)
    preprocessing = read_timm(settings, GRAY)
    assert preprocessing.channel_order == "GRAY"
    check(preprocessing, image, by_timm(settings, image.convert("RGB")))


@pytest.mark.parametrize("size", [(380, 1064), (199, 301), (1000, 667)])
def test_timms_quotients_are_rounded_as_they_are(size: tuple[int, int]) -> None:
    settings = {"input_size": [3, 525, 107], "crop_pct": 1.0, **PLAIN}  # of 380x1064 exact halves would round otherwise
    image = synthetic_photograph(*size)
    check(read_timm(settings), image, by_timm(settings, image))


def normalized_by_torchvision(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize, CenterCrop, ToTensor, Normalize: the commonest four lines of public training scripts."""
    from torchvision import transforms

    transform: Any = transforms.Compose(
        [
            transforms.Resize(preprocessing.resize),
            transforms.CenterCrop(preprocessing.crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    pixels: Pixels = transform(image).numpy()[None]
    return pixels[:, ::-1] if preprocessing.channel_order == "BGR" else pixels


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("size", SIZES)
def test_normalization_is_torchvisions(size: tuple[int, int], order: str) -> None:
    preprocessing = Preprocessing(
        73, (64, 64), order, "bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD, rounding="even"
    )
    image = synthetic_photograph(*size)
    check(preprocessing, image, normalized_by_torchvision(image, preprocessing))


MODULES = {
    "MobileViT": "mobilevit",
    "ViT": "vit",
    "DeiT": "deit",
    "CLIP": "clip",
    "Bit": "bit",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
}


def processor(family: str, **options: Any) -> Any:
    """An image processor of transformers, by Pillow."""
    module = importlib.import_module(f"transformers.models.{MODULES[family]}.image_processing_pil_{MODULES[family]}")
    return getattr(module, f"{family}ImageProcessorPil")(**options)


def read_saved(directory: Path, peer: Any, channels: int = 3) -> Preprocessing:
    """Preprocessing from the file that a processor saves."""
    peer.save_pretrained(directory)
    values = json.loads((directory / "preprocessor_config.json").read_text())
    default = default_preprocessing(CLASSIFICATION, (256, 256), "GRAY" if channels == 1 else "BGR")
    return hugging_face.read_preprocessor(values, default, "x")[0]


def test_all_processors_are_compared() -> None:
    assert MODULES.keys() == hugging_face.PROCESSORS.keys()


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"size": {"shortest_edge": 73}, "crop_size": square(64)},
    {"size": {"shortest_edge": 72}, "crop_size": {"height": 63, "width": 40}},
    {"size": {"shortest_edge": 60}, "crop_size": square(64)},
    {"size": {"height": 70, "width": 91}, "crop_size": square(64)},
    {"size": {"height": 70, "width": 91}, "do_center_crop": False},
    {"size": square(64), "do_center_crop": False, "do_normalize": False},
    {"size": 75, "crop_size": 64, "do_center_crop": True},
    {"do_resize": False, "crop_size": square(64), "do_center_crop": True},
    {"size": square(80), "crop_size": square(64), "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    {"size": square(64), "do_center_crop": False, "resample": 0, "do_rescale": False, "do_normalize": False},
    {"size": square(64), "do_center_crop": False, "rescale_factor": 1 / 127.5},
]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (family, options)
        for family in MODULES
        for options in OPTIONS
        if family != "ViT" or "shortest_edge" not in str(options)  # which takes height and width only
    ],
    ids=str,
)
def test_crops_are_each_processors(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    peer = processor(family, **options)
    preprocessing = read_saved(tmp_path, peer)
    for size in ((101, 101), (120, 90), (91, 143), (160, 97)):
        image = synthetic_photograph(*size)
        check(preprocessing, image, peer(image, return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("size", [75, [70, 91]])
@pytest.mark.parametrize("family", MODULES)
def test_plain_numbers_of_old_files_are_each_processors(family: str, size: Any, tmp_path: Path) -> None:
    """Files of transformers 4.24 and before have numbers in place of edges by name."""
    peer = processor(family, size=size, crop_size=64)
    peer.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"size": size}
    if "crop_size" in values:
        values["crop_size"] = 64
    default = default_preprocessing(CLASSIFICATION, (256, 256), "BGR")
    preprocessing, _ = hugging_face.read_preprocessor(values, default, "x")
    image = synthetic_photograph(143, 111)
    check(preprocessing, image, peer(image, return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("family", ["MobileViT", "MobileNetV2"])
def test_gray_images_are_the_processors(family: str, mode: str, tmp_path: Path) -> None:
    options = {} if family == "MobileViT" else {"image_mean": [0.3], "image_std": [0.2]}
    peer = processor(family, size={"shortest_edge": 73}, crop_size=square(64), **options)
    preprocessing = read_saved(tmp_path, peer, channels=1)
    assert preprocessing.channel_order == "GRAY"
    image = synthetic_photograph(120, 90, mode)
    check(preprocessing, image, peer(image.convert("L"), return_tensors="np")["pixel_values"])


def test_a_file_without_a_processor_normalizes_if_it_says_so() -> None:
    default = default_preprocessing(CLASSIFICATION, (256, 256), "BGR")
    values = {"do_normalize": True, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "size": 288}
    preprocessing, assumed = hugging_face.read_preprocessor({**values, "crop_size": 256}, default, "x")
    assert (preprocessing.mean, preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert preprocessing.channel_order == "RGB"
    assert "its file names no image_processor_type" in assumed[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ()),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, ()),  # as transformers 5 writes into each file
        ({"do_normalize": True}, ("--mean 0.5 --std 0.5",)),
        ({"image_mean": list(IMAGENET_MEAN)}, ("--mean 0.485 0.456 0.406 --std 0.5",)),
    ],
)
def test_that_mobilevits_processor_does_not_normalize_is_said_where_the_file_looks_as_if_it_did(
    values: dict[str, Any], said: tuple[str, ...]
) -> None:
    default = default_preprocessing(CLASSIFICATION, (256, 256), "BGR")
    file = {"image_processor_type": "MobileViTImageProcessor", "size": 288, "crop_size": 256, "resample": 2, **values}
    preprocessing, assumed = hugging_face.read_preprocessor(file, default, "x")
    assert not preprocessing.normalizes
    assert len(assumed) == len(said)
    assert all(option in text for option, text in zip(said, assumed, strict=True))


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("values", [(0.1, 0.2), (float("nan"),), (float("inf"),), (2000,), ()])
def test_normalization_that_cannot_be(name: str, values: tuple[float, ...]) -> None:
    with pytest.raises(MobileViTError, match=f"^{name}: expected a number"):
        Preprocessing(288, (256, 256), "RGB", **{name: values})  # type: ignore[arg-type]


def test_a_deviation_is_above_zero() -> None:
    with pytest.raises(MobileViTError, match="^std: expected a number above 0 for each of 3 channels"):
        Preprocessing(288, (256, 256), "RGB", std=(0.5, 0.0, 0.5))
