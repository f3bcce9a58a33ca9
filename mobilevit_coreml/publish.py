"""Files and directories that are there whole or not at all: written under another name, then renamed."""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mobilevit_coreml.errors import OutputError, os_error_text

LOCK = "lock"  # in a staging directory, locked for as long as the process lives that made it
REPLACED = "replaced"  # in a staging directory: what is being replaced, under its own name
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def check_parent(path: Path) -> None:
    """Raise OutputError unless the directory of `path` exists."""
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: expected {path.parent} to be a directory, got none there; create it first")


def check_file_free(path: Path, force: bool) -> None:
    """Raise OutputError where no file can be written to `path`, or one exists there and `force` is not set."""
    check_parent(path)
    if path.is_dir():
        raise OutputError(f"output {path}: expected a free name, got a directory; choose another")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: {os.strerror(errno.EACCES)}; choose another place")
    if os.path.lexists(path) and not force:
        raise OutputError(f"output {path}: expected a free name, got an existing file; add --force to replace it")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError: `path` could not be written, and why."""
    try:
        yield
    except OSError as error:
        advice = "make room" if error.errno in NO_ROOM else "choose another place"
        raise OutputError(f"cannot write {path}: {os_error_text(error)}; {advice}") from None


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets the name `path` when the block ends, and is removed when it fails."""
    temporary = None
    try:
        with writing(path):
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing.", delete=False) as file:
                temporary = Path(file.name)
                yield file
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary directory beside `path`, to build what `publish` then renames to `path`.

    The directory is beside `path` so that the rename stays within one file system. It is removed at the end; a
    `path` that `publish` had begun to replace is put back. Those of killed processes are removed at the start.
    """
    remove_stale(path)
    directory = path.parent / f".{path.stem}.{secrets.token_hex(4)}"
    try:  # from before it is there: an interruption leaves nothing
        with writing(path):
            directory.mkdir(mode=0o700)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # file systems without locks do without
                file = stack.enter_context((directory / "unlocked").open("wb"))
                fcntl.flock(file, fcntl.LOCK_EX)
                (directory / "unlocked").rename(directory / LOCK)  # a LOCK without a lock is a dead process's
            yield directory / path.name
    finally:
        _remove(directory)


def destination(staged: Path) -> Path:
    """The path beside which `staging` made this one."""
    return staged.parent.with_name(staged.name)


def remove_stale(path: Path) -> None:
    """Remove staging directories that killed processes left beside `path`, and put back what they were replacing."""
    for directory in path.parent.glob(f".{glob.escape(path.stem)}.????????"):
        with contextlib.suppress(OSError), (directory / LOCK).open("r+b") as lock:  # others' directories have none
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its process lives
            _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a staging directory; what it was replacing is put back where its name is free."""
    for replaced in directory.glob(f"{REPLACED}/*"):
        original = directory.with_name(replaced.name)
        if not os.path.lexists(original):
            replaced.rename(original)
    shutil.rmtree(directory, ignore_errors=True)


def publish(staged: Path, path: Path, force: bool) -> None:
    """Rename a directory built in `staging` to `path`; with `force` it replaces what is there.

    Raises OutputError where something else got the name meanwhile.
    """
    replaced = staged.with_name(REPLACED) / path.name
    with writing(path):
        try:
            if force:
                replaced.parent.mkdir(exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # there is none, or another process has just taken it
                    path.rename(replaced)
            staged.rename(path)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            raise OutputError(
                f"output {path}: expected its name to stay free, got something another run put there meanwhile; "
                "add --force to replace a package"
            ) from None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and hold it for this process alone; raises OutputError while another one holds it."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"output {directory}: expected to be alone there, got another run at work; wait for it"
            ) from None
        yield
    finally:
        os.close(descriptor)
