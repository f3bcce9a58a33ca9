"""What the commands have in common: one-line errors, exit codes, progress that only a terminal sees."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from tqdm import tqdm

from mobilevit_coreml.errors import MobileViTError

DONE, BAD_INPUT = 0, 2
INTERRUPTED = 130  # as shells report SIGINT


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with 2."""
        self.exit(BAD_INPUT, f"error: {message}; see --help\n")


class Stages:
    """The named stages of a command: a bar where stderr is a terminal, and the seconds each one took."""

    def __init__(self, total: int) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(
            total=total, disable=None, leave=False, bar_format="{desc:<10}|{bar:30}| {n}/{total} {elapsed}"
        )

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run a stage."""
        self._bar.set_description_str(name)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self._bar.close()  # before the message that tells what went wrong
            raise
        self.seconds[name] = time.perf_counter() - start
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.close()


def run(command: Callable[[], None]) -> int:
    """Exit code of a command; what a user got wrong is one line on stderr, and so is an interruption."""
    previous = signal.signal(signal.SIGTERM, _interrupt)  # so that temporary files go on that signal too
    try:
        command()
    except MobileViTError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return DONE


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
