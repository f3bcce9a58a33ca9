"""What is built again and what is kept, with a `convert` that writes a file or two in place of a package."""

import dataclasses
import errno
import fcntl
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobilevit_coreml.checkpoints.hub import HubUnreachableError
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.errors import ConversionError, OutputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.metrics import Fidelity, SignalFidelity, SignalMeter
from mobilevit_coreml.progress import silent
from mobilevit_coreml.release import build as module
from mobilevit_coreml.release.build import NO_IMAGES, Task, Weights, code_digest, find_weights, inputs_of, release
from mobilevit_coreml.release.catalogue import FAIL, NOT_RUN, PASS, REPORT, Entry, read_catalogue, read_report
from mobilevit_coreml.release.recipe import Recipe, RecipeError

SMALL = Recipe(
    name="small",
    package="Small",
    task="classification",
    variant="xxs",
    target="iOS16",
    weights="untrained",
    image_sizes=((64, 64),),
)
OTHER = dataclasses.replace(SMALL, name="other", package="Other", attention="packed")
FITTED = dataclasses.replace(SMALL, name="fitted", package="Fitted", compression=Budget(max_size=1_000_000))
RECIPES = {recipe.name: recipe for recipe in (SMALL, OTHER, FITTED)}
CRASH = object()


def fidelity(snr: float, gates: dict[str, float]) -> Fidelity:
    signal: SignalFidelity = dataclasses.replace(SignalMeter().result(), snr=snr, worst_snr=snr, cosine=0.99)
    return Fidelity(8, gates, {"logits": signal})


class Converter:
    """In place of `convert`, and of the processes in which it runs."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.snr = 50.0
        self.errors: dict[str, BaseException | object] = {}

    def convert(self, weights: str, variant: str, recipe: Recipe, *, output: Path, **given: Any) -> Any:
        self.asked.append({"weights": weights, "variant": variant, "recipe": recipe, "output": output, **given})
        error = self.errors.get(recipe.name)
        (output / "Data").mkdir(parents=True)
        (output / "Manifest.json").write_text(os.urandom(8).hex())
        (output / "Data" / "program").write_text(f"{recipe}")
        if isinstance(error, BaseException):
            raise error
        self.made.append(recipe.name)
        untrained = weights == "untrained"
        compressed = recipe.compression is not None
        return SimpleNamespace(
            path=output,
            record=SimpleNamespace(
                weights=WeightsSource(weights, "", seed=0 if untrained else None),
                by_function=lambda: {"main": SimpleNamespace(input_size=(64, 64))},
                compression={"scheme": "1MB"} if compressed else {},
            ),
            target="iOS16",
            bytes=1_000_000,
            operations=100,
            classes=1000,
            fidelity={"main": fidelity(self.snr, {"snr": 30.0})},
            quality={"main": fidelity(self.snr, {})} if compressed else {},
            notices=("a notice",),
        )

    def call(self, function: Any, tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, str | None]]:
        for task in tasks:
            if self.errors.get(task.recipe.name) is CRASH:
                yield task, None
            else:
                yield task, function(task, silent)

    def __iter__(self) -> Iterator[str]:
        """Names of packages made since the last time somebody asked."""
        made, self.made = self.made, []
        return iter(made)


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> Converter:
    converter = Converter()

    def in_this_process(*arguments: Any) -> Iterator[tuple[Task, str | None]]:
        yield from converter.call(*arguments)  # a generator, which can be closed

    monkeypatch.setattr(module, "convert", converter.convert)
    monkeypatch.setattr(module, "call_in_processes", in_this_process)
    monkeypatch.setattr(module, "code_digest", lambda: "code")  # the real one reads 150 files
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)  # which `build` sets, and is to be restored
    return converter


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(synthetic_images(40, 40, 3)):
        image.save(directory / f"{index}.png")
    return directory


def run(output: Path, *recipes: Recipe, **options: Any) -> list[Entry]:
    known = {**RECIPES, **{recipe.name: recipe for recipe in recipes}}
    entries, _ = release(known, [recipe.name for recipe in recipes], Path(), output, **options)
    return list(entries.values())


def verdicts(entries: Sequence[Entry]) -> list[str]:
    return [entry.verdict for entry in entries]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_asked_for(tmp_path: Path, converter: Converter, photographs: Path) -> None:
    assert verdicts(run(tmp_path, SMALL, FITTED, images=photographs)) == [PASS, PASS]
    small, fitted = converter.asked
    assert (small["weights"], small["variant"], small["recipe"]) == ("untrained", "xxs", SMALL)
    assert small["output"].name == "Small.mlpackage"
    assert (small["images"], small["report"]) == (None, None)  # the photographs calibrate
    assert (fitted["images"], fitted["report"].name) == (photographs, "compression.html")
    report = read_report(tmp_path / "small")
    assert report is not None
    assert (report.package, report.bytes, report.error, report.untrained) == ("Small.mlpackage", 1_000_000, "", True)
    assert report.asked["image_sizes"] == [[64, 64]]
    assert report.fidelity["main"]["figures"]["snr"] == 50
    assert report.notices == ["a notice"]


def test_what_is_up_to_date_is_kept(tmp_path: Path, converter: Converter) -> None:
    names = ["small", "other"]
    entries, kept = release(RECIPES, names, Path(), tmp_path)
    assert (verdicts(list(entries.values())), kept) == ([PASS, PASS], set())
    assert list(converter) == names
    catalogue = (tmp_path / "catalogue.json").read_bytes()
    entries, kept = release(RECIPES, names, Path(), tmp_path)
    assert (verdicts(list(entries.values())), kept) == ([PASS, PASS], set(names))
    assert list(converter) == []
    assert (tmp_path / "catalogue.json").read_bytes() == catalogue
    assert names_in(tmp_path) == ["CATALOGUE.md", "catalogue.json", "other", "small"]


def test_what_changed_is_built_again(tmp_path: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, SMALL, OTHER)
    assert list(converter) == ["small", "other"]
    run(tmp_path, dataclasses.replace(SMALL, gates={"snr": 31.0}), OTHER)
    assert list(converter) == ["small"]
    noted = dataclasses.replace(SMALL, gates={"snr": 31.0}, notes="other words")
    run(tmp_path, noted, OTHER)
    assert list(converter) == []
    assert read_catalogue(tmp_path / "catalogue.json")[0].notes == "other words"
    for name in ("torch", "coremltools"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda asked, name=name: f"{asked == name}")
            run(tmp_path, noted, OTHER)
        assert list(converter) == ["small", "other"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "code_digest", lambda: "other code")
        run(tmp_path, noted)
    assert list(converter) == ["small"]
    run(tmp_path, noted, force=True)
    run(tmp_path, noted, force=True)
    assert list(converter) == ["small", "small"]


def test_a_digest_of_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "cli").mkdir()
    one = code_digest(tmp_path)
    (tmp_path / "cli" / "b.py").write_text("2")
    (tmp_path / "a.pyc").write_text("3")
    assert code_digest(tmp_path) == one
    (tmp_path / "c.py").write_text("4")
    assert code_digest(tmp_path) != one


def test_other_class_names_make_another_package(tmp_path: Path, converter: Converter) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a")
    recipe = dataclasses.replace(SMALL, labels=str(labels))
    run(tmp_path / "dist", recipe)
    labels.write_text("b")
    run(tmp_path / "dist", recipe)
    run(tmp_path / "dist", recipe)
    assert list(converter) == ["small", "small"]


def test_budgets_need_photographs(tmp_path: Path, converter: Converter, photographs: Path) -> None:
    (entry,) = run(tmp_path, FITTED)
    assert (entry.verdict, entry.error) == (NOT_RUN, NO_IMAGES)
    assert read_catalogue(tmp_path / "catalogue.json") == [entry]
    assert not (tmp_path / "fitted").exists()
    assert verdicts(run(tmp_path, FITTED, images=photographs)) == [PASS]
    for images in (photographs, None):  # without photographs the rest is compared
        entries, kept = release(RECIPES, ["fitted"], Path(), tmp_path, images=images)
        assert (entries["fitted"].verdict, kept) == (PASS, {"fitted"})
    changed = dataclasses.replace(FITTED, compression=Budget(max_size=900_000))
    assert verdicts(run(tmp_path, changed)) == [NOT_RUN]


def test_other_photographs_make_another_package(tmp_path: Path, photographs: Path) -> None:
    def digest(directory: Path) -> str:
        return inputs_of(FITTED, Weights("untrained", "untrained"), directory)["images"]

    copied = shutil.copytree(photographs, tmp_path / "photographs")
    (copied / "2.png").rename(copied / "3.png")
    assert digest(copied) == digest(photographs)
    (copied / "0.png").rename(copied / "4.png")
    assert digest(copied) != digest(photographs)
    assert "images" not in inputs_of(SMALL, Weights("untrained", "untrained"), copied)  # only compression needs them


def test_a_package_somebody_changed_is_no_longer_touched(tmp_path: Path, converter: Converter) -> None:
    run(tmp_path, SMALL)
    program = tmp_path / "small" / "Small.mlpackage" / "Data" / "program"
    program.write_text("mine now")
    failed, other = run(tmp_path, SMALL, OTHER)
    assert failed.error == (
        f"output {program.parents[1]}: expected the package of its report, got one that was changed; "
        "--force replaces it"
    )
    assert other.verdict == PASS
    assert program.read_text() == "mine now"
    assert verdicts(run(tmp_path, SMALL, force=True)) == [PASS]
    assert program.read_text() != "mine now"
    assert not (tmp_path / "small_failed").exists()


def test_a_package_that_is_gone_is_built_again(tmp_path: Path, converter: Converter) -> None:
    run(tmp_path, SMALL)
    shutil.rmtree(tmp_path / "small" / "Small.mlpackage")
    run(tmp_path, SMALL)
    assert list(converter) == ["small", "small"]


def test_nothing_else_is_ever_replaced(tmp_path: Path, converter: Converter) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "letter").write_text("dear")
    (tmp_path / "other_failed").write_text("mine")
    converter.errors["other"] = ConversionError("wrong")
    small, other = run(tmp_path, SMALL, OTHER, force=True)
    assert "got something else; move it" in small.error
    assert other.error == "wrong"
    assert (tmp_path / "small" / "letter").read_text() == "dear"
    assert (tmp_path / "other_failed").read_text() == "mine"


@pytest.mark.parametrize(
    "report", [b"{}", b"[", b"\xff", b'{"schema": 1, "package": 3}', b'{"recipe": "small", "x": 1}']
)
def test_reports_of_something_else(tmp_path: Path, converter: Converter, report: bytes) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / REPORT).write_bytes(report)
    assert verdicts(run(tmp_path, SMALL)) == [FAIL]
    assert (tmp_path / "small" / REPORT).read_bytes() == report


def test_errors_are_one_recipe_s_alone(tmp_path: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(module, "sha256_of", refused)
    unreadable = dataclasses.replace(OTHER, weights=str(tmp_path / "weights.pth"))
    fitted = dataclasses.replace(FITTED, compression=None)
    converter.errors["fitted"] = ValueError("of a\nlibrary")
    other, fitted_entry, small = run(tmp_path / "dist", unreadable, fitted, SMALL)
    assert other.error == "the system refused: Permission denied (weights.pth); check the path"
    assert fitted_entry.error == "ValueError: of a library"
    assert small.verdict == PASS


def refused(*_: object) -> str:
    raise PermissionError(errno.EACCES, "Permission denied", "weights.pth")


def test_a_process_that_crashes_is_one_failure(tmp_path: Path, converter: Converter) -> None:
    converter.errors["small"] = CRASH
    small, other = run(tmp_path, SMALL, OTHER)
    assert small.error == "expected a package, got a process that crashed; is there enough memory?"
    assert other.verdict == PASS
    assert names_in(tmp_path / "small_failed") == [REPORT]


def test_nothing_half_made_is_kept_as_failed(tmp_path: Path, converter: Converter) -> None:
    converter.errors["small"] = ConversionError("half-way")
    assert verdicts(run(tmp_path, SMALL)) == [FAIL]
    assert names_in(tmp_path) == ["CATALOGUE.md", "catalogue.json", "small_failed"]
    assert names_in(tmp_path / "small_failed") == [REPORT]


def test_what_fails_is_kept_beside_and_goes_when_it_is_right(tmp_path: Path, converter: Converter) -> None:
    strict = dataclasses.replace(SMALL, gates={"snr": 99.0})
    (entry,) = run(tmp_path, strict)
    assert (entry.verdict, entry.error) == (FAIL, "main: snr: expected at least 99 dB, got 50")
    assert not (tmp_path / "small").exists()
    assert names_in(tmp_path / "small_failed") == ["Small_failed.mlpackage", REPORT]
    assert f"- small: FAIL, {entry.error}" in (tmp_path / "CATALOGUE.md").read_text()
    run(tmp_path, OTHER)  # what failed earlier is not forgotten
    assert verdicts(read_catalogue(tmp_path / "catalogue.json")) == [FAIL, PASS]
    assert verdicts(run(tmp_path, SMALL)) == [PASS]
    assert not (tmp_path / "small_failed").exists()


@pytest.mark.parametrize(
    ("compressed", "gates", "error"),
    [
        (False, {"snr": 40.0}, "main: snr: expected at least 40 dB, got 35"),
        (False, {"snr": 20.0}, ""),  # the conversion's own of 30 stays
        (
            False,
            {"cosine": 0.995, "top1": 1.0},
            "main: cosine: expected at least 0.995, got 0.99; "
            "main: top1: expected at least 1 share, got nothing measured",
        ),
        (True, {"snr": 40.0}, "quality, main: snr: expected at least 40 dB, got 35"),
        (True, {"snr": 34.0, "cosine": 0.9}, ""),
    ],
)
def test_gates(
    compressed: bool, gates: dict[str, float], error: str, tmp_path: Path, converter: Converter, photographs: Path
) -> None:
    converter.snr = 35.0
    recipe = dataclasses.replace(FITTED if compressed else SMALL, gates=gates)
    (entry,) = run(tmp_path, recipe, images=photographs)
    assert (entry.verdict, entry.error) == (FAIL if error else PASS, error)


def test_a_looser_gate_replaces_none(tmp_path: Path, converter: Converter) -> None:
    converter.snr = 29.0
    (entry,) = run(tmp_path, dataclasses.replace(SMALL, gates={"snr": 20.0}))
    assert entry.error == "main: snr: expected at least 30 dB, got 29"


def test_an_interruption_leaves_what_is_finished(tmp_path: Path, converter: Converter) -> None:
    converter.errors["other"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SMALL, OTHER)
    assert names_in(tmp_path) == ["small"]
    converter.errors.clear()
    entries, kept = release(RECIPES, ["small", "other"], Path(), tmp_path)
    assert (verdicts(list(entries.values())), kept) == ([PASS, PASS], {"small"})


def test_a_package_that_a_killed_run_was_replacing_comes_back(tmp_path: Path, converter: Converter) -> None:
    run(tmp_path, SMALL)
    killed = tmp_path / ".small.12345678"
    (killed / "replaced").mkdir(parents=True)
    (killed / "lock").touch()
    (tmp_path / "small").rename(killed / "replaced" / "small")
    _, kept = release(RECIPES, ["small"], Path(), tmp_path)
    assert kept == {"small"}
    assert names_in(tmp_path) == ["CATALOGUE.md", "catalogue.json", "small"]


def test_one_run_at_a_time(tmp_path: Path, converter: Converter) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match=r"expected to be alone there, got another run at work; wait for it"):
        run(tmp_path, SMALL)
    os.close(descriptor)
    assert verdicts(run(tmp_path, SMALL)) == [PASS]


def test_output_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file: File exists; choose another place"):
        run(tmp_path / "file", SMALL)


# Weights.


def unreachable(hub_id: str) -> HubUnreachableError:
    return HubUnreachableError(f"weights {hub_id}: expected in the local cache, got no way there")


AUTO = dataclasses.replace(SMALL, weights="auto")


def test_weights(tmp_path: Path) -> None:
    def found(weights: str) -> Weights:
        return find_weights(dataclasses.replace(SMALL, weights=weights), tmp_path, False, unreachable)

    assert find_weights(SMALL, tmp_path, True, unreachable) == Weights("untrained", "untrained")
    fallen = found("auto")
    assert fallen.name == "untrained"
    assert "apple/mobilevit-xx-small" in fallen.notice
    for recipe in (AUTO, dataclasses.replace(SMALL, weights="pretrained")):
        with pytest.raises(HubUnreachableError):
            find_weights(recipe, tmp_path, True, unreachable)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").write_bytes(b"1")
    published = find_weights(AUTO, tmp_path, False, lambda _: tmp_path / "snapshot")
    assert (published.name, published.notice) == ("apple/mobilevit-xx-small", "")
    directory = found("snapshot")
    assert (directory.name, directory.digest) == (str(tmp_path / "snapshot"), published.digest)
    file = found("snapshot/model.safetensors")
    assert file.digest == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # sha256 of "1"
    with pytest.raises(HubUnreachableError):
        found("owner/name@abc")
    with pytest.raises(RecipeError, match=r"small.toml: weights: expected auto, .* got 'no.pth', where there is no"):
        found("no.pth")


PARTS = (
    "~",
    "~nobody-of-this-name",
    "/",
    "..",
    ".",
    "\0",
    "\n",
    "x" * 300,
    "é",
    "auto",
    "untrained",
    " ",
    "@",
    "\ud800",
)


def test_weights_of_every_kind_are_one_recipe_s_failure(tmp_path: Path, converter: Converter) -> None:
    rng = random.Random(0)
    texts = ["", "~nobody/x.pth", *PARTS, *("/".join(rng.choices(PARTS, k=3)) for _ in range(150))]
    texts = [text for text in texts if text.strip("./ ") not in ("", "~", "auto", "untrained")]
    for number, weights in enumerate(texts):
        wrong, right = run(tmp_path / f"{number}", dataclasses.replace(OTHER, weights=weights), SMALL)
        assert wrong.verdict == FAIL, weights
        assert wrong.error.isprintable(), weights
        assert right.verdict == PASS


def test_no_untrained_package_replaces_a_trained_one(
    tmp_path: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snapshot").mkdir()
    output = tmp_path / "dist"
    with monkeypatch.context() as patch:
        patch.setattr(module, "snapshot", lambda _: tmp_path / "snapshot")
        run(output, AUTO)
    monkeypatch.setattr(module, "snapshot", raise_unreachable)
    _, kept = release({"small": AUTO}, ["small"], Path(), output)
    assert kept == {"small"}  # all else is the same
    changed = dataclasses.replace(AUTO, attention="packed")
    (entry,) = run(output, changed)
    assert "--force replaces the trained package" in entry.error
    assert not json.loads((output / "small" / REPORT).read_text())["untrained"]
    assert verdicts(run(output, changed, force=True)) == [PASS]
    assert json.loads((output / "small" / REPORT).read_text())["untrained"]
    assert list(converter) == ["small", "small"]


def raise_unreachable(hub_id: str) -> Path:
    raise unreachable(hub_id)


def test_the_hub_is_asked_once_for_what_it_has_not(
    tmp_path: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(hub_id: str) -> Path:
        asked.append(hub_id)
        return raise_unreachable(hub_id)

    monkeypatch.setattr(module, "snapshot", snapshot)
    run(tmp_path, AUTO, dataclasses.replace(OTHER, weights="auto"))
    assert asked == ["apple/mobilevit-xx-small"]
    assert list(converter) == ["small", "other"]
