import errno
import functools
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.publish import LOCK, REPLACED, atomic_write, check_file_free, publish, remove_stale, staging


def names_of(directory: Path) -> list[str]:
    """Names of all that is there, hidden or not."""
    return sorted(entry.name for entry in directory.iterdir())


def fail_halfway(path: Path, failure: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise failure


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    content = os.urandom(100_000)  # more than a buffer
    with atomic_write(path) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_replaced_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_name_that_cannot_be_taken_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    with (
        pytest.raises(OutputError, match=r"cannot write .*out.bin: Permission denied; choose another place"),
        atomic_write(path) as file,
    ):
        file.write(b"new")
    assert [(entry, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path, b"old")]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_rights_of_any_other(tmp_path: Path, umask: int) -> None:
    """Temporary files are the user's alone; a result is not."""
    before = os.umask(umask)
    try:
        (tmp_path / "any other").touch()
        with atomic_write(tmp_path / "out.bin") as file:
            file.write(b"x")
        assert os.umask(umask) == umask  # asking for it changed nothing
    finally:
        os.umask(before)
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("any other", "out.bin")]
    assert rights == [0o666 & ~umask] * 2


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there_before", [False, True])
def test_what_fails_or_is_interrupted_leaves_nothing(
    tmp_path: Path, failure: type[BaseException], there_before: bool
) -> None:
    path = tmp_path / "out.bin"
    if there_before:
        path.write_bytes(b"old")
    with pytest.raises(failure):
        fail_halfway(path, failure())
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == (
        {"out.bin": b"old"} if there_before else {}
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with pytest.raises(OutputError) as error:
        fail_halfway(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(error.value) == f"cannot write {path}: No space left on device; make room"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_begun(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="out.bin: No such file or directory; choose another place"):
        fail_halfway(tmp_path / "none" / "out.bin", AssertionError("there is nothing to write to"))


def test_a_name_is_free_or_is_to_be_replaced(tmp_path: Path) -> None:
    check_file_free(tmp_path / "new", force=False)
    (tmp_path / "old").touch()
    check_file_free(tmp_path / "old", force=True)


@pytest.mark.parametrize(
    ("name", "force", "message"),
    [
        ("none/new", True, "expected {0}/none to be a directory, got none there; create it first"),
        ("file/new", True, "expected {0}/file to be a directory, got none there; create it first"),
        ("directory", True, "expected a free name, got a directory; choose another"),
        ("file", False, "expected a free name, got an existing file; add --force to replace it"),
        ("link to nowhere", False, "expected a free name, got an existing file; add --force to replace it"),
    ],
)
def test_names_that_are_not_free(tmp_path: Path, name: str, force: bool, message: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link to nowhere").symlink_to("nowhere")
    with pytest.raises(OutputError) as error:
        check_file_free(tmp_path / name, force)
    assert str(error.value) == f"output {tmp_path / name}: {message.format(tmp_path)}"


def write_package(path: Path, content: str = "new") -> None:
    (path / "Data").mkdir(parents=True)
    (path / "Data" / "weight.bin").write_text(content)


def test_a_finished_package_is_the_only_thing_left(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    with staging(path) as staged:
        write_package(staged)
        assert staged.parent.parent == tmp_path  # so that the rename stays on one file system
        publish(staged, path, force=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_a_failed_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    with pytest.raises(error), staging(path) as staged:  # noqa: PT012
        write_package(staged)
        raise error
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]
    assert (path / "Data" / "weight.bin").read_text() == "old"


def test_force_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    with staging(path) as staged:
        write_package(staged)
        publish(staged, path, force=True)
    assert (path / "Data" / "weight.bin").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]


def test_a_name_taken_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    with pytest.raises(OutputError, match="got something another run put there meanwhile"), staging(path) as staged:  # noqa: PT012
        write_package(staged)
        write_package(path, "somebody else's")
        publish(staged, path, force=False)
    assert (path / "Data" / "weight.bin").read_text() == "somebody else's"


def test_when_the_last_rename_fails_the_old_package_is_back(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    with pytest.raises(OutputError), staging(path) as staged:
        publish(staged, path, force=True)  # nothing was staged
    assert (path / "Data" / "weight.bin").read_text() == "old"


def test_an_interruption_between_the_renames_gives_the_old_package_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    honest = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == path and self.parent.name != REPLACED:
            raise KeyboardInterrupt
        return honest(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(path) as staged:  # noqa: PT012
        write_package(staged)
        publish(staged, path, force=True)
    assert (path / "Data" / "weight.bin").read_text() == "old"
    assert names_of(tmp_path) == ["x.mlpackage"]


def test_a_place_that_cannot_be_written_to() -> None:
    # /proc refuses even root
    path = Path("/proc/x.mlpackage")
    if not path.parent.is_dir():
        path = Path("/System/x.mlpackage")
    with pytest.raises(OutputError, match="cannot write /.*/?x.mlpackage: "), staging(path):
        pass


def test_only_what_is_ours_and_dead_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "x[1].mlpackage"
    mine = [tmp_path / name for name in (".x[1].settings", ".x[1].12345678", ".x[1].abcdefgh.12345678")]
    for directory in mine:
        directory.mkdir()
    (mine[1] / "file").touch()
    (mine[2] / LOCK).touch()  # of a package called x[1].abcdefgh
    (tmp_path / ".x[1].afile123").touch()
    dead = tmp_path / ".x[1].deadbeef"
    dead.mkdir()
    (dead / LOCK).touch()
    (dead / REPLACED).mkdir()
    (dead / REPLACED / "x[1]_failed.mlpackage").mkdir()
    before = names_of(tmp_path)
    with staging(path) as live:
        remove_stale(path)
        assert live.parent.is_dir()
    assert names_of(tmp_path) == sorted({*before, "x[1]_failed.mlpackage"} - {dead.name})  # not as x[1] itself
    remove_stale(tmp_path / "none" / "x.mlpackage")


@pytest.mark.parametrize("force", [True, False])
def test_who_comes_second_is_told(tmp_path: Path, force: bool) -> None:
    """With `force`, too, where the other came between the two renames."""
    path = tmp_path / "x.mlpackage"
    with pytest.raises(OutputError, match="another run put there meanwhile"), staging(path) as staged:  # noqa: PT012
        (staged / "Data").mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", functools.partialmethod(_after_the_other, path))
            publish(staged, path, force)
    assert names_of(path) == ["the other's"]


def _after_the_other(self: Path, path: Path, target: Path) -> None:
    (path / "the other's").mkdir(parents=True, exist_ok=True)
    if self != path:
        os.rename(self, target)  # noqa: PTH104
    else:
        raise FileNotFoundError


KILLED = """
import os, signal, sys
from pathlib import Path
from mobilevit_coreml.publish import publish, staging

moment, path = sys.argv[1], Path(sys.argv[2])
honest = Path.rename

def rename(self, target):
    if moment == "between the renames" and self.name == path.name and "replaced" not in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, target)

Path.rename = rename
with staging(path) as staged:
    staged.mkdir()
    (staged / "weight.bin").write_text("ha")
    if moment == "half-way":
        os.kill(os.getpid(), signal.SIGKILL)
    (staged / "weight.bin").write_text("half and the rest")
    if moment == "before the renames":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(staged, path, force=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("moment", ["half-way", "before the renames", "between the renames", "after them"])
def test_a_killed_process(tmp_path: Path, moment: str, there_before: bool) -> None:
    path = tmp_path / "x.mlpackage"
    if there_before:
        write_package(path, "old")
    process = subprocess.run([sys.executable, "-c", KILLED, moment, str(path)], capture_output=True, check=False)
    assert (process.returncode, process.stderr) == (-signal.SIGKILL, b"")
    assert len(names_of(tmp_path)) == 1 + path.exists()  # what it left behind
    remove_stale(path)
    if moment == "after them":
        assert (path / "weight.bin").read_text() == "half and the rest"
    elif there_before:
        assert (path / "Data" / "weight.bin").read_text() == "old"
    assert names_of(tmp_path) == (["x.mlpackage"] if there_before or moment == "after them" else [])
