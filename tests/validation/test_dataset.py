"""Directories of images as users have them, and what is true of each image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.labels import imagenet_labels, imagenet_synsets, voc_labels
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.validation.dataset import load_images, true_mask

CONTRACT = Preprocessing(72, (64, 64), "BGR")
CLASSES = ("cat", "dog", "fish")


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (90, 80), "teal").save(path)
    return path


def truths(directory: Path, classes: Sequence[str] = CLASSES, task: str = "classification") -> dict[str, object]:
    return {image.name: image.truth for image in load_images(directory, task, classes, CONTRACT)}


def test_without_a_directory_images_are_synthetic() -> None:
    loaded = load_images(None, "classification", CLASSES, CONTRACT)
    assert [image.truth for image in loaded] == [None] * 8
    for image, expected in zip(loaded, synthetic_images(64, 64), strict=True):
        assert np.array_equal(np.asarray(image.prepared()), np.asarray(expected))


def test_images_are_prepared_as_the_contract_says(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    synthetic_images(100, 150, 1)[0].save(path)
    (image,) = load_images(tmp_path, "classification", CLASSES, CONTRACT)
    assert (image.name, image.truth) == ("a.png", None)
    assert np.array_equal(np.asarray(image.prepared()), np.asarray(CONTRACT.prepare(Image.open(path))))


def test_directories_called_after_classes_or_their_indices(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/a.png", "2/c.png", "cat/d.png"):
        photograph(tmp_path / name)
    (tmp_path / "notes").mkdir()  # without a image
    assert truths(tmp_path) == {"2/c.png": 2, "cat/d.png": 0, "dog/a.png": 1, "dog/b.png": 1}


def test_directories_called_after_imagenets_ids(tmp_path: Path) -> None:
    """Not all of them, as in subsets such as Imagenette; n02123045 is the tabby, class 281."""
    for name in ("n02123045/a.png", "n15075141/b.png"):
        photograph(tmp_path / name)
    assert truths(tmp_path, imagenet_labels()) == {"n02123045/a.png": 281, "n15075141/b.png": 999}
    assert imagenet_labels()[281].startswith("tabby")
    assert len(set(imagenet_synsets())) == 1000
    assert list(imagenet_synsets()) == sorted(imagenet_synsets())


def test_a_directory_of_no_class(tmp_path: Path) -> None:
    photograph(tmp_path / "bird" / "a.png")
    with pytest.raises(InputError, match="bird: expected a directory called after a class of the package"):
        truths(tmp_path)


def test_images_beside_directories_have_no_labels(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png")
    photograph(tmp_path / "cat" / "b.png")
    assert truths(tmp_path) == {"a.png": None}


def test_features_have_no_labels(tmp_path: Path) -> None:
    photograph(tmp_path / "cat" / "b.png")
    with pytest.raises(InputError, match="expected images"):
        truths(tmp_path, task="features")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("2007_1", "2007_2", "2007_3"):
        photograph(tmp_path / "JPEGImages" / f"{name}.jpg")
        mask = tmp_path / "SegmentationClass" / f"{name}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((80, 90), 7, np.uint8)).save(mask)
    photograph(tmp_path / "JPEGImages" / "2007_4.jpg")  # most of VOC's have no mask
    return tmp_path


def test_photographs_with_masks(voc: Path) -> None:
    found = truths(voc, voc_labels(), "segmentation")
    assert found == {name: voc / "SegmentationClass" / f"{name}.png" for name in ("2007_1", "2007_2", "2007_3")}
    mask = true_mask(voc / "SegmentationClass" / "2007_1.png", CONTRACT)
    assert mask.shape == (64, 64)
    assert (mask == 7).all()


def test_a_list_chooses(voc: Path) -> None:
    chosen = voc / "ImageSets" / "Segmentation" / "val.txt"
    chosen.parent.mkdir(parents=True)
    chosen.write_text("2007_3\n2007_1\n")
    assert list(truths(voc, voc_labels(), "segmentation")) == ["2007_3", "2007_1"]
    chosen.write_text("2007_3\n2007_4\n")
    with pytest.raises(InputError, match=r"a photograph and a mask of each, got not both of 2007_4 \(1 of 2\)"):
        truths(voc, voc_labels(), "segmentation")


def test_a_mask_in_colours_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mask .*a.png: expected a class index per pixel"):
        true_mask(photograph(tmp_path / "a.png"), CONTRACT)
