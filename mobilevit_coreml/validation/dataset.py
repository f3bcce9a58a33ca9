"""The images of a validation: the user's, with their labels where there are some, or synthetic ones."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit_coreml.config import CLASSIFICATION, SEGMENTATION
from mobilevit_coreml.errors import InputError, os_error_text
from mobilevit_coreml.images import SUFFIXES, images_in, read_image, synthetic_images
from mobilevit_coreml.labels import imagenet_synsets
from mobilevit_coreml.preprocessing import Preprocessing

PHOTOGRAPHS, MASKS, LISTS = "JPEGImages", "SegmentationClass", Path("ImageSets", "Segmentation", "val.txt")  # VOC's


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """An image by name; `truth` is the index of its class, or the file of its mask, where there is one.

    `prepared` reads it and returns an RGB image of the package's input size; a synthetic one has no `path`.
    """

    name: str
    prepared: Callable[[], Image.Image]
    truth: int | Path | None = None
    path: Path | None = None

    def digest(self) -> str:
        """sha256 of the content of its file, and of its class or mask; InputError where these cannot be read."""
        try:
            content = self.prepared().tobytes() if self.path is None else self.path.read_bytes()
            truth = self.truth.read_bytes() if isinstance(self.truth, Path) else str(self.truth).encode()
        except OSError as error:
            raise InputError(f"image {self.name}: expected a file to read, got {os_error_text(error)}") from None
        return hashlib.sha256(hashlib.sha256(content).digest() + truth).hexdigest()


def load_images(
    directory: Path | None, task: str, classes: Sequence[str], preprocessing: Preprocessing
) -> list[LabelledImage]:
    """Synthetic images, or those of a directory: an ImageNet-style tree, VOC's directories, or any images.

    An ImageNet-style tree has a directory for each class, called after it, after its index, or after its
    WordNet id; VOC's are JPEGImages and SegmentationClass, of which ImageSets/Segmentation/val.txt
    chooses where it is there. Raises InputError for a directory without images, or of unknown classes.
    """
    if directory is None:
        images = enumerate(synthetic_images(*preprocessing.input_size), 1)
        mode = preprocessing.mode
        return [LabelledImage(f"synthetic {number}", partial(image.convert, mode)) for number, image in images]

    def labelled(name: str, path: Path, truth: int | Path | None = None) -> LabelledImage:
        return LabelledImage(name, lambda: preprocessing.prepare(read_image(path)), truth, path)

    if task == SEGMENTATION and (directory / PHOTOGRAPHS).is_dir() and (directory / MASKS).is_dir():
        return [labelled(photograph.stem, photograph, mask) for photograph, mask in _voc(directory)]
    if task == CLASSIFICATION and directory.is_dir():
        trees = sorted(path for path in directory.iterdir() if path.is_dir() and _has_images(path))
        if trees and not any(path.suffix.lower() in SUFFIXES for path in directory.iterdir()):
            indices = {tree: _class_index(tree, classes) for tree in trees}
            return [
                labelled(f"{tree.name}/{path.name}", path, index)
                for tree, index in indices.items()
                for path in images_in(tree)
            ]
    return [labelled(path.name, path) for path in images_in(directory)]


def _has_images(directory: Path) -> bool:
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
        "got another name; rename it, or put the images into one directory to leave labels out"
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


def true_mask(path: Path, preprocessing: Preprocessing) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The class index of each pixel of the crop, (H, W) uint8, 255 where there is none."""
    try:
        return preprocessing.prepare_mask(read_image(path))
    except InputError as error:
        raise InputError(str(error).replace("mask: ", f"mask {path}: ", 1)) from None
