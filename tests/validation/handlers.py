"""Requests to a worker in the tests; imports nothing slow, so that its process starts in a moment."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def open_plain(log: str) -> Mapping[str, Callable[[Any], Any]]:
    """A backend of a few answers, good and bad ones; what ends in good order leaves a file."""

    # what a worker holds goes as its function returns, as Core ML's compiled copies do
    class Held:
        def __del__(self) -> None:
            Path(log).touch()

    held = Held()
    return {
        "double": lambda value: 2 * value,
        "held": lambda _: held is None,
        "process": lambda _: os.getpid(),
        "raise": lambda text: _raise(ValueError(f"{text}\nin two lines")),
        "unpicklable": lambda _: lambda: None,
        "abort": lambda _: os.abort(),
        "exit": lambda _: os._exit(7),
        "hang": time.sleep,
    }


def open_raising(_log: str) -> Mapping[str, Callable[[Any], Any]]:
    return _raise(RuntimeError("no such model"))


def open_hanging(log: str) -> Mapping[str, Callable[[Any], Any]]:
    Path(log).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def _raise(error: Exception) -> Any:
    raise error
