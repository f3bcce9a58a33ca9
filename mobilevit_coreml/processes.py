"""Processes of our own that a terminal does not interrupt."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def uninterruptible_children() -> Iterator[None]:
    """Block SIGINT, here for a moment, and for good in processes that start meanwhile: a terminal sends it to all."""
    resource_tracker.ensure_running()  # which unblocks it when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
