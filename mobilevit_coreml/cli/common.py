"""What the commands have in common: one-line errors, exit codes, progress that only a terminal sees."""

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import NoReturn

from tqdm import tqdm

from mobilevit_coreml.errors import MobileViTError, error_text

DONE, FAILED, BAD_INPUT, NOT_RUN = 0, 1, 2, 3
SIGNALLED = 128  # plus the signal's number, as shells report it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with 2."""
        self.exit(BAD_INPUT, f"error: {message}; see --help\n")


class Stages:
    """The named stages of a command: a bar where stderr is a terminal, and the seconds each one took.

    Without a total there is no bar: libraries are silent.
    """

    def __init__(self, total: int = 0) -> None:
        self.seconds: dict[str, float] = {}
        self.interrupted_by: int | None = None
        self._bar = tqdm(
            desc="start",
            total=total,
            disable=None if total else True,  # None is shown on a terminal, silent in a pipe
            leave=False,
            bar_format="{desc:<10}|{bar:30}| {n}/{total} {elapsed}",
        )

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run a stage."""
        self._bar.set_description_str(name)
        start = time.perf_counter()
        yield
        if self.interrupted_by is not None:  # and some library's bare `except:` took the KeyboardInterrupt for its own
            raise KeyboardInterrupt
        self.seconds[name] = time.perf_counter() - start
        self._bar.update()

    @contextlib.contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar of its own for a long stage, with an estimate; yields what to call after each step."""
        with tqdm(
            desc=f"  {name}",
            total=total,
            disable=None if self._bar.total else True,
            leave=False,
            bar_format="{desc:<12}|{bar:28}| {n}/{total} {elapsed}, {remaining} left",
        ) as bar:
            yield lambda: bar.update() and None

    def interrupt(self, signum: int, _frame: object) -> NoReturn:
        """Handler of signals: stop the stage that runs, at its end at the latest."""
        self.interrupted_by = signum
        raise KeyboardInterrupt

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def run(command: Callable[[Stages], int], stages: int) -> int:
    """Exit code of a command of so many stages.

    What a user got wrong is one line on stderr, and so is an interruption; both leave nothing behind,
    since temporary files go as the exceptions pass.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    progress = Stages(stages)
    previous = {number: signal.signal(number, progress.interrupt) for number in SIGNALS}
    message = None
    try:
        code = command(progress)
        sys.stdout.flush()
    except KeyboardInterrupt:
        message = "interrupted: nothing half-made is left"
        code = SIGNALLED + (progress.interrupted_by or signal.SIGINT)
    except BrokenPipeError:  # whoever read our output has enough of it
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


@contextlib.contextmanager
def uninterruptible_children() -> Iterator[None]:
    """Block SIGINT, here for a moment, and for good in processes that start meanwhile: a terminal sends it to all."""
    resource_tracker.ensure_running()  # which unblocks it when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_module(name: str, module: str) -> None:
    """Run the `main` of a command's module from a file that is there for `python -m` alone.

    Imported, such a file would take the place of the function of its name (`mobilevit_coreml.convert`): that
    raises ImportError. A process started by multiprocessing imports it under another name, which does nothing.
    """
    if name == "__main__":
        sys.exit(importlib.import_module(module).main())
    if name != "__mp_main__":
        raise ImportError(f"{name} is a command: run `python -m {name}`; its function is an attribute of the package")
