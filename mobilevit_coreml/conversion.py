"""From a checkpoint to a package, stage by stage: weights, model, compression, ML Program, disk, verification."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mobilevit_coreml import mil, verification
from mobilevit_coreml.checkpoints import load
from mobilevit_coreml.compression.calibrate import calibration_crops
from mobilevit_coreml.compression.plan import Plan, StoredLayer, apply_plan, budget_plan, uniform_plan
from mobilevit_coreml.compression.schemes import Budget, Compression, split
from mobilevit_coreml.compression.search import Quality
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.errors import ConversionError, OutputError, check_choice
from mobilevit_coreml.images import images_in, read_image, synthetic_images
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.metrics import Fidelity, computation_gates, quality_gates
from mobilevit_coreml.model import Model, fold_for_inference
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package import files
from mobilevit_coreml.package.metadata import FUNCTION, PackageRecord, describe, describe_interface
from mobilevit_coreml.prepare import make_record, notices_of, with_crop_inside, with_image_size
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.publish import check_file_free, publish, staging
from mobilevit_coreml.scoring import scorer

if TYPE_CHECKING:
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
    fidelity: Mapping[str, Fidelity]
    quality: Mapping[str, Fidelity]
    plan: Plan | None
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
    paths: Sequence[Path] = () if images is None else images_in(Path(images))
    _check_images(options.compression, len(paths))
    destination = None if output is None else Path(output)
    files.check_output(destination)
    if report is not None:
        _check_report(Path(report), options.compression if verify else None, force)

    progress("weights")
    checkpoint = load.load_checkpoint(str(weights), variant, options.task, options)
    checkpoint = with_crop_inside(checkpoint, options.include_crop)
    record, class_names = make_record(checkpoint, options)
    name = files.package_name(record.task, record.variant, record.precision, scheme_name(options.compression))
    path = files.package_path(destination, name, untrained=record.weights.untrained)
    files.check_free(path, force)

    with staging(path) as staged:
        progress("model")
        models = {
            name: with_image_size(checkpoint, preprocessing.crop).model(record.attention, record.unfold)
            for name, preprocessing in record.by_function().items()
        }
        folded = {name: fold_for_inference(model) for name, model in models.items()}
        job = _Job(record, class_names, options.resolved_target(), models, folded)
        plan, programs = None, None
        if options.compression is not None:
            progress("compress")
            calibration, paths = split(paths)
            plan, programs = _plan(job, options.compression, calibration, paths, staged, progress)
            job = _compressed(job, plan)
        progress("convert")
        programs = programs or _programs(job, plan)
        progress("save")
        operations = _save(programs, job.record, staged)
        fidelity, quality = {}, {}
        if verify:
            progress("verify")
            expected = models if plan is None else job.folded  # batch norm folded or not
            fidelity = _verify(staged, expected, job.record, paths, computation_gates(job.record))
            if plan is not None:
                quality = _verify(staged, models, job.record, paths, quality_gates(job.record))
        framework = None
        if check_framework:
            from mobilevit_coreml.validation import framework as validation

            progress("framework")
            function, preprocessing = next(iter(record.by_function().items()))
            reading = validation.Reading(models[function], preprocessing, class_names, job.record, checkpoint.path)
            framework = validation.check_framework(reading, paths)
        conversion = Conversion(
            path,
            job.record,
            job.target,
            files.size_of(staged),
            operations,
            checkpoint.config.num_labels,
            fidelity,
            quality,
            plan,
            (*notices_of(checkpoint), *_advice(options.compression, quality)),
            framework,
        )
        if not conversion.passed:
            conversion, force = dataclasses.replace(conversion, path=files.failed_path(path)), True
            files.check_free(conversion.path, force)  # an earlier failed package is replaced
        if report is not None and plan is not None:
            from mobilevit_coreml.report.compression import write_report

            write_report(Path(report), conversion.path, conversion.bytes, plan, next(iter(quality.values())))
        progress("save")
        publish(staged, conversion.path, force)
    return conversion


def scheme_name(compression: Compression | None) -> str:
    """A compression's name in records and file names, `6bit` or `1MB`; "" without one."""
    if compression is None:
        return ""
    return str(compression if isinstance(compression, Budget) else compression.format)


def _check_images(compression: Compression | None, count: int) -> None:
    """Raise ConversionError for too few images to compress with."""
    if compression is not None and 0 < count < MIN_IMAGES:
        raise ConversionError(
            f"images: expected at least {MIN_IMAGES} to calibrate and to test with, got {count}; add some"
        )
    if isinstance(compression, Budget) and not count:
        raise ConversionError("images: expected photographs to calibrate with, got none; name their directory")


def _check_report(report: Path, verified: Compression | None, force: bool) -> None:
    """Raise where there will be nothing to report, or no place for it."""
    if report.suffix not in REPORTS:
        raise OutputError(
            f"report {report}: expected a name ending in {' or '.join(REPORTS)}, got another; change the ending"
        )
    if verified is None:
        raise ConversionError("report: expected a compression that is verified, got none; leave it out")
    check_file_free(report, force)


@dataclasses.dataclass(frozen=True)
class _Job:
    """A package to be; its functions' models by name, `folded` for inference and with the weights that it stores."""

    record: PackageRecord
    class_names: Sequence[str]
    target: str
    models: Mapping[str, Model]
    folded: Mapping[str, Model]


def _compressed(job: _Job, plan: Plan) -> _Job:
    record = dataclasses.replace(job.record, compression=plan.summary())
    folded = {name: apply_plan(plan, model) for name, model in job.folded.items()}
    return dataclasses.replace(job, record=record, folded=folded)


def _programs(job: _Job, plan: Plan | None) -> dict[str, Any]:
    """An ML Program for each function, its input and outputs described."""
    programs, record, target = {}, job.record, job.target
    encodings = {} if plan is None else plan.encoded
    for name, preprocessing in record.by_function().items():
        network = job.folded[name], record.task, preprocessing, record.outputs, job.class_names
        programs[name] = mil.build_mlprogram(*network, target, record.precision, encodings)
        describe_interface(programs[name], record, preprocessing)
    return programs


def _save(programs: Mapping[str, Any], record: PackageRecord, path: Path) -> int:
    """Save the programs as the functions of one package, described; returns the number of operations."""
    program = programs[FUNCTION] if FUNCTION in programs else mil.merge_functions(programs, path.parent)
    describe(program, record)
    files.save(program, path)
    return mil.count_operations(program)


def _verify(
    package: Path,
    models: Mapping[str, Model],
    record: PackageRecord,
    images: Sequence[Path],
    gates: Mapping[str, float],
) -> dict[str, Fidelity]:
    """Each function of the saved package against a model."""
    return {
        name: verification.verify(
            package, models[name], record, preprocessing, _prepared(preprocessing, images), name, gates
        )
        for name, preprocessing in record.by_function().items()
    }


def _prepared(preprocessing: Preprocessing, images: Sequence[Path]) -> Iterator[Image.Image]:
    if not images:
        return (image.convert(preprocessing.mode) for image in synthetic_images(*preprocessing.input_size))
    return (preprocessing.prepare(read_image(path)) for path in images)


def _advice(compression: Compression | None, quality: Mapping[str, Fidelity]) -> Iterator[str]:
    """A better way, where one format for all weights did not pass."""
    failed = [entry for entry in quality.values() if not entry.passed]
    if failed and compression is not None and not isinstance(compression, Budget):
        worst = min(entry.worst.snr for entry in failed)
        yield f"{compression.format} for every layer leaves {worst:.1f} dB; --max-size chooses a format for each layer"


def _plan(
    job: _Job,
    compression: Compression,
    calibration: Sequence[Path],
    test: Sequence[Path],
    staged: Path,
    progress: Progress,
) -> tuple[Plan, dict[str, Any] | None]:
    """The storage formats of the weights, and the programs if they are built; `test` has no part in calibration."""
    function, preprocessing = next(iter(job.record.by_function().items()))
    model, precision, images = job.folded[function], job.record.precision, len(calibration)
    crops = calibration_crops(preprocessing, calibration) if calibration else None
    if not isinstance(compression, Budget):
        return uniform_plan(compression.format, model, precision, crops, images, progress), None
    assert crops is not None
    predicted = scorer(job.models[function], job.record, preprocessing, _prepared(preprocessing, test))
    built: dict[tuple[StoredLayer, ...], dict[str, Any]] = {}

    def quality(fidelity: Fidelity) -> Quality:
        return Quality(fidelity.worst.snr, fidelity.agreement)

    def build(plan: Plan) -> tuple[int, Quality]:
        built.clear()
        package, compressed = staged.with_name("built.mlpackage"), _compressed(job, plan)
        built[plan.layers] = _programs(compressed, plan)
        _save(built[plan.layers], compressed.record, package)
        (fidelity,) = _verify(package, job.models, compressed.record, test, {}).values()
        size = files.size_of(package)
        shutil.rmtree(package)
        return size, quality(fidelity)

    guess = mil.guess_package_bytes(job.record.attention, job.class_names)
    plan = budget_plan(
        compression, model, precision, crops, images, guess, lambda stored: quality(predicted(stored)), build, progress
    )
    return plan, built.get(plan.layers)
