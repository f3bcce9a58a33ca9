"""The command that converts: `python -m mobilevit_coreml.convert --variant xs --fp16`."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.checkpoints.overrides import Size
from mobilevit_coreml.cli.common import DONE, FAILED, Parser, ProgressBar, option, run, switch
from mobilevit_coreml.compression.schemes import Budget, Compression, Palettize, Prune, Quantize
from mobilevit_coreml.config import ACTIVATIONS, FEATURES, PROBLEM_TYPES, VARIANTS, Task, UnfoldImplementation
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.options import DEFAULT_TARGET, FIRST_WITH_FUNCTIONS, TARGETS, ConversionOptions, Precision
from mobilevit_coreml.package.files import MEGABYTE, SUFFIX
from mobilevit_coreml.package.interface import DTYPES, IMAGE, OUTPUT_TYPES, output_names
from mobilevit_coreml.package.metadata import FUNCTION
from mobilevit_coreml.preprocessing import INTERPOLATIONS, Preprocessing
from mobilevit_coreml.report.formatting import megabytes, table

if TYPE_CHECKING:
    from mobilevit_coreml.compression.plan import Plan
    from mobilevit_coreml.metrics import Fidelity

PROG = "python -m mobilevit_coreml.convert"
GIVEN = ("weights", "variant", "output", "force", "images", "verify", "check_framework", "report")  # to `convert`
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
    option(group, "--variant", "NAME", f"{', '.join(VARIANTS)} (default: the checkpoint's)")
    option(group, "--task", "NAME", f"{', '.join(Task)} (default: what the weights were trained for)")
    weights = (
        "auto (default): Apple's published weights, or untrained ones where the hub is out of reach; pretrained: "
        "Apple's or an error; untrained; or a file, a directory, a hub id, in Hugging Face, cvnets or timm naming"
    )
    option(group, "--weights", "SOURCE", weights, default="auto")
    sizes = "input size in pixels (default: the checkpoint's); several become functions of one package"
    option(group, "--image-size", "N|HxW[,…]", sizes, _image_sizes, dest="image_sizes", default=())
    switch(group, "--include-crop", "crop the centre inside the package, for Vision's .centerCrop")


def _add_checkpoint(group: Any) -> None:
    option(group, "--labels", "FILE", "class names, a line each, or JSON", Path)
    option(group, "--channel-order", "ORDER", "BGR or RGB")
    for name, text in (("mean", "subtracted from pixels 0 to 1"), ("std", "that they are divided by")):
        option(group, f"--{name}", "N", f"{text}: a number, or one each for R, G and B", float, nargs="+")
    option(group, "--resize", "N", "shorter edge of images before the crop, pixels", int)
    option(group, "--interpolation", "NAME", f"filter of resizing: {', '.join(INTERPOLATIONS)}")
    option(group, "--problem-type", "KIND", f"meaning of a classifier's outputs: {', '.join(PROBLEM_TYPES)}")
    option(group, "--hidden-act", "NAME", f"activation: {', '.join(ACTIVATIONS)}")
    option(group, "--num-attention-heads", "N", "heads of each attention layer", int)
    option(group, "--patch-size", "N", "side of an attention patch, cells of the map", int)
    option(group, "--output-stride", "N", "of a segmenter's backbone: 8, 16 or 32", int)
    option(group, "--atrous-rates", "N", "of DeepLabV3's three dilated branches", int, nargs=3)
    averaged = "the moving average of the weights, where a file has both"
    group.add_argument("--ema", action=argparse.BooleanOptionalAction, help=averaged)


def _add_output(group: Any) -> None:
    precision = group.add_mutually_exclusive_group()
    for name, text in (
        (Precision.FP16, "half precision (default)"),
        (Precision.FP32, "single precision, not for the Neural Engine"),
    ):
        switch(precision, f"--{name}", text, "store_const", dest="precision", const=name, default=Precision.FP16)
    defaults = f"(default {DEFAULT_TARGET}, {FIRST_WITH_FUNCTIONS} for several image sizes)"
    option(group, "--target", "OS", f"minimum deployment target, {', '.join(TARGETS)} {defaults}")
    attention = "split_einsum (default): as Apple documents it for the Neural Engine; packed: fewest operations"
    option(group, "--attention", "IMPL", attention, default="split_einsum")
    option(group, "--unfold", "IMPL", "space_to_batch (default) or pixel_shuffle", default="space_to_batch")
    option(group, "--output-type", "TYPE", f"of a segmenter: {', '.join(OUTPUT_TYPES)}; of a classifier: logits")
    option(group, "--output-size", "SIZE", "of a segmenter: image (default) or network, 1/16 of it")
    option(group, "--output-dtype", "DTYPE", f"of features and scores: {' or '.join(DTYPES)}")
    switch(group, "--hidden-states", "output the maps of the five stages with features")
    option(group, "--output", "PATH", f"a {SUFFIX} path or a directory (default: here)", Path)
    switch(group, "--force", "replace an existing package")


def _add_compression(group: Any) -> None:
    schemes = group.add_mutually_exclusive_group()
    option(schemes, "--palettize", "BITS", "lookup tables: 8, 6, 4, 3 (iOS18), 2 or 1 bits a weight", int)
    option(schemes, "--quantize", "TYPE", "int8, or int4 (iOS18), with a scale for each channel")
    option(schemes, "--prune", "SHARE", "set this share of the weights to zero", float)
    option(schemes, "--max-size", "SIZE", "a format for each layer: the best package within 1.0MB", _bytes)
    option(schemes, "--min-snr", "DB", "a format for each layer: the smallest package of this SNR", float)
    option(schemes, "--min-agreement", "SHARE", "a format for each layer: the smallest with 0.99 of the classes", float)
    option(group, "--group-size", "N", "with --palettize: a lookup table for every N channels (iOS18)", int)
    option(group, "--report", "FILE", "formats and errors of the layers, as .html, .json or .png", Path)


def _add_verification(group: Any) -> None:
    images = "images to verify with (default: synthetic ones); two of three calibrate a compression"
    option(group, "--images", "DIR", images, Path)
    framework = "also compare the checkpoint with what transformers or timm, where installed, make of it"
    switch(group, "--check-framework", framework)
    switch(group, "--no-verify", "do not compare the saved package with PyTorch", "store_false", dest="verify")


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
        given = {name: values.pop(name) for name in GIVEN}
        values.update({name: tuple(value) for name, value in values.items() if isinstance(value, list)})
        options = ConversionOptions(**values, compression=compression)
        conversion = convert(**given, options=options, progress=progress)
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
    from mobilevit_coreml.metrics import verdict_text

    record, weights, plan = conversion.record, conversion.record.weights, conversion.plan
    origin = f"seed {weights.seed}" if weights.untrained else f"{weights.naming} naming, sha256 {weights.sha256:.12}…"
    functions = record.by_function()
    sizes = ", ".join(_size(*pixels.input_size) for pixels in functions.values())
    unfold = "" if record.unfold == UnfoldImplementation.SPACE_TO_BATCH else f", {record.unfold} unfold"
    outputs = "; ".join(output_names(record.task, record.outputs))
    classes = "" if record.task == FEATURES else f", {conversion.classes} classes"
    reference = "PyTorch fp32" if plan is None else "these weights in PyTorch fp32"
    check = conversion.framework
    rows = [
        ("size", [megabytes(conversion.bytes)]),
        ("operations", [f"{conversion.operations}"]),
        ("target", [f"{conversion.target}, {record.precision}, {record.attention} attention{unfold}"]),
        ("input", [f"{IMAGE}, {sizes} pixels, any pixel buffer ({_inside(record.preprocessing)})"]),
        ("functions", [", ".join(functions)] if record.sizes else []),
        ("outputs", [outputs + classes]),
        ("weights", [weights.name, origin]),
        ("Swift class", [re.sub(r"\W|^(?=\d)", "_", conversion.path.stem)]),
        *([] if plan is None else _compression_rows(plan, record.precision)),
        ("verified", _verdicts(conversion.fidelity, reference) if conversion.fidelity else ["not verified"]),
        ("quality", _verdicts(conversion.quality, "the original")),
        ("framework", [] if check is None else [f"{verdict_text(check.passed)}: {check.detail}"]),
        ("curve", [] if plan is None else [_point(*point) for point in plan.curve]),
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


def _compression_rows(plan: "Plan", precision: str) -> Iterator[tuple[str, list[str]]]:
    """Number of layers by format, and of those that are not compressed by reason."""
    formats = Counter(layer.format for layer in plan.layers).most_common()
    counts = ", ".join(f"{count} in {name}" for name, count in formats)
    how = f"calibrated with {plan.images} images" if plan.images else "rounded without images"
    yield "stored as", [f"{len(plan.layers)} layers: {counts}", how]
    yield (
        f"kept in {precision}",
        [", ".join(f"{count} {why}" for why, count in Counter(plan.left.values()).most_common())],
    )


def _point(size: int, snr: float, agreement: float | None) -> str:
    """A choice on the way to a budget: scored in PyTorch, but for the package itself."""
    return f"{megabytes(size)} {snr:5.1f} dB" + ("" if agreement is None else f"  {agreement:6.1%} agree")


def _verdicts(by_function: Mapping[str, "Fidelity"], reference: str) -> list[str]:
    from mobilevit_coreml.report.text import verification_lines

    texts = {name: verification_lines(entry, reference) for name, entry in by_function.items()}
    if texts.keys() == {FUNCTION}:
        return texts[FUNCTION]
    return [line for name, lines in texts.items() for line in (f"{name}:", *(f"  {line}" for line in lines))]
