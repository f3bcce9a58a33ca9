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

DONE, FAILED, BAD_INPUT, NOT_RUN = 0, 1, 2, 3
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
        self._interrupted = False
        self._bar = tqdm(
            desc="start",
            total=total,
            disable=None,  # shown on a terminal, silent in a pipe
            leave=False,
            bar_format="{desc:<10}|{bar:30}| {n}/{total} {elapsed}",
        )

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run a stage."""
        self._bar.set_description_str(name)
        start = time.perf_counter()
        yield
        if self._interrupted:  # and some library's bare `except:` took the KeyboardInterrupt for its own
            raise KeyboardInterrupt
        self.seconds[name] = time.perf_counter() - start
        self._bar.update()

    def interrupt(self, _signum: int, _frame: object) -> NoReturn:
        """Handler of signals: stop the stage that runs, at its end at the latest."""
        self._interrupted = True
        raise KeyboardInterrupt

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def run(command: Callable[[Stages], int], stages: int) -> int:
    """Exit code of a command of so many stages.

    What a user got wrong is one line on stderr, and so is an interruption; both leave nothing behind,
    since temporary files go as the exceptions pass.
    """
    progress = Stages(stages)
    previous = {number: signal.signal(number, progress.interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    message = None
    try:
        code = command(progress)
    except MobileViTError as error:
        message, code = f"error: {error}", BAD_INPUT
    except KeyboardInterrupt:
        message, code = "interrupted: nothing was written", INTERRUPTED
    finally:
        progress.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if message is not None:
        print(message, file=sys.stderr)
    return code
