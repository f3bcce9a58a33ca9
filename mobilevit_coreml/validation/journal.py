"""What was measured of each picture, on disk, so that a run can go on where it ended."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mobilevit_coreml.errors import InputError, OutputError
from mobilevit_coreml.validation.measure import ImageResult


class Journal:
    """A file of JSON objects, one a line: first what is compared, then what was measured of each picture."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._places: dict[str, int] = {}  # where each picture's line starts, lest all lines be in memory

    def known(self, picture: str) -> ImageResult | None:
        """What was measured of a picture in an earlier run."""
        if picture not in self._places:
            return None
        self._file.seek(self._places[picture])
        try:
            return ImageResult.from_values(json.loads(self._file.readline()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(error) from None

    def write(self, seen: ImageResult) -> None:
        """Keep what was measured of a picture."""
        self.append(dataclasses.asdict(dataclasses.replace(seen, masks=None)))

    def append(self, values: Mapping[str, Any]) -> None:
        """Write a line at the end, through to the system."""
        self._file.write(json.dumps(values, sort_keys=True).encode() + b"\n")
        self._file.flush()

    def resume(self, subject: Mapping[str, Any]) -> None:
        """Find the lines there are; a last one that was cut off is taken back.

        Raises InputError where the file is about something else.
        """
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            self.append(subject)
            return
        if first.decode(errors="replace").strip() != json.dumps(subject, sort_keys=True):
            raise InputError(
                f"journal {self._path}: expected one of this package, these weights and pictures, got another's; "
                "name another file, or remove it"
            )
        place = self._file.tell()
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                return
            try:
                self._places[str(json.loads(line)["picture"])] = place
            except (ValueError, TypeError, KeyError) as error:
                raise self._damaged(error) from None
            place = self._file.tell()

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"journal {self._path}: expected a line for each picture, got another ({type(error).__name__}); remove it"
        )


@contextlib.contextmanager
def open_journal(path: Path, subject: Mapping[str, Any]) -> Iterator[Journal]:
    """A journal on `subject`, new or one to go on with; raises OutputError where it cannot be written."""
    try:
        file = path.open("a+b")
    except OSError as error:
        raise OutputError(
            f"journal {path}: expected a file to write to, got {error.strerror}; choose another"
        ) from None
    with file:
        journal = Journal(path, file)
        journal.resume(subject)
        yield journal
