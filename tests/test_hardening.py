"""Runs that are killed, that meet, that find no room, and places of every kind: what is there is whole, or nothing is.

Runs that are killed, or meet, are processes forked off one that has torch and coremltools loaded, so that it happens
at an exact point of the code; test_publish.py has the same of bare directories.
"""

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml import conversion, stages
from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.cli.convert import main as convert
from mobilevit_coreml.cli.predict import main as predict
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.package.files import check_free, digest_of
from mobilevit_coreml.package.metadata import FUNCTION
from mobilevit_coreml.publish import LOCK, publish
from mobilevit_coreml.reference import ReferenceEvaluator

Main = Callable[[Sequence[str]], int]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_hardening", "mobilevit_coreml.mil", "mobilevit_coreml.verification"])
NAME = "MobileViT_Custom_fp16.mlpackage"


def conversion_of(weights: Path, output: Path, *options: str) -> list[str]:
    return ["--weights", str(weights), "--image-size", "64", "--output", str(output), *options]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    synthetic_images(70, 80, 1)[0].save(path)
    return path


def names_in(directory: Path) -> list[str]:
    """All that is there, hidden or not."""
    return sorted(entry.name for entry in directory.iterdir())


def origin_of(path: Path) -> str:
    """Whose weights a package has; it is whole, or the evaluator would not run it."""
    assert all(ReferenceEvaluator(path).run({"image": synthetic_images(64, 64, 1)[0]}))
    return Path(read_record(path).weights.name).name


def take_program(path: Path) -> None:
    """Spare a conversion the ML Program's making, which is no matter of this module: take a package's."""
    program = ct.models.MLModel(str(path), skip_model_load=True)
    stages.build_programs = lambda *_: {FUNCTION: program}


@pytest.fixture
def quick(small_packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take the program of a task's package for each conversion in this process."""
    monkeypatch.setattr(stages, "build_programs", stages.build_programs)  # to be restored
    return lambda task: take_program(small_packages[task])


# Runs in processes of their own.


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    err: str


def command(main: Main, arguments: list[str], errors: Connection, prepare: Sequence[Callable[[], object]]) -> None:
    """The body of a process: a command after some preparation."""
    os.dup2(errors.fileno(), 2)
    for step in prepare:
        step()
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    code = main(arguments)
    sys.stderr.flush()
    os._exit(code)  # past the fork server's own end


class Run:
    """A command in a process of its own."""

    def __init__(self, main: Main, arguments: list[str], *prepare: Callable[[], object]) -> None:
        self.errors, theirs = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=command, args=(main, arguments, theirs, prepare))
        self.process.start()
        theirs.close()

    def ended(self) -> Ended:
        self.process.join(120)
        with self.errors, open(self.errors.fileno(), closefd=False) as file:
            err = file.read()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, err)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place: str) -> None:
    name, _, function = place.partition(":")
    module = importlib.import_module(f"mobilevit_coreml.{name}")
    assert hasattr(module, function)
    setattr(module, function, die)


def die_while_saving() -> None:
    honest = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        honest(path, content[: len(content) // 2])
        die()
        return 0

    Path.write_bytes = write  # type: ignore[method-assign, assignment]


def die_between_renames() -> None:
    honest = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.parent.name.startswith(".") and path.suffix == ".mlpackage":
            die()
        return honest(path, target)

    Path.rename = rename  # type: ignore[method-assign, assignment]


BETWEEN_RENAMES = "with the old package taken away"
MOMENTS: dict[str, Callable[[], None]] = {
    "with the staging directory just made": functools.partial(die_at, "stages:make_job"),
    "with half a program written": die_while_saving,
    "while verifying": functools.partial(die_at, "verification:verify"),
    "just before it puts the package in place": functools.partial(die_at, "conversion:publish"),
    BETWEEN_RENAMES: die_between_renames,
}


@pytest.mark.parametrize(
    ("moment", "there_before"),
    [
        pytest.param(moment, before, marks=[] if before and moment == BETWEEN_RENAMES else pytest.mark.slow)
        for moment in MOMENTS
        for before in (True, False)
    ],
)
def test_a_killed_run(
    small_weights: dict[str, Path],
    small_packages: dict[str, Path],
    quick: Callable[[str], None],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    moment: str,
    there_before: bool,
) -> None:
    path, options = tmp_path / NAME, []
    weights = tmp_path_factory.mktemp("weights") / "new.pth"
    shutil.copy(small_weights[CLASSIFICATION], weights)
    if there_before:
        shutil.copytree(small_packages[CLASSIFICATION], path)
        options = ["--force"]
    arguments = conversion_of(weights, tmp_path, *options)
    ready = functools.partial(take_program, small_packages[CLASSIFICATION])
    assert Run(convert, arguments, ready, MOMENTS[moment]).ended() == Ended(-signal.SIGKILL, "")
    visible = [name for name in names_in(tmp_path) if not name.startswith(".")]
    assert len(names_in(tmp_path)) == len(visible) + 1  # what it was about
    if there_before and moment != BETWEEN_RENAMES:
        assert origin_of(path) == "classification.pth"
    else:
        assert visible == []
    if there_before:
        check_free(path, force=True)  # as the next run begins
        assert origin_of(path) == "classification.pth"
    quick(CLASSIFICATION)
    assert convert([*arguments, "--no-verify"]) == 0
    assert names_in(tmp_path) == [NAME]
    assert origin_of(path) == "new.pth"


@pytest.mark.slow
def test_a_killed_command(small_weights: dict[str, Path], quick: Callable[[str], None], tmp_path: Path) -> None:
    """As it is: `python -m`, and `kill -9` from outside."""
    arguments = conversion_of(small_weights[CLASSIFICATION], tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "mobilevit_coreml.convert", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f".*/{LOCK}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.communicate(timeout=60) == (b"", b"")
    (left,) = names_in(tmp_path)
    assert left.startswith(".MobileViT_Custom_fp16.")
    quick(CLASSIFICATION)
    assert convert([*arguments, "--no-verify"]) == 0
    assert names_in(tmp_path) == [NAME]


# Runs that meet.


def wait_for_the_other(barrier: Any) -> None:
    def wait(staged: Path, path: Path, force: bool) -> None:
        barrier.wait(60)
        publish(staged, path, force)

    setattr(conversion, "publish", wait)  # noqa: B010


@pytest.mark.slow
@pytest.mark.parametrize("force", [(False, False), (True, False), (True, True)])
def test_two_runs_to_one_place(
    small_weights: dict[str, Path],
    small_packages: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    force: tuple[bool, bool],
) -> None:
    elsewhere, path = tmp_path_factory.mktemp("weights"), tmp_path / NAME
    if all(force):
        shutil.copytree(small_packages[CLASSIFICATION], path)
    barrier = FORKS.Barrier(2)
    steps = [
        functools.partial(take_program, small_packages[CLASSIFICATION]),
        functools.partial(wait_for_the_other, barrier),
    ]
    runs = []
    for number, forced in enumerate(force):
        shutil.copy(small_weights[CLASSIFICATION], elsewhere / f"{number}.pth")
        options = ["--no-verify", *(["--force"] if forced else [])]
        runs.append(Run(convert, conversion_of(elsewhere / f"{number}.pth", tmp_path, *options), *steps))
    ended = [run.ended() for run in runs]
    winners = [f"{number}.pth" for number, one in enumerate(ended) if one.code == 0]
    assert len(winners) == 1 or (winners and any(force))  # who may replace may do so right after the other
    assert origin_of(path) in winners
    for one in ended:
        if one.code:
            assert one == Ended(
                2,
                f"error: output {path}: expected its name to stay free, got something another run put there "
                "meanwhile; add --force to replace a package\n",
            )
    assert names_in(tmp_path) == [NAME]


# No room.


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Refuse to write beyond so many bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 10_000, 60_000])  # of files of 0.6, 27 and 100 kB
def test_files_that_may_not_grow(
    small_weights: dict[str, Path],
    quick: Callable[[str], None],
    tmp_path: Path,
    size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick(CLASSIFICATION)
    with largest_file(size):
        message = fails(convert, conversion_of(small_weights[CLASSIFICATION], tmp_path), capsys)
    assert message.startswith("error: cannot write ")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("task", [SEGMENTATION, FEATURES])
def test_answers_that_may_not_grow(
    small_packages: dict[str, Path], photo: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path if task == SEGMENTATION else tmp_path / "x.npz"
    with largest_file(100):
        message = fails(predict, [small_packages[task], photo, "--output", output], capsys)
    assert ": File too large; make room" in message
    assert names_in(tmp_path) == []


@contextlib.contextmanager
def disk(place: Path, size: str) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no rights to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(
    small_weights: dict[str, Path],
    small_packages: dict[str, Path],
    quick: Callable[[str], None],
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with disk(tmp_path, "64k"):
        quick(CLASSIFICATION)
        assert "cannot write" in fails(convert, conversion_of(small_weights[CLASSIFICATION], tmp_path), capsys)
        assert names_in(tmp_path) == []
        with contextlib.suppress(OSError):
            (tmp_path / "filler").write_bytes(bytes(100_000))
        arguments = [small_packages[FEATURES], photo, "--output", tmp_path / "x.npz"]
        assert "No space left on device" in fails(predict, arguments, capsys)
        assert names_in(tmp_path) == ["filler"]


# Places. Each is one line and nothing left, or it works.


def fails(main: Main, arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def read_only_place() -> Path:
    return Path("/proc") if Path("/proc").is_dir() else Path("/System")  # refuses even root


def test_places_that_cannot_be_written_to(
    small_weights: dict[str, Path],
    small_packages: dict[str, Path],
    quick: Callable[[str], None],
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = read_only_place()
    quick(CLASSIFICATION)
    compress = [*conversion_of(small_weights[CLASSIFICATION], tmp_path), "--palettize", "4"]
    assert f"cannot write {place}/x.json: " in fails(convert, [*compress, "--report", place / "x.json"], capsys)
    assert f"cannot write {place}/photo_" in fails(
        predict, [small_packages[SEGMENTATION], photo, "--output", place], capsys
    )
    assert f"cannot write {place}/x.npz: " in fails(
        predict, [small_packages[FEATURES], photo, "--output", place / "x.npz"], capsys
    )
    assert names_in(tmp_path) == []


NAMES = {
    "spaces and quotes": " a 'b' \"c\" $d",
    "umlauts, composed": unicodedata.normalize("NFC", "Größe né"),
    "umlauts, decomposed": unicodedata.normalize("NFD", "Größe né"),
    "Chinese, Arabic and emoji": "模型 نموذج 😀👩‍🔬",
    "globs": "x[1]*?{a}",
    "lines": "one\ntwo\tthree",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("globs", "lines") else pytest.mark.slow) for name in NAMES]
)
def test_names_of_every_kind(
    name: str,
    small_weights: dict[str, Path],
    quick: Callable[[str], None],
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / NAMES[name]
    (directory / "photos").mkdir(parents=True)
    shutil.copy(small_weights[FEATURES], directory / f"{NAMES[name]}.pth")
    shutil.copy(photo, directory / "photos" / f"{NAMES[name]}.png")
    output = directory / f"{NAMES[name]}.mlpackage"
    arguments = conversion_of(directory / f"{NAMES[name]}.pth", output, "--images", str(directory / "photos"))
    quick(FEATURES)
    assert convert(arguments) == 0
    (copy,) = (directory / "photos").iterdir()
    assert predict([str(output), str(copy), "--output", str(directory / f"{NAMES[name]}.npz")]) == 0
    assert names_in(directory) == sorted([*(NAMES[name] + end for end in (".pth", ".mlpackage", ".npz")), "photos"])
    capsys.readouterr()
    (directory / f"{NAMES[name]}.pth").write_bytes(b"PK\x03\x04")
    assert "truncated or damaged" in fails(convert, [*arguments, "--force"], capsys)


def test_names_that_are_no_text(
    small_weights: dict[str, Path], quick: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are not UTF-8, as names on Linux may be."""
    if sys.platform == "darwin":
        pytest.skip("macOS has none")
    shutil.copy(small_weights[FEATURES], tmp_path / "\udcff.pth")
    quick(FEATURES)
    assert convert(conversion_of(tmp_path / "\udcff.pth", tmp_path, "--no-verify")) == 0
    output = tmp_path / "\udcff.mlpackage"  # coremltools could save it, and not read it again
    assert "expected a name that is text" in fails(convert, conversion_of(tmp_path / "\udcff.pth", output), capsys)


def test_links(
    small_weights: dict[str, Path], quick: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir()
    quick(FEATURES)
    link.symlink_to(place)
    arguments = conversion_of(small_weights[FEATURES], link, "--no-verify")
    name = "MobileViT_Custom_features_fp16.mlpackage"
    assert convert(arguments) == 0  # into the directory it leads to
    assert names_in(place) == [name]
    to_package = tmp_path / "to_package.mlpackage"
    to_package.symlink_to(place / name)
    arguments = conversion_of(small_weights[FEATURES], to_package, "--no-verify")
    assert "add --force to replace it" in fails(convert, arguments, capsys)
    before = digest_of(place / name)
    assert convert([*arguments, "--force"]) == 0  # the link makes way, not what it leads to
    assert not to_package.is_symlink()
    assert digest_of(place / name) == before == digest_of(to_package)
    nowhere = tmp_path / "nowhere.mlpackage"
    for target in ("gone", "nowhere.mlpackage"):  # dangling, and a circle
        nowhere.unlink(missing_ok=True)
        nowhere.symlink_to(target)
        for options in ([], ["--force"]):
            assert "got something else; move it away" in fails(
                convert, [*conversion_of(small_weights[FEATURES], nowhere), *options], capsys
            )
        assert nowhere.is_symlink()
    assert names_in(tmp_path) == ["link", "nowhere.mlpackage", "place", "to_package.mlpackage"]


def test_things_of_another_kind(
    small_weights: dict[str, Path],
    small_packages: dict[str, Path],
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Files where directories belong, directories where files do, names that are too long, and what is not there."""
    (file := tmp_path / "file").touch()
    (directory := tmp_path / "directory").mkdir()
    (tmp_path / "file.mlpackage").touch()
    (tmp_path / "directory.npz").mkdir()
    (tmp_path / "directory.json").mkdir()
    long, longer = "x" * 250, "y" * 10_000  # of 255 characters with an ending, and of a whole path
    tiny = ["--image-size", 64]
    before = names_in(tmp_path)
    for output in (
        file,
        file / "x.mlpackage",
        tmp_path / "file.mlpackage",
        tmp_path / f"{long}.mlpackage",
        tmp_path / f"{longer}.mlpackage",
        tmp_path / long / "x.mlpackage",
        tmp_path / longer / "x.mlpackage",
        tmp_path / long,
        tmp_path / longer,
    ):
        fails(convert, ["--weights", small_weights[CLASSIFICATION], *tiny, "--output", output], capsys)
    usual = ["--weights", small_weights[CLASSIFICATION], *tiny, "--output", directory]
    for option, value in (
        ("--labels", directory),
        ("--labels", tmp_path / longer),
        ("--images", file),
        ("--images", directory),
        ("--images", tmp_path / long),
        ("--images", tmp_path / longer),
        ("--weights", directory),
        ("--weights", directory / "x.pth"),
        ("--weights", tmp_path / f"{longer}.pth"),
        ("--weights", "~nobody-of-this-name/x.pth"),
    ):
        fails(convert, [*usual, option, value], capsys)
    for report in (tmp_path / "directory.json", file / "x.json", tmp_path / f"{longer}.json"):
        fails(convert, [*usual, "--palettize", 4, "--report", report], capsys)
    for arguments in (
        [file, photo],
        [directory, photo],
        [directory / "x.mlpackage", photo],
        [tmp_path / f"{longer}.mlpackage", photo],
        [small_packages[CLASSIFICATION], directory],
        [small_packages[CLASSIFICATION], tmp_path / longer],
        [small_packages[SEGMENTATION], photo, "--output", file],
        [small_packages[SEGMENTATION], photo, "--output", tmp_path / longer],
        [small_packages[FEATURES], photo, "--output", tmp_path / "directory.npz"],
        [small_packages[FEATURES], photo, "--output", file / "x.npz"],
        [small_packages[FEATURES], photo, "--output", tmp_path / f"{'x' * 255}.npz"],
        [small_packages[FEATURES], photo, "--output", tmp_path / f"{longer}.npz"],
    ):
        fails(predict, arguments, capsys)
    assert names_in(tmp_path) == before
    assert names_in(directory) == []
