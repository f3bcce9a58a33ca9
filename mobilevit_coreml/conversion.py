"""From a checkpoint to a package, stage by stage: weights, model, compression, ML Program, disk, verification."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.compression.schemes import Budget, Compression, split
from mobilevit_coreml.config import VARIANTS, Task
from mobilevit_coreml.errors import ConversionError, OutputError, check_choice
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package.files import (
    check_free,
    check_output,
    failed_path,
    package_name,
    package_path,
    save,
    size_of,
)
from mobilevit_coreml.package.metadata import FUNCTION, PackageRecord
from mobilevit_coreml.prepare import make_record, notices_of, with_crop_inside, with_image_size
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.publish import check_file_free, publish, staging

if TYPE_CHECKING:
    from PIL import Image

    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.compression.plan import Plan, StoredLayer
    from mobilevit_coreml.metrics import Fidelity
    from mobilevit_coreml.model import Model
    from mobilevit_coreml.validation.checks import Check

REPORTS = (".html", ".json", ".png")
MIN_IMAGES = 3  # two to calibrate with, one to test

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A finished conversion: the package, its record, and how it was verified.

    `operations` are those of the ML Program's first function, constants not counted. `fidelity`, by function, is
    of the package against PyTorch with the weights it stores, and empty where nothing was verified;
    `quality`, of a compressed package, is against the original weights. `plan` is how the weights were
    compressed. `notices` are sentences for the user.
    """

    path: Path
    record: PackageRecord
    target: str
    bytes: int
    operations: int
    classes: int
    fidelity: Mapping[str, "Fidelity"]
    quality: Mapping[str, "Fidelity"]
    plan: "Plan | None"
    notices: tuple[str, ...]
    framework: "Check | None" = None

    @property
    def passed(self) -> bool:
        """True unless a verification failed."""
        wrong = self.framework is not None and self.framework.passed is False
        return not wrong and all(entry.passed for entry in (*self.fidelity.values(), *self.quality.values()))


def convert(
    weights: StrPath = "auto",
    variant: str | None = None,
    options: ConversionOptions | None = None,
    *,
    output: StrPath | None = None,
    force: bool = False,
    images: StrPath | None = None,
    verify: bool = True,
    check_framework: bool = False,
    report: StrPath | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Convert a checkpoint to a Core ML package.

    `weights` and `variant` are as in `load_checkpoint`. `output` is a .mlpackage path or a directory, by default the
    current one; with `force` a package of that name is replaced.

    The saved package is executed by the reference evaluator and compared with PyTorch, on the images in the directory
    `images`, or on synthetic ones; one that fails a gate is saved under a name ending in `_failed`. Compression
    calibrates with the images but for every third, and is tested with these. With `check_framework` the checkpoint is
    also compared with what transformers or timm make of it. `report` is a .html, .json or .png
    file about the compression.

    Raises MobileViTError, and writes nothing, where the request cannot be met.
    """
    options = options or ConversionOptions()
    if variant is not None:
        check_choice("variant", variant, VARIANTS)
    if options.labels is not None:
        read_labels(options.labels)  # fails before anything is loaded
    paths = _images(images)
    _check_images(options.compression, len(paths))
    destination = None if output is None else Path(output)
    check_output(destination)
    report_path = None if report is None else Path(report)
    _check_report(report_path, options, verify, force)

    progress("weights")
    checkpoint = _load(str(weights), variant, options)
    record, class_names = make_record(checkpoint, options)
    name = package_name(record.task, record.variant, record.precision, scheme_name(options.compression))
    path = package_path(destination, name, untrained=record.weights.untrained)
    check_free(path, force)
    target = options.resolved_target()

    with staging(path) as staged:
        progress("model")
        models, folded = _models(checkpoint, record)
        plan, programs = None, None
        if options.compression is not None:
            progress("compress")
            paths, plan, programs = _planned(
                options.compression, models, folded, record, class_names, target, paths, staged, progress
            )
            folded, record = _compressed(folded, record, plan)
        progress("convert")
        programs = programs or _programs(folded, plan, record, class_names, target)
        progress("save")
        operations = _save(programs, record, staged)
        fidelity, quality = {}, {}
        if verify:
            progress("verify")
            from mobilevit_coreml.metrics import computation_gates, quality_gates

            expected = models if plan is None else folded  # batch norm folded or not
            fidelity = _verify(staged, expected, record, paths, computation_gates(record))
            if plan is not None:
                quality = _verify(staged, models, record, paths, quality_gates(record))
        framework = None
        if check_framework:
            progress("framework")
            framework = _check_framework(checkpoint, models, record, class_names, paths)
        wrong = framework is not None and framework.passed is False
        if wrong or not all(entry.passed for entry in (*fidelity.values(), *quality.values())):
            path, force = failed_path(path), True  # replaces an earlier failed package
            check_free(path, force)
        if report_path is not None and plan is not None:
            from mobilevit_coreml.report.compression import write_report

            write_report(report_path, path, size_of(staged), plan, next(iter(quality.values())))
        progress("save")
        publish(staged, path, force)
    notices = (*notices_of(checkpoint), *_advice(options.compression, quality))
    classes = checkpoint.config.num_labels
    return Conversion(
        path, record, target, size_of(path), operations, classes, fidelity, quality, plan, notices, framework
    )


def scheme_name(compression: Compression | None) -> str:
    """A compression's name in records and file names, `6bit` or `1MB`; "" without one."""
    if compression is None or isinstance(compression, Budget):
        return "" if compression is None else str(compression)
    return str(compression.format)


def _images(directory: StrPath | None) -> Sequence[Path]:
    if directory is None:
        return ()
    from mobilevit_coreml.images import images_in

    return images_in(Path(directory))


def _check_images(compression: Compression | None, count: int) -> None:
    """Raise ConversionError for too few images to compress with."""
    if compression is not None and 0 < count < MIN_IMAGES:
        raise ConversionError(
            f"images: expected at least {MIN_IMAGES} to calibrate and to test with, got {count}; add some"
        )
    if isinstance(compression, Budget) and not count:
        raise ConversionError("images: expected photographs to calibrate with, got none; name their directory")


def _check_report(report: Path | None, options: ConversionOptions, verify: bool, force: bool) -> None:
    """Raise where there will be nothing to report, or no place for it."""
    if report is None:
        return
    if report.suffix not in REPORTS:
        raise OutputError(
            f"report {report}: expected a name ending in {' or '.join(REPORTS)}, got another; change the ending"
        )
    if options.compression is None or not verify:
        raise ConversionError("report: expected a compression that is verified, got none; leave it out")
    check_file_free(report, force)


def _load(weights: str, variant: str | None, options: ConversionOptions) -> "Checkpoint":
    from mobilevit_coreml.checkpoints.load import load_checkpoint

    checkpoint = load_checkpoint(weights, variant, options.task, options)
    options.check_task(Task(checkpoint.task))
    return with_crop_inside(checkpoint, options.include_crop)


def _models(checkpoint: "Checkpoint", record: PackageRecord) -> tuple[dict[str, "Model"], dict[str, "Model"]]:
    """The model of each function, as it is and folded for inference."""
    from mobilevit_coreml.model import fold_for_inference

    models = {
        name: with_image_size(checkpoint, preprocessing.crop).model(record.attention, record.unfold)
        for name, preprocessing in record.by_function().items()
    }
    return models, {name: fold_for_inference(model) for name, model in models.items()}


def _compressed(
    folded: Mapping[str, "Model"], record: PackageRecord, plan: "Plan"
) -> tuple[dict[str, "Model"], PackageRecord]:
    """The models with their weights as they are going to be stored, and the record that says so."""
    from mobilevit_coreml.compression.plan import apply_plan

    record = dataclasses.replace(record, compression=plan.summary())
    return {name: apply_plan(plan, model) for name, model in folded.items()}, record


def _programs(
    folded: Mapping[str, "Model"],
    plan: "Plan | None",
    record: PackageRecord,
    class_names: Sequence[str],
    target: str,
) -> dict[str, Any]:
    """An ML Program for each function, its input and outputs described."""
    from mobilevit_coreml.mil import build_mlprogram
    from mobilevit_coreml.package.metadata import describe_interface

    programs = {}
    encodings = {} if plan is None else plan.encoded
    for name, model in folded.items():
        preprocessing = record.by_function()[name]
        programs[name] = build_mlprogram(
            model, record.task, preprocessing, record.outputs, class_names, target, record.precision, encodings
        )
        describe_interface(programs[name], record, preprocessing)
    return programs


def _save(programs: Mapping[str, Any], record: PackageRecord, path: Path) -> int:
    """Save the programs as the functions of one package, described; returns the number of operations."""
    from mobilevit_coreml.mil import count_operations, merge_functions
    from mobilevit_coreml.package.metadata import describe

    program = programs[FUNCTION] if FUNCTION in programs else merge_functions(programs, path.parent)
    describe(program, record)
    save(program, path)
    return count_operations(program)


def _verify(
    package: Path,
    models: Mapping[str, "Model"],
    record: PackageRecord,
    images: Sequence[Path],
    gates: Mapping[str, float],
) -> dict[str, "Fidelity"]:
    """Each function of the saved package against a model."""
    from mobilevit_coreml.verification import verify

    return {
        name: verify(package, models[name], record, preprocessing, _prepared(preprocessing, images), name, gates)
        for name, preprocessing in record.by_function().items()
    }


def _check_framework(
    checkpoint: "Checkpoint",
    models: Mapping[str, "Model"],
    record: PackageRecord,
    class_names: Sequence[str],
    images: Sequence[Path],
) -> "Check":
    """The first function's model against the library of its checkpoint."""
    from mobilevit_coreml.validation.framework import Reading, check_framework

    name, preprocessing = next(iter(record.by_function().items()))
    return check_framework(Reading(models[name], preprocessing, class_names, record, checkpoint.path), images)


def _prepared(preprocessing: Preprocessing, images: Sequence[Path]) -> "Iterator[Image.Image]":
    from mobilevit_coreml.images import read_image, synthetic_images

    if not images:
        return (image.convert(preprocessing.mode) for image in synthetic_images(*preprocessing.input_size))
    return (preprocessing.prepare(read_image(path)) for path in images)


def _advice(compression: Compression | None, quality: Mapping[str, "Fidelity"]) -> Iterator[str]:
    """A better way, where one format for all weights did not pass."""
    failed = [entry for entry in quality.values() if not entry.passed]
    if failed and compression is not None and not isinstance(compression, Budget):
        worst = min(entry.worst.snr for entry in failed)
        yield f"{compression.format} for every layer leaves {worst:.1f} dB; --max-size chooses a format for each layer"


def _planned(
    compression: Compression,
    models: Mapping[str, "Model"],
    folded: Mapping[str, "Model"],
    record: PackageRecord,
    class_names: Sequence[str],
    target: str,
    images: Sequence[Path],
    staged: Path,
    progress: Progress,
) -> "tuple[Sequence[Path], Plan, dict[str, Any] | None]":
    """The storage formats of the weights, the images that had no part in it, and the programs if they are built."""
    from mobilevit_coreml.compression.calibrate import calibration_crops
    from mobilevit_coreml.compression.plan import budget_plan, uniform_plan
    from mobilevit_coreml.compression.search import Quality
    from mobilevit_coreml.mil import guess_package_bytes
    from mobilevit_coreml.scoring import scorer

    (function, preprocessing), *_ = record.by_function().items()
    calibration, test = split(images)
    crops = calibration_crops(preprocessing, calibration) if calibration else None
    model, precision, calibrated = folded[function], record.precision, len(calibration)
    if not isinstance(compression, Budget):
        return test, uniform_plan(compression.format, model, precision, crops, calibrated, progress), None
    assert crops is not None
    predicted = scorer(models[function], record, preprocessing, _prepared(preprocessing, test))
    built: dict[tuple[StoredLayer, ...], dict[str, Any]] = {}

    def score(stored: "Model") -> Quality:
        fidelity = predicted(stored)
        return Quality(fidelity.worst.snr, fidelity.agreement)

    def build(plan: "Plan") -> tuple[int, Quality]:
        built.clear()
        package = staged.with_name("built.mlpackage")
        stored, described = _compressed({function: model}, record, plan)
        built[plan.layers] = _programs(stored, plan, described, class_names, target)
        _save(built[plan.layers], described, package)
        (fidelity,) = _verify(package, models, described, test, {}).values()
        size = size_of(package)
        shutil.rmtree(package)
        return size, Quality(fidelity.worst.snr, fidelity.agreement)

    guess = guess_package_bytes(record.attention, class_names)
    plan = budget_plan(compression, model, precision, crops, calibrated, guess, score, build, progress)
    return test, plan, built.get(plan.layers)
