"""The command that runs a package on images: `python -m mobilevit_coreml.predict PACKAGE IMAGE...`."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mobilevit_coreml import inference
from mobilevit_coreml.cli.common import DONE, NOT_RUN, Parser, ProgressBar, option, run, switch
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import InputError, OutputError
from mobilevit_coreml.package.interface import LOGITS, POOLED, VALUES
from mobilevit_coreml.publish import atomic_write, check_file_free

TOP = 5
FILES = ("mask", "overlay", "legend")
PRINTED = 4  # pooled features


PROG = "python -m mobilevit_coreml.predict"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Run a package on images. A classifier prints the most probable classes; a segmenter prints the "
        "share of each class and writes a mask, an overlay and a legend; features print their shapes and the cosine "
        "similarity of the images.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="a .mlpackage made by mobilevit_coreml")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="images in any format Pillow reads")
    option(parser, "--top", "K", f"classes to print (default {TOP})", _count, default=TOP)
    switch(parser, "--json", "print JSON")
    output = "directory for a segmenter's files (default: here), or a .npz file for features (default: none)"
    option(parser, "--output", "PATH", output, Path)
    switch(parser, "--force", "replace files of these names")
    option(parser, "--function", "NAME", "function of a package of several sizes (default: first)")
    backend = "coreml (a Mac), reference (anywhere), or auto (default): Core ML on a Mac, else the reference evaluator"
    option(parser, "--backend", "NAME", backend, default="auto")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of classes, at least 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command; returns its exit code."""
    values = parser(prog).parse_args(arguments)

    def command(progress: ProgressBar) -> int:
        if values.backend == "coreml" and not inference.core_ml_is_here():
            print("not run: Core ML is on a Mac only; use --backend reference here", file=sys.stderr)
            return NOT_RUN
        record = inference.read_record(values.package)
        inference.check_images(record, values.images, values.function)
        answer = {CLASSIFICATION: _classify, SEGMENTATION: _segment, FEATURES: _extract}[record.task]
        answers = answer(values, progress)
        progress.close()
        if values.json:
            print(json.dumps(answers, indent=2, ensure_ascii=False))
        if record.weights.untrained:
            print("note: the package has untrained weights; its predictions are noise", file=sys.stderr)
        return DONE

    return run(command)


def _classify(values: argparse.Namespace, progress: ProgressBar) -> Any:
    """Print the classes; for JSON a list of objects with `image` and its `classes`: `label` and `probability`."""
    if values.output is not None:
        raise OutputError(f"output {values.output}: expected none of a classifier, which writes no files; leave it out")
    outputs = inference.read_record(values.package).outputs.type
    key = {LOGITS: "logit", VALUES: "value"}.get(outputs, "probability")
    shown = "{:7.2%}".format if key == "probability" else "{:10.4g}".format
    answers = []
    for path, probabilities in _predictions(values, progress):
        classes = list(probabilities.items())[: values.top]
        _print(values, str(path), *(f"  {shown(figure)}  {label}" for label, figure in classes))
        entries = [{"label": label, key: figure} for label, figure in classes]
        answers.append({"image": str(path), "classes": entries})
    return answers


def _segment(values: argparse.Namespace, progress: ProgressBar) -> Any:
    """Print the shares and write the files; for JSON `image`, `classes` (`label`, `share`) and `files`."""
    from mobilevit_coreml.masks import legend, overlay, palette_image

    directory = values.output or Path()
    if not directory.is_dir():
        raise OutputError(f"output {directory}: expected a directory for the masks, got none; create it first")
    files = {path: [directory / f"{path.stem}_{kind}.png" for kind in FILES] for path in values.images}
    if len({path.stem.casefold() for path in files}) < len(values.images):
        raise InputError("images: expected a name each, for the masks to be called after, got one twice; rename it")
    for file in itertools.chain(*files.values()):
        check_file_free(file, values.force)
        if file.resolve() in {path.resolve() for path in files}:
            raise OutputError(f"output {file}: expected another file than the images to read, got one; move it away")
    answers = []
    for path, found in _predictions(values, progress):
        colors = list(found.colors.values())
        images = (
            palette_image(found.class_map, colors),
            overlay(found.image, found.class_map, colors),
            legend(found.shares, found.colors),
        )
        for file, image in zip(files[path], images, strict=True):
            with atomic_write(file) as opened:
                image.save(opened, "PNG")
        lines = [f"  {share:7.2%}  {label}" for label, share in found.shares.items()]
        _print(values, str(path), *lines, *(f"  -> {file}" for file in files[path]))
        shares = [{"label": label, "share": share} for label, share in found.shares.items()]
        answers.append({"image": str(path), "classes": shares, "files": list(map(str, files[path]))})
    return answers


def _extract(values: argparse.Namespace, progress: ProgressBar) -> Any:
    """Print shapes and similarities, and save the arrays; for JSON `images`, each with `pooled`, and `cosine`."""
    import numpy as np

    if values.output is not None:
        if values.output.suffix.lower() != ".npz":
            raise OutputError(f"output {values.output}: expected a name ending in .npz, got another; add the ending")
        check_file_free(values.output, values.force)
    vectors, saved = [], []
    for path, features in _predictions(values, progress):
        vectors.append(features[POOLED][0])
        if values.output is not None:
            saved.append(features)
        first = " ".join(f"{value:.3g}" for value in vectors[-1][:PRINTED])
        length = f"{np.linalg.norm(vectors[-1]):.4g}"
        shapes = [f"  {name:<12} {' x '.join(map(str, array.shape))}" for name, array in features.items()]
        _print(values, str(path), *shapes, f"  {'values':<12} pooled: {first} …, length {length}")
    if values.output is not None:
        arrays: dict[str, Any] = {name: np.concatenate([entry[name] for entry in saved]) for name in saved[0]}
        with atomic_write(values.output) as opened:
            np.savez(opened, **{"images": np.array(list(map(str, values.images))), **arrays})
        _print(values, f"-> {values.output}")
    cosines = inference.cosine_similarities(np.stack(vectors))
    pairs = itertools.combinations(range(len(vectors)), 2)
    lines = [f"  {cosines[i, j]:7.4f}  {values.images[i]}  {values.images[j]}" for i, j in pairs]
    if lines:
        _print(values, "cosine similarity of pooled", *lines)
    entries = [
        {"image": str(path), POOLED: vector.tolist()} for path, vector in zip(values.images, vectors, strict=True)
    ]
    return {"images": entries, "cosine": cosines.tolist()}


def _predictions(values: argparse.Namespace, progress: ProgressBar) -> Iterator[tuple[Path, Any]]:
    """Each image with its prediction."""
    predictions = inference.predict(values.package, values.images, values.backend, values.function)
    for number, path in enumerate(values.images):
        progress("predict", number, len(values.images))
        yield path, next(predictions)


def _print(values: argparse.Namespace, *lines: str) -> None:
    if not values.json:
        tqdm.write("\n".join(lines))  # past the bar
