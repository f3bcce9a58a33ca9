"""What is built again and what is kept, with a builder that writes a file or two in place of a package."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mobilevit_coreml.checkpoints.hub import HubUnreachableError
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.package.files import digest_of
from mobilevit_coreml.release import inputs
from mobilevit_coreml.release.build import REPORT, SCHEMA, write_report
from mobilevit_coreml.release.catalogue import read_catalogue
from mobilevit_coreml.release.inputs import Weights, code_digest, images_digest, inputs_of, weights_of
from mobilevit_coreml.release.place import BUILDING
from mobilevit_coreml.release.recipe import Recipe, RecipeError
from mobilevit_coreml.release.release import NO_IMAGES, Outcome, release
from mobilevit_coreml.release.workers import Task

SMALL = Recipe("small", "Small", "classification", "xxs", "iOS16", "untrained", image_sizes=((64, 64),))
OTHER = dataclasses.replace(SMALL, name="other", package="Other", attention="packed")
FITTED = dataclasses.replace(SMALL, name="fitted", package="Fitted", budget=Budget(max_size=1_000_000))
RECIPES = {recipe.name: recipe for recipe in (SMALL, OTHER, FITTED)}


class Builder:
    """In place of `conversions.workers.built`."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.errors: dict[str, str] = {}
        self.interrupt_at: str | None = None

    def __call__(self, tasks: Sequence[Task], jobs: int, scratch: Path) -> Iterator[tuple[int, str]]:
        for index, (recipe, weights, _, _, given, directory) in enumerate(tasks):
            package = directory / f"{recipe.package}.mlpackage"
            package.mkdir()
            (package / "Manifest.json").write_text(os.urandom(8).hex())
            (package / "program").write_text(f"{recipe}")
            if recipe.name == self.interrupt_at:
                raise KeyboardInterrupt
            measured = {
                "bytes": 1_000_000,
                "operations": 100,
                "sizes": {"main": [64, 64]},
                "fidelity": {},
                "quality": {},
            }
            source = {"name": weights, "naming": "", "revision": None, "sha256": None, "seed": 0}
            report = {"schema": SCHEMA, "recipe": recipe.name, "error": "", "inputs": given, "package": package.name}
            untrained = weights == "untrained"
            write_report(
                directory,
                {**report, **measured, "sha256": digest_of(package), "weights": source, "untrained": untrained},
            )
            self.made.append(recipe.name)
            yield index, self.errors.get(recipe.name, "")

    def __iter__(self) -> Iterator[str]:
        """What was made since the last time somebody asked."""
        made, self.made = self.made, []
        return iter(made)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()

    def built(tasks: Sequence[Task], jobs: int, scratch: Path) -> Iterator[tuple[int, str]]:
        yield from builder(tasks, jobs, scratch)  # a generator, which can be closed

    monkeypatch.setattr("mobilevit_coreml.release.release.built", built)
    return builder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(synthetic_images(40, 40, 3)):
        image.save(directory / f"{index}.png")
    return directory


def run(
    output: Path, *recipes: Recipe, images: Path | None = None, pretrained: bool = False, force: bool = False
) -> list[Outcome]:
    known = {**RECIPES, **{recipe.name: recipe for recipe in recipes}}
    names = [recipe.name for recipe in recipes]
    return release(known, names, Path(), output, images=images, pretrained=pretrained, force=force)


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.verdict for outcome in outcomes]


def test_what_is_up_to_date_is_kept(tmp_path: Path, builder: Builder) -> None:
    first = run(tmp_path, SMALL, OTHER)
    assert verdicts(first) == ["PASS", "PASS"]
    assert not any(outcome.kept for outcome in first)
    assert list(builder) == ["small", "other"]
    catalogue = (tmp_path / "catalogue.json").read_bytes()
    second = run(tmp_path, SMALL, OTHER)
    assert verdicts(second) == ["PASS", "PASS"]
    assert all(outcome.kept for outcome in second)
    assert list(builder) == []
    assert (tmp_path / "catalogue.json").read_bytes() == catalogue
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CATALOGUE.md", "catalogue.json", "other", "small"]


def test_what_changed_is_built_again(tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, SMALL, OTHER)
    assert list(builder) == ["small", "other"]
    run(tmp_path, dataclasses.replace(SMALL, gates={"snr": 31.0}), OTHER)
    assert list(builder) == ["small"]
    noted = dataclasses.replace(SMALL, gates={"snr": 31.0}, notes="other words")
    run(tmp_path, noted, OTHER)
    assert list(builder) == []
    assert read_catalogue(tmp_path / "catalogue.json")[0]["notes"] == "other words"
    for name in ("torch", "coremltools"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda asked, name=name: f"{asked == name}")
            run(tmp_path, noted, OTHER)
        assert list(builder) == ["small", "other"]
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "code_digest", lambda: "other code")
        run(tmp_path, noted)
    assert list(builder) == ["small"]
    run(tmp_path, noted, force=True)
    run(tmp_path, noted, force=True)
    assert list(builder) == ["small", "small"]


def test_a_digest_of_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "conversions").mkdir()
    one = code_digest(tmp_path)
    (tmp_path / "conversions" / "b.py").write_text("2")
    (tmp_path / "a.pyc").write_text("3")
    assert code_digest(tmp_path) == one
    (tmp_path / "c.py").write_text("4")
    assert code_digest(tmp_path) != one


def test_budgets_need_photographs(tmp_path: Path, builder: Builder, photographs: Path) -> None:
    (outcome,) = run(tmp_path, FITTED)
    assert (outcome.verdict, outcome.error) == ("NOT_RUN", NO_IMAGES)
    (entry,) = read_catalogue(tmp_path / "catalogue.json")
    assert (entry["verdict"], entry["error"]) == ("NOT_RUN", NO_IMAGES)
    assert not (tmp_path / "fitted").exists()
    (outcome,) = run(tmp_path, FITTED, images=photographs)
    assert (outcome.verdict, outcome.kept) == ("PASS", False)
    for images in (photographs, None):  # without photographs the rest is compared
        (outcome,) = run(tmp_path, FITTED, images=images)
        assert (outcome.verdict, outcome.kept) == ("PASS", True)
    changed = dataclasses.replace(FITTED, budget=Budget(max_size=900_000))
    assert verdicts(run(tmp_path, changed)) == ["NOT_RUN"]


def test_other_photographs_make_another_package(tmp_path: Path, photographs: Path) -> None:
    copied = shutil.copytree(photographs, tmp_path / "photographs")
    (copied / "2.png").rename(copied / "3.png")
    assert images_digest(copied) == images_digest(photographs)
    (copied / "0.png").rename(copied / "4.png")
    assert images_digest(copied) != images_digest(photographs)
    assert "images" not in inputs_of(SMALL, Weights("untrained", "untrained"), copied)  # only budgets depend on them


def test_a_package_somebody_changed_is_no_longer_touched(tmp_path: Path, builder: Builder) -> None:
    run(tmp_path, SMALL)
    program = tmp_path / "small" / "Small.mlpackage" / "program"
    program.write_text("mine now")
    failed, other = run(tmp_path, SMALL, OTHER)
    assert failed.error == (
        f"output {program.parent}: expected the package of its report, got one that was changed; --force replaces it"
    )
    assert other.verdict == "PASS"
    assert program.read_text() == "mine now"
    assert verdicts(run(tmp_path, SMALL, force=True)) == ["PASS"]
    assert program.read_text() != "mine now"
    assert not (tmp_path / "small_failed").exists()


def test_a_package_that_is_gone_is_built_again(tmp_path: Path, builder: Builder) -> None:
    run(tmp_path, SMALL)
    shutil.rmtree(tmp_path / "small" / "Small.mlpackage")
    run(tmp_path, SMALL)
    assert list(builder) == ["small", "small"]


def test_nothing_else_is_ever_replaced(tmp_path: Path, builder: Builder) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "letter").write_text("dear")
    (tmp_path / "other_failed").write_text("mine")
    builder.errors["other"] = "wrong"
    small, other = run(tmp_path, SMALL, OTHER, force=True)
    assert "got something else; move it" in small.error
    assert other.error == "wrong"
    assert (tmp_path / "small" / "letter").read_text() == "dear"
    assert (tmp_path / "other_failed").read_text() == "mine"
    assert list(builder) == ["other"]


@pytest.mark.parametrize("report", [b"{}", b"[", b"\xff", b'{"schema": 1, "package": 3}'])
def test_reports_that_are_none(tmp_path: Path, builder: Builder, report: bytes) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / REPORT).write_bytes(report)
    assert verdicts(run(tmp_path, SMALL)) == ["FAIL"]


def test_weights_that_cannot_be_read_stop_no_other(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr("hashlib.file_digest", refused)
    recipe = dataclasses.replace(OTHER, weights=str(tmp_path / "weights.pth"))
    other, small = run(tmp_path / "dist", recipe, SMALL)
    assert other.error == "the system refused: Permission denied (weights.pth); check the path"
    assert small.verdict == "PASS"


def refused(*_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "weights.pth")


def test_nothing_half_made_is_kept_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashed(tasks: Sequence[Task], jobs: int, scratch: Path) -> Iterator[tuple[int, str]]:
        (tasks[0][-1] / ".staging").mkdir()
        yield 0, "expected a package, got a process that ended with SIGKILL"

    monkeypatch.setattr("mobilevit_coreml.release.release.built", crashed)
    assert verdicts(run(tmp_path, SMALL)) == ["FAIL"]
    assert [path.name for path in (tmp_path / "small_failed").iterdir()] == [REPORT]


def test_what_fails_is_kept_beside_and_goes_when_it_is_right(tmp_path: Path, builder: Builder) -> None:
    builder.errors["small"] = "main: snr: expected at least 99 dB, got 50"
    outcomes = run(tmp_path, SMALL, OTHER)
    assert verdicts(outcomes) == ["FAIL", "PASS"]
    assert not (tmp_path / "small").exists()
    assert (tmp_path / "small_failed" / "Small.mlpackage").is_dir()
    small, other = read_catalogue(tmp_path / "catalogue.json")
    assert (small["verdict"], small["error"]) == ("FAIL", builder.errors["small"])
    assert other["verdict"] == "PASS"
    assert f"- small: FAIL, {builder.errors['small']}" in (tmp_path / "CATALOGUE.md").read_text()
    run(tmp_path, OTHER)  # what failed earlier is not forgotten
    assert [entry["verdict"] for entry in read_catalogue(tmp_path / "catalogue.json")] == ["FAIL", "PASS"]
    builder.errors.clear()
    assert verdicts(run(tmp_path, SMALL)) == ["PASS"]
    assert not (tmp_path / "small_failed").exists()


def test_an_interruption_leaves_what_is_finished(tmp_path: Path, builder: Builder) -> None:
    builder.interrupt_at = "other"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SMALL, OTHER)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    builder.interrupt_at = None
    outcomes = run(tmp_path, SMALL, OTHER)
    assert [outcome.kept for outcome in outcomes] == [True, False]


def test_one_run_at_a_time(tmp_path: Path, builder: Builder) -> None:
    (tmp_path / BUILDING / "small").mkdir(parents=True)  # of a run that was killed
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match=r"expected to be alone there, got another run at work; wait for it"):
        run(tmp_path, SMALL)
    os.close(descriptor)
    assert verdicts(run(tmp_path, SMALL)) == ["PASS"]
    assert not (tmp_path / BUILDING).exists()


def test_output_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"expected a directory, got File exists; choose another"):
        run(tmp_path / "file", SMALL)


def unreachable(hub_id: str) -> Path:
    raise HubUnreachableError(f"weights {hub_id}: expected in the local cache, got no way there")


AUTO = dataclasses.replace(SMALL, weights="auto")


def test_weights(tmp_path: Path) -> None:
    assert weights_of(SMALL, tmp_path, True, unreachable) == Weights("untrained", "untrained")
    fallen = weights_of(AUTO, tmp_path, False, unreachable)
    assert fallen.name == "untrained"
    assert "apple/mobilevit-xx-small" in fallen.notice
    for recipe in (AUTO, dataclasses.replace(SMALL, weights="pretrained")):
        with pytest.raises(HubUnreachableError):
            weights_of(recipe, tmp_path, True, unreachable)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").write_bytes(b"1")
    found = weights_of(AUTO, tmp_path, False, lambda _: tmp_path / "snapshot")
    assert (found.name, found.notice) == ("apple/mobilevit-xx-small", "")
    directory = weights_of(dataclasses.replace(SMALL, weights="snapshot"), tmp_path, False, unreachable)
    assert (directory.name, directory.digest) == (str(tmp_path / "snapshot"), found.digest)
    file = weights_of(dataclasses.replace(SMALL, weights="snapshot/model.safetensors"), tmp_path, False, unreachable)
    assert file.digest == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # sha256 of "1"
    with pytest.raises(HubUnreachableError):
        weights_of(dataclasses.replace(SMALL, weights="owner/name@abc"), tmp_path, False, unreachable)
    with pytest.raises(
        RecipeError, match=r"small.toml: weights: expected auto, .* got 'no.pth', where there is nothing"
    ):
        weights_of(dataclasses.replace(SMALL, weights="no.pth"), tmp_path, False, unreachable)


def test_no_untrained_package_replaces_a_trained_one(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snapshot").mkdir()
    output = tmp_path / "dist"
    with monkeypatch.context() as patch:
        patch.setattr("mobilevit_coreml.release.release.snapshot", lambda _: tmp_path / "snapshot")
        run(output, AUTO)
    monkeypatch.setattr("mobilevit_coreml.release.release.snapshot", unreachable)
    (outcome,) = run(output, AUTO)
    assert outcome.kept
    (outcome,) = run(output, dataclasses.replace(AUTO, attention="packed"))
    assert outcome.verdict == "FAIL"
    assert outcome.error.endswith(
        f"; or --force replaces the trained package at {output / 'small'} by an untrained one"
    )
    (outcome,) = run(output, AUTO, pretrained=True)
    assert outcome.verdict == "FAIL"
    (outcome,) = run(output, AUTO, force=True)
    assert json.loads((output / "small" / REPORT).read_text())["untrained"]
    assert list(builder) == ["small", "small"]


def test_the_hub_is_asked_once_for_what_it_has_not(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(hub_id: str) -> Path:
        asked.append(hub_id)
        return unreachable(hub_id)

    monkeypatch.setattr("mobilevit_coreml.release.release.snapshot", snapshot)
    run(tmp_path, AUTO, dataclasses.replace(OTHER, weights="auto"))
    assert asked == ["apple/mobilevit-xx-small"]
    assert list(builder) == ["small", "other"]
