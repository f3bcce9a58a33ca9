"""What a package says of pictures, on any machine: `python -m mobilevit_coreml.predict PACKAGE IMAGE...`."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mobilevit_coreml.command_line import DONE, NOT_RUN, Parser, Stages, run
from mobilevit_coreml.errors import ConfigError, InputError, PackageError
from mobilevit_coreml.package import CLASS_PROBABILITIES, IMAGE, PackageRecord

BACKENDS = ("auto", "coreml", "reference")
TOP = 5


def predict(package: Path, images: Sequence[Path], backend: str = "auto") -> Iterator[dict[str, float]]:
    """The probability of each class for one picture after the other, most probable first.

    Pictures are resized and cropped as the package's own record says. `backend` is "reference", the
    evaluator in the package's precision on any machine, "coreml", or "auto": Core ML on a Mac.

    Raises PackageError for a package without a record, InputError for what is no picture or backend.
    """
    return _predictions(package, read_record(package), images, backend)


def _predictions(
    package: Path, record: PackageRecord, images: Sequence[Path], backend: str
) -> Iterator[dict[str, float]]:
    from mobilevit_coreml.images import read_image

    run_package = _runner(package, backend, record.precision)
    for path in images:
        picture = record.preprocessing.prepare(read_image(path))
        probabilities = run_package({IMAGE: picture})[CLASS_PROBABILITIES]
        yield dict(sorted(probabilities.items(), key=lambda entry: -entry[1]))


def read_record(package: Path) -> PackageRecord:
    """What a package records of its making; raises PackageError where it has none."""
    from mobilevit_coreml.reference.program import read_specification

    metadata = dict(read_specification(package).description.metadata.userDefined)
    try:
        return PackageRecord.from_metadata(metadata)
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise PackageError(
            f"package {package}: expected the record of a conversion by mobilevit_coreml, got none that is whole "
            f"({error}); convert the checkpoint with mobilevit_coreml"
        ) from None


def core_ml_is_here() -> bool:
    """Whether this machine can run Core ML."""
    return sys.platform == "darwin"


def _runner(package: Path, backend: str, precision: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}; choose one of these")
    if backend == "coreml" or (backend == "auto" and core_ml_is_here()):
        from mobilevit_coreml._coremltools import ct

        # the default, all compute units; the validator tries each of them in a process of its own
        return ct.models.MLModel(str(package)).predict
    from mobilevit_coreml.reference import ReferenceEvaluator

    return ReferenceEvaluator(package, precision).run


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="python -m mobilevit_coreml.predict",
        description="Print what a classifier package says of pictures.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="a .mlpackage made by mobilevit_coreml")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="pictures in any format Pillow reads")
    parser.add_argument("--top", type=_count, default=TOP, metavar="K", help=f"classes to print (default {TOP})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="coreml (on a Mac), reference (anywhere), or auto: Core ML on a Mac, the reference evaluator elsewhere",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of classes, at least 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    values = parser().parse_args(arguments)

    def command(stages: Stages) -> int:
        if values.backend == "coreml" and not core_ml_is_here():
            print("not run: Core ML is on a Mac only; use --backend reference here", file=sys.stderr)
            return NOT_RUN
        results = []
        record = read_record(values.package)
        ranked = _predictions(values.package, record, values.images, values.backend)
        for path in values.images:
            with stages("predict"):
                classes = next(ranked)
            results.append((path, list(classes.items())[: values.top]))
            if not values.json:
                tqdm.write(as_text(results[-1:]))  # past the bar
        stages.close()
        if values.json:
            print(as_json(results))
        if record.weights.untrained:
            print("note: the package is made of untrained weights; its answers are noise", file=sys.stderr)
        return DONE

    return run(command, stages=len(values.images))


def as_text(results: Sequence[tuple[Path, list[tuple[str, float]]]]) -> str:
    """A block of lines a picture."""
    blocks = []
    for path, classes in results:
        blocks.append("\n".join([str(path), *(f"  {probability:7.2%}  {label}" for label, probability in classes)]))
    return "\n".join(blocks)


def as_json(results: Sequence[tuple[Path, list[tuple[str, float]]]]) -> str:
    """A list of objects with `image` and its `classes`, each with `label` and `probability`."""
    return json.dumps(
        [
            {"image": str(path), "classes": [{"label": label, "probability": p} for label, p in classes]}
            for path, classes in results
        ],
        indent=2,
        ensure_ascii=False,
    )


if __name__ == "__main__":
    sys.exit(main())
