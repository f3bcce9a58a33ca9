"""The command that converts: `python -m mobilevit_coreml.convert --variant xs --fp16`."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.checkpoints.overrides import Size
from mobilevit_coreml.cli.common import DONE, FAILED, Parser, ProgressBar, run
from mobilevit_coreml.compression.schemes import Budget, Compression, Palettize, Prune, Quantize
from mobilevit_coreml.config import ACTIVATIONS, CLASSIFICATION, SEGMENTATION, VARIANTS, Task, UnfoldImplementation
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.options import DEFAULT_TARGET, FIRST_WITH_FUNCTIONS, TARGETS, ConversionOptions, Precision
from mobilevit_coreml.package.files import MEGABYTE, SUFFIX
from mobilevit_coreml.package.interface import DTYPES, IMAGE, OUTPUT_TYPES, output_names
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.report.formatting import table

if TYPE_CHECKING:
    from mobilevit_coreml.metrics import Fidelity

PROG = "python -m mobilevit_coreml.convert"
SCHEMES = ("palettize", "quantize", "prune", "max_size", "min_snr", "min_agreement")


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s [--variant NAME] [options]",
        description="Convert a MobileViT checkpoint to a Core ML package: classifier, segmenter or features.",
    )
    _add_input(parser.add_argument_group("input"))
    _add_checkpoint(parser.add_argument_group("checkpoint", "in place of what its files say, or do not say"))
    _add_output(parser.add_argument_group("output"))
    _add_compression(parser.add_argument_group("compression", "one of these; --images calibrates it"))
    _add_verification(parser.add_argument_group("verification"))
    return parser


def _add_input(group: Any) -> None:
    group.add_argument("--variant", metavar="NAME", help=f"{', '.join(VARIANTS)} (default: the checkpoint's)")
    group.add_argument("--task", metavar="NAME", help=f"{', '.join(Task)} (default: what the weights were trained for)")
    group.add_argument(
        "--weights",
        default="auto",
        metavar="SOURCE",
        help="auto (default): Apple's published weights, or untrained ones where the hub is out of reach; pretrained: "
        "Apple's or an error; untrained; or a file, a directory, a hub id, in Hugging Face, cvnets or timm naming",
    )
    group.add_argument(
        "--image-size",
        dest="image_sizes",
        type=_image_sizes,
        default=(),
        metavar="N|HxW[,…]",
        help="input size in pixels (default: the checkpoint's); several become functions of one package",
    )
    group.add_argument(
        "--include-crop", action="store_true", help="crop the centre inside the package, for Vision's .centerCrop"
    )


def _add_checkpoint(group: Any) -> None:
    group.add_argument("--labels", type=Path, metavar="FILE", help="class names, a line each, or JSON")
    group.add_argument("--channel-order", metavar="ORDER", help="BGR or RGB")
    for name, text in (("mean", "subtracted from pixels 0 to 1"), ("std", "that they are divided by")):
        group.add_argument(
            f"--{name}", type=float, nargs="+", metavar="N", help=f"{text}: a number, or one each for R, G and B"
        )
    group.add_argument("--hidden-act", metavar="NAME", help=f"activation: {', '.join(ACTIVATIONS)}")
    group.add_argument("--num-attention-heads", type=int, metavar="N", help="heads of each attention layer")
    group.add_argument("--patch-size", type=int, metavar="N", help="side of an attention patch, cells of the map")
    group.add_argument("--output-stride", type=int, metavar="N", help="of a segmenter's backbone: 8, 16 or 32")
    group.add_argument("--atrous-rates", type=int, nargs=3, metavar="N", help="of DeepLabV3's three dilated branches")
    group.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, help="the moving average of the weights, where a file has both"
    )


def _add_output(group: Any) -> None:
    precision = group.add_mutually_exclusive_group()
    for name, text in (
        (Precision.FP16, "half precision (default)"),
        (Precision.FP32, "single precision, not for the Neural Engine"),
    ):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    group.set_defaults(precision=Precision.FP16)
    group.add_argument(
        "--target",
        metavar="OS",
        help=f"minimum deployment target, {', '.join(TARGETS)} (default {DEFAULT_TARGET}, "
        f"{FIRST_WITH_FUNCTIONS} for several image sizes)",
    )
    group.add_argument(
        "--attention",
        default="split_einsum",
        metavar="IMPL",
        help="split_einsum (default): as Apple documents it for the Neural Engine; packed: fewest operations",
    )
    group.add_argument(
        "--unfold", default="space_to_batch", metavar="IMPL", help="space_to_batch (default) or pixel_shuffle"
    )
    group.add_argument(
        "--output-type", metavar="TYPE", help=f"of a segmenter: {', '.join(OUTPUT_TYPES)}; of a classifier: logits"
    )
    group.add_argument("--output-size", metavar="SIZE", help="of a segmenter: image (default) or network, 1/16 of it")
    group.add_argument("--output-dtype", metavar="DTYPE", help=f"of features and scores: {' or '.join(DTYPES)}")
    group.add_argument("--hidden-states", action="store_true", help="output the maps of the five stages with features")
    group.add_argument("--output", type=Path, metavar="PATH", help=f"a {SUFFIX} path or a directory (default: here)")
    group.add_argument("--force", action="store_true", help="replace an existing package")


def _add_compression(group: Any) -> None:
    schemes = group.add_mutually_exclusive_group()
    schemes.add_argument(
        "--palettize", type=int, metavar="BITS", help="lookup tables: 8, 6, 4, 3 (iOS18), 2 or 1 bits a weight"
    )
    schemes.add_argument("--quantize", metavar="TYPE", help="int8, or int4 (iOS18), with a scale for each channel")
    schemes.add_argument("--prune", type=float, metavar="SHARE", help="set this share of the weights to zero")
    schemes.add_argument(
        "--max-size", type=_bytes, metavar="SIZE", help="a format for each layer: the best package within 1.0MB"
    )
    schemes.add_argument(
        "--min-snr", type=float, metavar="DB", help="a format for each layer: the smallest package of this SNR"
    )
    schemes.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="a format for each layer: the smallest with 0.99 of the classes",
    )
    group.add_argument(
        "--group-size", type=int, metavar="N", help="with --palettize: a lookup table for every N channels (iOS18)"
    )
    group.add_argument(
        "--report", type=Path, metavar="FILE", help="formats and errors of the layers, as .html, .json or .png"
    )


def _add_verification(group: Any) -> None:
    group.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images to verify with (default: synthetic ones); two of three calibrate a compression",
    )
    group.add_argument(
        "--check-framework",
        action="store_true",
        help="also compare the checkpoint with what transformers or timm, where installed, make of it",
    )
    group.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare the saved package with PyTorch"
    )


def _image_sizes(text: str) -> tuple[Size, ...]:
    matches = [re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", part) for part in text.split(",")]
    if not all(matches):
        raise argparse.ArgumentTypeError(
            f"expected pixels as N or HEIGHTxWIDTH, several with commas, got {text!r}; 256 is usual"
        )
    return tuple((int(match[1]), int(match[2] or match[1])) for match in matches if match)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(kB|MB|B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 1.0MB or 800kB (1 MB = 10^6 bytes), got {text!r}")
    return round(float(match[1]) * {"kB": 1000, "MB": MEGABYTE}.get(match[2], 1))


def _compression(values: dict[str, Any]) -> Compression | None:
    """Take the options of compression out of all values; argparse has seen to it that there is one at most."""
    group_size = values.pop("group_size")
    given = {name: value for name in SCHEMES if (value := values.pop(name)) is not None}
    if group_size is not None and "palettize" not in given:
        raise ConversionError(f"group_size: expected --palettize beside it, got {group_size} alone; leave it out")
    for name, value in given.items():
        if name == "palettize":
            return Palettize(value, group_size)
        return {"quantize": Quantize, "prune": Prune}[name](value) if name in SCHEMES[:3] else Budget(**{name: value})
    return None


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command; returns its exit code."""
    values = vars(parser(prog).parse_args(arguments))

    def command(progress: ProgressBar) -> int:
        compression = _compression(values)
        others = {
            name: values.pop(name) for name in ("output", "force", "images", "verify", "check_framework", "report")
        }
        weights, variant = values.pop("weights"), values.pop("variant")
        for name in ("mean", "std", "atrous_rates"):
            values[name] = None if values[name] is None else tuple(values[name])
        options = ConversionOptions(**values, compression=compression)
        conversion = convert(weights, variant, options, **others, progress=progress)
        progress.close()
        print(summary(conversion, progress.seconds))
        for notice in conversion.notices:
            print(f"note: {notice}", file=sys.stderr)
        if conversion.record.weights.untrained:
            print(UNTRAINED_WARNING, file=sys.stderr)
        if conversion.passed:
            return DONE
        print(f"failed: a gate was not reached; the package is {conversion.path}", file=sys.stderr)
        return FAILED

    return run(command)


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
    """A conversion for a terminal, at most 80 columns wide."""
    record, weights = conversion.record, conversion.record.weights
    origin = f"seed {weights.seed}" if weights.untrained else f"{weights.naming} naming, sha256 {weights.sha256:.12}…"
    preprocessing = record.by_function()
    sizes = ", ".join(_size(*pixels.input_size) for pixels in preprocessing.values())
    rows = [
        ("size", [f"{conversion.bytes / MEGABYTE:.2f} MB"]),
        ("operations", [f"{conversion.operations}"]),
        ("target", [_target(conversion)]),
        ("input", [f"{IMAGE}, {sizes} pixels, any pixel buffer ({_inside(record.preprocessing)})"]),
        ("functions", [", ".join(preprocessing)] if record.sizes else []),
        ("outputs", [_output_names(conversion)]),
        ("weights", [weights.name, origin]),
        ("Swift class", [re.sub(r"\W|^(?=\d)", "_", conversion.path.stem)]),
        ("stored as", _formats(conversion)),
        (f"kept in {record.precision}", _kept(conversion)),
        ("verified", _verified(conversion)),
        ("quality", _verdicts(conversion, conversion.quality, "the original") if conversion.quality else []),
        ("framework", _framework(conversion)),
        ("curve", _curve(conversion)),
        ("seconds", [", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items())]),
    ]
    return table(str(conversion.path), rows)


def _inside(pixels: Preprocessing) -> str:
    """Channel order and normalization of the network's input."""
    if not pixels.normalizes:
        return f"{pixels.channel_order} inside"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (pixels.mean, pixels.std))
    return f"{pixels.channel_order} inside, minus {mean}, over {std}"


def _size(height: int, width: int) -> str:
    return f"{width}x{height}" if height == width else f"{width} wide by {height} high"


def _target(conversion: Conversion) -> str:
    record = conversion.record
    unfold = "" if record.unfold == UnfoldImplementation.SPACE_TO_BATCH else f", {record.unfold} unfold"
    return f"{conversion.target}, {record.precision}, {record.attention} attention{unfold}"


def _output_names(conversion: Conversion) -> str:
    record = conversion.record
    names = "; ".join(output_names(record.task, record.outputs))
    classes = f", {conversion.classes} classes" if record.task in (CLASSIFICATION, SEGMENTATION) else ""
    return f"{names}{classes}"


def _formats(conversion: Conversion) -> list[str]:
    """Number of layers by format."""
    plan = conversion.plan
    if plan is None:
        return []
    formats = Counter(layer.format for layer in plan.layers)
    counts = ", ".join(f"{count} in {name}" for name, count in formats.most_common())
    how = f"calibrated with {plan.images} images" if plan.images else "rounded without images"
    return [f"{len(plan.layers)} layers: {counts}", how]


def _kept(conversion: Conversion) -> list[str]:
    """Number of layers that are not compressed, by reason."""
    plan = conversion.plan
    counts = Counter(plan.left.values()).most_common() if plan is not None else []
    return [", ".join(f"{count} {reason}" for reason, count in counts)] if counts else []


def _curve(conversion: Conversion) -> list[str]:
    """Size and quality of the choices on the way to a budget: scored in PyTorch, but for the package itself."""
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


def _framework(conversion: Conversion) -> list[str]:
    from mobilevit_coreml.metrics import verdict_text

    check = conversion.framework
    return [] if check is None else [f"{verdict_text(check.passed)}: {check.detail}"]


def _verdicts(conversion: Conversion, fidelity: Mapping[str, "Fidelity"], reference: str) -> list[str]:
    from mobilevit_coreml.report.text import verification_lines

    texts = {name: verification_lines(entry, reference) for name, entry in fidelity.items()}
    if not conversion.record.sizes:
        return [line for lines in texts.values() for line in lines]
    return [line for name, lines in texts.items() for line in (f"{name}:", *(f"  {line}" for line in lines))]
