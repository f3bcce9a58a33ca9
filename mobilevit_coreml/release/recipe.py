"""Recipes of packages: TOML files of `convert`'s own options, checked as `convert` checks them."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from mobilevit_coreml.compression.schemes import Budget, Compression
from mobilevit_coreml.config import TASKS, VARIANTS, Task
from mobilevit_coreml.errors import MobileViTError, check_choice, os_error_text
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package.files import FAILED_SUFFIX, MEGABYTE, UNTRAINED_SUFFIX
from mobilevit_coreml.shipped import shipped
from mobilevit_coreml.strict_json import JsonError, load

RECIPES = shipped("release/recipes", "conversions/recipes")
MAX_RECIPE = 64 * 1024  # bytes
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SWIFT_CLASS = re.compile(r"[A-Z][A-Za-z0-9_]{0,63}")
COMPRESSIONS: Mapping[str, type[Compression]] = {kind.__name__.lower(): kind for kind in get_args(Compression)}
SIGNAL_GATES = ("snr", "worst-snr", "cosine")
GATES: Mapping[str, tuple[str, ...]] = {  # those of metrics.BOUNDS that a conversion measures, by task
    Task.CLASSIFICATION: (*SIGNAL_GATES, "top1", "top5", "kl", "probability", "labels"),
    Task.SEGMENTATION: (*SIGNAL_GATES, "pixels", "miou"),
    Task.FEATURES: SIGNAL_GATES,
}


class RecipeError(MobileViTError):
    """A recipe that cannot be read, or asks for a package that cannot be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(ConversionOptions):
    """A recipe: a conversion's options, and what else `convert` is given.

    `package` is the name of the .mlpackage, and of Xcode's Swift class, before `_untrained` is added where it is
    true. `weights` are as in `convert`, paths from the recipe's directory. `gates` bound figures by their names in
    metrics.BOUNDS: against the original weights where these are compressed, otherwise against PyTorch.
    """

    name: str
    package: str
    task: str
    variant: str
    target: str
    weights: str = "auto"
    gates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: str = ""

    @property
    def stored(self) -> str:
        """The storage of the weights, for people: fp16, 6bit, or a budget."""
        if not isinstance(self.compression, Budget):
            return self.precision if self.compression is None else str(self.compression.format)
        if self.compression.max_size is not None:
            return f"at most {self.compression.max_size / MEGABYTE:g} MB"
        if self.compression.min_snr is not None:
            return f"at least {self.compression.min_snr:g} dB"
        return f"at least {self.compression.min_agreement:.4g} of the classes"


def load_recipes(directory: Path = RECIPES) -> dict[str, Recipe]:
    """All recipes of a directory, by name, ordered by task and variant; raises RecipeError for the first mistake."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise RecipeError(f"recipes {directory}: {os_error_text(error)}; check the path") from None
    if not paths:
        raise RecipeError(f"recipes {directory}: expected .toml files, got none; check the path")
    recipes = {recipe.name: recipe for recipe in sorted(map(load_recipe, paths), key=_by_task)}
    packages: dict[str, str] = {}
    for name, recipe in recipes.items():
        if packages.setdefault(recipe.package, name) != name:
            raise RecipeError(
                f"{directory / name}.toml: package: expected a name of its own, got {recipe.package!r}, "
                f"which {packages[recipe.package]} has; choose another"
            )
    return recipes


def _by_task(recipe: Recipe) -> tuple[int, int, bool, str]:
    task, variant = TASKS.index(Task(recipe.task)), list(VARIANTS).index(recipe.variant)
    return task, variant, recipe.compression is not None, recipe.name


def load_recipe(path: Path) -> Recipe:
    """Read one recipe; raises RecipeError with the file, the key, what was expected and what is there."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECIPE + 1)
        if len(content) > MAX_RECIPE:
            raise RecipeError(f"expected at most {MAX_RECIPE} bytes, got more; it is no recipe")
        recipe = _recipe_of(tomllib.loads(content.decode()), path.parent)
        _check(recipe, path.stem)
    except JsonError as error:
        reason = f"{str(error).lstrip('.: ')}; correct it"
    except MobileViTError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{os_error_text(error)}; check the path"
    except (ValueError, RecursionError) as error:  # from the TOML parser, or a UnicodeDecodeError
        reason = f"expected TOML, got {os_error_text(error)}; correct it"
    else:
        return recipe
    raise RecipeError(f"{path}: {reason}")


def _recipe_of(values: dict[str, Any], directory: Path) -> Recipe:
    """The recipe of the values of a file in a directory.

    [budget], [palettize], [quantize] or [prune] is the compression. `type`, `size` and `dtype` in [output] are
    `output_type` and so on. A number in `image_sizes` is a square.
    """
    compressions = {name: load(COMPRESSIONS[name], values.pop(name), name) for name in COMPRESSIONS if name in values}
    if len(compressions) > 1:
        raise RecipeError(f"{' and '.join(compressions)}: expected one compression; leave one out")
    for name, value in load(dict[str, Any], values.pop("output", {}), "output").items():
        values[name if name == "hidden_states" else f"output_{name}"] = value
    if isinstance(values.get("image_sizes"), list):
        values["image_sizes"] = [[size, size] if isinstance(size, int) else size for size in values["image_sizes"]]
    values["notes"] = " ".join(load(str, values.get("notes", ""), "notes").split())
    if labels := load(str, values.pop("labels", ""), "labels"):
        values["labels"] = str(directory / labels)
    recipe = load(Recipe, values, "")
    return dataclasses.replace(recipe, compression=next(iter(compressions.values()), recipe.compression))


def _check(recipe: Recipe, stem: str) -> None:
    """Raise an error for a variant, names and gates, which are no options of a conversion."""
    check_choice("variant", recipe.variant, VARIANTS)
    if recipe.name != stem or not NAME.fullmatch(stem) or stem.endswith(FAILED_SUFFIX):
        raise RecipeError(
            f"name: expected the file's name {stem!r}, of lower case letters, digits, _ and -, at most 32, "
            f"not ending in {FAILED_SUFFIX}, got {recipe.name!r:.60}; rename one"
        )
    if not SWIFT_CLASS.fullmatch(recipe.package) or recipe.package.endswith((FAILED_SUFFIX, UNTRAINED_SUFFIX)):
        raise RecipeError(
            "package: expected a Swift class, a capital, then letters, digits and _, at most 64, not ending in "
            f"{FAILED_SUFFIX} or {UNTRAINED_SUFFIX}, got {recipe.package!r:.60}; rename it"
        )
    for gate, bound in recipe.gates.items():
        check_choice("gates", gate, GATES[recipe.task])
        if not math.isfinite(bound):
            raise RecipeError(f"gates.{gate}: expected a number, got {bound}; change it")
