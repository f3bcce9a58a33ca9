"""What a shipped package is to be, as a file of TOML, and every mistake in one as a line that names it."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.compression.schemes import MAX_PACKAGE_BYTES, Budget
from mobilevit_coreml.config import (
    CLASSIFICATION,
    FEATURES,
    SEGMENTATION,
    TASKS,
    VARIANTS,
    AttentionImplementation,
    UnfoldImplementation,
)
from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.options import TARGETS, ConversionOptions, Precision, Size
from mobilevit_coreml.package.files import FAILED_SUFFIX, MEGABYTE, UNTRAINED_SUFFIX
from mobilevit_coreml.package.interface import DTYPES, LABELS, MASK, OUTPUT_SIZES, OUTPUT_TYPES
from mobilevit_coreml.shipped import shipped

RECIPES = shipped("release/recipes", "conversions/recipes")
MAX_RECIPE = 64 * 1024  # bytes
MAX_NOTES = 1000  # characters
MAX_SIDE = 4096  # pixels
MIN_SIDE = 33  # pixels: with fewer, stage 5 has no patch
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SWIFT_CLASS = re.compile(r"[A-Z][A-Za-z0-9_]{0,63}")

SIGNAL_GATES = ("snr", "worst-snr", "cosine")
GATES: Mapping[str, tuple[str, ...]] = {  # of verification.BOUNDS, the figures that a task has
    CLASSIFICATION: (*SIGNAL_GATES, "top1", "top5", "kl", "probability"),
    SEGMENTATION: (*SIGNAL_GATES, "pixels", "miou"),
    FEATURES: SIGNAL_GATES,
}
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    CLASSIFICATION: (),
    SEGMENTATION: ("type", "size", "dtype"),
    FEATURES: ("dtype", "hidden_states"),
}


class RecipeError(MobileViTError):
    """A recipe that cannot be read, or asks for what no package can be."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A package to be made; the fields are `convert`'s arguments, which has the defaults.

    `package` is the name of the file, and of Xcode's Swift class, before `_untrained` is added where it has to
    be. `image_sizes` are (height, width) in pixels. `output` has the keys in OUTPUTS. With a `budget` weights
    are stored as they fit it best, and it needs photographs. `gates` bound figures, by their names in
    verification.BOUNDS: of a budget's package against the weights as they were, otherwise against PyTorch.
    """

    name: str
    package: str
    task: str
    variant: str
    target: str
    weights: str = "auto"
    precision: str = "fp16"
    budget: Budget | None = None
    attention: str = "split_einsum"
    unfold: str = "space_to_batch"
    image_sizes: tuple[Size, ...] = ()
    include_crop: bool = False
    output: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: str = ""

    @property
    def stored(self) -> str:
        """How weights are stored, for people: fp16, or a budget."""
        if self.budget is None:
            return self.precision
        if self.budget.max_size is not None:
            return f"at most {self.budget.max_size / MEGABYTE:g} MB"
        if self.budget.min_snr is not None:
            return f"at least {self.budget.min_snr:g} dB"
        return f"at least {self.budget.min_agreement:.4g} of the classes"


def load_recipes(directory: Path = RECIPES) -> dict[str, Recipe]:
    """All recipes of a directory, by name, ordered by task and variant; raises RecipeError for the first mistake."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise RecipeError(f"recipes {directory}: expected a directory, got {error.strerror}; check the path") from None
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
    return TASKS.index(recipe.task), list(VARIANTS).index(recipe.variant), recipe.budget is not None, recipe.name


def load_recipe(path: Path) -> Recipe:
    """One recipe; raises RecipeError with the file, the key, what was expected there, and what is there."""
    values = _read(path)
    file = _Table(f"{path}: ", values)
    file.check_keys(REQUIRED, [field.name for field in dataclasses.fields(Recipe)])
    if "precision" in values and "budget" in values:
        raise file.error("precision", "none beside budget, which chooses for each layer", "both", "leave one out")
    if "precision" not in values and "budget" not in values:
        raise file.error(
            "precision", f"one of {', '.join(tuple(Precision))}, or a table [budget]", "neither", "add one"
        )
    task = file.choice("task", TASKS)
    recipe = Recipe(
        name=file.text("name", NAME, "lower case letters, digits, _ and -, at most 32"),
        package=file.text("package", SWIFT_CLASS, "a Swift class: a capital, then letters, digits and _, at most 64"),
        task=task,
        variant=file.choice("variant", VARIANTS),
        target=file.choice("target", TARGETS),
        weights=file.text("weights", re.compile(r"\S(.{0,400}\S)?"), "auto, pretrained, untrained, a path or a hub id")
        if "weights" in values
        else "auto",
        precision=file.choice("precision", tuple(Precision), "fp16"),
        budget=_budget(file) if "budget" in values else None,
        attention=file.choice("attention", tuple(AttentionImplementation), AttentionImplementation.SPLIT_EINSUM),
        unfold=file.choice("unfold", tuple(UnfoldImplementation), UnfoldImplementation.SPACE_TO_BATCH),
        image_sizes=_image_sizes(file),
        include_crop=file.boolean("include_crop"),
        output=_output(file, task) if "output" in values else {},
        gates=_gates(file, task) if "gates" in values else {},
        notes=_notes(file),
    )
    _check(file, recipe, path)
    return recipe


REQUIRED = ("name", "package", "task", "variant", "target")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECIPE + 1)
        if len(content) > MAX_RECIPE:
            raise RecipeError(f"{path}: expected at most {MAX_RECIPE} bytes, got more; it is no recipe")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise RecipeError(f"{path}: expected a file to read, got {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError, too
        reason = " ".join(str(error).split())[:150]
        raise RecipeError(f"{path}: expected TOML, got {reason}; correct it") from None


@dataclasses.dataclass(frozen=True)
class _Table:
    """Values of TOML, with how to call them in an error."""

    prefix: str
    values: Mapping[str, Any]

    def error(self, key: str, expected: str, got: str, advice: str) -> RecipeError:
        return RecipeError(f"{self.prefix}{key}: expected {expected}, got {got}; {advice}")

    def check_keys(self, required: Collection[str], known: Sequence[str]) -> None:
        for key in self.values:
            if key not in known:
                raise self.error(f"{key!s:.60}", f"one of {', '.join(known)}", "another key", "correct it")
        for key in required:
            if key not in self.values:
                raise self.error(key, "a value", "none", "add it")

    def of_type(self, key: str, kinds: tuple[type, ...], what: str) -> Any:
        value = self.values[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(key, what, _told(value), "correct it")
        return value

    def text(self, key: str, pattern: re.Pattern[str], what: str) -> str:
        value: str = self.of_type(key, (str,), what)
        if not pattern.fullmatch(value):
            raise self.error(key, what, _told(value), "change it")
        return value

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str:
        if key not in self.values and default is not None:
            return default
        value: str = self.of_type(key, (str,), f"one of {', '.join(choices)}")
        if value not in choices:
            raise self.error(key, f"one of {', '.join(choices)}", _told(value), "choose one of these")
        return value

    def boolean(self, key: str) -> bool:
        return key in self.values and bool(self.of_type(key, (bool,), "true or false"))

    def number(self, key: str, what: str, is_right: Callable[[float], bool]) -> Any:
        value = self.of_type(key, (int, float), what)
        if not is_right(value):
            raise self.error(key, what, f"{value}", "change it")
        return value

    def table(self, key: str) -> "_Table":
        return _Table(f"{self.prefix}{key}.", self.of_type(key, (dict,), f"a table [{key}]"))


def _told(value: Any) -> str:
    """What a value is, briefly."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:59] + '…'} ({_TOML_TYPES.get(type(value), type(value).__name__)})"


_TOML_TYPES: Mapping[type, str] = {
    str: "string",
    int: "integer",
    float: "float",
    bool: "boolean",
    list: "array",
    dict: "table",
}


def _budget(file: _Table) -> Budget:
    table = file.table("budget")
    table.check_keys((), ("max_size", "min_snr", "min_agreement"))
    if len(table.values) != 1:
        got = " and ".join(table.values) or "none"
        raise file.error("budget", "one of max_size, min_snr, min_agreement", got, "give one")
    (key,) = table.values
    if key == "max_size":
        table.of_type(key, (int,), "bytes, as 1_000_000")
        return Budget(
            max_size=table.number(key, f"bytes, 1 to {MAX_PACKAGE_BYTES}", lambda one: 1 <= one <= MAX_PACKAGE_BYTES)
        )
    if key == "min_snr":
        return Budget(min_snr=table.number(key, "dB, above 0 and at most 200", lambda one: 0 < one <= 200))
    return Budget(min_agreement=table.number(key, "a share, above 0 and at most 1", lambda one: 0 < one <= 1))


def _image_sizes(file: _Table) -> tuple[Size, ...]:
    if "image_sizes" not in file.values:
        return ()
    what = f"pixels, {MIN_SIDE} to {MAX_SIDE}, as [256] or [[256, 320]] of height and width"
    found = []
    for value in file.of_type("image_sizes", (list,), what):
        size = value if isinstance(value, list) else [value, value]
        if len(size) != 2 or not all(type(side) is int and MIN_SIDE <= side <= MAX_SIDE for side in size):
            raise file.error("image_sizes", what, _told(value), "correct it")
        found.append((size[0], size[1]))
    if len(set(found)) < len(found) or not found:
        raise file.error("image_sizes", "at least one size, each once", _told(file.values["image_sizes"]), "correct it")
    return tuple(found)


def _output(file: _Table, task: str) -> Mapping[str, Any]:
    known = OUTPUTS[task]
    if not known:
        raise file.error("output", f"no such table for {task}, which has one form", "one", "leave it out")
    table = file.table("output")
    table.check_keys((), known)
    choices = {"type": OUTPUT_TYPES, "size": OUTPUT_SIZES, "dtype": DTYPES}
    found: dict[str, Any] = {key: table.choice(key, choices[key]) for key in table.values if key in choices}
    if "hidden_states" in table.values:
        found["hidden_states"] = table.boolean("hidden_states")
    if task == SEGMENTATION and "dtype" in found and found.get("type", LABELS) in (LABELS, MASK):
        raise table.error("dtype", "none for class indices, which are integers", _told(found["dtype"]), "leave it out")
    return found


def _gates(file: _Table, task: str) -> Mapping[str, float]:
    table = file.table("gates")
    table.check_keys((), GATES[task])
    return {key: float(table.number(key, "a number", math.isfinite)) for key in table.values}


def _notes(file: _Table) -> str:
    if "notes" not in file.values:
        return ""
    what = f"a text of at most {MAX_NOTES} characters"
    notes: str = file.of_type("notes", (str,), what)
    if len(notes) > MAX_NOTES:
        raise file.error("notes", what, f"{len(notes)} characters", "shorten it")
    return " ".join(notes.split())


def _check(file: _Table, recipe: Recipe, path: Path) -> None:
    """Raise RecipeError for what is right alone and wrong together."""
    if recipe.name != path.stem:
        raise file.error("name", f"{path.stem!r}, as the file is called", _told(recipe.name), "rename one")
    if recipe.name.endswith(FAILED_SUFFIX):
        raise file.error("name", f"no {FAILED_SUFFIX} at its end", _told(recipe.name), "rename it")
    for suffix in (FAILED_SUFFIX, UNTRAINED_SUFFIX):
        if recipe.package.endswith(suffix):
            raise file.error(
                "package", f"no {suffix} at its end", _told(recipe.package), "it is added where it is true"
            )
    if recipe.budget is not None and len(recipe.image_sizes) > 1:
        raise file.error("budget", "one image size beside it", f"{len(recipe.image_sizes)}", "make a recipe for each")
    if recipe.budget is not None and recipe.budget.min_agreement is not None and recipe.task == FEATURES:
        raise file.error("budget.min_agreement", "classes", "features, which have none", "use min_snr")
    try:
        ConversionOptions(
            target=recipe.target,
            task=recipe.task,
            output_dtype=recipe.output.get("dtype"),
            output_type=recipe.output.get("type"),
            image_sizes=recipe.image_sizes,
            compression=recipe.budget,
            unfold=recipe.unfold,
        )
    except MobileViTError as error:
        raise RecipeError(f"{file.prefix}{str(error).partition(';')[0]}; raise it") from None
