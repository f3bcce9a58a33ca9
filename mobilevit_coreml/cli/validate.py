"""The command that proves packages: `python -m validate MobileViT_XS_fp16.mlpackage`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mobilevit_coreml.cli.common import DONE, FAILED, NOT_RUN, Parser, ProgressBar, run
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.inference import BACKENDS
from mobilevit_coreml.publish import check_file_free
from mobilevit_coreml.report.html import check_drawable
from mobilevit_coreml.validation.core_ml import UNITS

PROG = "python -m mobilevit_coreml.validate"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Compare a Core ML package with the PyTorch model it was made of, on this machine's backends.",
    )
    parser.add_argument("package", nargs="?", type=Path, metavar="PACKAGE", help="made by mobilevit_coreml")
    parser.add_argument("--weights", metavar="WHAT", help="where the weights are now (default: where the record says)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, if the conversion was given them")
    parser.add_argument("--channel-order", metavar="ORDER", help="BGR or RGB, if the conversion was given it")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="pictures; or a directory for each class; or JPEGImages and SegmentationClass (default: drawn ones)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="reference: the evaluator, on any machine; coreml: on a Mac; auto: whatever there is (default)",
    )
    parser.add_argument(
        "--compute-units",
        type=_units,
        default=(),
        metavar="UNITS",
        help=f"of Core ML, with commas: {','.join(UNITS)} (default: each of them)",
    )
    parser.add_argument("--function", metavar="NAME", help="one of a package of several sizes (default: all)")
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a figure to reach, as snr=30 or top1=0.98; may be repeated; a name that is none lists them all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, by the schema in validate/")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and the worst pictures")
    parser.add_argument(
        "--golden", type=Path, metavar="DIR", help="write a test for devices: pictures, what is expected, an XCTest"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="instead: the verdict on the results.json that test wrote"
    )
    parser.add_argument(
        "--tune", action="store_true", help="instead, on a Mac: which form of attention and unfold is fastest"
    )
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="keep each picture's figures; a run that finds them goes on"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for an answer of a backend")
    parser.add_argument("--force", action="store_true", help="replace existing reports")
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
            text, verdict = _judge(values)
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
    from mobilevit_coreml.report.page import write_html
    from mobilevit_coreml.report.text import summary
    from mobilevit_coreml.report.values import report_values, write_json
    from mobilevit_coreml.validation.golden import check_place, write_golden
    from mobilevit_coreml.validation.run import images_of, validate

    for path in (values.json, values.html):
        if path is not None:
            check_file_free(path, values.force)
    if values.html is not None:
        check_drawable()
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
        backend=values.backend,
        compute_units=values.compute_units,
        gates=asked,
        function=values.function,
        journal=values.journal,
        timeout=values.timeout,
        progress=progress,
    )
    shown = images_of(validation, values.images)
    if values.json is not None:
        write_json(values.json, report_values(validation))
    if values.html is not None:
        write_html(values.html, validation, shown)
    if values.golden is not None:
        record, original = validation.record, validation.original
        gates = {**default_gates(record), **asked}
        write_golden(
            values.golden, values.package, record, original, shown, gates, validation.digest, force=values.force
        )
    return summary(validation), validation.verdict


def _judge(values: argparse.Namespace) -> tuple[str, str]:
    from mobilevit_coreml.report.device import summary
    from mobilevit_coreml.validation.device import evaluate_device_results

    found = evaluate_device_results(values.against, values.golden, values.compute_units)
    return summary(found), found.verdict


def _tune(values: argparse.Namespace, progress: ProgressBar) -> tuple[str, str]:
    from mobilevit_coreml.validation.tune import tune, tuning_table

    tuning = tune(values.package, values.weights, values.compute_units, values.timeout, progress)
    return tuning_table(tuning), tuning.verdict
