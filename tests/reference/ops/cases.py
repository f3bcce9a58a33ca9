"""Attribute combinations of an operation as the outputs of one program, each with the answer it must give."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.reference.one_op import Array, assert_outputs, run_op

Case = tuple[Mapping[str, Any], Any]  # attributes, and the answer: an array, or a tuple where there are several


def check(
    operation: Callable[..., Any],
    cases: Sequence[Case],
    inputs: dict[str, Array],
    tmp_path: Path,
    target: str = "iOS15",
    atol: float = 0,
) -> None:
    """Evaluate the operation on the inputs with each case's attributes.

    Raises AssertionError with the attributes of the case that differs in shape or in value beyond atol.
    """

    def build(**variables: Any) -> tuple[Any, ...]:
        results = [operation(**variables, **attributes) for attributes, _ in cases]
        return tuple(output for result in results for output in several(result))

    answers = {
        f"{attributes} output {number}": answer
        for attributes, given in cases
        for number, answer in enumerate(several(given))
    }
    assert_outputs(run_op(build, inputs, tmp_path, target), answers, atol=atol)


def several(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)
