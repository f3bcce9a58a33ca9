"""Requests to a backend, in this process or in one of its own, which may crash, hang or run out of memory alone.

Imports little, so that the process starts in a moment.
"""

import contextlib
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from mobilevit_coreml.errors import error_text

MAX_TIMEOUT = 86400.0  # seconds: the system's clocks take no infinity
GRACE = 2  # seconds to end in good order: Core ML's compiled copy of a package goes with the process that made it
Handlers = Mapping[str, Callable[[Any], Any]]  # by the name of a request
Ask = Callable[..., Any]  # ask(request, argument) -> answer


class BackendError(Exception):
    """A backend that crashed, gave no answer in time, or raised an error."""


@contextlib.contextmanager
def in_this_process(open_: Callable[..., Handlers], *arguments: Any) -> Iterator[Ask]:
    """Open a backend; yields a function that sends it a request. Exceptions are raised as BackendError."""
    handlers = _attempt(open_, *arguments)
    yield lambda request, argument=None: _attempt(handlers[request], argument)


@contextlib.contextmanager
def in_worker(timeout: float, open_: Callable[..., Handlers], *arguments: Any) -> Iterator[Ask]:
    """As `in_this_process`, in a process that ends with the block, and soon after this one, however that ends.

    Raises BackendError also where the process crashes, or does not answer within `timeout` seconds.
    """
    timeout = min(timeout, MAX_TIMEOUT)
    connection, other = Pipe()
    # Not multiprocessing.Process: that runs the user's own script again. A session of its own has no terminal, whose
    # Ctrl-C is for this process to handle.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve({other.fileno()})"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()], start_new_session=True)

    def ask(request: str, argument: Any = None) -> Any:
        try:
            connection.send((request, argument))
            if not connection.poll(timeout):
                raise BackendError(f"no answer within {timeout:g} seconds")
            worked, answer = connection.recv()
        except (EOFError, OSError):
            raise BackendError(_end_of(process)) from None
        if not worked:
            raise BackendError(answer)
        return answer

    try:
        other.close()
        with connection:
            ask("open", (timeout, open_, arguments))
            yield ask
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        process.kill()
        process.wait()


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        raise BackendError(error_text(error)) from None


def _end_of(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    code = process.returncode
    return f"crashed with {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"


def _serve(descriptor: int) -> None:
    """Answer the requests of `in_worker` until it closes its end of the connection."""
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        _, (timeout, open_, arguments) = connection.recv()
        handlers: dict[str, Callable[[Any], Any]] = {}
        _answer(connection, timeout, lambda: handlers.update(open_(*arguments)))
        while True:
            request, argument = connection.recv()
            _answer(connection, timeout, handlers[request], argument)


def _answer(connection: Connection, timeout: float, call: Callable[..., Any], *arguments: Any) -> None:
    signal.alarm(int(timeout) + GRACE)  # ends a process that hangs when nobody is left to do it
    try:
        answer = pickle.dumps((True, call(*arguments)))
    except Exception as error:
        answer = pickle.dumps((False, error_text(error)))
    signal.alarm(0)
    connection.send_bytes(answer)
