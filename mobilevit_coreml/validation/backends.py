"""What runs a package, each in a process of its own: it may crash, hang or run out of memory without the validator."""

import contextlib
import dataclasses
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mobilevit_coreml.inference import core_ml_is_here
from mobilevit_coreml.package.interface import IMAGE
from mobilevit_coreml.processes import uninterruptible_children
from mobilevit_coreml.validation.core_ml import UNITS

REFERENCE, CORE_ML = "reference", "coreml"
LONGEST = 86400.0  # seconds: a day is as good as forever, and the system's clocks take no infinity
GRACE = 2  # seconds to end in good order: Core ML's compiled copy of a package goes with the process that made it
Handlers = Mapping[str, Callable[[Any], Any]]


class BackendError(Exception):
    """A backend that crashed, gave no answer in time, or could not do what it was asked."""


@dataclasses.dataclass(frozen=True)
class Backend:
    """Something that runs packages: the reference evaluator, or Core ML on some compute units."""

    name: str
    units: str | None = None

    def __str__(self) -> str:
        return self.name if self.units is None else f"{self.name} {self.units}"

    @property
    def is_here(self) -> bool:
        """Whether this machine has it."""
        return self.name == REFERENCE or core_ml_is_here()


def backends_for(backend: str, units: list[str]) -> list[Backend]:
    """The backends a user means by reference, coreml or auto, which is both where there is a Mac."""
    core_ml = [Backend(CORE_ML, unit) for unit in units or UNITS]
    if backend == REFERENCE:
        return [Backend(REFERENCE)]
    return core_ml if backend == CORE_ML else [Backend(REFERENCE), *core_ml]


def open_reference(package: str, precision: str, function: str, captured: list[str]) -> Handlers:
    """What can be asked of the reference evaluator: `run`, the outputs and what is captured for a picture."""
    from mobilevit_coreml.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(Path(package), precision, function)
    return {"run": lambda image: evaluator.run({IMAGE: image}, capture=captured)}


class Worker:
    """A backend at work in a process of its own, for use in a `with`.

    `open_` and its arguments are what the process starts with; it returns what can be asked for.
    Everything raises BackendError where the process ends, is silent for `timeout` seconds, or
    answers with an error. The process ends with the `with`, and soon after this process, however that
    ends. An interruption from the terminal does not reach it: that is for this process to handle.
    """

    def __init__(self, timeout: float, open_: Callable[..., Handlers], *arguments: Any) -> None:
        self._timeout = min(timeout, LONGEST)
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self._timeout, open_, arguments), daemon=True)
        with uninterruptible_children():
            self._process.start()
        other.close()

    def __enter__(self) -> Self:
        try:
            self.receive()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def send(self, request: str, argument: Any = None) -> None:
        """Ask for something, without waiting for the answer."""
        try:
            self._connection.send((request, argument))
        except OSError:
            raise self._end() from None

    def receive(self) -> Any:
        """The answer to the oldest request that has none yet."""
        try:
            if not self._connection.poll(self._timeout):
                raise BackendError(f"no answer within {self._timeout:g} seconds")
            worked, answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._end() from None
        if not worked:
            raise BackendError(answer)
        return answer

    def ask(self, request: str, argument: Any = None) -> Any:
        """Ask and wait."""
        self.send(request, argument)
        return self.receive()

    def _end(self) -> BackendError:
        self._process.join(GRACE)
        code = self._process.exitcode
        if code is not None and code < 0:
            return BackendError(f"crashed with {signal.Signals(-code).name}")
        return BackendError(f"ended with exit code {code}")

    def _close(self) -> None:
        try:
            self._connection.close()  # which a process that waits for a request takes as the end
            self._process.join(GRACE)
        finally:
            self._process.kill()
            self._process.join()


def _work(connection: Connection, timeout: float, open_: Callable[..., Handlers], arguments: tuple[Any, ...]) -> None:
    """What the process does: open, and answer requests for as long as there is somebody to ask."""
    handlers: dict[str, Callable[[Any], Any]] = {}
    with contextlib.suppress(EOFError, ConnectionError):
        _answer(connection, timeout, lambda: handlers.update(open_(*arguments)))
        while True:
            request, argument = connection.recv()
            _answer(connection, timeout, handlers[request], argument)


def _answer(connection: Connection, timeout: float, call: Callable[..., Any], *arguments: Any) -> None:
    """Send what a call returns, or raises: whatever a backend makes of a package is the verdict's business."""
    signal.alarm(int(timeout) + GRACE)  # ends a process that hangs when nobody is left to do it
    try:
        answer = pickle.dumps((True, call(*arguments)))
    except Exception as error:
        answer = pickle.dumps((False, " ".join(f"{type(error).__name__}: {error}".split())[:500]))
    signal.alarm(0)
    connection.send_bytes(answer)
