"""Recipes: the shipped ones are right, and every mistake in one is a line that names it."""

import inspect
from pathlib import Path

import pytest

from mobilevit_coreml.compression.schemes import Budget, Compression, Palettize, Prune, Quantize
from mobilevit_coreml.metrics import BOUNDS
from mobilevit_coreml.release.recipe import GATES, MAX_RECIPE, Recipe, RecipeError, load_recipe, load_recipes

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
    assert (recipe.output_size, recipe.output_type, recipe.gates, recipe.notes) == (
        "network",
        None,
        {"miou": 0.5},
        "two lines",
    )


def test_options_of_convert_by_their_own_names(tmp_path: Path) -> None:
    changes = [
        ('[output]\nsize = "network"', ""),
        ("include_crop = true", 'channel_order = "RGB"\noutput_type = "logits"\nlabels = "a.txt"'),
    ]
    recipe = load_recipe(written(tmp_path, *changes))
    assert (recipe.channel_order, recipe.output_type) == ("RGB", "logits")
    assert recipe.labels == str(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("toml", "compression", "stored"),
    [
        ("budget = {max_size = 1_000_000}", Budget(max_size=1_000_000), "at most 1 MB"),
        ("budget = {min_snr = 25}", Budget(min_snr=25), "at least 25 dB"),
        ("budget = {min_agreement = 0.99}", Budget(min_agreement=0.99), "at least 0.99 of the classes"),
        ("palettize = {bits = 6}", Palettize(6), "6bit"),
        ('quantize = {dtype = "int8"}', Quantize("int8"), "int8"),
        ("prune = {share = 0.5}", Prune(0.5), "sparse50"),
    ],
)
def test_compressions(tmp_path: Path, toml: str, compression: Compression, stored: str) -> None:
    recipe = load_recipe(written(tmp_path, ('precision = "fp16"', toml)))
    assert (recipe.compression, recipe.stored) == (compression, stored)


KEYS = ", ".join(inspect.signature(Recipe).parameters)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('variant = "xxs"', "", "expected variant, got none; correct it"),
        ('variant = "xxs"', 'variant = "m"', "variant: expected one of xxs, xs, s, got 'm'; choose one of these"),
        ('variant = "xxs"', "variant = 2", "variant: expected a text, got 2; correct it"),
        (
            'target = "iOS16"',
            'target = "iOS14"',
            "target: expected one of iOS15, iOS16, iOS17, iOS18, iOS26, got 'iOS14'; choose one of these",
        ),
        ("attention", "atention", f"expected only {KEYS}, got 'atention'; correct it"),
        ("include_crop = true", "include_crop = 1", "include_crop: expected true or false, got 1; correct it"),
        (
            'name = "mine"',
            'name = "Mine!"',
            "name: expected the file's name 'mine', of lower case letters, digits, _ and -, at most 32, "
            "not ending in _failed, got 'Mine!'; rename one",
        ),
        (
            'package = "Mine"',
            'package = "../Mine"',
            "package: expected a Swift class, a capital, then letters, digits and _, at most 64, not ending in "
            "_failed or _untrained, got '../Mine'; rename it",
        ),
        (
            'package = "Mine"',
            'package = "Mine_untrained"',
            "package: expected a Swift class, a capital, then letters, digits and _, at most 64, not ending in "
            "_failed or _untrained, got 'Mine_untrained'; rename it",
        ),
        (
            'precision = "fp16"',
            "budget = {min_snr = 20}\npalettize = {bits = 6}",
            "palettize and budget: expected one compression; leave one out",
        ),
        (
            'precision = "fp16"',
            "budget = {size = 5}",
            "budget: expected only max_size, min_snr, min_agreement, got 'size'; correct it",
        ),
        (
            'precision = "fp16"',
            'budget = {max_size = "1MB"}',
            "budget.max_size: expected a whole number, got '1MB'; correct it",
        ),
        (
            'precision = "fp16"',
            "budget = {min_agreement = 99}",
            "min_agreement: expected a number above 0, at most 1, got 99; change it",
        ),
        (
            'precision = "fp16"',
            "budget = {min_snr = nan}",
            "min_snr: expected a number above 0, at most 200, got nan; change it",
        ),
        ('precision = "fp16"', "budget = 20", "budget: expected an object, got 20; correct it"),
        ("[256]", "256", "image_sizes: expected a list, got 256; correct it"),
        ("[256]", "[[256, true]]", "image_sizes[0][1]: expected a whole number, got True; correct it"),
        ("[256]", "[[256]]", "image_sizes[0]: expected 2 entries, got 1; correct it"),
        ("[256]", "[256, 256]", "image_sizes: expected each size once, got one twice; leave the second out"),
        (
            "[256]",
            "[256, 320]",
            "target: expected iOS18 or later for several image sizes in one package, got iOS16; raise it",
        ),
        ('size = "network"', "size = 1", "output_size: expected a text, got 1; correct it"),
        (
            'size = "network"',
            'size = "huge"',
            "output_size: expected one of image, network, got 'huge'; choose one of these",
        ),
        (
            'size = "network"',
            "hidden_states = true",
            "hidden_states: expected features, got segmentation; leave it out",
        ),
        ("[output]\n", "[output]\nform = 1\n", f"expected only {KEYS}, got 'output_form'; correct it"),
        ('notes = "two\\nlines"', "notes = 3", "notes: expected a text, got 3; correct it"),
        ('notes = "two\\nlines"', "labels = 3", "labels: expected a text, got 3; correct it"),
        (
            "miou",
            "top1",
            "gates: expected one of snr, worst-snr, cosine, pixels, miou, got 'top1'; choose one of these",
        ),
        ("0.5", "inf", "gates.miou: expected a number, got inf; change it"),
        ("0.5", "true", "gates.miou: expected a number, got True; correct it"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, (old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_recipe_is_called_as_its_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"name: expected the file's name 'other'.* got 'mine'; rename one"):
        load_recipe(written(tmp_path, name="other"))
    with pytest.raises(RecipeError, match="not ending in _failed"):
        load_recipe(written(tmp_path, ('"mine"', '"mine_failed"'), name="mine_failed"))


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
    path = written(tmp_path, ("[256]", "[256, 320]"), ("iOS16", "iOS18"), ('precision = "fp16"', "budget.min_snr = 20"))
    with pytest.raises(RecipeError, match=r"budget: expected one image size, got 2; make a package for each"):
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
    with pytest.raises(RecipeError, match=r"nowhere: No such file or directory; check the path"):
        load_recipes(tmp_path / "nowhere")


def test_the_gates_are_figures_that_exist() -> None:
    assert {name for names in GATES.values() for name in names} < set(BOUNDS)


def test_shipped_recipes() -> None:
    recipes = load_recipes().values()
    compressed = {(one.variant, one.compression) for one in recipes if one.compression is not None}
    assert compressed == {
        ("xxs", Budget(max_size=1_000_000)),
        ("xs", Budget(max_size=2_000_000)),
        ("s", Budget(max_size=4_000_000)),
    }
    for task in ("classification", "segmentation"):
        whole = [one for one in recipes if one.task == task and one.compression is None and not one.image_sizes]
        assert [one.variant for one in whole] == ["xxs", "xs", "s"]
    assert any(one.task == "features" for one in recipes)
    assert any(len(one.image_sizes) > 1 for one in recipes)
    assert any(one.output_size == "network" and one.image_sizes == ((256, 256),) for one in recipes)
    assert all(one.gates and one.notes and one.weights == "auto" for one in recipes)
