"""The command that proves packages: `python -m validate MobileViT_XS_fp16.mlpackage`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mobilevit_coreml.atomic import check_file_free
from mobilevit_coreml.command_line import DONE, FAILED, Parser, Stages, run
from mobilevit_coreml.command_line import NOT_RUN as EXIT_NOT_RUN
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.prediction import BACKENDS

from .core_ml import UNITS

PROG = f"python -m {__package__}"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Compare a Core ML package with the PyTorch model it was made of, on this machine's backends.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="a .mlpackage made by mobilevit_coreml")
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

    def command(stages: Stages) -> int:
        for path in (values.json, values.html):
            if path is not None:
                check_file_free(path, values.force)
        if values.html is not None:
            from mobilevit_coreml.pages import check_drawable

            check_drawable()  # now, not after minutes
        if not values.timeout > 0:
            raise InputError(f"timeout: expected seconds above 0, got {values.timeout:g}; 600 is usual")
        from .gates import NOT_RUN, PASS, parse_gate
        from .page import write_html
        from .report import report_values, write_json
        from .terminal import summary
        from .validation import shown_of, validate

        validation = validate(
            values.package,
            values.weights,
            images=values.images,
            labels=values.labels,
            channel_order=values.channel_order,
            backend=values.backend,
            compute_units=values.compute_units,
            gates=dict(map(parse_gate, values.gate)),
            function=values.function,
            journal=values.journal,
            timeout=values.timeout,
            stages=stages,
        )
        if values.json is not None:
            write_json(values.json, report_values(validation))
        if values.html is not None:
            write_html(values.html, validation, shown_of(validation, values.images))
        stages.close()
        print(summary(validation))
        return {PASS: DONE, NOT_RUN: EXIT_NOT_RUN}.get(validation.verdict, FAILED)

    return run(command, stages=4)


if __name__ == "__main__":
    sys.exit(main())
