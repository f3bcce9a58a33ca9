"""Where packages go: a directory for each recipe, there whole or not at all, and never in place of anything else."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.package.files import FAILED_SUFFIX, digest_of
from mobilevit_coreml.release.build import REPORT, SCHEMA
from mobilevit_coreml.release.inputs import agree

BUILDING = ".building"
MAX_REPORT = 16 * 1024**2  # bytes


@contextlib.contextmanager
def locked(output: Path) -> Iterator[Path]:
    """A directory for this process alone; yields a place in it for what is not yet whole, which goes at the end.

    What an earlier process was killed over goes, too. Raises OutputError where another one is at work.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputError(f"output {output}: expected a directory, got {error.strerror}; choose another") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"output {output}: expected to be alone there, got another run at work; wait for it"
            ) from None
        building = output / BUILDING
        shutil.rmtree(building, ignore_errors=True)
        try:
            building.mkdir()
        except OSError as error:
            raise OutputError(
                f"output {output}: expected a directory to write to, got {error.strerror}; choose another"
            ) from None
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
    finally:
        os.close(descriptor)


def failed_place(place: Path) -> Path:
    """Where a recipe's package goes that is not what it has to be."""
    return place.with_name(place.name + FAILED_SUFFIX)


def report_of(place: Path) -> dict[str, Any] | None:
    """The report of a recipe's directory; None where there is none of ours."""
    try:
        with (place / REPORT).open("rb") as file:
            content = file.read(MAX_REPORT + 1)
        values = json.loads(content) if len(content) <= MAX_REPORT else None
    except (OSError, ValueError, RecursionError):
        return None
    return values if _is_ours(values) else None


def _is_ours(values: Any) -> bool:
    """Whether a report has what is relied on here."""
    kinds = {"package": str | None, "sha256": str, "inputs": dict, "untrained": bool}
    ours = isinstance(values, dict) and values.get("schema") == SCHEMA
    return ours and all(isinstance(values.get(key), kind) for key, kind in kinds.items())


def is_current(place: Path, inputs: Mapping[str, str], force: bool) -> bool:
    """Whether a recipe's directory has what these inputs make, so that nothing is left to do.

    Raises OutputError for what must not be replaced: something else, or a package that somebody changed.
    """
    if not os.path.lexists(place):
        return False
    report = report_of(place)
    if report is None:
        raise OutputError(f"output {place}: expected a free name or a package's directory, got something else; move it")
    if force:
        return False
    package = place / str(report["package"])
    if package.is_dir() and digest_of(package) != report["sha256"]:
        raise OutputError(
            f"output {package}: expected the package of its report, got one that was changed; --force replaces it"
        )
    return package.is_dir() and agree(inputs, report["inputs"])


def put(directory: Path, place: Path) -> None:
    """Give a whole directory its name, in place of an earlier one of the same recipe."""
    replaced = directory.with_name(f"{directory.name}.replaced")
    if os.path.lexists(place) and report_of(place) is None:
        raise OutputError(f"output {place}: expected a free name, got something else; move it away")
    try:
        if os.path.lexists(place):
            place.rename(replaced)
        directory.rename(place)
    except BaseException as error:
        if replaced.exists() and not os.path.lexists(place):
            replaced.rename(place)
        if isinstance(error, OSError):
            raise OutputError(f"output {place}: expected to rename the package to it, got {error.strerror}") from None
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def discard_failed(place: Path) -> None:
    """Remove what failed of a recipe that now is right."""
    failed = failed_place(place)
    if report_of(failed) is not None:
        shutil.rmtree(failed, ignore_errors=True)
