"""Predictions of a package for images: by Core ML on a Mac, by the reference evaluator anywhere."""

import contextlib
import dataclasses
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import InputError, MobileViTError, PackageError, check_choice
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES, IMAGE, POOLED, VALUES, names_classes, output_names
from mobilevit_coreml.package.metadata import PackageRecord

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from mobilevit_coreml.masks import ClassMap
    from mobilevit_coreml.preprocessing import Preprocessing

BACKENDS = ("auto", "coreml", "reference")

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class SegmentedImage:
    """An upright RGB image and the class index of each of its pixels, (height, width) int32.

    -1 is outside of the centre crop, which the network does not see. `shares` has the classes by their share of the
    crop, largest first, `colors` the colour of each class.
    """

    image: "Image.Image"
    class_map: "ClassMap"
    shares: Mapping[str, float]
    colors: Mapping[str, str]


def predict(
    package: StrPath, images: Sequence[StrPath], backend: str = "auto", function: str | None = None
) -> Iterator[Any]:
    """Predictions of a package for one image after the other, as the function of its task here yields them.

    A classifier's probabilities as `classify`, a segmenter's `SegmentedImage` as `segment`, features as
    `extract_features`; arguments and errors are theirs.
    """
    return FUNCTIONS[read_record(package).task](package, images, backend, function)


def classify(
    package: StrPath, images: Sequence[StrPath], backend: str = "auto", function: str | None = None
) -> Iterator[dict[str, float]]:
    """Probability of each class for one image after the other, most probable first; logits or values by their names.

    Images are resized and cropped as the package's own record says. `backend` is "reference", the evaluator in the
    package's precision on any machine, "coreml", or "auto": Core ML on a Mac. `function` is one of a package of
    several sizes, by default its first.

    Raises PackageError for a package without a record or of another task, InputError for an image that cannot be
    read, an unknown function or backend.
    """
    for record, _, outputs in _run(package, Task.CLASSIFICATION, images, backend, function):
        with _as_recorded(package):
            if names_classes(record.task, record.outputs):
                by_name = outputs[CLASS_PROBABILITIES]
            else:
                (name,) = output_names(record.task, record.outputs)
                by_name = dict(zip(record.labels, outputs[name][0].tolist(), strict=True))
            if record.outputs.type != VALUES:
                by_name = dict(sorted(by_name.items(), key=operator.itemgetter(1), reverse=True))
        yield by_name


def segment(
    package: StrPath, images: Sequence[StrPath], backend: str = "auto", function: str | None = None
) -> Iterator[SegmentedImage]:
    """Class of each pixel of one image after the other; arguments and errors as for `classify`."""
    import numpy as np

    from mobilevit_coreml.masks import class_shares, full_size_class_map

    for record, image, outputs in _run(package, Task.SEGMENTATION, images, backend, function):
        crop = _preprocessing(record, function).crop_box(image.size)
        with _as_recorded(package):
            (name,) = output_names(record.task, record.outputs)
            output = np.asarray(outputs[name])
            class_map = full_size_class_map(output[0] if output.ndim == 4 else output, crop, image.size)
            shares = class_shares(class_map, record.labels)
        yield SegmentedImage(image, class_map, shares, dict(zip(record.labels, record.colors, strict=True)))


def extract_features(
    package: StrPath, images: Sequence[StrPath], backend: str = "auto", function: str | None = None
) -> Iterator[dict[str, "np.ndarray[Any, Any]"]]:
    """`pooled` (1, C), `featureMap` (1, C, H, W) and any maps of the stages, float32, as for `classify`."""
    for record, _, outputs in _run(package, Task.FEATURES, images, backend, function):
        with _as_recorded(package):
            features = {name: outputs[name] for name in output_names(record.task, record.outputs)}
            if features[POOLED].ndim != 2 or any(len(array) != 1 for array in features.values()):
                raise ValueError("arrays of other shapes")
        yield features


FUNCTIONS: Mapping[Task, Callable[..., Iterator[Any]]] = {
    Task.CLASSIFICATION: classify,
    Task.SEGMENTATION: segment,
    Task.FEATURES: extract_features,
}


def cosine_similarities(pooled: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Cosine of each pair of features (N, C): (N, N), -1 to 1, 0 for all zeros."""
    import numpy as np

    vectors = pooled.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(np.finfo(float).tiny)
    return vectors @ vectors.T


def read_record(package: StrPath) -> PackageRecord:
    """The record of a package's conversion; raises PackageError where it has none."""
    from mobilevit_coreml.reference.reader import read_specification

    metadata = dict(read_specification(Path(package)).description.metadata.userDefined)
    try:
        return PackageRecord.from_metadata(metadata)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, MobileViTError) as error:
        raise PackageError(
            f"package {package}: expected the record of a conversion by mobilevit_coreml, got none that is whole "
            f"({error}); convert the checkpoint with mobilevit_coreml"
        ) from None


@contextlib.contextmanager
def _as_recorded(package: StrPath) -> Iterator[None]:
    """PackageError for outputs that are not what the package's record says."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, InputError) as error:
        raise PackageError(
            f"package {package}: expected outputs as its record says, got others ({error}); convert it again"
        ) from None


def core_ml_is_here() -> bool:
    """True on a Mac."""
    return sys.platform == "darwin"


def check_images(record: PackageRecord, images: Sequence[StrPath], function: str | None = None) -> None:
    """Raise InputError for the first image that cannot be read or resized, before any is run."""
    from mobilevit_coreml.images import read_image
    from mobilevit_coreml.preprocessing import upright_rgb

    preprocessing = _preprocessing(record, function)
    for path in images:
        try:
            preprocessing.crop_box(upright_rgb(read_image(Path(path))).size)
        except InputError as error:
            raise InputError(str(error).replace("image: ", f"image {path}: ", 1)) from None


def _run(
    package: StrPath, task: Task, images: Sequence[StrPath], backend: str, function: str | None
) -> "Iterator[tuple[PackageRecord, Image.Image, Mapping[str, Any]]]":
    """The record, and each image, upright, with the package's outputs for it."""
    from mobilevit_coreml.images import read_image
    from mobilevit_coreml.preprocessing import upright_rgb

    record = read_record(package)
    if record.task != task:
        raise PackageError(
            f"package {package}: expected one for {task}, got one for {record.task}; convert with --task"
        )
    preprocessing = _preprocessing(record, function)
    run = _open_backend(Path(package), backend, record.precision, function)
    for path in images:
        image = upright_rgb(read_image(Path(path)))
        yield record, image, run({IMAGE: preprocessing.prepare(image)})


def _preprocessing(record: PackageRecord, function: str | None) -> "Preprocessing":
    by_function = record.by_function()
    name = next(iter(by_function)) if function is None else function
    check_choice("function", name, by_function, InputError)
    return by_function[name]


def _open_backend(
    package: Path, backend: str, precision: str, function: str | None
) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    check_choice("backend", backend, BACKENDS, InputError)
    if backend == "coreml" or (backend == "auto" and core_ml_is_here()):
        from mobilevit_coreml._coremltools import ct

        # the default, all compute units; the validator tries each of them in a process of its own
        return ct.models.MLModel(str(package), **({} if function is None else {"function_name": function})).predict
    from mobilevit_coreml.reference import ReferenceEvaluator

    return ReferenceEvaluator(package, precision, function).run
