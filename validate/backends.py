"""What runs a package, each in a process of its own: it may crash, hang or run out of memory without the validator."""

import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mobilevit_coreml.interface import IMAGE
from mobilevit_coreml.prediction import core_ml_is_here

from .core_ml import UNITS

REFERENCE, CORE_ML = "reference", "coreml"
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
    answers with an error.
    """

    def __init__(self, timeout: float, open_: Callable[..., Handlers], *arguments: Any) -> None:
        self._timeout = timeout
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, open_, arguments), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Self:
        self.receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

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
        self._process.join(5)
        code = self._process.exitcode
        if code is not None and code < 0:
            return BackendError(f"crashed with {signal.Signals(-code).name}")
        return BackendError(f"ended with exit code {code}")


def _work(connection: Connection, open_: Callable[..., Handlers], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the validator's business, which ends this process
    try:
        handlers = open_(*arguments)
        connection.send((True, None))
        while True:
            request, argument = connection.recv()
            connection.send((True, handlers[request](argument)))
    except EOFError:
        return
    except Exception as error:  # whatever a backend makes of a package is the verdict's business
        connection.send((False, " ".join(f"{type(error).__name__}: {error}".split())[:500]))
