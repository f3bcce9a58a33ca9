"""Recipes to packages: what is up to date is kept, the rest is built, and one that fails stops no other."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.checkpoints.hub import HubUnreachableError, snapshot
from mobilevit_coreml.errors import MobileViTError, OutputError
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.release.build import SCHEMA, write_report
from mobilevit_coreml.release.catalogue import FAIL, NOT_RUN, PASS, entry_of, write_catalogue
from mobilevit_coreml.release.inputs import WEIGHTS, Weights, inputs_of, weights_of
from mobilevit_coreml.release.place import discard_failed, failed_place, is_current, locked, put, report_of
from mobilevit_coreml.release.recipe import Recipe
from mobilevit_coreml.release.workers import Task, built, message_of

NO_IMAGES = "expected photographs to calibrate with, got none; name their directory with --images"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a recipe: `error` says why it is not PASS, `kept` is whether it was up to date."""

    recipe: Recipe
    verdict: str
    error: str = ""
    report: Mapping[str, Any] | None = None
    kept: bool = False


def release(
    recipes: Mapping[str, Recipe],
    names: Sequence[str],
    directory: Path,
    output: Path,
    *,
    jobs: int = 1,
    images: Path | None = None,
    pretrained: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> list[Outcome]:
    """Make the packages of some recipes of a directory, and the catalogue of all that are in `output`.

    Raises MobileViTError where nothing can be built, and not where one recipe cannot.
    """
    outcomes: dict[str, Outcome] = {}
    with locked(output) as building:
        tasks: list[tuple[str, Task]] = []
        find = _asked_once(snapshot)
        for name in names:
            try:
                prepared = _prepared(recipes[name], directory, output, building, images, pretrained, force, find)
            except (MobileViTError, OSError) as error:
                prepared = _failure(recipes[name], message_of(error), building / name, output)
            if isinstance(prepared, Outcome):
                outcomes[name] = prepared
            else:
                tasks.append((name, prepared))
        done = len(outcomes)
        progress("build", done, len(names))
        with contextlib.closing(built([task for _, task in tasks], jobs, building)) as results:
            for index, wrong in results:
                recipe = recipes[tasks[index][0]]
                outcomes[recipe.name] = _placed(recipe, wrong, building / recipe.name, output)
                done += 1
                progress("build", done, len(names))
        write_catalogue(output, _entries(recipes, outcomes, output))
    return [outcomes[name] for name in names]


def _prepared(
    recipe: Recipe,
    directory: Path,
    output: Path,
    building: Path,
    images: Path | None,
    pretrained: bool,
    force: bool,
    find: Callable[[str], Path],
) -> Outcome | Task:
    """What is to be built, or what came of the recipe without it."""
    place = output / recipe.name
    weights = weights_of(recipe, directory, pretrained, find)
    inputs = inputs_of(recipe, weights, images)
    if is_current(place, _comparable(inputs, weights, place), force):
        discard_failed(place)
        return Outcome(recipe, PASS, report=report_of(place), kept=True)
    if recipe.budget is not None and images is None:
        return Outcome(recipe, NOT_RUN, NO_IMAGES)
    if _has_trained(place) and weights.notice and not force:
        raise OutputError(f"{weights.notice}; or --force replaces the trained package at {place} by an untrained one")
    (building / recipe.name).mkdir()
    return _task(recipe, weights, images, inputs, building / recipe.name)


def _has_trained(place: Path) -> bool:
    report = report_of(place)
    return report is not None and not report["untrained"]


def _comparable(inputs: Mapping[str, str], weights: Weights, place: Path) -> Mapping[str, str]:
    """Inputs that can be compared: a package of trained weights stays when they are out of reach for once."""
    out_of_reach = bool(weights.notice) and _has_trained(place)
    return {name: digest for name, digest in inputs.items() if not (out_of_reach and name == WEIGHTS)}


def _task(recipe: Recipe, weights: Weights, images: Path | None, inputs: Mapping[str, str], directory: Path) -> Task:
    return (recipe, weights.name, weights.notice, images, inputs, directory)


def _placed(recipe: Recipe, error: str, directory: Path, output: Path) -> Outcome:
    """A directory that was built, brought to its name."""
    place = output / recipe.name
    if error:
        return _failure(recipe, error, directory, output)
    try:
        put(directory, place)
    except MobileViTError as refused:
        return _failure(recipe, message_of(refused), directory, output)
    discard_failed(place)
    return Outcome(recipe, PASS, report=report_of(place))


def _failure(recipe: Recipe, error: str, directory: Path, output: Path) -> Outcome:
    """Keep what failed beside its place, with the reason, for whoever looks into it."""
    report = report_of(directory)
    if report is None:
        shutil.rmtree(directory, ignore_errors=True)  # what is half-made
        directory.mkdir()
        report = {"schema": SCHEMA, "recipe": recipe.name, "package": None, "sha256": "", "inputs": {}}
        report["untrained"] = False
    report["error"] = error
    write_report(directory, report)
    with contextlib.suppress(MobileViTError):  # somebody else's file may be there
        put(directory, failed_place(output / recipe.name))
    return Outcome(recipe, FAIL, error, report)


def _entries(recipes: Mapping[str, Recipe], outcomes: Mapping[str, Outcome], output: Path) -> list[dict[str, Any]]:
    """The catalogue: what became of the recipes of this run, and what is there of the others."""
    entries = []
    for name, recipe in recipes.items():
        outcome = outcomes.get(name) or _earlier(recipe, output)
        if outcome is not None:
            entries.append(entry_of(recipe, outcome.verdict, outcome.error, outcome.report))
    return entries


def _earlier(recipe: Recipe, output: Path) -> Outcome | None:
    failed, report = report_of(failed_place(output / recipe.name)), report_of(output / recipe.name)
    if failed is not None:
        return Outcome(recipe, FAIL, str(failed["error"]), failed)
    return None if report is None else Outcome(recipe, PASS, report=report)


def _asked_once(find: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same, which remembers what it could not find: a hub out of reach is slow to say so."""
    unreachable: dict[str, HubUnreachableError] = {}

    def once(hub_id: str) -> Path:
        if hub_id in unreachable:
            raise unreachable[hub_id]
        try:
            return find(hub_id)
        except HubUnreachableError as error:
            unreachable[hub_id] = error
            raise

    return once
