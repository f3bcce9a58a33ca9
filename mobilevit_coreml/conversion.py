"""From a checkpoint to a package, stage by stage: weights, model, compression, ML Program, disk, verification."""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.cli.common import Stages
from mobilevit_coreml.compression.budget import Budget
from mobilevit_coreml.compression.formats import Format
from mobilevit_coreml.config import ATTENTION_FORMS, SEGMENTATION, TASKS, UNFOLD_FORMS, VARIANTS
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.options import (
    TARGETS,
    Size,
    adapted,
    check_choice,
    check_outputs,
    check_report,
    check_scheme,
    notices_of,
    record_of,
    scheme_of,
    sized,
    target_for,
)
from mobilevit_coreml.package.files import (
    check_free,
    check_output,
    failed_path,
    package_name,
    package_path,
    save,
    size_of,
)
from mobilevit_coreml.package.interface import OutputForm
from mobilevit_coreml.package.metadata import FUNCTION, PackageRecord
from mobilevit_coreml.preprocessing import CHANNEL_ORDERS, Preprocessing
from mobilevit_coreml.publish import publish, staging

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mobilevit_coreml.compression.plan import Plan
    from mobilevit_coreml.model import Model
    from mobilevit_coreml.verification import Fidelity

PRECISIONS = ("fp16", "fp32")
STAGES = ("weights", "model", "compress", "convert", "save", "verify")
POOR = 20.0  # dB: below, a classifier changes its mind on one picture in some
CALIBRATED = 24  # pictures at most
TESTED = 24  # pictures at most, of a compressed package
VIEWED = 120 * 256**2  # pixels of all crops to calibrate with


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion made: the package, what it records, and what its user should be told.

    `operations` are those of the ML Program's first function, constants not counted. `fidelity` is
    whether each function computes what was put into it, and empty where nothing was verified;
    `quality`, of a compressed package, how near that is to the weights as they were. `plan` is how the
    weights were compressed.
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

    @property
    def passed(self) -> bool:
        """Whether no verification failed."""
        return all(entry.passed for entry in (*self.fidelity.values(), *self.quality.values()))


def convert(
    weights: str = "auto",
    variant: str | None = None,
    *,
    task: str | None = None,
    precision: str = "fp16",
    attention: str = "split_einsum",
    unfold: str = "space_to_batch",
    target: str | None = None,
    image_sizes: Sequence[Size] = (),
    include_crop: bool = False,
    output_type: str | None = None,
    output_size: str | None = None,
    output_dtype: str | None = None,
    hidden_states: bool = False,
    labels: Path | None = None,
    channel_order: str | None = None,
    palettize: int | None = None,
    group_size: int | None = None,
    quantize: str | None = None,
    prune: float | None = None,
    max_size: int | None = None,
    min_snr: float | None = None,
    min_agreement: float | None = None,
    output: Path | None = None,
    force: bool = False,
    verify: bool = True,
    images: Path | None = None,
    report: Path | None = None,
    stages: Stages | None = None,
) -> Conversion:
    """Make a Core ML package of a checkpoint.

    `weights`, `variant` and `task` are as in `load_checkpoint`. `image_sizes` are (height, width) in
    pixels, by default the checkpoint's; several become functions of one package; with `include_crop`
    the package cuts the crop from a larger picture itself. `output_type`, `output_size` and
    `output_dtype` are as in `OutputForm`; `hidden_states` adds the stages' maps to features. `target`
    is iOS15 to iOS26, by default the least that has what is asked for, from iOS16 on. `labels` is a file
    as in `read_labels`; `channel_order` BGR or RGB where it is not what the checkpoint's source uses;
    `output` a .mlpackage path or a directory.

    Weights are stored in half precision, or all that bear it as one of: `palettize` bits (8, 6, 4, 3, 2, 1) with
    a table for each `group_size` output channels, `quantize` "int8" or "int4", `prune` a share of zeros; or
    each in the format that serves a budget best: `max_size` bytes, `min_snr` dB, `min_agreement` a share. The
    photographs in `images` calibrate them, but for every third, which tests what became of it. `report`
    is a .html, .json or .png file for what was chosen, and what it cost.

    The saved package is verified by the reference evaluator on the pictures in `images`, or on drawn
    ones; one that fails a gate goes to a name ending in `_failed`.

    Raises MobileViTError, and writes nothing, where the request cannot be met.
    """
    for name, value, choices in (
        ("variant", variant, VARIANTS),
        ("task", task, TASKS),
        ("precision", precision, PRECISIONS),
        ("attention", attention, ATTENTION_FORMS),
        ("unfold", unfold, UNFOLD_FORMS),
        ("target", target, TARGETS),
        ("channel order", channel_order, CHANNEL_ORDERS),
    ):
        check_choice(name, value, choices)
    options = {"type": output_type, "size": output_size, "dtype": output_dtype}
    asked: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    form = OutputForm(**asked)
    scheme = scheme_of(palettize, group_size, quantize, prune, max_size, min_snr, min_agreement)
    target = target_for(target, form, len(image_sizes) > 1, scheme, unfold)
    names = None if labels is None else read_labels(labels)
    pictures: Sequence[Path] = () if images is None else _pictures(images)
    check_output(output)
    check_report(report, scheme, verify, force)
    stages = stages or Stages()

    with stages("weights"):
        from mobilevit_coreml.checkpoints.load import load_checkpoint

        checkpoint = load_checkpoint(weights, variant, task)
        check_outputs(checkpoint, [*asked, *(["hidden_states"] if hidden_states else [])], form)
        check_scheme(scheme, checkpoint, image_sizes, len(pictures))
        if hidden_states:  # without the expansion the feature map is the fifth
            form = dataclasses.replace(form, hidden_states=5 if checkpoint.expand else 4)
        checkpoint = adapted(checkpoint, names, channel_order, include_crop)
        record, class_names = record_of(checkpoint, attention, unfold, precision, form, image_sizes)
        name = package_name(record.task, record.variant, precision, "" if scheme is None else str(scheme))
        path = package_path(output, name, untrained=record.weights.untrained)
        check_free(path, force)
        contracts = record.by_function()

    with staging(path) as staged:
        with stages("model"):
            from mobilevit_coreml.model import fold_for_inference

            models = {
                name: sized(checkpoint, pixels.crop).model(attention, unfold) for name, pixels in contracts.items()
            }
            folded = {name: fold_for_inference(model) for name, model in models.items()}
        plan: Plan | None = None
        tested = pictures
        if scheme is not None:
            with stages("compress"):
                from mobilevit_coreml.compression.plan import apply_plan

                tested, plan = _planned(scheme, models, folded, record, class_names, target, pictures, staged, stages)
                folded = {name: apply_plan(plan, model) for name, model in folded.items()}
                record = dataclasses.replace(record, compression=plan.summary())
        with stages("convert"):
            from mobilevit_coreml.mil import count_operations

            programs = _programs(folded, plan, record, class_names, target)
        with stages("save"):
            program = _saved(programs, record, staged)
        fidelity, quality = {}, {}
        if verify:
            with stages("verify"):
                computes = models if plan is None else folded  # batch norm folded or not
                fidelity = _verified(staged, computes, record, tested)
                if scheme is not None:
                    quality = _verified(staged, models, record, tested, _quality_gates(scheme, record.task))
        if not all(entry.passed for entry in (*fidelity.values(), *quality.values())):
            path, force = failed_path(path), True  # nobody keeps what failed the last time
            check_free(path, force)
        if report is not None and plan is not None:
            from mobilevit_coreml.report.compression import write_report

            write_report(report, path, size_of(staged), plan, next(iter(quality.values())))
        publish(staged, path, force)
    return Conversion(
        path,
        record,
        target,
        size_of(path),
        count_operations(program),
        checkpoint.config.num_labels,
        fidelity,
        quality,
        plan,
        (*notices_of(checkpoint), *_poor(scheme, quality)),
    )


def _poor(scheme: Format | Budget | None, quality: Mapping[str, "Fidelity"]) -> Iterator[str]:
    """That one format for all weights left little of the network, where it did."""
    worst = min((entry.worst.snr for entry in quality.values()), default=math.inf)
    if isinstance(scheme, Format) and not worst >= POOR:
        yield f"{scheme} for every layer leaves {worst:.1f} dB; max_size (--max-size) chooses a format for each"


def _pictures(directory: Path) -> list[Path]:
    from mobilevit_coreml.images import images_in

    return images_in(directory)


def _planned(
    scheme: Format | Budget,
    models: Mapping[str, "Model"],
    folded: Mapping[str, "Model"],
    record: PackageRecord,
    class_names: Sequence[str],
    target: str,
    pictures: Sequence[Path],
    staged: Path,
    stages: Stages,
) -> "tuple[Sequence[Path], Plan]":
    """How the weights are to be stored, and the pictures that had no part in it."""
    from mobilevit_coreml.compression.plan import apply_plan, budget_plan, uniform_plan

    function, contract = next(iter(record.by_function().items()))
    calibrated, tested = split(pictures)
    views = _views(contract, calibrated) if calibrated else None
    if isinstance(scheme, Format):
        return tested, uniform_plan(scheme, folded[function], views, len(calibrated), stages.steps)
    assert views is not None

    def build(plan: "Plan") -> tuple[int, float, float | None]:
        tried = staged.with_name("tried.mlpackage")
        made = dataclasses.replace(record, compression=plan.summary())
        _saved(_programs({function: apply_plan(plan, folded[function])}, plan, made, class_names, target), made, tried)
        (quality,) = _verified(tried, models, made, tested, _quality_gates(scheme, record.task)).values()
        size = size_of(tried)
        shutil.rmtree(tried)
        return size, quality.worst.snr, quality.agreement

    return tested, budget_plan(scheme, folded[function], views, len(calibrated), build, stages.steps)


def split(pictures: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Pictures to calibrate with, and every third, to test with; of many an even choice."""
    calibrated = [path for index, path in enumerate(pictures) if index % 3 != 2]
    return _some(calibrated, CALIBRATED), _some(pictures[2::3], TESTED)


def _some(paths: Sequence[Path], count: int) -> list[Path]:
    return [paths[index * len(paths) // count] for index in range(count)] if len(paths) > count else list(paths)


def _views(preprocessing: Preprocessing, pictures: Sequence[Path]) -> "Tensor":
    """Crops of photographs for calibration, as the network sees them: more of them the smaller they are."""
    import torch

    from mobilevit_coreml.compression.calibrate import views_of
    from mobilevit_coreml.images import read_image

    height, width = preprocessing.crop
    whole = dataclasses.replace(preprocessing, include_crop=preprocessing.resize >= min(preprocessing.crop))
    seen = dataclasses.replace(whole, include_crop=False, crop=whole.input_size)
    tensors = (torch.from_numpy(seen.pixels(whole.prepare(read_image(path))))[0] for path in pictures)
    return views_of(tensors, preprocessing.crop, max(VIEWED // (height * width), len(pictures)))


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
        pixels = record.by_function()[name]
        programs[name] = build_mlprogram(
            model, record.task, pixels, record.outputs, class_names, target, record.precision, encodings
        )
        describe_interface(programs[name], record, pixels)
    return programs


def _saved(programs: Mapping[str, Any], record: PackageRecord, path: Path) -> Any:
    """The programs as one, described and saved."""
    from mobilevit_coreml.mil import merge_functions
    from mobilevit_coreml.package.metadata import describe

    program = programs[FUNCTION] if FUNCTION in programs else merge_functions(programs, path.parent)
    describe(program, record)
    save(program, path)
    return program


def _quality_gates(scheme: Format | Budget, task: str) -> dict[str, float]:
    """What a compressed package has to keep of the model as it was: what a budget asks for."""
    if not isinstance(scheme, Budget):
        return {}
    agreement = "pixels" if task == SEGMENTATION else "top1"
    asked = {"snr": scheme.min_snr, agreement: scheme.min_agreement}
    return {name: gate for name, gate in asked.items() if gate is not None}


def _verified(
    package: Path,
    models: Mapping[str, "Model"],
    record: PackageRecord,
    pictures: Sequence[Path],
    gates: Mapping[str, float] | None = None,
) -> dict[str, "Fidelity"]:
    """Each function of the saved package against a model; gates as in `verify`."""
    from mobilevit_coreml.verification import verify

    return {
        name: verify(package, models[name], record, pixels, _prepared(pixels, pictures), name, gates)
        for name, pixels in record.by_function().items()
    }


def _prepared(preprocessing: Preprocessing, pictures: Sequence[Path]) -> "Iterator[Image.Image]":
    from mobilevit_coreml.images import read_image, synthetic_images

    if not pictures:
        return iter(synthetic_images(*preprocessing.input_size))
    return (preprocessing.prepare(read_image(path)) for path in pictures)
