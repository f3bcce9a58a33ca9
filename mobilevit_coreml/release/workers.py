"""Calls in processes of their own: one that crashes fails its own call and no other."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import NoReturn, TypeVar

from tqdm import tqdm

from mobilevit_coreml.processes import uninterruptible_children
from mobilevit_coreml.progress import Progress

T = TypeVar("T")
Function = Callable[[T, Progress], str]

# The number of threads changes the last bits of sums, and so a package's bytes.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
GRACE_SECONDS = 5  # to remove temporary files when interrupted


def call_in_processes(function: Function[T], tasks: Sequence[T], jobs: int) -> Generator[tuple[T, str | None]]:
    """Call `function(task, progress)` for each task, `jobs` at a time; yield task and result as they end.

    Each call has a process of its own and one thread; the result is None where that crashed. The processes end with
    the iteration, and with this process, however it ends: `function` gets a KeyboardInterrupt.
    """
    lifeline, end = multiprocessing.Pipe(duplex=False)
    threads = ThreadPoolExecutor(jobs)
    futures = {threads.submit(_call_in_process, function, task, lifeline): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        end.close()
        threads.shutdown(cancel_futures=True)
        lifeline.close()


def _call_in_process(function: Function[T], task: T, lifeline: Connection) -> str | None:
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(1, spawn, _start, (lifeline,)) as pool:
        with uninterruptible_children():
            future = pool.submit(_call, function, task)
        return None if future.exception() is not None else future.result()


def _start(lifeline: Connection) -> None:
    """Prepare a process, before it imports torch."""
    os.environ.update(ONE_THREAD)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which outlives a process that is ended
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """Interrupt this process when the other end of `lifeline` is closed, by the parent or by the parent's end."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _call(function: Function[T], task: T) -> str:
    """Call the function; SIGTERM is a KeyboardInterrupt, which `progress` raises again if a library ignored it."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    def progress(*_: object, **__: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return function(task, progress)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
