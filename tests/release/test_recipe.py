"""Recipes: that those shipped are right, and every mistake in one as text."""

import dataclasses
from pathlib import Path

import pytest

from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.metrics import BOUNDS
from mobilevit_coreml.release.recipe import GATES, MAX_RECIPE, RecipeError, load_recipe, load_recipes

RIGHT = """
name = "mine"
package = "Mine"
task = "segmentation"
variant = "xxs"
target = "iOS16"
precision = "fp16"
image_sizes = [256, [256, 320]]
attention = "packed"
include_crop = true
notes = "two\\nlines"

[output]
size = "network"

[gates]
miou = 0.5
"""


def written(directory: Path, *changes: tuple[str, str], name: str = "mine") -> Path:
    text = RIGHT.replace("[256, [256, 320]]", "[256]")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RIGHT.replace("iOS16", "iOS18"))
    recipe = load_recipe(path)
    assert recipe.image_sizes == ((256, 256), (256, 320))
    assert (recipe.weights, recipe.unfold, recipe.stored) == ("auto", "space_to_batch", "fp16")
    assert recipe.include_crop
    assert (recipe.output, recipe.gates, recipe.notes) == ({"size": "network"}, {"miou": 0.5}, "two lines")


@pytest.mark.parametrize(
    ("toml", "budget", "stored"),
    [
        ("max_size = 1_000_000", Budget(max_size=1_000_000), "at most 1 MB"),
        ("min_snr = 25", Budget(min_snr=25), "at least 25 dB"),
        ("min_agreement = 0.99", Budget(min_agreement=0.99), "at least 0.99 of the classes"),
    ],
)
def test_budgets(tmp_path: Path, toml: str, budget: Budget, stored: str) -> None:
    recipe = load_recipe(written(tmp_path, ('precision = "fp16"', f"budget = {{{toml}}}")))
    assert (recipe.budget, recipe.stored) == (budget, stored)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('variant = "xxs"', "", "variant: expected a value, got none; add it"),
        (
            'variant = "xxs"',
            'variant = "m"',
            "variant: expected one of xxs, xs, s, got 'm' (string); choose one of these",
        ),
        ('variant = "xxs"', "variant = 2", "variant: expected one of xxs, xs, s, got 2 (integer); correct it"),
        (
            'target = "iOS16"',
            'target = "iOS14"',
            "target: expected one of iOS15, iOS16, iOS17, iOS18, iOS26, got 'iOS14' (string); choose one of these",
        ),
        (
            "attention",
            "atention",
            "atention: expected one of name, package, task, variant, target, weights, precision, budget, attention, "
            "unfold, image_sizes, include_crop, output, gates, notes, got another key; correct it",
        ),
        (
            "include_crop = true",
            "include_crop = 1",
            "include_crop: expected true or false, got 1 (integer); correct it",
        ),
        (
            'name = "mine"',
            'name = "Mine!"',
            "name: expected lower case letters, digits, _ and -, at most 32, got 'Mine!' (string); change it",
        ),
        (
            'name = "mine"',
            'name = "other"',
            "name: expected 'mine', as the file is called, got 'other' (string); rename one",
        ),
        (
            'package = "Mine"',
            'package = "../Mine"',
            "package: expected a Swift class: a capital, then letters, digits and _, at most 64, "
            "got '../Mine' (string); change it",
        ),
        (
            'package = "Mine"',
            'package = "Mine_untrained"',
            "package: expected no _untrained at its end, got 'Mine_untrained' (string); it is added where it is true",
        ),
        ('precision = "fp16"', "", "precision: expected one of fp16, fp32, or a table [budget], got neither; add one"),
        (
            'precision = "fp16"',
            'precision = "fp16"\nbudget = {min_snr = 20}',
            "precision: expected none beside budget, which chooses for each layer, got both; leave one out",
        ),
        (
            'precision = "fp16"',
            "budget = {}",
            "budget: expected one of max_size, min_snr, min_agreement, got none; give one",
        ),
        (
            'precision = "fp16"',
            "budget = {min_snr = 20, max_size = 5}",
            "budget: expected one of max_size, min_snr, min_agreement, got min_snr and max_size; give one",
        ),
        (
            'precision = "fp16"',
            "budget = {size = 5}",
            "budget.size: expected one of max_size, min_snr, min_agreement, got another key; correct it",
        ),
        (
            'precision = "fp16"',
            'budget = {max_size = "1MB"}',
            "budget.max_size: expected bytes, as 1_000_000, got '1MB' (string); correct it",
        ),
        (
            'precision = "fp16"',
            "budget = {max_size = 1.5}",
            "budget.max_size: expected bytes, as 1_000_000, got 1.5 (float); correct it",
        ),
        (
            'precision = "fp16"',
            "budget = {min_agreement = 99}",
            "budget.min_agreement: expected a share, above 0 and at most 1, got 99; change it",
        ),
        (
            'precision = "fp16"',
            "budget = {min_snr = nan}",
            "budget.min_snr: expected dB, above 0 and at most 200, got nan; change it",
        ),
        ('precision = "fp16"', "budget = 20", "budget: expected a table [budget], got 20 (integer); correct it"),
        (
            "[256]",
            "[16]",
            "image_sizes: expected pixels, 33 to 4096, as [256] or [[256, 320]] of height and width, "
            "got 16 (integer); correct it",
        ),
        (
            "[256]",
            "256",
            "image_sizes: expected pixels, 33 to 4096, as [256] or [[256, 320]] of height and width, "
            "got 256 (integer); correct it",
        ),
        (
            "[256]",
            "[[256, true]]",
            "image_sizes: expected pixels, 33 to 4096, as [256] or [[256, 320]] of height and width, "
            "got [256, True] (array); correct it",
        ),
        ("[256]", "[]", "image_sizes: expected at least one size, each once, got [] (array); correct it"),
        (
            "[256]",
            "[256, 256]",
            "image_sizes: expected at least one size, each once, got [256, 256] (array); correct it",
        ),
        (
            "[256]",
            "[256, 320]",
            "target: expected iOS18 or later for several image sizes in one package, got iOS16; raise it",
        ),
        (
            'task = "segmentation"',
            'task = "classification"',
            "output: expected no such table for classification, which has one form, got one; leave it out",
        ),
        (
            'size = "network"',
            'size = "half"',
            "output.size: expected one of image, network, got 'half' (string); choose one of these",
        ),
        (
            'size = "network"',
            "hidden_states = true",
            "output.hidden_states: expected one of type, size, dtype, got another key; correct it",
        ),
        (
            'size = "network"',
            'dtype = "float16"',
            "output.dtype: expected none for class indices, which are integers, got 'float16' (string); leave it out",
        ),
        (
            "miou",
            "top1",
            "gates.top1: expected one of snr, worst-snr, cosine, pixels, miou, got another key; correct it",
        ),
        ("0.5", "inf", "gates.miou: expected a number, got inf; change it"),
        ("0.5", "true", "gates.miou: expected a number, got True (boolean); correct it"),
        (
            'notes = "two\\nlines"',
            f'notes = "{"x" * 1001}"',
            "notes: expected a text of at most 1000 characters, got 1001 characters; shorten it",
        ),
        (
            "include_crop = true",
            'weights = ""',
            "weights: expected auto, pretrained, untrained, a path or a hub id, got '' (string); change it",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, (old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "expected TOML, got Invalid value (at end of document); correct it"),
        (b"name = '\xff'", "expected TOML, got 'utf-8' codec can't decode byte 0xff in position 8: invalid start byte"),
        (b"#" * (MAX_RECIPE + 1), "expected at most 65536 bytes, got more; it is no recipe"),
        (b"a = " + b"[" * 30000, "expected TOML, got "),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_several_sizes_and_a_budget_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ("[256]", "[256, 320]"), ('precision = "fp16"', "budget = {min_snr = 20}"))
    with pytest.raises(RecipeError, match=r"budget: expected one image size beside it, got 2; make a recipe for each"):
        load_recipe(path)


def test_features_have_no_classes_to_agree_on(tmp_path: Path) -> None:
    changes = [("segmentation", "features"), ('[output]\nsize = "network"\n', ""), ("[gates]\nmiou = 0.5\n", "")]
    path = written(tmp_path, *changes, ('precision = "fp16"', "budget = {min_agreement = 0.9}"))
    with pytest.raises(RecipeError, match=r"min_agreement: expected classes, got features, which have none"):
        load_recipe(path)


def test_two_recipes_make_no_package_of_one_name(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, ('name = "mine"', 'name = "other"'), name="other")
    with pytest.raises(RecipeError, match=r"other.toml: package: expected a name of its own, got 'Mine', which mine"):
        load_recipes(tmp_path)


def test_directories_without_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected .toml files, got none"):
        load_recipes(tmp_path)
    with pytest.raises(RecipeError, match=r"expected a directory, got No such file or directory"):
        load_recipes(tmp_path / "nowhere")


def test_the_gates_are_the_figures_there_are() -> None:
    assert {name for names in GATES.values() for name in names} == set(BOUNDS)


def test_shipped_recipes() -> None:
    recipes = load_recipes().values()
    stored = {(one.variant, one.budget.max_size) for one in recipes if one.budget is not None}
    assert stored == {("xxs", 1_000_000), ("xs", 2_000_000), ("s", 4_000_000)}
    for task in ("classification", "segmentation"):
        whole = [one for one in recipes if one.task == task and one.budget is None and not one.image_sizes]
        assert [one.variant for one in whole] == ["xxs", "xs", "s"]
    assert any(one.task == "features" for one in recipes)
    assert any(len(one.image_sizes) > 1 for one in recipes)
    assert any(one.output.get("size") == "network" and one.image_sizes == ((256, 256),) for one in recipes)
    assert all(one.gates and one.notes and one.weights == "auto" for one in recipes)


def test_what_a_recipe_leaves_out_is_as_convert_has_it() -> None:
    defaults = convert.__kwdefaults__ or {}
    assert convert.__defaults__ == ("auto", None)
    for field in dataclasses.fields(load_recipes()["xxs_fp16"]):
        if field.name in defaults and field.default is not dataclasses.MISSING:
            assert field.default == defaults[field.name], field.name
