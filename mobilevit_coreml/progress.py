"""Progress of long calls, as a callback."""

from typing import Protocol


class Progress(Protocol):
    """Called when a stage begins, `progress("convert")`, and after each step of one whose steps are known.

    `done` steps of `total`, both 0 where a stage has no steps. It may raise to end the call.
    """

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Ignore progress."""
