"""`python -m conversions`: one real package by default, interrupted and killed runs among the slow tests."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.cli.build import main
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.package.files import digest_of, size_of
from mobilevit_coreml.progress import silent
from mobilevit_coreml.release import build as release_build
from mobilevit_coreml.release.build import Task, Weights, build
from mobilevit_coreml.release.catalogue import README, REPORT, Entry, entry_of, read_catalogue, read_report
from mobilevit_coreml.release.recipe import load_recipe, load_recipes

ROOT = Path(__file__).parent.parent.parent
NAME = "small"


def write_recipe(directory: Path, name: str, task: str = "features", snr: int = 30) -> None:
    (directory / f"{name}.toml").write_text(
        f"""
name = "{name}"
package = "{name.capitalize()}"
task = "{task}"
variant = "xxs"
target = "iOS16"
weights = "untrained"
attention = "packed"
image_sizes = [64]

[gates]
snr = {snr}
"""
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "conversions", *map(str, arguments)]


@dataclasses.dataclass(frozen=True)
class Made:
    recipes: Path
    output: Path
    finished: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A package, and a recipe of weights that are nowhere."""
    directory = tmp_path_factory.mktemp("release")
    recipes, output = directory / "recipes", directory / "dist"
    recipes.mkdir()
    write_recipe(recipes, NAME)
    write_recipe(recipes, "nowhere")
    text = (recipes / "nowhere.toml").read_text().replace('"untrained"', '"~nobody-of-this-name/x.pth"')
    (recipes / "nowhere.toml").write_text(text)
    arguments = command("--all", "--recipes", recipes, "--output", output, "--jobs", 2)
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    return Made(recipes, output, finished)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_run(made: Made) -> None:
    assert made.finished.returncode == 1
    assert made.finished.stderr == "note: 1 UNTRAINED: these recognize nothing; do not ship them\n"
    lines = made.finished.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(made.output.parent) not in line)  # paths are not broken
    assert lines[1].startswith("  nowhere      FAIL,")
    assert any(line.startswith("  small        PASS, ") for line in lines)
    assert names_in(made.output) == ["CATALOGUE.md", "catalogue.json", "nowhere_failed", NAME]
    assert names_in(made.output / NAME) == ["Small_untrained.mlpackage", REPORT]
    assert names_in(made.output / "nowhere_failed") == [REPORT]


def test_the_report_and_the_catalogue(made: Made) -> None:
    package = made.output / NAME / "Small_untrained.mlpackage"
    report = read_report(made.output / NAME)
    assert report is not None
    assert (report.bytes, report.sha256) == (size_of(package), digest_of(package))
    assert report.asked["image_sizes"] == [[64, 64]]
    assert report.fidelity["main"]["gates"]["snr"] == 30
    assert report.fidelity["main"]["images"] == 8
    assert report.fidelity["main"]["signals"].keys() == {"pooled", "featureMap"}
    nowhere, small = read_catalogue(made.output / "catalogue.json")
    assert (small.name, small.verdict, small.target, small.sha256) == (NAME, "PASS", "iOS16", report.sha256)
    assert small.operations == report.operations
    assert small.operations is not None
    assert small.operations > 200
    assert small.untrained
    assert small.weights is not None
    assert small.weights.seed == 0
    assert small.fidelity is not None
    assert small.fidelity["main"]["snr"] > 30
    assert (nowhere.verdict, nowhere.package) == ("FAIL", None)
    assert "'~nobody-of-this-name/x.pth', where there is nothing" in nowhere.error
    assert read_record(package).weights.untrained


def test_a_second_run_does_nothing(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = shutil.copytree(made.output, tmp_path / "dist")
    before = {path: path.stat().st_mtime_ns for path in (output / NAME).rglob("*")}
    assert main([NAME, "--recipes", str(made.recipes), "--output", str(output)]) == 0
    assert "small        up to date, " in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (output / NAME).rglob("*")}
    assert [one.verdict for one in read_catalogue(output / "catalogue.json")] == ["FAIL", "PASS"]


@pytest.mark.slow
def test_builds_are_equal(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)  # which `build` sets
    recipe = load_recipe(made.recipes / f"{NAME}.toml")
    inputs = json.loads((made.output / NAME / REPORT).read_text())["inputs"]
    assert build(Task(recipe, Weights("untrained", ""), inputs, None, tmp_path / NAME), silent) == ""
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in files} == {"Manifest.json", "model.mlmodel", "weight.bin", REPORT}
    for file in files:
        if file.name != "Manifest.json":  # it has random identifiers
            assert (tmp_path / file).read_bytes() == (made.output / file).read_bytes(), file


@pytest.mark.slow
def test_a_package_that_misses_a_gate(made: Made, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    write_recipe(recipes, "strict", snr=199)
    arguments = command("--all", "--recipes", recipes, "--output", tmp_path / "dist")
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "  strict       FAIL, main: snr: expected at least 199 dB, got " in finished.stdout
    assert names_in(tmp_path / "dist" / "strict_failed") == ["Strict_untrained_failed.mlpackage", REPORT]


@contextlib.contextmanager
def half_way(made: Made, output: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """The command, when it has kept one package and is about to build another, and its processes."""
    (recipes := output / "recipes").mkdir()
    write_recipe(recipes, NAME)
    write_recipe(recipes, "another")
    shutil.copytree(made.output / NAME, output / NAME)
    arguments = command("--all", "--recipes", recipes, "--output", output)
    process = subprocess.Popen(
        arguments, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        # `convert` has made its own place inside: the process is at work
        wait_for(lambda: any(output.glob(".another.*/another/.*")))
        listed = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listed.splitlines()]
        yield process, [int(pid) for pid, group in pairs if int(group) == process.pid and int(pid) != process.pid]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute")


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.slow
def test_an_interruption(made: Made, tmp_path: Path) -> None:
    with half_way(made, tmp_path) as (process, others):
        assert others
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGINT
        assert (out, err) == ("", "interrupted: nothing half-made is left\n")
        wait_for(lambda: not any(map(is_running, others)))
    assert names_in(tmp_path) == ["recipes", NAME]


@pytest.mark.slow
def test_killed_in_the_middle(made: Made, tmp_path: Path) -> None:
    with half_way(made, tmp_path) as (process, others):
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(is_running, others)))
    visible = [name for name in names_in(tmp_path) if not name.startswith(".")]
    assert visible == ["recipes", NAME]  # the processes did not go on alone
    finished = subprocess.run(
        command("--all", "--recipes", tmp_path / "recipes", "--output", tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0
    assert "small        up to date" in finished.stdout
    assert names_in(tmp_path) == ["CATALOGUE.md", "another", "catalogue.json", "recipes", NAME]


def test_the_example_in_the_readme_is_a_recipe(tmp_path: Path) -> None:
    _, _, rest = README.read_text(encoding="utf-8").partition("```toml\n")
    text, _, _ = rest.partition("```")
    path = tmp_path / f"{tomllib.loads(text)['name']}.toml"
    path.write_text(text)
    assert load_recipe(path) == load_recipes()[path.stem]


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

    def release(*_: Any, **__: Any) -> tuple[dict[str, Entry], set[str]]:
        return {verdict: entry_of(recipe, verdict, "because", None) for verdict in verdicts}, set()

    monkeypatch.setattr(release_build, "release", release)
    assert main(["--all"]) == code


def test_arguments_of_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def release(*positional: Any, progress: Any, **given: Any) -> None:
        asked.extend([*positional[1:], given])
        raise InputError("enough")

    monkeypatch.setattr(release_build, "release", release)
    write_recipe(tmp_path, NAME)
    write_recipe(tmp_path, "other")
    arguments = ["small", "other", "--recipes", str(tmp_path), "--output", "out", "--jobs", "3", "--pretrained"]
    assert main([*arguments, "--force"]) == 2
    given = {"jobs": 3, "images": None, "pretrained": True, "force": True}
    assert asked == [["other", "small"], tmp_path, Path("out"), given]  # in the order of the recipes
    assert capsys.readouterr().err == "error: enough\n"


def test_offline_reaches_the_client_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert main(["--list", "--offline"]) == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_images_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--all", "--output", str(tmp_path / "dist"), "--images", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: images {tmp_path}: expected images")
    assert not (tmp_path / "dist").exists()
