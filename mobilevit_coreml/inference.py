"""A package asked about photographs: by Core ML on a Mac, by the reference evaluator anywhere."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import InputError, MobileViTError, PackageError
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES, IMAGE, POOLED, output_names
from mobilevit_coreml.package.metadata import PackageRecord

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from mobilevit_coreml.masks import ClassMap
    from mobilevit_coreml.preprocessing import Preprocessing

BACKENDS = ("auto", "coreml", "reference")


@dataclasses.dataclass(frozen=True)
class SegmentedPhotograph:
    """An upright RGB photograph and the class index of each of its pixels, (height, width) int32.

    -1 is where the network did not see it: beyond the centre crop. `shares` has the classes of what
    it saw by their share, largest first, `colors` the colour of each class.
    """

    photograph: "Image.Image"
    class_map: "ClassMap"
    shares: Mapping[str, float]
    colors: Mapping[str, str]


def predict(package: Path, images: Sequence[Path], backend: str = "auto", function: str | None = None) -> Iterator[Any]:
    """What a package says of one photograph after the other, as its task's function here gives it.

    A classifier's probabilities as `classify`, a segmenter's `SegmentedPhotograph` as `segment`, features as
    `extract_features`; arguments and errors are theirs.
    """
    ask = {CLASSIFICATION: classify, SEGMENTATION: segment, FEATURES: extract_features}[read_record(package).task]
    return ask(package, images, backend, function)


def classify(
    package: Path, images: Sequence[Path], backend: str = "auto", function: str | None = None
) -> Iterator[dict[str, float]]:
    """The probability of each class for one photograph after the other, most probable first.

    Photographs are resized and cropped as the package's own record says. `backend` is "reference", the
    evaluator in the package's precision on any machine, "coreml", or "auto": Core ML on a Mac.
    `function` is one of a package of several sizes, by default its first.

    Raises PackageError for a package without a record or of another task, InputError for what is no
    picture, function or backend.
    """
    for _, _, outputs in _outputs(package, CLASSIFICATION, images, backend, function):
        with _as_recorded(package):
            probabilities = dict(sorted(outputs[CLASS_PROBABILITIES].items(), key=lambda entry: -entry[1]))
        yield probabilities


def segment(
    package: Path, images: Sequence[Path], backend: str = "auto", function: str | None = None
) -> Iterator[SegmentedPhotograph]:
    """The class of each pixel of one photograph after the other; arguments and errors as for `classify`."""
    import numpy as np

    from mobilevit_coreml.masks import class_shares, full_size_class_map

    for record, photograph, outputs in _outputs(package, SEGMENTATION, images, backend, function):
        covered = _contract(record, function).crop_box(photograph.size)
        with _as_recorded(package):
            (name,) = output_names(record.task, record.outputs)
            output = np.asarray(outputs[name])
            class_map = full_size_class_map(output[0] if output.ndim == 4 else output, covered, photograph.size)
            shares = class_shares(class_map, record.labels)
        yield SegmentedPhotograph(photograph, class_map, shares, dict(zip(record.labels, record.colors, strict=True)))


def extract_features(
    package: Path, images: Sequence[Path], backend: str = "auto", function: str | None = None
) -> Iterator[dict[str, "np.ndarray[Any, Any]"]]:
    """`pooled` (1, C), `featureMap` (1, C, H, W) and perhaps the stages' maps, float32, as for `classify`."""
    for record, _, outputs in _outputs(package, FEATURES, images, backend, function):
        with _as_recorded(package):
            features = {name: outputs[name] for name in output_names(record.task, record.outputs)}
            if features[POOLED].ndim != 2 or any(len(array) != 1 for array in features.values()):
                raise ValueError("arrays of other shapes")
        yield features


def cosine_similarities(pooled: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """How alike features (N, C) are, one to one: (N, N), -1 to 1, 1 for the same direction, 0 for all zeros."""
    import numpy as np

    vectors = pooled.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(np.finfo(float).tiny)
    return vectors @ vectors.T


def read_record(package: Path) -> PackageRecord:
    """What a package records of its making; raises PackageError where it has none."""
    from mobilevit_coreml.reference.reader import read_specification

    metadata = dict(read_specification(package).description.metadata.userDefined)
    try:
        return PackageRecord.from_metadata(metadata)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, MobileViTError) as error:
        raise PackageError(
            f"package {package}: expected the record of a conversion by mobilevit_coreml, got none that is whole "
            f"({error}); convert the checkpoint with mobilevit_coreml"
        ) from None


@contextlib.contextmanager
def _as_recorded(package: Path) -> Iterator[None]:
    """PackageError for outputs that are not what the package's record says."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, InputError) as error:
        raise PackageError(
            f"package {package}: expected outputs as its record says, got others ({error}); convert it again"
        ) from None


def core_ml_is_here() -> bool:
    """Whether this machine can run Core ML."""
    return sys.platform == "darwin"


def _outputs(
    package: Path, task: str, images: Sequence[Path], backend: str, function: str | None
) -> "Iterator[tuple[PackageRecord, Image.Image, Mapping[str, Any]]]":
    """The record, and each upright photograph with what the package puts out for it."""
    from mobilevit_coreml.images import read_image
    from mobilevit_coreml.preprocessing import upright_rgb

    record = read_record(package)
    if record.task != task:
        raise PackageError(
            f"package {package}: expected one for {task}, got one for {record.task}; convert with --task"
        )
    contract = _contract(record, function)
    run_package = _runner(package, backend, record.precision, function)
    for path in images:
        photograph = upright_rgb(read_image(path))
        yield record, photograph, run_package({IMAGE: contract.prepare(photograph)})


def check_photographs(record: PackageRecord, images: Sequence[Path], function: str | None = None) -> None:
    """Raise InputError for the first photograph that could not be asked about, before any is."""
    from mobilevit_coreml.images import read_image
    from mobilevit_coreml.preprocessing import upright_rgb

    contract = _contract(record, function)
    for path in images:
        try:
            contract.crop_box(upright_rgb(read_image(path)).size)
        except InputError as error:
            raise InputError(str(error).replace("image: ", f"image {path}: ", 1)) from None


def _contract(record: PackageRecord, function: str | None) -> "Preprocessing":
    contracts = record.by_function()
    name = next(iter(contracts)) if function is None else function
    if name not in contracts:
        raise InputError(f"function: expected one of {', '.join(contracts)}, got {name!r}; choose one of these")
    return contracts[name]


def _runner(
    package: Path, backend: str, precision: str, function: str | None
) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}; choose one of these")
    if backend == "coreml" or (backend == "auto" and core_ml_is_here()):
        from mobilevit_coreml._coremltools import ct

        # the default, all compute units; the validator tries each of them in a process of its own
        return ct.models.MLModel(str(package), **({} if function is None else {"function_name": function})).predict
    from mobilevit_coreml.reference import ReferenceEvaluator

    return ReferenceEvaluator(package, precision, function).run
