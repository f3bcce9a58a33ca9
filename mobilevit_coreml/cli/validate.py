"""The command that compares packages with PyTorch: `python -m validate MobileViT_XS_fp16.mlpackage`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mobilevit_coreml.cli.common import DONE, FAILED, NOT_RUN, Parser, ProgressBar, run
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.inference import BACKENDS
from mobilevit_coreml.publish import check_file_free
from mobilevit_coreml.validation.core_ml import UNITS

PROG = "python -m mobilevit_coreml.validate"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s [PACKAGE] [options]",
        description="Compare a Core ML package with the PyTorch model it was made from, on this machine's backends.",
    )
    parser.add_argument("package", nargs="?", type=Path, metavar="PACKAGE", help="made by mobilevit_coreml")
    given = parser.add_argument_group("input")
    given.add_argument("--weights", metavar="SOURCE", help="the package's weights, if not where its record says")
    given.add_argument("--labels", type=Path, metavar="FILE", help="class names, if the conversion was given them")
    given.add_argument("--channel-order", metavar="ORDER", help="BGR or RGB, if the conversion was given it")
    given.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images; or a directory for each class; or VOC's JPEGImages and SegmentationClass (default: synthetic)",
    )
    given.add_argument("--function", metavar="NAME", help="function of a package of several sizes (default: all)")
    verdict = parser.add_argument_group("verification")
    verdict.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="reference: the evaluator, on any machine; coreml: on a Mac; auto (default): all there are",
    )
    verdict.add_argument(
        "--compute-units",
        type=_units,
        default=(),
        metavar="UNITS",
        help=f"of Core ML, with commas: {','.join(UNITS)} (default: each of them)",
    )
    verdict.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="figure to reach in place of the default, snr=30 or top1=0.98; repeatable; an unknown name lists them",
    )
    verdict.add_argument(
        "--expected",
        type=Path,
        metavar="FILE",
        help="a .npz file of the outputs that the training framework gives for some of --images",
    )
    verdict.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="for an answer of Core ML (default 600)"
    )
    verdict.add_argument(
        "--journal", type=Path, metavar="FILE", help="keep each image's figures; an interrupted run goes on from it"
    )
    written = parser.add_argument_group("output")
    written.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all figures (`python -m mobilevit_coreml.report.schema` describes them)",
    )
    written.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and the worst images")
    written.add_argument(
        "--golden", type=Path, metavar="DIR", help="write a test for devices: images, expected outputs, an XCTest"
    )
    written.add_argument("--force", action="store_true", help="replace existing files")
    instead = parser.add_argument_group("instead of a validation")
    instead.add_argument(
        "--against", type=Path, metavar="FILE", help="verdict on the results.json that a test on a device wrote"
    )
    instead.add_argument(
        "--tune", action="store_true", help="on a Mac: measure all implementations of attention and unfold"
    )
    return parser


def _units(text: str) -> list[str]:
    units = text.split(",")
    if not set(units) <= set(UNITS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(UNITS)}, got {text!r}")
    return units


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command; returns its exit code."""
    values = parser(prog).parse_args(arguments)

    def command(progress: ProgressBar) -> int:
        if (values.package is None) == (values.against is None):
            raise InputError("package: expected one, or --against with a device's results, got not just one of them")
        if values.against is not None:
            text, verdict = _evaluate_device(values)
        elif values.tune:
            text, verdict = _tune(values, progress)
        else:
            text, verdict = _validate(values, progress)
        progress.close()
        print(text)
        return {"PASS": DONE, "NOT_RUN": NOT_RUN}.get(verdict, FAILED)

    return run(command)


def _validate(values: argparse.Namespace, progress: ProgressBar) -> tuple[str, str]:
    """Reports are written, too, before anything is printed."""
    from mobilevit_coreml.metrics import default_gates, parse_gate
    from mobilevit_coreml.report.collect import report_values, write_json
    from mobilevit_coreml.report.page import write_html
    from mobilevit_coreml.report.text import summary
    from mobilevit_coreml.validation.golden import check_place, write_golden
    from mobilevit_coreml.validation.run import images_of, validate

    for path in (values.json, values.html):
        if path is not None:
            check_file_free(path, values.force)
    if values.golden is not None:
        check_place(values.golden, values.force)
    if not values.timeout > 0:
        raise InputError(f"timeout: expected seconds above 0, got {values.timeout:g}; 600 is usual")
    asked = dict(map(parse_gate, values.gate))
    validation = validate(
        values.package,
        values.weights,
        images=values.images,
        labels=values.labels,
        channel_order=values.channel_order,
        expected=values.expected,
        backend=values.backend,
        compute_units=values.compute_units,
        gates=asked,
        function=values.function,
        journal=values.journal,
        timeout=values.timeout,
        progress=progress,
    )
    images = images_of(validation, values.images)
    if values.json is not None:
        write_json(values.json, report_values(validation))
    if values.html is not None:
        write_html(values.html, validation, images)
    if values.golden is not None:
        record, original = validation.record, validation.original
        gates = {**default_gates(record), **asked}
        write_golden(
            values.golden, values.package, record, original, images, gates, validation.digest, force=values.force
        )
    return summary(validation), validation.verdict


def _evaluate_device(values: argparse.Namespace) -> tuple[str, str]:
    from mobilevit_coreml.report.device import summary
    from mobilevit_coreml.validation.device import evaluate_device_results

    found = evaluate_device_results(values.against, values.golden, values.compute_units)
    return summary(found), found.verdict


def _tune(values: argparse.Namespace, progress: ProgressBar) -> tuple[str, str]:
    from mobilevit_coreml.report.tuning import tuning_table
    from mobilevit_coreml.validation.tune import tune

    tuning = tune(values.package, values.weights, values.compute_units, values.timeout, progress)
    return tuning_table(tuning), tuning.verdict
