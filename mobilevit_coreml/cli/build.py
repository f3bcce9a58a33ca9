"""The command that makes the shipped packages: `python -m conversions --all --output dist/`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilevit_coreml.cli.common import DONE, FAILED, Parser, ProgressBar, run
from mobilevit_coreml.cli.common import NOT_RUN as EXIT_NOT_RUN
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.release.build import megabytes
from mobilevit_coreml.release.catalogue import FAIL, MEASURED, NOT_RUN, figures_text, rewrite
from mobilevit_coreml.release.recipe import RECIPES, Recipe, RecipeError, load_recipes
from mobilevit_coreml.release.release import Outcome, release
from mobilevit_coreml.report.formatting import table

MAX_JOBS = 64
LABEL = 12  # columns for a name in a table


PROG = "python -m mobilevit_coreml.conversions"


def parser(prog: str = PROG) -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog=prog,
        description="Build and verify the packages of recipes, with a report beside each and a catalogue of all.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; --list lists them")
    parser.add_argument("--all", action="store_true", help="all recipes")
    parser.add_argument("--list", action="store_true", help="say what recipes there are")
    parser.add_argument("--output", type=Path, default=Path("dist"), metavar="DIR", help="where to (default: dist)")
    parser.add_argument("--jobs", type=_jobs, default=1, metavar="N", help="so many processes, one thread each")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="photographs for budgets, which are NOT_RUN without (exit code 3)"
    )
    parser.add_argument(
        "--offline", action="store_true", help="do not ask the hub: weights from the cache, or untrained"
    )
    parser.add_argument("--pretrained", action="store_true", help="fail where Apple's weights are not to be had")
    parser.add_argument("--force", action="store_true", help="build anew what is up to date, or was changed")
    parser.add_argument(
        "--recipes", type=Path, default=RECIPES, metavar="DIR", help="recipes of your own (default: those shipped)"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table of packages into a README")
    parser.add_argument(
        "--catalogue", type=Path, metavar="FILE", help="the catalogue.json for --readme (default: the one shipped)"
    )
    return parser


def _jobs(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(f"expected a number of processes, 1 to {MAX_JOBS}, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command; returns its exit code."""
    values = parser(prog).parse_args(arguments)
    if values.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, and by the processes that build

    def command(progress: ProgressBar) -> int:
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
            print(table("recipes", _rows({name: _described(recipe) for name, recipe in recipes.items()})))
            return DONE
        outcomes = release(
            recipes,
            _names(values.names, recipes),
            values.recipes,
            values.output,
            jobs=values.jobs,
            images=_images(values.images),
            pretrained=values.pretrained,
            force=values.force,
            progress=progress,
        )
        progress.close()
        print(table(str(values.output), _rows({one.recipe.name: _told(one) for one in outcomes})))
        untrained = sum(bool(one.report and one.report.get("untrained")) for one in outcomes)
        if untrained:
            print(f"note: {untrained} UNTRAINED: these recognize nothing; do not ship them", file=sys.stderr)
        verdicts = {one.verdict for one in outcomes}
        return FAILED if FAIL in verdicts else EXIT_NOT_RUN if NOT_RUN in verdicts else DONE

    return run(command)


def _images(directory: Path | None) -> Path | None:
    """The directory, if it has pictures."""
    if directory is not None:
        from mobilevit_coreml.images import images_in

        images_in(directory)
    return directory


def _names(names: Sequence[str], recipes: Mapping[str, Recipe]) -> list[str]:
    """Those asked for, once each and in the order of the recipes."""
    unknown = sorted(set(names) - set(recipes))
    if unknown:
        raise RecipeError(
            f"recipe: expected some of {', '.join(recipes)}, got {', '.join(map(repr, unknown))}; see --list"
        )
    return [name for name in recipes if name in names or not names]


def _rows(texts: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    return [(name, [text]) if len(name) <= LABEL else ("", [f"{name}: {text}"]) for name, text in texts.items()]


def _described(recipe: Recipe) -> str:
    return (
        f"{recipe.package}: {recipe.task}, {recipe.variant}, {recipe.stored}, {recipe.target}. {recipe.notes}".strip()
    )


def _told(outcome: Outcome) -> str:
    report = outcome.report
    if outcome.error or report is None:
        return f"{outcome.verdict}, {outcome.error}"
    sides = report["quality"] or report["fidelity"]
    figures = figures_text({name: side["figures"] for name, side in sides.items()})
    state = "up to date" if outcome.kept else outcome.verdict
    untrained = ", UNTRAINED" if report["untrained"] else ""
    return f"{state}, {megabytes(report['bytes'])}, {report['operations']} operations, {figures}{untrained}"
