"""Recipes to packages: what is up to date is kept, the rest is built and verified, and one that fails stops no other.

A package goes to a directory called after its recipe, with a report; one that fails to `NAME_failed`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mobilevit_coreml
from mobilevit_coreml.checkpoints.files import sha256_of
from mobilevit_coreml.checkpoints.hub import HUB_ID, PUBLISHED, HubUnreachableError, snapshot
from mobilevit_coreml.checkpoints.load import AUTO, PRETRAINED, UNTRAINED
from mobilevit_coreml.compression.schemes import Budget, split
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.errors import MobileViTError, OutputError, error_text
from mobilevit_coreml.images import images_in
from mobilevit_coreml.metrics import BOUNDS, Fidelity, GateResult
from mobilevit_coreml.package.files import FAILED_SUFFIX, digest_of, failed_path
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.publish import locked, publish, remove_stale, staging
from mobilevit_coreml.release import catalogue
from mobilevit_coreml.release.catalogue import FAIL, NOT_RUN, PASS, Entry, Report, read_report
from mobilevit_coreml.release.recipe import Recipe, RecipeError
from mobilevit_coreml.release.workers import call_in_processes
from mobilevit_coreml.strict_json import to_json

NOT_IN_PACKAGES = ("cli", "release", "report", "validation")  # code that no package's bytes depend on
NO_IMAGES = "expected photographs to calibrate with, got none; name their directory with --images"
CRASHED = "expected a package, got a process that crashed; is there enough memory?"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights as `convert` takes them, their digest, and why untrained ones stand in for others."""

    name: str
    digest: str
    notice: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """A package to make: `inputs` are digests for its report, `place` is its directory."""

    recipe: Recipe
    weights: Weights
    inputs: Mapping[str, str]
    images: Path | None
    place: Path


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
) -> tuple[dict[str, Entry], set[str]]:
    """Make the packages of some recipes of a directory, and the catalogue of all that are in `output`.

    `images` calibrate compression. Returns the recipes' entries, and which were up to date. Raises OutputError where
    nothing can be written to `output`.
    """
    outcomes: dict[str, tuple[str, str]] = {}  # verdict and error
    tasks = []
    find = functools.cache(find_on_hub)
    with locked(output):
        for name in names:
            try:
                weights = find_weights(recipes[name], directory, pretrained, find)
                inputs = inputs_of(recipes[name], weights, images)
                task = Task(recipes[name], weights, inputs, images, output / name)
                verdict = verdict_without_building(task, force)
            except Exception as problem:  # whatever it is, it is this recipe's alone
                outcomes[name] = FAIL, fail(output / name, error_text(problem))
                continue
            if verdict is None:
                tasks.append(task)
            else:
                outcomes[name] = verdict, NO_IMAGES if verdict == NOT_RUN else ""
        kept = {name for name, (verdict, _) in outcomes.items() if verdict == PASS}
        progress("build", len(outcomes), len(names))
        with contextlib.closing(call_in_processes(attempt, tasks, jobs)) as results:
            for task, error in results:
                if error is None:
                    remove_stale(task.place)
                    error = fail(task.place, CRASHED)
                outcomes[task.recipe.name] = FAIL if error else PASS, error
                progress("build", len(outcomes), len(names))
        found = {name: _entry(recipe, output / name, outcomes.get(name)) for name, recipe in recipes.items()}
        entries = {name: entry for name, entry in found.items() if entry is not None}
        catalogue.write_catalogue(output, list(entries.values()))
    return {name: entries[name] for name in names}, kept


def _entry(recipe: Recipe, place: Path, outcome: tuple[str, str] | None) -> Entry | None:
    """The catalogue's entry of a verdict and its error, or of an earlier run's, if there was one."""
    report, failed = read_report(place), read_report(_failed_place(place))
    if outcome is None:
        if failed is None and report is None:
            return None
        outcome = (PASS, "") if failed is None else (FAIL, failed.error)
    return catalogue.entry_of(recipe, *outcome, {PASS: report, FAIL: failed}.get(outcome[0]))


def find_on_hub(hub_id: str) -> Path | HubUnreachableError:
    """A snapshot's directory, or why it is out of reach: a hub is slow to say so, and to be asked once."""
    try:
        return snapshot(hub_id)
    except HubUnreachableError as error:
        return error


def find_weights(
    recipe: Recipe, directory: Path, pretrained: bool, find: Callable[[str], Path | HubUnreachableError]
) -> Weights:
    """Find a recipe's weights; paths are relative to the recipe's directory.

    Raises CheckpointError where they are nowhere and untrained ones will not do.
    """
    asked = PRETRAINED if pretrained and recipe.weights == AUTO else recipe.weights
    if asked == UNTRAINED:
        return Weights(UNTRAINED, UNTRAINED)
    hub_id = PUBLISHED[recipe.task][recipe.variant] if asked in (AUTO, PRETRAINED) else asked
    if hub_id == asked:
        path = directory / asked
        with contextlib.suppress(RuntimeError):  # of the home of a user there is not
            path = directory / Path(asked).expanduser()
        if path.exists():
            return Weights(str(path), sha256_of(path) if path.is_file() else digest_of(path))
        if not HUB_ID.fullmatch(asked):
            raise RecipeError(
                f"{directory / recipe.name}.toml: weights: expected auto, pretrained, untrained, a path or a hub id, "
                f"got {asked!r:.200}, where there is nothing; check the path"
            )
    found = find(hub_id)
    if isinstance(found, Path):
        return Weights(hub_id, digest_of(found))
    if asked != AUTO:
        raise found
    return Weights(UNTRAINED, UNTRAINED, str(found))


def inputs_of(recipe: Recipe, weights: Weights, images: Path | None) -> dict[str, str]:
    """Digests of all that goes into a package; where it is compressed without images, of all but these."""
    found = {
        "recipe": _sha256([to_json(dataclasses.replace(recipe, notes=""))]),
        "weights": weights.digest,
        "code": code_digest(),
        "mobilevit_coreml": mobilevit_coreml.__version__,
        "torch": metadata.version("torch"),
        "coremltools": metadata.version("coremltools"),
    }
    if recipe.labels is not None:
        found["labels"] = sha256_of(Path(recipe.labels))
    if recipe.compression is not None and images is not None:
        found["images"] = _sha256(path.read_bytes() for paths in split(images_in(images)) for path in paths)
    return found


def code_digest(root: Path = Path(mobilevit_coreml.__file__).parent) -> str:
    """sha256 over the library's source files and data."""
    files = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.suffix in (".py", ".json")}
    made_by = {name: path for name, path in files.items() if name.parts[0] not in NOT_IN_PACKAGES}
    return _sha256(part for name, path in made_by.items() for part in (name.as_posix().encode(), path.read_bytes()))


def _sha256(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(f"{len(content)}\0".encode() + content)
    return digest.hexdigest()


def verdict_without_building(task: Task, force: bool) -> str | None:
    """PASS for a package that is up to date, NOT_RUN for one whose images are not there, None for one to be built.

    Raises OutputError for what must not be replaced: something else, a package that somebody changed, or a trained
    package by an untrained one.
    """
    remove_stale(task.place)  # first: a package that a killed process was replacing comes back
    report = _report_at(task.place)
    would_lose_weights = report is not None and not report.untrained and bool(task.weights.notice)
    if report is not None and not force and (package := task.place / str(report.package)).is_dir():
        if digest_of(package) != report.sha256:
            raise OutputError(
                f"output {package}: expected the package of its report, got one that was changed; --force replaces it"
            )
        # a trained package stays when its weights are out of reach for once
        compared = task.inputs.keys() - ({"weights"} if would_lose_weights else set())
        if all(report.inputs.get(key) == task.inputs[key] for key in compared):
            _remove_failed(task.place)
            return PASS
    if isinstance(task.recipe.compression, Budget) and task.images is None:
        return NOT_RUN
    if would_lose_weights and not force:
        raise OutputError(
            f"{task.weights.notice}; or --force replaces the trained package at {task.place} by an untrained one"
        )
    return None


def attempt(task: Task, progress: Progress) -> str:
    """`build`, in a process of its own; returns the error on one line, or nothing."""
    try:
        return build(task, progress)
    except Exception as error:
        return fail(task.place, error_text(error))


def build(task: Task, progress: Progress = silent) -> str:
    """Make a package and its report; returns the gates that it missed, if any.

    Raises MobileViTError where no package can be made.
    """
    recipe, compressed = task.recipe, task.recipe.compression is not None
    with staging(task.place) as staged:
        staged.mkdir()
        tempfile.tempdir = str(staged.parent)  # coremltools' files go with it, however this process ends
        conversion = convert(
            task.weights.name,
            recipe.variant,
            recipe,
            output=staged / f"{recipe.package}.mlpackage",
            images=task.images if compressed else None,
            report=staged / "compression.html" if compressed else None,
            progress=progress,
        )
        sides = {"fidelity": conversion.fidelity, "quality": conversion.quality}
        asked = "quality" if compressed else "fidelity"
        sides[asked] = {name: _with_gates(entry, recipe.gates) for name, entry in sides[asked].items()}
        missed = "; ".join(
            f"{'quality, ' if side == 'quality' else ''}{function}: {_missed_text(result)}"
            for side, by_function in sides.items()
            for function, entry in by_function.items()
            for result in entry.results
            if not result.passed
        )
        package = conversion.path
        if missed and not package.stem.endswith(FAILED_SUFFIX):
            package = package.rename(failed_path(package))
        record = conversion.record
        report = Report(
            recipe=recipe.name,
            asked=dataclasses.asdict(recipe),
            error=missed,
            inputs=task.inputs,
            package=package.name,
            sha256=digest_of(package),
            bytes=conversion.bytes,
            operations=conversion.operations,
            target=conversion.target,
            classes=conversion.classes,
            weights=record.weights,
            untrained=record.weights.untrained,
            sizes={name: preprocessing.input_size for name, preprocessing in record.by_function().items()},
            fidelity={name: _measured(entry) for name, entry in sides["fidelity"].items()},
            quality={name: _measured(entry) for name, entry in sides["quality"].items()},
            compression=record.compression,
            notices=[*filter(None, [task.weights.notice]), *conversion.notices],
        )
        _publish(staged, report, _failed_place(task.place) if missed else task.place)
    if not missed:
        _remove_failed(task.place)
    return missed


def _with_gates(fidelity: Fidelity, gates: Mapping[str, float]) -> Fidelity:
    """Fidelity with a recipe's gates; a gate that it has stays where it is stricter."""
    both = dict(fidelity.gates)
    for name, gate in gates.items():
        both[name] = (max if BOUNDS[name].at_least else min)(gate, both.get(name, gate))
    return fidelity.with_gates(both)


def _measured(fidelity: Fidelity) -> dict[str, Any]:
    return {"passed": fidelity.passed, "figures": fidelity.figures, **dataclasses.asdict(fidelity)}


def _missed_text(result: GateResult) -> str:
    figure = "nothing measured" if result.figure is None else f"{result.figure:.5g}"
    gate = f"{'at least' if result.bound.at_least else 'at most'} {result.gate:g} {result.bound.unit}".strip()
    return f"{result.name}: expected {gate}, got {figure}"


def fail(place: Path, error: str) -> str:
    """Record beside its place why a package could not be made; returns the error."""
    failed = _failed_place(place)
    with contextlib.suppress(MobileViTError), staging(failed) as staged:  # something else may be there
        staged.mkdir()
        _publish(staged, Report(recipe=place.name, error=error), failed)
    return error


def _failed_place(place: Path) -> Path:
    """The directory of a recipe's package that is not as it has to be."""
    return place.with_name(place.name + FAILED_SUFFIX)


def _publish(staged: Path, report: Report, place: Path) -> None:
    """Publish a directory with its report, in place of an earlier one of the same recipe and of nothing else."""
    (staged / catalogue.REPORT).write_bytes(to_json(report))
    _report_at(place)
    publish(staged, place, force=True)


def _report_at(place: Path) -> Report | None:
    """The report of a recipe's directory, or None if the name is free; raises OutputError for anything else."""
    report = read_report(place)
    if report is None and os.path.lexists(place):
        raise OutputError(f"output {place}: expected a free name or a package's directory, got something else; move it")
    return report


def _remove_failed(place: Path) -> None:
    """Remove the failed package of a recipe that now is right."""
    failed = _failed_place(place)
    if read_report(failed) is not None:
        shutil.rmtree(failed, ignore_errors=True)
