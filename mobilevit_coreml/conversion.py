"""From a checkpoint to a package, stage by stage: weights, model, ML Program, disk, verification."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml import __version__
from mobilevit_coreml.command_line import Stages
from mobilevit_coreml.config import ATTENTION_FORMS, CLASSIFICATION, FEATURES, SEGMENTATION, TASKS, VARIANTS
from mobilevit_coreml.errors import ConversionError, LabelsError
from mobilevit_coreml.interface import LABELS, MASK, MAX_MASK_CLASSES, OutputForm
from mobilevit_coreml.labels import placeholder_labels, read_labels, unique_labels
from mobilevit_coreml.labels.colors import class_colors
from mobilevit_coreml.package import (
    check_free,
    check_output,
    failed_path,
    package_name,
    package_path,
    put_in_place,
    save,
    size_of,
    staging,
)
from mobilevit_coreml.preprocessing import CHANNEL_ORDERS, Preprocessing
from mobilevit_coreml.record import FUNCTION, PackageRecord

if TYPE_CHECKING:
    from PIL import Image

    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.model import Model
    from mobilevit_coreml.verification import Fidelity

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
FIRST_WITH_FLOAT16_OUTPUTS = "iOS16"
FIRST_WITH_FUNCTIONS = "iOS18"
PRECISIONS = ("fp16", "fp32")
STAGES = ("weights", "model", "convert", "save", "verify")

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion made: the package, what it records, and what its user should be told.

    `operations` are those of the ML Program's first function, constants not counted. `fidelity` is
    that of each function, and empty where nothing was verified.
    """

    path: Path
    record: PackageRecord
    target: str
    bytes: int
    operations: int
    classes: int
    fidelity: Mapping[str, "Fidelity"]
    notices: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no verification failed."""
        return all(fidelity.passed for fidelity in self.fidelity.values())


def convert(
    weights: str = "auto",
    variant: str | None = None,
    *,
    task: str | None = None,
    precision: str = "fp16",
    attention: str = "split_einsum",
    target: str | None = None,
    image_sizes: Sequence[Size] = (),
    include_crop: bool = False,
    output_type: str | None = None,
    output_size: str | None = None,
    output_dtype: str | None = None,
    hidden_states: bool = False,
    labels: Path | None = None,
    channel_order: str | None = None,
    output: Path | None = None,
    force: bool = False,
    verify: bool = True,
    images: Path | None = None,
    stages: Stages | None = None,
) -> Conversion:
    """Make a Core ML package of a checkpoint.

    `weights`, `variant` and `task` are as in `load_checkpoint`. `image_sizes` are (height, width) in
    pixels, by default the checkpoint's; several become functions of one package; with `include_crop`
    the package cuts the crop from a larger picture itself. `output_type`, `output_size` and
    `output_dtype` are as in `OutputForm`; `hidden_states` adds the stages' maps to features. `target`
    is iOS15 to iOS26, by default iOS16, or iOS18 for several sizes. `labels` is a file as in
    `read_labels`; `channel_order` BGR or RGB where it is not what the checkpoint's source uses; `output`
    a .mlpackage path or a directory.
    The saved package is verified by the reference evaluator on the pictures in `images`, or on drawn
    ones; one that fails a gate goes to a name ending in `_failed`.

    Raises MobileViTError, and writes nothing, where the request cannot be met.
    """
    for name, value, choices in (
        ("variant", variant, VARIANTS),
        ("task", task, TASKS),
        ("precision", precision, PRECISIONS),
        ("attention", attention, ATTENTION_FORMS),
        ("target", target, TARGETS),
        ("channel order", channel_order, CHANNEL_ORDERS),
    ):
        _check_choice(name, value, choices)
    options = {"type": output_type, "size": output_size, "dtype": output_dtype}
    asked: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    form = OutputForm(**asked)
    target = _target(target, form, several=len(image_sizes) > 1)
    names = None if labels is None else read_labels(labels)
    pictures = None if images is None else _pictures(images)
    check_output(output)
    stages = stages or Stages()

    with stages("weights"):
        from mobilevit_coreml.checkpoints.load import load_checkpoint

        checkpoint = load_checkpoint(weights, variant, task)
        _check_outputs(checkpoint, [*asked, *(["hidden_states"] if hidden_states else [])], form)
        if hidden_states:  # without the expansion the feature map is the fifth
            form = dataclasses.replace(form, hidden_states=5 if checkpoint.expand else 4)
        checkpoint = _adapted(checkpoint, names, channel_order, include_crop)
        record, class_names = _record(checkpoint, attention, precision, form, image_sizes)
        path = package_path(
            output, package_name(record.task, record.variant, precision), untrained=record.weights.untrained
        )
        check_free(path, force)
        contracts = record.by_function()

    with staging(path) as staged:
        with stages("model"):
            from mobilevit_coreml.model import fold_for_inference

            models = {name: _sized(checkpoint, pixels.crop).model(attention) for name, pixels in contracts.items()}
        with stages("convert"):
            from mobilevit_coreml.description import describe, describe_features
            from mobilevit_coreml.mil import count_operations, merge_functions, program_of

            programs = {}
            for name, pixels in contracts.items():
                folded = fold_for_inference(models[name])
                programs[name] = program_of(folded, record.task, pixels, form, class_names, target, precision)
                describe_features(programs[name], record, pixels)
        with stages("save"):
            program = programs[FUNCTION] if FUNCTION in programs else merge_functions(programs, staged.parent)
            describe(program, record)
            save(program, staged)
        fidelity = {}
        if verify:
            with stages("verify"):
                fidelity = _verified(staged, models, record, pictures)
        if not all(entry.passed for entry in fidelity.values()):
            path, force = failed_path(path), True  # nobody keeps what failed the last time
            check_free(path, force)
        put_in_place(staged, path, force)
    classes, operations = checkpoint.config.num_labels, count_operations(program)
    return Conversion(path, record, target, size_of(path), operations, classes, fidelity, _notices(checkpoint))


def _check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    if value is not None and value not in choices:
        raise ConversionError(f"{name}: expected one of {', '.join(choices)}, got {value!r}; choose one of these")


def _target(target: str | None, form: OutputForm, several: bool) -> str:
    """The deployment target: the one asked for, if it can do what else is, or the least that can."""
    least = FIRST_WITH_FUNCTIONS if several else FIRST_WITH_FLOAT16_OUTPUTS if form.dtype == "float16" else TARGETS[0]
    target = target or max(least, "iOS16", key=TARGETS.index)
    if TARGETS.index(target) < TARGETS.index(least):
        what = "several image sizes in one package" if several else "float16 outputs"
        raise ConversionError(f"target: expected {least} or later for {what}, got {target}; raise it with --target")
    return target


def _check_outputs(checkpoint: "Checkpoint", asked: Collection[str], form: OutputForm) -> None:
    """Raise ConversionError where a form was asked for that the task does not have."""
    integers = checkpoint.task == SEGMENTATION and form.type in (LABELS, MASK)
    has = {
        CLASSIFICATION: (),
        SEGMENTATION: ("type", "size") if integers else ("type", "size", "dtype"),
        FEATURES: ("dtype", "hidden_states"),
    }[checkpoint.task]
    for name in asked:
        if name not in has:
            option = "--hidden-states" if name == "hidden_states" else f"--output-{name}"
            which = f"{checkpoint.task} with --output-type {form.type}" if integers else checkpoint.task
            raise ConversionError(f"{option}: expected no such choice, since {which} has none, got one; leave it out")
    if checkpoint.task == SEGMENTATION and form.type == MASK and checkpoint.config.num_labels > MAX_MASK_CLASSES:
        raise ConversionError(
            f"--output-type image: expected at most {MAX_MASK_CLASSES} classes, as a gray value can tell apart, "
            f"got {checkpoint.config.num_labels}; use --output-type labels"
        )


def _adapted(
    checkpoint: "Checkpoint", names: tuple[str, ...] | None, channel_order: str | None, include_crop: bool
) -> "Checkpoint":
    """The checkpoint with what the user asked for in place of what it came with."""
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if names is not None:
        if checkpoint.task == FEATURES:
            raise LabelsError(
                f"labels: expected none, since features have no classes, got {len(names)}; leave them out"
            )
        if len(names) != config.num_labels:
            raise LabelsError(
                f"labels: expected {config.num_labels} names, one for each class of the checkpoint, got {len(names)}; "
                "give a file that names every class once"
            )
        config = dataclasses.replace(config, id2label=names)
    if channel_order is not None:
        preprocessing = dataclasses.replace(preprocessing, channel_order=channel_order)
    if include_crop:
        preprocessing = dataclasses.replace(preprocessing, include_crop=True)
    if config.num_channels != 3:
        raise ConversionError(
            f"num_channels: expected 3, as an image input has, got {config.num_channels}; retrain on colour images"
        )
    if config.num_labels < 2 and checkpoint.task != FEATURES:
        raise ConversionError(
            "classes: expected at least 2, since a softmax chooses among them, got 1; give the head one output a class"
        )
    return dataclasses.replace(checkpoint, config=config, preprocessing=preprocessing)


def _sized(checkpoint: "Checkpoint", size: Size) -> "Checkpoint":
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, image_size=size))


def _record(
    checkpoint: "Checkpoint", attention: str, precision: str, form: OutputForm, sizes: Sequence[Size]
) -> tuple[PackageRecord, tuple[str, ...]]:
    """What the package will say of itself, and the class names, made unique."""
    functions = {_function_name(size): size for size in sizes}
    if len(functions) < len(sizes):
        raise ConversionError("image size: expected each size once, got one twice; leave the second out")
    if sizes:
        checkpoint = _sized(checkpoint, sizes[0])
    config = dataclasses.asdict(checkpoint.config)
    del config["id2label"]  # the package has them as its class labels
    labels = checkpoint.config.id2label
    class_names, renamed = unique_labels(labels) if checkpoint.task != FEATURES else ((), {})
    segments = checkpoint.task == SEGMENTATION
    record = PackageRecord(
        version=__version__,
        variant=checkpoint.variant,
        task=checkpoint.task,
        attention=attention,
        precision=precision,
        weights=checkpoint.source,
        preprocessing=checkpoint.preprocessing.with_crop(sizes[0]) if sizes else checkpoint.preprocessing,
        outputs=form,
        config=config,
        expand=checkpoint.expand,
        labels=class_names if segments else (),
        colors=class_colors(class_names) if segments else (),
        labels_renamed={str(index): name for index, name in renamed.items()},
        sizes=functions if len(sizes) > 1 else {},
    )
    return record, class_names


def _function_name(size: Size) -> str:
    height, width = size
    return f"size_{height}" if height == width else f"size_{height}x{width}"


def _pictures(directory: Path) -> list[Path]:
    from mobilevit_coreml.images import images_in

    return images_in(directory)


def _verified(
    package: Path, models: Mapping[str, "Model"], record: PackageRecord, pictures: Sequence[Path] | None
) -> dict[str, "Fidelity"]:
    """Each function of the saved package against the model it was made of, before batch norm was folded."""
    from mobilevit_coreml.verification import verify

    return {
        name: verify(package, models[name], record, pixels, _prepared(pixels, pictures), name)
        for name, pixels in record.by_function().items()
    }


def _prepared(preprocessing: Preprocessing, pictures: Sequence[Path] | None) -> "Iterator[Image.Image]":
    from mobilevit_coreml.images import drawn_images, read_image

    if pictures is None:
        return iter(drawn_images(*preprocessing.input_size))
    return (preprocessing.prepare(read_image(path)) for path in pictures)


def _notices(checkpoint: "Checkpoint") -> tuple[str, ...]:
    labels = checkpoint.config.id2label
    unnamed = checkpoint.task != FEATURES and labels == placeholder_labels(len(labels))
    text = f"the checkpoint names no classes: they are called {labels[0]} to {labels[-1]}; give --labels"
    return tuple(filter(None, (checkpoint.notice, text if unnamed else None)))
