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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mobilevit_coreml
from mobilevit_coreml.checkpoints.files import sha256_of
from mobilevit_coreml.checkpoints.hub import HUB_ID, PUBLISHED, HubUnreachableError, snapshot
from mobilevit_coreml.compression.schemes import Budget, split
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.errors import MobileViTError, OutputError, error_text
from mobilevit_coreml.images import images_in
from mobilevit_coreml.package.files import FAILED_SUFFIX, digest_of, failed_path
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.publish import locked, publish, remove_stale, staging
from mobilevit_coreml.release.catalogue import (
    FAIL,
    NOT_RUN,
    PASS,
    REPORT,
    Entry,
    Report,
    entry_of,
    read_report,
    write_catalogue,
)
from mobilevit_coreml.release.recipe import Recipe, RecipeError
from mobilevit_coreml.release.workers import call_in_processes
from mobilevit_coreml.strict_json import to_json

if TYPE_CHECKING:
    from mobilevit_coreml.metrics import Fidelity

AUTO, PRETRAINED, UNTRAINED = "auto", "pretrained", "untrained"
NOT_IN_PACKAGES = ("cli", "release", "report", "validation")  # code that no package's bytes depend on
NO_IMAGES = "expected photographs to calibrate with, got none; name their directory with --images"


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
    entries: dict[str, Entry] = {}
    tasks = []
    find = functools.cache(find_on_hub)
    with locked(output):
        for name in names:
            place = output / name
            try:
                weights = find_weights(recipes[name], directory, pretrained, find)
                task = Task(recipes[name], weights, inputs_of(recipes[name], weights, images), images, place)
                entry = entry_without_building(task, force)
            except Exception as problem:  # whatever it is, it is this recipe's alone
                entry = _entry(recipes[name], place, fail(recipes[name], place, error_text(problem)))
            if entry is None:
                tasks.append(task)
            else:
                entries[name] = entry
        kept = {name for name, entry in entries.items() if entry.verdict == PASS}
        progress("build", len(entries), len(names))
        with contextlib.closing(call_in_processes(attempt, tasks, jobs)) as results:
            for task, result in results:
                error = _crashed(task) if result is None else result
                entries[task.recipe.name] = _entry(task.recipe, task.place, error)
                progress("build", len(entries), len(names))
        catalogue = [entries.get(name) or _earlier_entry(recipe, output / name) for name, recipe in recipes.items()]
        write_catalogue(output, [entry for entry in catalogue if entry is not None])
    return {name: entries[name] for name in names}, kept


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


def entry_without_building(task: Task, force: bool) -> Entry | None:
    """The entry of a recipe that is up to date, or needs images that are not there; None if it is to be built.

    Raises OutputError for what must not be replaced: something else, a package that somebody changed, or a trained
    package by an untrained one.
    """
    recipe, place = task.recipe, task.place
    remove_stale(place)  # first: a package that a killed process was replacing comes back
    report = _report_at(place)
    would_lose_weights = report is not None and not report.untrained and bool(task.weights.notice)
    if report is not None and not force:
        package = place / str(report.package)
        if package.is_dir() and digest_of(package) != report.sha256:
            raise OutputError(
                f"output {package}: expected the package of its report, got one that was changed; --force replaces it"
            )
        # a trained package stays when its weights are out of reach for once
        compared = task.inputs.keys() - ({"weights"} if would_lose_weights else set())
        if package.is_dir() and all(report.inputs.get(key) == task.inputs[key] for key in compared):
            _remove_failed(place)
            return entry_of(recipe, PASS, "", report)
    if isinstance(recipe.compression, Budget) and task.images is None:
        return entry_of(recipe, NOT_RUN, NO_IMAGES, None)
    if would_lose_weights and not force:
        raise OutputError(
            f"{task.weights.notice}; or --force replaces the trained package at {place} by an untrained one"
        )
    return None


def attempt(task: Task, progress: Progress) -> str:
    """`build`, in a process of its own; returns the error on one line, or nothing."""
    try:
        return build(task, progress)
    except Exception as error:
        return fail(task.recipe, task.place, error_text(error))


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
        fidelity = _gated(conversion.fidelity, {} if compressed else recipe.gates)
        quality = _gated(conversion.quality, recipe.gates)
        missed = "; ".join([*_missed("", fidelity), *_missed("quality, ", quality)])
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
            fidelity={name: _measured(entry) for name, entry in fidelity.items()},
            quality={name: _measured(entry) for name, entry in quality.items()},
            compression=record.compression,
            notices=[*filter(None, [task.weights.notice]), *conversion.notices],
        )
        (staged / REPORT).write_bytes(to_json(report))
        _put(staged, _failed_place(task.place) if missed else task.place)
    if not missed:
        _remove_failed(task.place)
    return missed


def _gated(by_function: "Mapping[str, Fidelity]", gates: Mapping[str, float]) -> "dict[str, Fidelity]":
    """Each function's fidelity with a recipe's gates; a gate that it has stays where it is stricter."""
    from mobilevit_coreml.metrics import BOUNDS

    gated = {}
    for function, fidelity in by_function.items():
        both = dict(fidelity.gates)
        for name, gate in gates.items():
            stricter = max if BOUNDS[name].at_least else min
            both[name] = stricter(gate, both.get(name, gate))
        gated[function] = fidelity.with_gates(both)
    return gated


def _missed(side: str, by_function: "Mapping[str, Fidelity]") -> Iterator[str]:
    for function, fidelity in by_function.items():
        for result in fidelity.results:
            if not result.passed:
                figure = "nothing measured" if result.figure is None else f"{result.figure:.5g}"
                bound = "at least" if result.bound.at_least else "at most"
                gate = f"{bound} {result.gate:g} {result.bound.unit}".strip()
                yield f"{side}{function}: {result.name}: expected {gate}, got {figure}"


def _measured(fidelity: "Fidelity") -> dict[str, Any]:
    return {"passed": fidelity.passed, "figures": fidelity.figures, **dataclasses.asdict(fidelity)}


def fail(recipe: Recipe, place: Path, error: str) -> str:
    """Record beside its place why a package could not be made; returns the error."""
    with contextlib.suppress(MobileViTError), staging(_failed_place(place)) as staged:  # something else may be there
        staged.mkdir()
        (staged / REPORT).write_bytes(to_json(Report(recipe=recipe.name, error=error)))
        _put(staged, _failed_place(place))
    return error


def _crashed(task: Task) -> str:
    """Record that the process of a task crashed; returns the error."""
    remove_stale(task.place)
    return fail(task.recipe, task.place, "expected a package, got a process that crashed; is there enough memory?")


def _entry(recipe: Recipe, place: Path, error: str) -> Entry:
    """The catalogue's entry after an attempt to build."""
    report = read_report(_failed_place(place) if error else place)
    return entry_of(recipe, FAIL if error else PASS, error, report)


def _earlier_entry(recipe: Recipe, place: Path) -> Entry | None:
    """The catalogue's entry of an earlier run, if there was one."""
    failed = read_report(_failed_place(place))
    if failed is None and read_report(place) is None:
        return None
    return _entry(recipe, place, failed.error if failed else "")


def _failed_place(place: Path) -> Path:
    """The directory of a recipe's package that is not as it has to be."""
    return place.with_name(place.name + FAILED_SUFFIX)


def _put(staged: Path, place: Path) -> None:
    """Publish a directory, in place of an earlier one of the same recipe and of nothing else."""
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
