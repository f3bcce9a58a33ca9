"""The command that makes the shipped packages: `python -m conversions --all --output dist/`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilevit_coreml.cli.common import DONE, EXIT_CODES, Parser, ProgressBar, option, run, switch
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.release.catalogue import MEASURED, README, Entry, figures_text, rewrite
from mobilevit_coreml.release.recipe import RECIPES, Recipe, RecipeError, load_recipes
from mobilevit_coreml.report.formatting import megabytes, table

MAX_JOBS = 64
LABEL = 12  # columns for a name in a table
PROG = "python -m mobilevit_coreml.conversions"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Build and verify the packages of recipes, with a report beside each and a catalogue of all.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes to build; --list lists them")
    switch(parser, "--all", "build all recipes")
    switch(parser, "--list", "list the recipes")
    option(parser, "--recipes", "DIR", "directory of recipes (default: those shipped)", Path, default=RECIPES)
    option(parser, "--output", "DIR", "directory (default: dist)", Path, default=Path("dist"))
    images = "photographs to calibrate compression with; a budget without them is NOT_RUN (exit code 3)"
    option(parser, "--images", "DIR", images, Path)
    option(parser, "--jobs", "N", "processes at a time, of one thread each", _jobs, default=1)
    switch(parser, "--offline", "weights from the local cache only, or else untrained")
    switch(parser, "--pretrained", "fail where Apple's weights are out of reach")
    switch(parser, "--force", "rebuild packages that are up to date or were changed")
    readme = "write the table of packages into a README (default: conversions/README.md)"
    option(parser, "--readme", "FILE", readme, Path, nargs="?", const=README)
    option(parser, "--catalogue", "FILE", "catalogue.json for --readme", Path)
    return parser


def _jobs(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(f"expected a number of processes, 1 to {MAX_JOBS}, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run the command; returns its exit code."""
    values = parser(prog).parse_args(arguments)
    if values.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, and by the processes that build
    return run(lambda progress: _command(values, progress))


def _command(values: argparse.Namespace, progress: ProgressBar) -> int:
    asked = [bool(values.names), values.all, values.list, values.readme is not None]
    if sum(asked) != 1:
        raise InputError("arguments: expected names of recipes, --all, --list or --readme, one of them; see --help")
    if values.catalogue is not None and values.readme is None:
        raise InputError("catalogue: expected --readme beside it, got none; add it")
    if values.readme is not None:
        changed = rewrite(values.readme, values.catalogue or MEASURED)
        print(f"{values.readme}: {'written' if changed else 'up to date'}")
        return DONE
    recipes = load_recipes(values.recipes)
    if values.list:
        print(table("recipes", _rows({name: _description(recipe) for name, recipe in recipes.items()})))
        return DONE
    names = _names(values.names, recipes)
    from mobilevit_coreml.metrics import overall
    from mobilevit_coreml.release.build import release

    options = {name: getattr(values, name) for name in ("jobs", "images", "pretrained", "force")}
    entries, kept = release(recipes, names, values.recipes, values.output, **options, progress=progress)
    progress.close()
    print(table(str(values.output), _rows({name: _result(entry, name in kept) for name, entry in entries.items()})))
    untrained = sum(bool(entry.untrained) for entry in entries.values())
    if untrained:
        print(f"note: {untrained} UNTRAINED: these recognize nothing; do not ship them", file=sys.stderr)
    return EXIT_CODES[overall([entry.verdict for entry in entries.values()])]


def _names(names: Sequence[str], recipes: Mapping[str, Recipe]) -> list[str]:
    """The recipes to build, once each and in their order."""
    unknown = sorted(set(names) - set(recipes))
    if unknown:
        raise RecipeError(
            f"recipe: expected some of {', '.join(recipes)}, got {', '.join(map(repr, unknown))}; see --list"
        )
    return [name for name in recipes if name in names or not names]


def _rows(texts: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    return [(name, [text]) if len(name) <= LABEL else ("", [f"{name}: {text}"]) for name, text in texts.items()]


def _description(recipe: Recipe) -> str:
    return (
        f"{recipe.package}: {recipe.task}, {recipe.variant}, {recipe.stored}, {recipe.target}. {recipe.notes}".strip()
    )


def _result(entry: Entry, kept: bool) -> str:
    if entry.error or entry.bytes is None:
        return f"{entry.verdict}, {entry.error}"
    state = "up to date" if kept else entry.verdict
    untrained = ", UNTRAINED" if entry.untrained else ""
    return f"{state}, {megabytes(entry.bytes)}, {entry.operations} operations, {figures_text(entry)}{untrained}"
