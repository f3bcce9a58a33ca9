"""That no operation is without a test of its own."""

import ast
from collections.abc import Iterable
from pathlib import Path

from mobilevit_coreml.reference import OPERATIONS


def built(source: str) -> set[str]:
    """The operations a test module builds, called or named: `mb.<operation>`."""
    saved_as = {"coreml_update_state": "write_state"}
    return {
        saved_as.get(node.attr, node.attr)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mb"
    }


def untested(operations: Iterable[str], sources: Iterable[str]) -> set[str]:
    return set(operations).difference(*map(built, sources))


def test_every_operation_is_tested() -> None:
    modules = sorted(Path(__file__).parent.glob("test_*.py"))
    missing = untested(OPERATIONS, [path.read_text(encoding="utf-8") for path in modules])
    assert not missing, f"operations without a test in {Path(__file__).parent}: {', '.join(sorted(missing))}"


def test_an_operation_nobody_builds_is_noticed() -> None:
    source = "'mb.relu'  # mb.relu(x=x)\ny = mb.add(x=x, y=mb.mul(x=x, y=x))\ntable = [mb.exp, np.sqrt]"
    assert untested(["add", "exp", "mul", "relu", "sqrt"], [source]) == {"relu", "sqrt"}
