import errno
import os
import stat
from pathlib import Path

import pytest

from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.publish import check_file_free, whole_file


def fail_halfway(path: Path, failure: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise failure


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    content = os.urandom(100_000)  # more than a buffer
    with whole_file(path) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_replaced_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with whole_file(path) as file:
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
    with pytest.raises(OutputError, match="got Permission denied"), whole_file(path) as file:
        file.write(b"new")
    assert [(entry, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path, b"old")]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_rights_of_any_other(tmp_path: Path, umask: int) -> None:
    """Temporary files are the user's alone; a result is not."""
    before = os.umask(umask)
    try:
        (tmp_path / "any other").touch()
        with whole_file(tmp_path / "out.bin") as file:
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
    assert str(error.value) == (
        f"output {path}: expected a place with room, got No space left on device; choose another"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_begun(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="out.bin: expected a place with room, got No such file or directory"):
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
