"""The results of images on disk, so that a run over many can go on where it ended."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.publish import writing
from mobilevit_coreml.strict_json import JsonError, load, parse_json, plain
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.measure import ImageResult

MAX_SUBJECT = 2**16  # bytes


@dataclasses.dataclass(frozen=True)
class _Line:
    """A result, and the digest of the image it is of."""

    digest: str
    result: ImageResult


class Journal:
    """A file of JSON objects, one a line: first what all results depend on, then the result of each image."""

    def __init__(self, path: Path, file: IO[bytes], subject: Mapping[str, Any]) -> None:
        """Find the lines there are; a last one that was cut off is removed."""
        self._path, self._file = path, file
        self._places: dict[str, int] = {}  # where each image's line starts: there may be too many to keep
        file.seek(0)
        first = file.readline(MAX_SUBJECT)
        if not first:
            self._append(subject)
        elif first != _line(subject):
            raise self._error("expected one of this package with these weights and options, got another's")
        place = file.tell()
        while line := file.readline():
            if not line.endswith(b"\n"):
                file.truncate(place)
                break
            self._places[self._read(line).result.name] = place
            place = file.tell()

    def known(self, image: LabelledImage) -> ImageResult | None:
        """The result of an image in an earlier run; InputError where that was another image of its name."""
        if image.name not in self._places:
            return None
        self._file.seek(self._places[image.name])
        line = self._read(self._file.readline())
        if line.digest != image.digest():
            raise self._error(f"expected the result of {image.name} as it is, got another image's of this name")
        return line.result

    def write(self, image: LabelledImage, result: ImageResult) -> None:
        """Keep the result of an image; its class maps are left out."""
        self._append({"digest": image.digest(), "result": dataclasses.replace(result, masks=None)})

    def _append(self, values: Mapping[str, Any]) -> None:
        with writing(self._path):
            self._file.write(_line(values))
            self._file.flush()

    def _read(self, line: bytes) -> _Line:
        try:
            return load(_Line, parse_json(line), "line")
        except JsonError as error:
            raise self._error(str(error)) from None

    def _error(self, reason: str) -> InputError:
        return InputError(f"journal {self._path}: {reason}; name another file, or remove it")


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(plain(values), sort_keys=True, allow_nan=False).encode() + b"\n"


@contextlib.contextmanager
def open_journal(path: Path, subject: Mapping[str, Any]) -> Iterator[Journal]:
    """A journal on `subject`, new or continued; raises OutputError where it cannot be written."""
    with writing(path):
        file = path.open("a+b")
    with file:
        yield Journal(path, file, subject)
