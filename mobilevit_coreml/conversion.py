"""From a checkpoint to a package, stage by stage: weights, model, compression, ML Program, disk, verification."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilevit_coreml.compression.schemes import Budget, Compression, split
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.errors import ConversionError, OutputError, check_choice
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package import files
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.prepare import make_record, notices_of, with_crop_inside
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.publish import check_file_free, publish, staging

if TYPE_CHECKING:
    from mobilevit_coreml.compression.plan import Plan
    from mobilevit_coreml.metrics import Fidelity
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
    files.check_output(destination)
    if report is not None:
        _check_report(Path(report), options.compression if verify else None, force)

    from mobilevit_coreml import stages  # torch and coremltools take seconds: only now that nothing is wrong
    from mobilevit_coreml.checkpoints.load import load_checkpoint
    from mobilevit_coreml.metrics import computation_gates, quality_gates

    progress("weights")
    checkpoint = load_checkpoint(str(weights), variant, options.task, options)
    checkpoint = with_crop_inside(checkpoint, options.include_crop)
    record, class_names = make_record(checkpoint, options)
    name = files.package_name(record.task, record.variant, record.precision, scheme_name(options.compression))
    path = files.package_path(destination, name, untrained=record.weights.untrained)
    files.check_free(path, force)

    with staging(path) as staged:
        progress("model")
        job = stages.make_job(checkpoint, record, class_names, options.resolved_target())
        plan, programs = None, None
        if options.compression is not None:
            progress("compress")
            calibration, paths = split(paths)
            plan, programs = stages.make_plan(job, options.compression, calibration, paths, staged, progress)
            job = stages.compressed(job, plan)
        progress("convert")
        programs = programs or stages.build_programs(job, plan)
        progress("save")
        operations = stages.save(programs, job.record, staged)
        fidelity, quality = {}, {}
        if verify:
            progress("verify")
            expected = job.models if plan is None else job.folded  # batch norm folded or not
            fidelity = stages.verify(staged, expected, job.record, paths, computation_gates(job.record))
            if plan is not None:
                quality = stages.verify(staged, job.models, job.record, paths, quality_gates(job.record))
        framework = None
        if check_framework:
            from mobilevit_coreml.validation import framework as validation

            progress("framework")
            function, preprocessing = next(iter(record.by_function().items()))
            reading = validation.Reading(job.models[function], preprocessing, class_names, job.record, checkpoint.path)
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


def _check_report(report: Path, verified: Compression | None, force: bool) -> None:
    """Raise where there will be nothing to report, or no place for it."""
    if report.suffix not in REPORTS:
        raise OutputError(
            f"report {report}: expected a name ending in {' or '.join(REPORTS)}, got another; change the ending"
        )
    if verified is None:
        raise ConversionError("report: expected a compression that is verified, got none; leave it out")
    check_file_free(report, force)


def _advice(compression: Compression | None, quality: Mapping[str, "Fidelity"]) -> Iterator[str]:
    """A better way, where one format for all weights did not pass."""
    failed = [entry for entry in quality.values() if not entry.passed]
    if failed and compression is not None and not isinstance(compression, Budget):
        worst = min(entry.worst.snr for entry in failed)
        yield f"{compression.format} for every layer leaves {worst:.1f} dB; --max-size chooses a format for each layer"
