"""Predictions of a package for images: by Core ML on a Mac, by the reference evaluator anywhere."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
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
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # outputs of a package for its inputs, by name


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
    """Predictions of a package for one image after the other.

    Of a classifier the probability of each class, most probable first (logits or values by their names); of a
    segmenter a `SegmentedImage`; of a feature extractor `pooled` (1, C), `featureMap` (1, C, H, W) and any maps of
    the stages, float32, by name.

    Images are resized and cropped as the package's own record says. `backend` is "reference", the evaluator in the
    package's precision on any machine, "coreml", or "auto": Core ML on a Mac. `function` is one of a package of
    several sizes, by default its first.

    Raises PackageError for a package without a record, InputError for an image that cannot be read, an unknown
    function or backend.
    """
    record = read_record(package)
    preprocessing = _preprocessing(record, function)
    run = _open_backend(Path(package), backend, record.precision, function)
    return (_predict(package, Path(path), record, preprocessing, run) for path in images)


def _predict(package: StrPath, path: Path, record: PackageRecord, preprocessing: "Preprocessing", run: Run) -> Any:
    from mobilevit_coreml.images import read_image
    from mobilevit_coreml.preprocessing import upright_rgb

    image = upright_rgb(read_image(path))
    outputs = run({IMAGE: preprocessing.prepare(image)})
    try:
        if record.task == Task.CLASSIFICATION:
            return _by_class(record, outputs)
        if record.task == Task.SEGMENTATION:
            return _segmented(record, image, preprocessing.crop_box(image.size), outputs)
        features = {name: outputs[name] for name in output_names(record.task, record.outputs)}
        if features[POOLED].ndim != 2 or any(len(array) != 1 for array in features.values()):
            raise ValueError("arrays of other shapes")
        return features
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, InputError) as error:
        raise PackageError(
            f"package {package}: expected outputs as its record says, got others ({error}); convert it again"
        ) from None


def _by_class(record: PackageRecord, outputs: Mapping[str, Any]) -> dict[str, float]:
    if names_classes(record.task, record.outputs):
        by_name = outputs[CLASS_PROBABILITIES].items()
    else:
        (name,) = output_names(record.task, record.outputs)
        by_name = zip(record.labels, outputs[name][0].tolist(), strict=True)
    return dict(by_name if record.outputs.type == VALUES else sorted(by_name, key=itemgetter(1), reverse=True))


def _segmented(
    record: PackageRecord, image: "Image.Image", crop: tuple[float, float, float, float], outputs: Mapping[str, Any]
) -> SegmentedImage:
    import numpy as np

    from mobilevit_coreml.masks import class_shares, full_size_class_map

    (name,) = output_names(record.task, record.outputs)
    output = np.asarray(outputs[name])
    class_map = full_size_class_map(output[0] if output.ndim == 4 else output, crop, image.size)
    colors = dict(zip(record.labels, record.colors, strict=True))
    return SegmentedImage(image, class_map, class_shares(class_map, record.labels), colors)


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


def _preprocessing(record: PackageRecord, function: str | None) -> "Preprocessing":
    by_function = record.by_function()
    name = next(iter(by_function)) if function is None else function
    check_choice("function", name, by_function, InputError)
    return by_function[name]


def _open_backend(package: Path, backend: str, precision: str, function: str | None) -> Run:
    check_choice("backend", backend, BACKENDS, InputError)
    if backend == "coreml" or (backend == "auto" and core_ml_is_here()):
        from mobilevit_coreml._coremltools import ct

        # the default, all compute units; the validator tries each of them in a process of its own
        return ct.models.MLModel(str(package), **({} if function is None else {"function_name": function})).predict
    from mobilevit_coreml.reference import ReferenceEvaluator

    return ReferenceEvaluator(package, precision, function).run
