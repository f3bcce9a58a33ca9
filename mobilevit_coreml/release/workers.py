"""Recipes built in processes of their own: one that crashes takes no other with it, and each computes on one thread.

The number of threads changes the last bits of sums, and so a package's bytes.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from tqdm import tqdm

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.processes import uninterruptible_children
from mobilevit_coreml.release.build import build
from mobilevit_coreml.release.recipe import Recipe

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
GRACE = 5  # seconds to end in good order: libraries have temporary files

# recipe, weights, notice, images, inputs, directory: as `build` has them
Task = tuple[Recipe, str, str, Path | None, Mapping[str, str], Path]


def built(tasks: Sequence[Task], jobs: int, scratch: Path) -> Generator[tuple[int, str]]:
    """Each task's index, as they end, and what is wrong with it, or nothing; so many processes at a time.

    Temporary files go to `scratch`. The processes end with the iteration, and with this process, however it ends.
    """
    waiting = list(enumerate(tasks))[::-1]
    idle: list[_Worker] = []
    busy: list[tuple[_Worker, int]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                worker = idle.pop() if idle else _Worker(scratch)
                index, task = waiting.pop()
                busy.append((worker, index))
                worker.start(task)
            ready = connection.wait([worker.connection for worker, _ in busy])
            for worker, index in [one for one in busy if one[0].connection in ready]:
                busy.remove((worker, index))
                error = worker.result()
                if worker.is_alive:
                    idle.append(worker)
                yield index, error
    finally:
        for worker in (*idle, *(worker for worker, _ in busy)):
            worker.process.terminate()
        for worker in (*idle, *(worker for worker, _ in busy)):
            worker.end()


class _Worker:
    """A process that builds, one recipe after another."""

    def __init__(self, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(other, str(scratch)), daemon=True)
        with _one_thread(), uninterruptible_children():
            self.process.start()
        other.close()
        self.is_alive = True

    def start(self, task: Task) -> None:
        """Have it build; a process that has ended says so in its result."""
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def result(self) -> str:
        """What is wrong with the package, once the connection is ready."""
        try:
            error: str = self.connection.recv()
        except (EOFError, OSError):
            self.is_alive = False
            self.process.join(GRACE)
            code = self.process.exitcode
            how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            self.end()
            return f"expected a package, got a process that ended with {how}; is there enough memory?"
        return error

    def end(self) -> None:
        """End it, and wait for that."""
        try:
            self.process.join(GRACE)
        finally:
            self.process.kill()
            self.process.join()
            self.connection.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have processes that start meanwhile compute on one thread."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(requests: Connection, scratch: str) -> None:
    """What the process does: build for as long as there is somebody to ask."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tempfile.tempdir = scratch
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which outlives a process that is ended
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            task = requests.recv()
            signal.signal(signal.SIGTERM, _interrupt)
            requests.send(error_of(task))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # what is half-made is the next run's to clear away


def error_of(task: Task) -> str:
    """Build; returns what is wrong, on a line: the recipe after this one does not care why."""
    try:
        return build(*task)
    except Exception as error:
        return message_of(error)


def message_of(error: Exception) -> str:
    """An error on a line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MobileViTError):
        text = str(error)
    elif isinstance(error, OSError):
        where = f" ({error.filename!s:.80})" if error.filename else ""
        text = f"the system refused: {error.strerror or error}{where}; check the path"
    return " ".join(text.split())[:500]
