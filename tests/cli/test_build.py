"""The command from recipes to packages, with processes, signals and the smallest networks there are."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mobilevit_coreml.cli.build import main
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.package.files import digest_of, size_of
from mobilevit_coreml.release.build import REPORT, build
from mobilevit_coreml.release.catalogue import read_catalogue
from mobilevit_coreml.release.place import BUILDING
from mobilevit_coreml.release.recipe import load_recipe, load_recipes
from mobilevit_coreml.release.release import Outcome
from mobilevit_coreml.release.workers import Task, built, error_of

ROOT = Path(__file__).parent.parent.parent
RECIPE = """
name = "{name}"
package = "{package}"
task = "{task}"
variant = "xxs"
weights = "untrained"
target = "iOS16"
precision = "fp16"
image_sizes = [64]
[gates]
snr = {snr}
"""


def write_recipe(directory: Path, name: str, task: str = "classification", snr: float = 30) -> None:
    text = RECIPE.format(name=name, package=name.capitalize(), task=task, snr=snr)
    (directory / f"{name}.toml").write_text(text)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "conversions", *map(str, arguments)]


@dataclasses.dataclass(frozen=True)
class Made:
    recipes: Path
    output: Path
    finished: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two packages that are right and one that cannot be, made by two processes."""
    directory = tmp_path_factory.mktemp("release")
    recipes, output = directory / "recipes", directory / "dist"
    recipes.mkdir()
    write_recipe(recipes, "classes")
    write_recipe(recipes, "features", "features")
    write_recipe(recipes, "strict", "features", snr=199)
    arguments = command("--all", "--recipes", recipes, "--output", output, "--jobs", 2)
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    return Made(recipes, output, finished)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Recipes that were built, without the seconds it takes to start processes."""
    names: list[str] = []

    def built_here(tasks: Sequence[Task], jobs: int, scratch: Path) -> Iterator[tuple[int, str]]:
        for index, task in enumerate(tasks):
            names.append(task[0].name)
            yield index, error_of(task)

    monkeypatch.setattr("mobilevit_coreml.release.release.built", built_here)
    return names


def test_what_is_made(made: Made) -> None:
    assert made.finished.returncode == 1
    assert made.finished.stderr == "note: 3 UNTRAINED: these recognize nothing; do not ship them\n"
    lines = made.finished.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith("  classes      PASS, ")
    assert any(line.startswith("  strict       FAIL, main: snr: expected at least 199 dB, got ") for line in lines)
    assert sorted(path.name for path in made.output.iterdir()) == [
        "CATALOGUE.md",
        "catalogue.json",
        "classes",
        "features",
        "strict_failed",
    ]
    assert sorted(path.name for path in (made.output / "classes").iterdir()) == [
        "Classes_untrained.mlpackage",
        REPORT,
    ]
    assert sorted(path.name for path in (made.output / "strict_failed").iterdir()) == [
        "Strict_untrained_failed.mlpackage",
        REPORT,
    ]


def test_the_report_and_the_catalogue(made: Made) -> None:
    package = made.output / "classes" / "Classes_untrained.mlpackage"
    report = json.loads((made.output / "classes" / REPORT).read_text())
    assert (report["bytes"], report["sha256"]) == (size_of(package), digest_of(package))
    assert report["asked"]["image_sizes"] == [[64, 64]]
    assert report["fidelity"]["main"]["gates"]["snr"] == 30
    assert report["fidelity"]["main"]["images"] == 8
    assert report["fidelity"]["main"]["signals"].keys() == {"logits"}
    classes, features, strict = read_catalogue(made.output / "catalogue.json")
    assert [one["name"] for one in (classes, features, strict)] == ["classes", "features", "strict"]
    assert [one["verdict"] for one in (classes, features, strict)] == ["PASS", "PASS", "FAIL"]
    assert classes["sha256"] == report["sha256"]
    assert classes["operations"] == report["operations"] > 300
    assert classes["untrained"]
    assert classes["weights"]["seed"] == 0
    assert classes["fidelity"]["main"]["snr"] > 30
    assert classes["target"] == "iOS16"
    assert "snr: expected at least 199 dB" in strict["error"]
    assert read_record(package).weights.untrained


def test_a_second_run_does_nothing(
    made: Made, tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(made.output, tmp_path / "dist")
    before = {path: path.stat().st_mtime_ns for path in (output / "classes").rglob("*")}
    arguments = ["classes", "features", "--recipes", str(made.recipes), "--output", str(output)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert in_process == []
    assert before == {path: path.stat().st_mtime_ns for path in (output / "classes").rglob("*")}
    assert [one["verdict"] for one in read_catalogue(output / "catalogue.json")] == ["PASS", "PASS", "FAIL"]


def test_a_changed_recipe_is_built_again(made: Made, tmp_path: Path, in_process: list[str]) -> None:
    recipes, output = shutil.copytree(made.recipes, tmp_path / "recipes"), shutil.copytree(made.output, tmp_path / "o")
    write_recipe(recipes, "strict", "features", snr=31)
    assert main(["features", "strict", "--recipes", str(recipes), "--output", str(output)]) == 0
    assert in_process == ["strict"]
    assert not (output / "strict_failed").exists()
    assert (output / "strict" / "Strict_untrained.mlpackage").is_dir()
    assert [one["verdict"] for one in read_catalogue(output / "catalogue.json")] == ["PASS"] * 3


def test_two_builds_are_equal(made: Made, tmp_path: Path) -> None:
    recipe = load_recipe(made.recipes / "classes.toml")
    inputs = json.loads((made.output / "classes" / REPORT).read_text())["inputs"]
    assert build(recipe, "untrained", "", None, inputs, tmp_path) == ""
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in files} == {"Manifest.json", "model.mlmodel", "weight.bin", REPORT}
    for file in files:
        if file.name != "Manifest.json":  # it has random identifiers
            assert (tmp_path / file).read_bytes() == (made.output / "classes" / file).read_bytes(), file


@contextlib.contextmanager
def half_way(made: Made, output: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """The command, when it has finished one package and is about to build another, and its processes."""
    recipes = shutil.copytree(made.recipes, output / "recipes")
    (recipes / "strict.toml").unlink()
    write_recipe(recipes, "another", "features")
    shutil.copytree(made.output / "classes", output / "classes")
    arguments = command("another", "classes", "--recipes", recipes, "--output", output)
    process = subprocess.Popen(
        arguments, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        # `convert` has made its own place inside: the process is at work
        wait_for(lambda: any((output / BUILDING / "another").glob(".*")))
        listed = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listed.splitlines()]
        yield process, [int(pid) for pid, group in pairs if int(group) == process.pid and int(pid) != process.pid]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(is_so: object) -> None:
    assert callable(is_so)
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute")


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_an_interruption(made: Made, tmp_path: Path) -> None:
    with half_way(made, tmp_path) as (process, others):
        assert others
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGINT
        assert (out, err) == ("", "interrupted: nothing half-made is left\n")
        wait_for(lambda: not any(map(is_running, others)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes", "recipes"]


def test_killed_in_the_middle(made: Made, tmp_path: Path, in_process: list[str]) -> None:
    with half_way(made, tmp_path) as (process, others):
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(is_running, others)))
    assert not (tmp_path / BUILDING / "another" / REPORT).exists()  # its processes did not go on alone
    assert sorted(path.name for path in tmp_path.iterdir()) == [BUILDING, "classes", "recipes"]
    assert main(["another", "classes", "--recipes", str(tmp_path / "recipes"), "--output", str(tmp_path)]) == 0
    assert in_process == ["another"]
    assert not (tmp_path / BUILDING).exists()


def test_a_process_that_crashes_is_one_failure(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilevit_coreml.release.workers._serve", crash)
    recipe = load_recipe(made.recipes / "classes.toml")
    tasks: list[Task] = [(recipe, "untrained", "", None, {}, tmp_path)] * 2
    results = list(built(tasks, 1, tmp_path))
    assert [index for index, _ in results] == [0, 1]
    assert all(error.startswith("expected a package, got a process that ended with SIGABRT") for _, error in results)


def crash(*_: object) -> None:
    """What a process does in place of serving."""
    os.abort()


def test_names_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xs_fp16", "xl"]) == 2
    names = ", ".join(load_recipes())
    assert capsys.readouterr().err == f"error: recipe: expected some of {names}, got 'xl'; see --list\n"


@pytest.mark.parametrize("arguments", [[], ["--all", "xs_fp16"], ["--list", "--all"], ["--catalogue", "c.json"]])
def test_one_thing_at_a_time(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: arguments: expected names of recipes, --all, --list or --readme")


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "65"])
def test_jobs(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--all", "--jobs", jobs])
    assert f"expected a number of processes, 1 to 64, got '{jobs}'" in capsys.readouterr().err


def test_a_list_needs_no_torch() -> None:
    code = (
        "import sys; from mobilevit_coreml.cli.build import main; main(['--list']); assert 'torch' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert all(len(line) <= 80 for line in finished.stdout.splitlines())
    assert "  xs_2mb       MobileViT_XS_2MB: classification, xs, at most 2 MB" in finished.stdout


@pytest.mark.parametrize(
    ("verdicts", "code"), [(["PASS"], 0), (["PASS", "NOT_RUN"], 3), (["NOT_RUN", "FAIL", "PASS"], 1)]
)
def test_exit_codes(verdicts: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipes()["xs_fp16"]
    outcomes = [Outcome(recipe, verdict, "because") for verdict in verdicts]
    monkeypatch.setattr("mobilevit_coreml.cli.build.release", lambda *_, **__: outcomes)
    assert main(["--all"]) == code


def test_offline_reaches_the_client_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert main(["--list", "--offline"]) == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_images_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--all", "--output", str(tmp_path / "dist"), "--images", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: images {tmp_path}: expected images")
    assert not (tmp_path / "dist").exists()
