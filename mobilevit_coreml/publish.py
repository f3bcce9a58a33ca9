"""Single files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mobilevit_coreml.errors import OutputError


def check_file_free(path: Path, force: bool) -> None:
    """Raise OutputError where a file cannot go to `path`, before anybody waits for it."""
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: expected {path.parent} to be a directory, got none there; create it first")
    if path.is_dir():
        raise OutputError(f"output {path}: expected a free name, got a directory; choose another")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"output {path}: expected a directory to write to, got one that is not; choose another")
    if os.path.lexists(path) and not force:
        raise OutputError(f"output {path}: expected a free name, got an existing file; add --force to replace it")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name when the block ends, and goes when it fails."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing.", delete=False) as file:
            temporary = Path(file.name)
            yield file
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"output {path}: expected a place with room, got {reason}; choose another") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
