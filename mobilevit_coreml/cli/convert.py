"""The command that makes packages: `python -m mobilevit_coreml.convert --variant xs --fp16`."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilevit_coreml.cli.common import DONE, FAILED, Parser, Stages, run
from mobilevit_coreml.config import CLASSIFICATION, SEGMENTATION, TASKS, UNFOLD_FORMS, VARIANTS
from mobilevit_coreml.conversion import STAGES, Conversion, convert
from mobilevit_coreml.options import TARGETS, Size
from mobilevit_coreml.package.files import MEGABYTE, SUFFIX
from mobilevit_coreml.package.interface import DTYPES, IMAGE, OUTPUT_SIZES, OUTPUT_TYPES, output_names
from mobilevit_coreml.report.formatting import table

if TYPE_CHECKING:
    from mobilevit_coreml.verification import Fidelity


PROG = "python -m mobilevit_coreml.convert"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Convert a MobileViT checkpoint to a Core ML package: classifier, segmenter or features.",
    )
    parser.add_argument(
        "--variant", metavar="NAME", help=f"{', '.join(VARIANTS)}; recognized from a checkpoint of your own"
    )
    parser.add_argument(
        "--task", metavar="NAME", help=f"{', '.join(TASKS)}; by default what the weights were trained for"
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
        "--unfold",
        default="space_to_batch",
        metavar="FORM",
        help="how maps are cut into patches, space_to_batch (default) or pixel_shuffle; they compute the same",
    )
    parser.add_argument(
        "--target",
        metavar="OS",
        help=f"least deployment target: {', '.join(TARGETS)} (default iOS16, for several image sizes iOS18)",
    )
    parser.add_argument(
        "--image-size",
        dest="image_sizes",
        type=_image_sizes,
        default=(),
        metavar="N|HxW[,…]",
        help="input size in pixels (default: the checkpoint's); several become functions of one package",
    )
    parser.add_argument(
        "--include-crop",
        action="store_true",
        help="take the picture before the centre crop, and crop inside: for Vision's .centerCrop",
    )
    parser.add_argument(
        "--output-type",
        metavar="TYPE",
        help=f"what a segmenter puts out: {', '.join(OUTPUT_TYPES)} (default labels, class indices)",
    )
    parser.add_argument(
        "--output-size",
        metavar="SIZE",
        help=f"a segmenter's output is as large as the {OUTPUT_SIZES[0]} (default), or as the {OUTPUT_SIZES[1]} has it",
    )
    parser.add_argument(
        "--output-dtype", metavar="DTYPE", help=f"{' or '.join(DTYPES)} (default float32), of features and scores"
    )
    parser.add_argument("--hidden-states", action="store_true", help="put out the five stages' maps with the features")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names: a line each, or JSON (default: the checkpoint's)"
    )
    parser.add_argument(
        "--channel-order", metavar="ORDER", help="BGR or RGB (default: as the checkpoint's source has it)"
    )
    compression = parser.add_argument_group(
        "smaller weights", "one of these; with --images, rounding makes up for its errors on such photographs"
    ).add_mutually_exclusive_group()
    compression.add_argument(
        "--palettize", type=int, metavar="BITS", help="indices into tables: 8, 6, 4, 3 (iOS18), 2 or 1 bits"
    )
    compression.add_argument("--quantize", metavar="TYPE", help="int8, or int4 (iOS18), a scale for each channel")
    compression.add_argument("--prune", type=float, metavar="SHARE", help="leave out this share of the weights")
    compression.add_argument(
        "--max-size", type=_bytes, metavar="SIZE", help="the best package within a size, 1.0MB or 800kB"
    )
    compression.add_argument(
        "--min-snr", type=float, metavar="DB", help="the smallest package whose outputs keep so many dB"
    )
    compression.add_argument(
        "--min-agreement", type=float, metavar="SHARE", help="the smallest that keeps this share of the classes, 0.99"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="the choice for each layer and its price: .html, .json or .png",
    )
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="with --palettize: a table for every N output channels (iOS18)"
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
        "--images",
        type=Path,
        metavar="DIR",
        help="pictures to verify with (default: a fixed set, drawn); to compress, two of three calibrate",
    )
    return parser


def _image_sizes(text: str) -> list[Size]:
    matches = [re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", part) for part in text.split(",")]
    if not all(matches):
        raise argparse.ArgumentTypeError(
            f"expected pixels as N or HEIGHTxWIDTH, several with commas, got {text!r}; 256 is usual"
        )
    return [(int(match[1]), int(match[2] or match[1])) for match in matches if match]


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(kB|MB|B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 1.0MB or 800kB (1 MB = 10^6 bytes), got {text!r}")
    return round(float(match[1]) * {"kB": 1000, "MB": MEGABYTE}.get(match[2], 1))


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command; returns its exit code."""
    values = vars(parser(prog).parse_args(arguments))

    def command(stages: Stages) -> int:
        conversion = convert(**values, stages=stages)
        stages.close()
        print(summary(conversion, stages.seconds))
        for notice in conversion.notices:
            print(f"note: {notice}", file=sys.stderr)
        if conversion.record.weights.untrained:
            print(UNTRAINED_WARNING, file=sys.stderr)
        if conversion.passed:
            return DONE
        print(f"failed: the package is not what it has to be; kept as {conversion.path}", file=sys.stderr)
        return FAILED

    schemes = ("palettize", "quantize", "prune", "max_size", "min_snr", "min_agreement")
    left_out = {"verify": not values["verify"], "compress": all(values[name] is None for name in schemes)}
    return run(command, stages=sum(not left_out.get(stage) for stage in STAGES))


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
    origin = f"seed {weights.seed}" if weights.untrained else f"{weights.naming} naming, sha256 {weights.sha256:.12}…"
    contracts = record.by_function()
    pictures = ", ".join(_size(*pixels.input_size) for pixels in contracts.values())
    rows = [
        ("size", [f"{conversion.bytes / MEGABYTE:.2f} MB"]),
        ("operations", [f"{conversion.operations}"]),
        ("made for", [_forms(conversion)]),
        ("input", [f"{IMAGE}, {pictures} pixels, any pixel buffer ({record.preprocessing.channel_order} inside)"]),
        ("functions", [", ".join(contracts)] if record.sizes else []),
        ("outputs", [_outputs(conversion)]),
        ("weights", [weights.name, origin]),
        ("Swift class", [re.sub(r"\W|^(?=\d)", "_", conversion.path.stem)]),
        ("stored as", _formats(conversion)),
        ("left alone", _left(conversion)),
        ("verified", _verified(conversion)),
        ("quality", _verdicts(conversion, conversion.quality, "the original") if conversion.quality else []),
        ("curve", _curve(conversion)),
        ("seconds", [", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items())]),
    ]
    return table(str(conversion.path), rows)


def _size(height: int, width: int) -> str:
    return f"{width}x{height}" if height == width else f"{width} wide by {height} high"


def _forms(conversion: Conversion) -> str:
    record = conversion.record
    unfold = "" if record.unfold == UNFOLD_FORMS[0] else f", {record.unfold} unfold"
    return f"{conversion.target}, {record.precision}, {record.attention} attention{unfold}"


def _outputs(conversion: Conversion) -> str:
    record = conversion.record
    names = "; ".join(output_names(record.task, record.outputs))
    classes = f", {conversion.classes} classes" if record.task in (CLASSIFICATION, SEGMENTATION) else ""
    return f"{names}{classes}"


def _formats(conversion: Conversion) -> list[str]:
    """How many layers are stored in which format."""
    plan = conversion.plan
    if plan is None:
        return []
    formats = Counter(layer.format for layer in plan.layers)
    counts = ", ".join(f"{count} in {name}" for name, count in formats.most_common())
    how = f"calibrated with {plan.pictures} pictures" if plan.pictures else "rounded without pictures"
    return [f"{len(plan.layers)} layers: {counts}", how]


def _left(conversion: Conversion) -> list[str]:
    """How many weights were left in half precision, and why."""
    plan = conversion.plan
    counts = Counter(plan.left.values()).most_common() if plan is not None else []
    return [", ".join(f"{count} {reason}" for reason, count in counts)] if counts else []


def _curve(conversion: Conversion) -> list[str]:
    """What was built on the way to a budget."""
    points = conversion.plan.curve if conversion.plan is not None else ()
    return [
        f"{size / MEGABYTE:.2f} MB {snr:5.1f} dB" + ("" if agreement is None else f"  {agreement:6.1%} agree")
        for size, snr, agreement in points
    ]


def _verified(conversion: Conversion) -> list[str]:
    if not conversion.fidelity:
        return ["not verified"]
    reference = "PyTorch fp32" if conversion.plan is None else "these weights in PyTorch fp32"
    return _verdicts(conversion, conversion.fidelity, reference)


def _verdicts(conversion: Conversion, fidelity: Mapping[str, "Fidelity"], reference: str) -> list[str]:
    from mobilevit_coreml.verification import report

    texts = {name: report(entry, reference) for name, entry in fidelity.items()}
    if not conversion.record.sizes:
        return [line for lines in texts.values() for line in lines]
    return [line for name, lines in texts.items() for line in (f"{name}:", *(f"  {line}" for line in lines))]
