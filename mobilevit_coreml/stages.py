"""Stages of a conversion: models, the plan of their compression, ML Programs, a package on disk, verification."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mobilevit_coreml import mil, verification
from mobilevit_coreml.checkpoints.load import Checkpoint
from mobilevit_coreml.compression.calibrate import calibration_crops
from mobilevit_coreml.compression.plan import Plan, StoredLayer, apply_plan, budget_plan, uniform_plan
from mobilevit_coreml.compression.schemes import Budget, Compression
from mobilevit_coreml.compression.search import Quality
from mobilevit_coreml.images import read_image, synthetic_images
from mobilevit_coreml.metrics import Fidelity
from mobilevit_coreml.model import Model, fold_for_inference
from mobilevit_coreml.package import files
from mobilevit_coreml.package.metadata import FUNCTION, PackageRecord, describe, describe_interface
from mobilevit_coreml.prepare import with_image_size
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.progress import Progress
from mobilevit_coreml.scoring import scorer


@dataclasses.dataclass(frozen=True)
class Job:
    """A package to be; its functions' models by name, `folded` for inference and with the weights that it stores."""

    record: PackageRecord
    class_names: Sequence[str]
    target: str
    models: Mapping[str, Model]
    folded: Mapping[str, Model]


def make_job(checkpoint: Checkpoint, record: PackageRecord, class_names: Sequence[str], target: str) -> Job:
    """The models of each function of the package."""
    models = {
        name: with_image_size(checkpoint, preprocessing.crop).model(record.attention, record.unfold)
        for name, preprocessing in record.by_function().items()
    }
    folded = {name: fold_for_inference(model) for name, model in models.items()}
    return Job(record, class_names, target, models, folded)


def compressed(job: Job, plan: Plan) -> Job:
    """The job with its weights as a plan stores them, and a record that says so."""
    record = dataclasses.replace(job.record, compression=plan.summary())
    folded = {name: apply_plan(plan, model) for name, model in job.folded.items()}
    return dataclasses.replace(job, record=record, folded=folded)


def build_programs(job: Job, plan: Plan | None) -> dict[str, Any]:
    """An ML Program for each function, its input and outputs described."""
    programs, record, target = {}, job.record, job.target
    encodings = {} if plan is None else plan.encoded
    for name, preprocessing in record.by_function().items():
        network = job.folded[name], record.task, preprocessing, record.outputs, job.class_names
        programs[name] = mil.build_mlprogram(*network, target, record.precision, encodings)
        describe_interface(programs[name], record, preprocessing)
    return programs


def make_plan(
    job: Job,
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
        package, stored = staged.with_name("built.mlpackage"), compressed(job, plan)
        built[plan.layers] = build_programs(stored, plan)
        save(built[plan.layers], stored.record, package)
        (fidelity,) = verify(package, job.models, stored.record, test, {}).values()
        size = files.size_of(package)
        shutil.rmtree(package)
        return size, quality(fidelity)

    guess = mil.guess_package_bytes(job.record.attention, job.class_names)
    plan = budget_plan(
        compression, model, precision, crops, images, guess, lambda model: quality(predicted(model)), build, progress
    )
    return plan, built.get(plan.layers)


def save(programs: Mapping[str, Any], record: PackageRecord, path: Path) -> int:
    """Save the programs as the functions of one package, described; returns the number of operations."""
    program = programs[FUNCTION] if FUNCTION in programs else mil.merge_functions(programs, path.parent)
    describe(program, record)
    files.save(program, path)
    return mil.count_operations(program)


def verify(
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
