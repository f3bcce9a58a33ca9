"""The command that asks a package about photographs: `python -m mobilevit_coreml.predict PACKAGE IMAGE...`."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mobilevit_coreml.cli.common import DONE, NOT_RUN, Parser, ProgressBar, run
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import InputError, OutputError
from mobilevit_coreml.inference import (
    check_photographs,
    classify,
    core_ml_is_here,
    cosine_similarities,
    extract_features,
    read_record,
    segment,
)
from mobilevit_coreml.package.interface import POOLED
from mobilevit_coreml.publish import atomic_write, check_file_free

TOP = 5
PICTURES = ("mask", "overlay", "legend")
SHOWN = 4  # numbers of the pooled features


PROG = "python -m mobilevit_coreml.predict"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Ask a package about photographs. A classifier's most probable classes are printed; of a segmenter "
        "the share of each class, and the mask, an overlay and a legend are written as pictures; of features their "
        "shape, and how alike the photographs are.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="a .mlpackage made by mobilevit_coreml")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="pictures in any format Pillow reads")
    parser.add_argument("--top", type=_count, default=TOP, metavar="K", help=f"classes to print (default {TOP})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="the directory of a segmenter's pictures (default: here), or a .npz file for features (default: none)",
    )
    parser.add_argument("--force", action="store_true", help="replace files of these names")
    parser.add_argument("--function", metavar="NAME", help="of a package of several sizes (default: its first)")
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


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command; returns its exit code."""
    values = parser(prog).parse_args(arguments)

    def command(progress: ProgressBar) -> int:
        if values.backend == "coreml" and not core_ml_is_here():
            print("not run: Core ML is on a Mac only; use --backend reference here", file=sys.stderr)
            return NOT_RUN
        record = read_record(values.package)
        check_photographs(record, values.images, values.function)
        answer = {CLASSIFICATION: _classify, SEGMENTATION: _segment, FEATURES: _extract}[record.task]
        answers = answer(values, progress)
        progress.close()
        if values.json:
            print(json.dumps(answers, indent=2, ensure_ascii=False))
        if record.weights.untrained:
            print("note: the package is made of untrained weights; its answers are noise", file=sys.stderr)
        return DONE

    return run(command)


def _classify(values: argparse.Namespace, progress: ProgressBar) -> Any:
    """Print the classes; for JSON a list of objects with `image` and its `classes`: `label` and `probability`."""
    if values.output is not None:
        raise OutputError(f"output {values.output}: expected none of a classifier, which writes no files; leave it out")
    answers = []
    for path, probabilities in _asked(classify, values, progress):
        classes = list(probabilities.items())[: values.top]
        _say(values, str(path), *(f"  {probability:7.2%}  {label}" for label, probability in classes))
        entries = [{"label": label, "probability": probability} for label, probability in classes]
        answers.append({"image": str(path), "classes": entries})
    return answers


def _segment(values: argparse.Namespace, progress: ProgressBar) -> Any:
    """Print the shares and write the pictures; for JSON `image`, `classes` (`label`, `share`) and `files`."""
    from mobilevit_coreml.masks import legend, overlay, palette_image

    directory = values.output or Path()
    if not directory.is_dir():
        raise OutputError(f"output {directory}: expected a directory for the masks, got none; create it first")
    files = {path: [directory / f"{path.stem}_{kind}.png" for kind in PICTURES] for path in values.images}
    if len({path.stem.casefold() for path in files}) < len(values.images):
        raise InputError("images: expected a name each, for the masks to be called after, got one twice; rename it")
    for file in itertools.chain(*files.values()):
        check_file_free(file, values.force)
        if file.resolve() in {path.resolve() for path in files}:
            raise OutputError(f"output {file}: expected another file than the pictures to read, got one; move it away")
    answers = []
    for path, found in _asked(segment, values, progress):
        colors = list(found.colors.values())
        pictures = (
            palette_image(found.class_map, colors),
            overlay(found.photograph, found.class_map, colors),
            legend(found.shares, found.colors),
        )
        for file, picture in zip(files[path], pictures, strict=True):
            with atomic_write(file) as opened:
                picture.save(opened, "PNG")
        lines = [f"  {share:7.2%}  {label}" for label, share in found.shares.items()]
        _say(values, str(path), *lines, *(f"  -> {file}" for file in files[path]))
        shares = [{"label": label, "share": share} for label, share in found.shares.items()]
        answers.append({"image": str(path), "classes": shares, "files": list(map(str, files[path]))})
    return answers


def _extract(values: argparse.Namespace, progress: ProgressBar) -> Any:
    """Print shapes and likeness, and save the arrays; for JSON `images`, each with `pooled`, and `cosine` of all."""
    import numpy as np

    if values.output is not None:
        if values.output.suffix.lower() != ".npz":
            raise OutputError(f"output {values.output}: expected a name ending in .npz, got another; add the ending")
        check_file_free(values.output, values.force)
    vectors, saved = [], []
    for path, features in _asked(extract_features, values, progress):
        vectors.append(features[POOLED][0])
        if values.output is not None:
            saved.append(features)
        first = " ".join(f"{value:.3g}" for value in vectors[-1][:SHOWN])
        length = f"{np.linalg.norm(vectors[-1]):.4g}"
        shapes = [f"  {name:<12} {' x '.join(map(str, array.shape))}" for name, array in features.items()]
        _say(values, str(path), *shapes, f"  {'values':<12} pooled: {first} …, length {length}")
    if values.output is not None:
        arrays: dict[str, Any] = {name: np.concatenate([entry[name] for entry in saved]) for name in saved[0]}
        with atomic_write(values.output) as opened:
            np.savez(opened, **{"images": np.array(list(map(str, values.images))), **arrays})
        _say(values, f"-> {values.output}")
    cosines = cosine_similarities(np.stack(vectors))
    pairs = itertools.combinations(range(len(vectors)), 2)
    lines = [f"  {cosines[i, j]:7.4f}  {values.images[i]}  {values.images[j]}" for i, j in pairs]
    if lines:
        _say(values, "cosine similarity of pooled", *lines)
    entries = [
        {"image": str(path), POOLED: vector.tolist()} for path, vector in zip(values.images, vectors, strict=True)
    ]
    return {"images": entries, "cosine": cosines.tolist()}


def _asked(
    ask: Callable[..., Iterator[Any]], values: argparse.Namespace, progress: ProgressBar
) -> Iterator[tuple[Path, Any]]:
    """Each photograph with what the package says of it, as a stage of the command."""
    predictions = ask(values.package, values.images, values.backend, values.function)
    for number, path in enumerate(values.images):
        progress("predict", number, len(values.images))
        yield path, next(predictions)


def _say(values: argparse.Namespace, *lines: str) -> None:
    if not values.json:
        tqdm.write("\n".join(lines))  # past the bar
