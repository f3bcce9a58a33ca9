"""From a checkpoint to a package: `python -m mobilevit_coreml.convert --variant xs --fp16`."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilevit_coreml import __version__
from mobilevit_coreml.command_line import DONE, FAILED, Parser, Stages, run
from mobilevit_coreml.config import ATTENTION_FORMS, VARIANTS
from mobilevit_coreml.errors import ConversionError, LabelsError
from mobilevit_coreml.labels import placeholder_labels, read_labels, unique_labels
from mobilevit_coreml.package import (
    CLASS_LABEL,
    CLASS_PROBABILITIES,
    IMAGE,
    MEGABYTE,
    SUFFIX,
    PackageRecord,
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
from mobilevit_coreml.preprocessing import CHANNEL_ORDERS

if TYPE_CHECKING:
    from mobilevit_coreml.checkpoints.load import Checkpoint
    from mobilevit_coreml.model import ImageClassifier
    from mobilevit_coreml.verification import ClassifierFidelity

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
PRECISIONS = ("fp16", "fp32")
TASK = "classification"
STAGES = 5  # weights, model, convert, save, verify


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion made: the package, what it records, and what its user should be told."""

    path: Path
    record: PackageRecord
    target: str
    bytes: int
    operations: int  # of the ML Program, constants not counted
    classes: int
    fidelity: "ClassifierFidelity | None"  # None where it was not verified
    notices: tuple[str, ...]


def convert(
    weights: str = "auto",
    variant: str | None = None,
    *,
    precision: str = "fp16",
    attention: str = "split_einsum",
    target: str = "iOS16",
    image_size: tuple[int, int] | None = None,
    labels: Path | None = None,
    channel_order: str | None = None,
    output: Path | None = None,
    force: bool = False,
    verify: bool = True,
    images: Path | None = None,
    stages: Stages | None = None,
) -> Conversion:
    """Make a Core ML classifier package of a checkpoint.

    `weights` and `variant` are as in `load_checkpoint`. `image_size` is (height, width) in pixels,
    by default the checkpoint's; `labels` a file as in `read_labels`; `channel_order` BGR or RGB
    where it is not what the checkpoint's source uses; `output` a .mlpackage path or a directory.
    The saved package is verified by the reference evaluator on the pictures in `images`, or on drawn
    ones; one that fails the gate of its precision goes to a name ending in `_failed`.

    Raises MobileViTError, and writes nothing, where the request cannot be met.
    """
    _check_choice("variant", variant, VARIANTS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("attention", attention, ATTENTION_FORMS)
    _check_choice("target", target, TARGETS)
    _check_choice("channel order", channel_order, CHANNEL_ORDERS)
    names = None if labels is None else read_labels(labels)
    pictures = None if images is None else _pictures(images)
    check_output(output)
    stages = stages or Stages()

    with stages("weights"):
        from mobilevit_coreml.checkpoints.load import load_checkpoint

        checkpoint = _adapted(load_checkpoint(weights, variant), image_size, names, channel_order)
        class_names, renamed = unique_labels(checkpoint.config.id2label)
        record = _record(checkpoint, attention, precision, renamed)
        path = package_path(output, package_name(checkpoint.variant, precision), checkpoint.source.untrained)
        check_free(path, force)

    with staging(path) as staged:
        with stages("model"):
            from mobilevit_coreml.mil import classifier_program, count_operations, describe
            from mobilevit_coreml.model import ImageClassifier, fold_for_inference

            model = ImageClassifier(checkpoint.config, attention).eval()
            model.load_state_dict(checkpoint.state, strict=False)  # strict but for batch norm's step counters
        with stages("convert"):
            folded = fold_for_inference(model)
            program = classifier_program(folded, class_names, checkpoint.preprocessing, target, precision)
        with stages("save"):
            describe(program, record)
            save(program, staged)
        fidelity = None
        if verify:
            with stages("verify"):
                fidelity = _verified(staged, model, record, pictures)
        if fidelity is not None and not fidelity.passed:
            path, force = failed_path(path), True  # nobody keeps what failed the last time
            check_free(path, force)
        put_in_place(staged, path, force)
    operations = count_operations(program)
    return Conversion(path, record, target, size_of(path), operations, len(class_names), fidelity, _notices(checkpoint))


def _check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    if value is not None and value not in choices:
        raise ConversionError(f"{name}: expected one of {', '.join(choices)}, got {value!r}; choose one of these")


def _adapted(
    checkpoint: "Checkpoint",
    image_size: tuple[int, int] | None,
    names: tuple[str, ...] | None,
    channel_order: str | None,
) -> "Checkpoint":
    """The checkpoint with what the user asked for in place of what it came with."""
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
        preprocessing = preprocessing.with_crop(image_size)
    if names is not None:
        if len(names) != config.num_labels:
            raise LabelsError(
                f"labels: expected {config.num_labels} names, one for each class of the checkpoint, got {len(names)}; "
                "give a file that names every class once"
            )
        config = dataclasses.replace(config, id2label=names)
    if channel_order is not None:
        preprocessing = dataclasses.replace(preprocessing, channel_order=channel_order)
    if config.num_channels != 3:
        raise ConversionError(
            f"num_channels: expected 3, as an image input has, got {config.num_channels}; retrain on colour images"
        )
    if config.num_labels < 2:
        raise ConversionError(
            "classes: expected at least 2, since the probabilities come from a softmax, got 1; "
            "give the head one output a class"
        )
    return dataclasses.replace(checkpoint, config=config, preprocessing=preprocessing)


def _record(checkpoint: "Checkpoint", attention: str, precision: str, renamed: dict[int, str]) -> PackageRecord:
    config = dataclasses.asdict(checkpoint.config)
    del config["id2label"]  # the package has them as its class labels
    return PackageRecord(
        version=__version__,
        variant=checkpoint.variant,
        task=TASK,
        attention=attention,
        precision=precision,
        weights=checkpoint.source,
        preprocessing=checkpoint.preprocessing,
        config=config,
        labels_renamed={str(index): name for index, name in renamed.items()},
    )


def _pictures(directory: Path) -> list[Path]:
    from mobilevit_coreml.images import images_in

    return images_in(directory)


def _verified(
    package: Path, model: "ImageClassifier", record: PackageRecord, pictures: Sequence[Path] | None
) -> "ClassifierFidelity":
    """The saved package against the model it was made of, before batch norm was folded."""
    from mobilevit_coreml.images import drawn_images, read_image
    from mobilevit_coreml.verification import verify_classifier

    if pictures is None:
        prepared = iter(drawn_images(*record.preprocessing.crop))
    else:
        prepared = (record.preprocessing.prepare(read_image(path)) for path in pictures)
    return verify_classifier(package, model, record.preprocessing, record.precision, prepared)


def _notices(checkpoint: "Checkpoint") -> tuple[str, ...]:
    labels = checkpoint.config.id2label
    unnamed = labels == placeholder_labels(len(labels))
    text = f"the checkpoint names no classes: they are called {labels[0]} to {labels[-1]}; give --labels"
    return tuple(filter(None, (checkpoint.notice, text if unnamed else None)))


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="python -m mobilevit_coreml.convert",
        description="Convert a MobileViT checkpoint to a Core ML classifier package.",
    )
    parser.add_argument(
        "--variant", metavar="NAME", help=f"{', '.join(VARIANTS)}; recognized from a checkpoint of your own"
    )
    parser.add_argument(
        "--weights",
        default="auto",
        metavar="WHAT",
        help="auto: Apple's published weights, or untrained ones where the hub cannot be reached (default); "
        "pretrained: the same or an error; untrained; or a file, a directory or a hub id, "
        "in Hugging Face, cvnets or timm naming",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--fp16", dest="precision", action="store_const", const="fp16", help="half precision (default)"
    )
    precision.add_argument(
        "--fp32",
        dest="precision",
        action="store_const",
        const="fp32",
        help="single precision; not for the Neural Engine",
    )
    parser.set_defaults(precision="fp16")
    parser.add_argument(
        "--attention",
        default="split_einsum",
        metavar="FORM",
        help="split_einsum: the form Apple documents for the Neural Engine (default); packed: fewest operations",
    )
    parser.add_argument(
        "--target", default="iOS16", metavar="OS", help=f"least deployment target: {', '.join(TARGETS)} (default iOS16)"
    )
    parser.add_argument(
        "--image-size", type=_image_size, metavar="N|HxW", help="input size in pixels (default: the checkpoint's)"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names: a line each, or JSON (default: the checkpoint's)"
    )
    parser.add_argument(
        "--channel-order", metavar="ORDER", help="BGR or RGB (default: as the checkpoint's source has it)"
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help=f"a {SUFFIX} path or a directory (default: here)")
    parser.add_argument("--force", action="store_true", help="replace an existing package")
    verification = parser.add_mutually_exclusive_group()
    verification.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not run the saved package against PyTorch (by default it is, on any machine)",
    )
    verification.add_argument(
        "--images", type=Path, metavar="DIR", help="pictures to verify with (default: a fixed set, drawn)"
    )
    return parser


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected pixels as N or HEIGHTxWIDTH, got {text!r}; 256 is usual")
    return int(match[1]), int(match[2] or match[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    values = vars(parser().parse_args(arguments))

    def command(stages: Stages) -> int:
        conversion = convert(**values, stages=stages)
        stages.close()
        print(summary(conversion, stages.seconds))
        for notice in conversion.notices:
            print(f"note: {notice}", file=sys.stderr)
        if conversion.record.weights.untrained:
            print(UNTRAINED_WARNING, file=sys.stderr)
        if conversion.fidelity is None or conversion.fidelity.passed:
            return DONE
        print(f"failed: the package does not compute what PyTorch does; kept as {conversion.path}", file=sys.stderr)
        return FAILED

    return run(command, stages=STAGES if values["verify"] else STAGES - 1)


UNTRAINED_WARNING = """
  ###########################################################################
  #                                                                         #
  #   UNTRAINED WEIGHTS: this package recognizes nothing. Its structure,    #
  #   size and interface are the real ones; its answers are noise.          #
  #   Do not ship it. For Apple's weights connect to the Hugging Face hub   #
  #   and convert again, or give a checkpoint with --weights.               #
  #                                                                         #
  ###########################################################################
"""


def summary(conversion: Conversion, seconds: dict[str, float]) -> str:
    """What a person wants to know of a package at a glance, at most 80 columns wide."""
    record, weights = conversion.record, conversion.record.weights
    height, width = record.preprocessing.crop
    origin = f"seed {weights.seed}" if weights.untrained else f"{weights.naming} naming, sha256 {weights.sha256:.12}…"
    if conversion.fidelity is None:
        verified = ["not verified"]
    else:
        from mobilevit_coreml.verification import report

        verified = report(conversion.fidelity)
    rows = [
        ("size", f"{conversion.bytes / MEGABYTE:.2f} MB"),
        ("operations", f"{conversion.operations}"),
        ("made for", f"{conversion.target}, {record.precision}, {record.attention} attention"),
        ("input", f"{IMAGE}, {width}x{height} pixels, any pixel buffer ({record.preprocessing.channel_order} inside)"),
        ("outputs", f"{CLASS_LABEL}; {CLASS_PROBABILITIES}, {conversion.classes} classes"),
        ("weights", f"{weights.name} ({origin})"),
        ("Swift class", re.sub(r"\W|^(?=\d)", "_", conversion.path.stem)),
        *zip(["verified", *[""] * len(verified)], verified, strict=False),
        ("seconds", ", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items())),
    ]
    return "\n".join([str(conversion.path), *(f"  {name:<12} {text}" for name, text in rows)])


if __name__ == "__main__":
    sys.exit(main())
