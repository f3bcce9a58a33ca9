"""Recipes with anything at all in them: a mistake is a line, and never another exception."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobilevit_coreml.release.recipe import RECIPES, Recipe, RecipeError, load_recipe

SHIPPED = sorted(RECIPES.glob("*.toml"))
KEYS = ("name", "package", "task", "variant", "target", "weights", "precision", "attention", "unfold", "image_sizes")
OPTIONS = ("include_crop", "output", "output_type", "hidden_states", "labels", "channel_order", "compression")
TABLES = ("gates", "budget", "palettize", "quantize", "prune", "notes", "something")
INNER_KEYS = ("snr", "type", "size", "max_size", "min_snr", "dtype", "bits", "group_size", "share", "x")
LEAVES = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["xs", "labels", "iOS18", "fp32"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(INNER_KEYS), inner, max_size=3),
    ),
    max_leaves=6,
)


def as_toml(value: Any) -> str:
    """A value in TOML's words, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return {float("inf"): "inf", float("-inf"): "-inf"}.get(value) or ("nan" if value != value else json.dumps(value))


def is_recipe_or_line(path: Path) -> bool:
    """True if it loads, or is refused on one line that names the file."""
    try:
        return isinstance(load_recipe(path), Recipe)
    except RecipeError as error:
        return str(path) in str(error) and "\n" not in str(error)


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.sampled_from(KEYS + OPTIONS + TABLES), value=VALUES)
def test_any_value_under_any_key(tmp_path: Path, key: str, value: Any) -> None:
    lines = (RECIPES / "xs_fp16.toml").read_text(encoding="utf-8").partition("\n[")[0].splitlines()
    kept = [line for line in lines if not line.startswith(f"{key} ")]
    path = tmp_path / "xs_fp16.toml"
    path.write_text("\n".join([*kept, f"{key} = {as_toml(value)}"]) + "\n", encoding="utf-8")
    assert is_recipe_or_line(path)


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: path.stem)
def test_damaged_bytes(tmp_path: Path, recipe: Path) -> None:
    rng = random.Random(recipe.stem)
    content = recipe.read_bytes()
    path = tmp_path / recipe.name
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randint(0, len(damaged))] if rng.random() < 0.3 else damaged)
        assert is_recipe_or_line(path)
