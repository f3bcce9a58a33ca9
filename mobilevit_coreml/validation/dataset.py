"""What both sides are shown: the user's pictures, with their labels where there are some, or drawn ones."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit_coreml.config import CLASSIFICATION, SEGMENTATION
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.images import SUFFIXES, images_in, read_image, synthetic_images
from mobilevit_coreml.labels import imagenet_synsets
from mobilevit_coreml.preprocessing import Preprocessing

PHOTOGRAPHS, MASKS, LISTS = "JPEGImages", "SegmentationClass", Path("ImageSets", "Segmentation", "val.txt")  # VOC's


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """A picture by name, and what is true of it: the index of its class, or its mask, or nothing that is known.

    `prepared` reads it and gives what the package's input takes.
    """

    name: str
    prepared: Callable[[], Image.Image]
    truth: int | Path | None = None


def load_images(
    directory: Path | None, task: str, classes: Sequence[str], contract: Preprocessing
) -> list[LabelledImage]:
    """Drawn pictures, or those of a directory: an ImageNet-style tree, VOC's directories, or any pictures.

    An ImageNet-style tree has a directory for each class, called after it, after its index, or after its
    WordNet id; VOC's are JPEGImages and SegmentationClass, of which ImageSets/Segmentation/val.txt
    chooses where it is there. Raises InputError for a directory without pictures, or of unknown classes.
    """
    if directory is None:
        drawn = synthetic_images(*contract.input_size)
        return [
            LabelledImage(f"drawn {number}", partial(Image.Image.copy, image)) for number, image in enumerate(drawn, 1)
        ]

    def picture(name: str, path: Path, truth: int | Path | None = None) -> LabelledImage:
        return LabelledImage(name, lambda: contract.prepare(read_image(path)), truth)

    if task == SEGMENTATION and (directory / PHOTOGRAPHS).is_dir() and (directory / MASKS).is_dir():
        return [picture(photograph.stem, photograph, mask) for photograph, mask in _voc(directory)]
    if task == CLASSIFICATION and directory.is_dir():
        trees = sorted(path for path in directory.iterdir() if path.is_dir() and _has_pictures(path))
        if trees and not any(path.suffix.lower() in SUFFIXES for path in directory.iterdir()):
            indices = {tree: _class_index(tree, classes) for tree in trees}
            return [
                picture(f"{tree.name}/{path.name}", path, index)
                for tree, index in indices.items()
                for path in images_in(tree)
            ]
    return [picture(path.name, path) for path in images_in(directory)]


def _has_pictures(directory: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in directory.iterdir())


def _class_index(tree: Path, classes: Sequence[str]) -> int:
    if tree.name in classes:
        return classes.index(tree.name)
    synsets = imagenet_synsets()
    if tree.name in synsets and len(classes) == len(synsets):
        return synsets.index(tree.name)
    if tree.name.isdecimal() and int(tree.name) < len(classes):
        return int(tree.name)
    raise InputError(
        f"images {tree}: expected a directory called after a class of the package, its index, or an ImageNet id, "
        "got another name; rename it, or put the pictures into one directory to leave labels out"
    )


def _voc(directory: Path) -> list[tuple[Path, Path]]:
    chosen = directory / LISTS
    names = chosen.read_text(encoding="utf-8").split() if chosen.is_file() else None
    photographs = {path.stem: path for path in images_in(directory / PHOTOGRAPHS)}
    masks = {path.stem: path for path in images_in(directory / MASKS)}
    listed = sorted(masks) if names is None else names
    missing = [name for name in listed if name not in photographs or name not in masks]
    if missing:
        raise InputError(
            f"images {directory}: expected a photograph and a mask of each, got not both of {missing[0]} "
            f"({len(missing)} of {len(listed)}); complete the directories"
        )
    return [(photographs[name], masks[name]) for name in listed]


def true_mask(path: Path, contract: Preprocessing) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The class index of each pixel of the crop, (H, W) uint8, 255 where there is none."""
    try:
        return contract.prepare_mask(read_image(path))
    except InputError as error:
        raise InputError(str(error).replace("mask: ", f"mask {path}: ", 1)) from None
