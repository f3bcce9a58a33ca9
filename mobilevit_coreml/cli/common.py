"""Parts of all commands: one-line errors, exit codes, progress bars on a terminal."""

import argparse
import importlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from tqdm import tqdm

from mobilevit_coreml.errors import MobileViTError, error_text

DONE, FAILED, BAD_INPUT, NOT_RUN = 0, 1, 2, 3
EXIT_CODES = {"PASS": DONE, "FAIL": FAILED, "NOT_RUN": NOT_RUN}  # by verdict
SIGNALLED = 128  # plus the signal's number, as shells report it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; `--help` has the rest."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=partial(argparse.HelpFormatter, max_help_position=26), **arguments)

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with 2."""
        self.exit(BAD_INPUT, f"error: {message}; see --help\n")


def option(group: Any, flag: str, metavar: str, text: str, kind: Callable[[str], Any] = str, **others: Any) -> None:
    """Add an option with a value to a parser or a group of one."""
    group.add_argument(flag, metavar=metavar, help=text, type=kind, **others)


def switch(group: Any, flag: str, text: str, action: str = "store_true", **others: Any) -> None:
    """Add an option without a value."""
    group.add_argument(flag, action=action, help=text, **others)


class ProgressBar:
    """A `progress.Progress`: a bar where stderr is a terminal, and the seconds each stage took.

    What is left of a stage with steps is estimated.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.interrupted_by: int | None = None
        self._stage = ""
        self._start = 0.0
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Show how far a stage is."""
        self.check()
        if stage != self._stage:
            self.close()
            self._stage, self._start = stage, time.perf_counter()
        if self._bar is None or (total and self._bar.total != total):
            self._bar = _bar(stage, total)
        self._bar.update(done - self._bar.n)

    def check(self) -> None:
        """Raise KeyboardInterrupt again where a library's bare `except:` has swallowed it."""
        if self.interrupted_by is not None:
            raise KeyboardInterrupt

    def interrupt(self, signum: int, _frame: object) -> NoReturn:
        """Handler of signals: end the stage that runs, at the next one at the latest."""
        self.interrupted_by = signum
        raise KeyboardInterrupt

    def close(self) -> None:
        """End the last stage, and take the bar away."""
        if self._stage:
            seconds = time.perf_counter() - self._start
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + seconds
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = "", None


def _bar(stage: str, total: int) -> "tqdm[NoReturn]":
    steps = "|{bar:30}| {n}/{total} {elapsed}, {remaining} left"
    return tqdm(
        desc=stage,
        total=total or None,
        disable=None,  # shown on a terminal, silent in a pipe
        leave=False,
        bar_format="{desc:<10}" + (steps if total else " {elapsed}"),
    )


def run(command: Callable[[ProgressBar], int]) -> int:
    """Exit code of a command.

    A user's mistake is one line on stderr, and so is an interruption; both leave nothing behind, since temporary
    files go as the exceptions pass.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    progress = ProgressBar()
    previous = {number: signal.signal(number, progress.interrupt) for number in SIGNALS}
    message = None
    try:
        code = command(progress)
        progress.check()
        sys.stdout.flush()
    except KeyboardInterrupt:
        message = "interrupted: nothing half-made is left"
        code = SIGNALLED + (progress.interrupted_by or signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except (MobileViTError, MemoryError, OSError) as error:
        message, code = f"error: {error_text(error)}", BAD_INPUT
    finally:
        progress.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if message is not None:
        print(" ".join(message.split()), file=sys.stderr)
    return code


def run_module(name: str, module: str) -> None:
    """Run the `main` of a command's module from a file that is there for `python -m` alone.

    Imported, such a file would take the place of the function of its name (`mobilevit_coreml.convert`): that
    raises ImportError. A process started by multiprocessing imports it under another name, which does nothing.
    """
    if name == "__main__":
        sys.exit(importlib.import_module(module).main())
    if name != "__mp_main__":
        raise ImportError(f"{name} is a command: run `python -m {name}`; its function is an attribute of the package")
