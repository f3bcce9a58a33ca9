"""A backend's worker without a process of its own, which takes seconds to start; test_backends.py has the real one."""

from collections.abc import Callable
from typing import Any, Self

from mobilevit_coreml.validation.backends import BackendError, Handlers


class InProcess:
    """In place of validate.backends.Worker."""

    def __init__(self, _timeout: float, open_: Callable[..., Handlers], *arguments: Any) -> None:
        self._open = lambda: open_(*arguments)
        self._answers: list[Any] = []

    def __enter__(self) -> Self:
        self._handlers = self._safely(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, request: str, argument: Any = None) -> None:
        self._answers.append(lambda: self._handlers[request](argument))

    def receive(self) -> Any:
        return self._safely(self._answers.pop(0))

    def ask(self, request: str, argument: Any = None) -> Any:
        self.send(request, argument)
        return self.receive()

    @staticmethod
    def _safely(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise BackendError(str(error)) from None
