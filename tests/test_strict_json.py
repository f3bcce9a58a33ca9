"""Strict JSON: what is written is read back, and what does not fit is one line that names the place."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from mobilevit_coreml.strict_json import JsonError, load, parse_json, read_json, to_json


@dataclasses.dataclass(frozen=True)
class Leaf:
    name: str
    weight: float
    colors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight: expected 0 or more, got {self.weight:g}")


@dataclasses.dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    kind: Literal["oak", "ash"]
    tall: bool
    by_name: Mapping[str, Leaf]
    pair: tuple[int, float]
    best: Leaf | None = None
    either: list[int] | Leaf = dataclasses.field(default_factory=list)
    extra: Any = None


TREE = Tree(
    (Leaf("a", math.inf), Leaf("b", 1.5, (1, 2))), "oak", True, {"x": Leaf("ü\ud800", 0.0)}, (1, 2.5), None, [3]
)


def test_what_is_written_is_read_back() -> None:
    values = parse_json(to_json(TREE))
    assert values["leaves"][0]["weight"] == "inf"
    again = load(Tree, values, "tree")
    assert dataclasses.replace(again, by_name={}) == dataclasses.replace(TREE, by_name={})
    assert again.by_name["x"].name == "ü?"  # a lone surrogate has no UTF-8
    nan = load(Leaf, {"name": "", "weight": "nan"}, "leaf")
    assert math.isnan(nan.weight)
    assert load(Tree, {**values, "either": values["leaves"][0], "extra": [{}]}, "tree").either == TREE.leaves[0]
    assert isinstance(load(Leaf, {"name": "", "weight": 1}, "leaf").weight, float)


CHANGES: list[tuple[str, Any, str]] = [
    ("leaves", {}, "tree.leaves: expected a list, got {}"),
    ("leaves", [{"name": "a"}], "tree.leaves[0]: expected weight, got none"),
    ("leaves", [{"name": "a", "weight": 1, "wait": 2}], "expected only name, weight, colors, got 'wait'"),
    ("leaves", [{"name": "a", "weight": -1}], "tree.leaves[0]: weight: expected 0 or more, got -1"),
    ("leaves", [{"name": 1, "weight": 1}], "tree.leaves[0].name: expected a text, got 1"),
    ("leaves", [{"name": "", "weight": "1"}], "tree.leaves[0].weight: expected a number, got '1'"),
    ("leaves", [{"name": "", "weight": True}], "tree.leaves[0].weight: expected a number, got True"),
    ("leaves", [{"name": "", "weight": [[]]}], "tree.leaves[0].weight: expected a number, got [[]]"),
    ("leaves", [{"name": "", "weight": 10**400}], "tree.leaves[0].weight: expected a number, got 1000"),
    ("leaves", [{"name": "", "weight": 1, "colors": [1.0]}], "colors[0]: expected a whole number, got 1.0"),
    ("leaves", [{"name": "", "weight": 1, "colors": [True]}], "colors[0]: expected a whole number, got True"),
    ("kind", "elm", "tree.kind: expected one of oak, ash, got 'elm'"),
    ("kind", ["oak"], "tree.kind: expected one of oak, ash, got ['oak']"),
    ("tall", 1, "tree.tall: expected true or false, got 1"),
    ("by_name", {"y": None}, "tree.by_name.y: expected an object, got None"),
    ("pair", [1], "tree.pair: expected 2 entries, got 1"),
    ("best", 5, "tree.best: expected an object, got 5"),
    ("either", "x", "tree.either: expected a list, got 'x'"),
]


@pytest.mark.parametrize(("key", "value", "message"), CHANGES)
def test_what_does_not_fit_names_its_place(key: str, value: Any, message: str) -> None:
    values = {**json.loads(to_json(TREE)), key: value}
    with pytest.raises(JsonError) as caught:
        load(Tree, values, "tree")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON, got Expecting value"),
        (b"[" * 100_000, "expected JSON, got brackets nested too deep"),
        (b"1" * 5000, "expected JSON, got Exceeds the limit"),
        (b"[NaN]", "expected JSON, got NaN, which is no JSON"),
        (b"\xff\xfe\x00", "expected JSON, got "),
        (b" " * 100_001, "expected at most 100000 bytes, got more"),
    ],
)
def test_files_that_are_no_json(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(JsonError, match=message) as caught:
        read_json(path, 100_000)
    assert "\n" not in str(caught.value)
    with pytest.raises(JsonError, match="expected a file, got none"):
        read_json(tmp_path, 10)
