"""The command that compares packages with PyTorch: `python -m validate MobileViT_XS_fp16.mlpackage`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mobilevit_coreml.cli.common import EXIT_CODES, Parser, ProgressBar, option, run, switch
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.inference import BACKENDS
from mobilevit_coreml.publish import check_file_free
from mobilevit_coreml.validation.core_ml import UNITS

# Given to `validate` as they are
OPTIONS = (
    "images",
    "labels",
    "channel_order",
    "expected",
    "backend",
    "compute_units",
    "function",
    "journal",
    "timeout",
)
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
    option(given, "--weights", "SOURCE", "the package's weights, if not where its record says")
    option(given, "--labels", "FILE", "class names, if the conversion was given them", Path)
    option(given, "--channel-order", "ORDER", "BGR or RGB, if the conversion was given it")
    images = "images; or a directory for each class; or VOC's JPEGImages and SegmentationClass (default: synthetic)"
    option(given, "--images", "DIR", images, Path)
    option(given, "--function", "NAME", "function of a package of several sizes (default: all)")
    verdict = parser.add_argument_group("verification")
    backend = "reference: the evaluator, on any machine; coreml: on a Mac; auto (default): all there are"
    verdict.add_argument("--backend", choices=BACKENDS, default="auto", help=backend)
    units = f"of Core ML, with commas: {','.join(UNITS)} (default: each of them)"
    option(verdict, "--compute-units", "UNITS", units, _units, default=())
    gate = "figure to reach in place of the default, snr=30 or top1=0.98; repeatable; an unknown name lists them"
    option(verdict, "--gate", "NAME=NUMBER", gate, action="append", default=[])
    expected = "a .npz file of the outputs that the training framework gives for some of --images"
    option(verdict, "--expected", "FILE", expected, Path)
    option(verdict, "--timeout", "SECONDS", "for an answer of Core ML (default 600)", float, default=600.0)
    option(verdict, "--journal", "FILE", "keep each image's figures; an interrupted run goes on from it", Path)
    written = parser.add_argument_group("output")
    figures = "write all figures (`python -m mobilevit_coreml.report.schema` describes them)"
    option(written, "--json", "FILE", figures, Path)
    option(written, "--html", "FILE", "write a page with plots and the worst images", Path)
    option(written, "--golden", "DIR", "write a test for devices: images, expected outputs, an XCTest", Path)
    switch(written, "--force", "replace existing files")
    instead = parser.add_argument_group("instead of a validation")
    option(instead, "--against", "FILE", "verdict on the results.json that a test on a device wrote", Path)
    switch(instead, "--tune", "on a Mac: measure all implementations of attention and unfold")
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
        return EXIT_CODES[verdict]

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
    options = {name: getattr(values, name) for name in OPTIONS}
    validation = validate(values.package, values.weights, gates=asked, progress=progress, **options)
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
