"""One recipe to one directory: the package, verified, and beside it everything that was measured."""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package.files import FAILED_SUFFIX, MEGABYTE, digest_of, failed_path
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.release.recipe import Recipe

if TYPE_CHECKING:
    from mobilevit_coreml.metrics import Fidelity, GateResult

REPORT = "report.json"
COMPRESSION = "compression"  # .html, or .json where nothing can draw
SCHEMA = 1  # of the report; counts up when something in it changes its meaning


def build(
    recipe: Recipe,
    weights: str,
    notice: str,
    images: Path | None,
    inputs: Mapping[str, str],
    directory: Path,
    progress: Progress = silent,
) -> str:
    """Make a recipe's package in an empty directory, with its report; returns what is wrong with it, or nothing.

    `weights` are the recipe's as `convert` takes them, `notice` is why these; `images` calibrate a budget;
    `inputs` identify all that goes into the package, and are kept. A package that fails is kept as `…_failed`.
    Raises MobileViTError where there is no package to be had.
    """
    budget = recipe.budget
    drawable = importlib.util.find_spec("matplotlib") is not None
    conversion = convert(
        weights,
        recipe.variant,
        ConversionOptions(
            task=recipe.task,
            precision=recipe.precision,
            attention=recipe.attention,
            unfold=recipe.unfold,
            target=recipe.target,
            image_sizes=recipe.image_sizes,
            include_crop=recipe.include_crop,
            output_type=recipe.output.get("type"),
            output_size=recipe.output.get("size"),
            output_dtype=recipe.output.get("dtype"),
            hidden_states=recipe.output.get("hidden_states", False),
            compression=Budget(max_size=None if budget is None else budget.max_size),
        ),
        output=directory / f"{recipe.package}.mlpackage",
        images=images if budget is not None else None,
        report=None if budget is None else directory / f"{COMPRESSION}.{'html' if drawable else 'json'}",
        progress=progress,
    )
    missed = missed_gates(recipe, conversion)
    package = conversion.path
    if missed and not package.stem.endswith(FAILED_SUFFIX):
        package = package.rename(failed_path(package))
    report = report_values(recipe, conversion, package, [*filter(None, [notice]), *conversion.notices], inputs, missed)
    write_report(directory, report)
    return missed


def write_report(directory: Path, values: Mapping[str, Any]) -> None:
    """Write a directory's report."""
    text = json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    (directory / REPORT).write_text(text + "\n", encoding="utf-8")


def missed_gates(recipe: Recipe, conversion: Conversion) -> str:
    """The gates that were not reached, the conversion's own and the recipe's, on a line."""
    sides = [("", conversion.fidelity), ("quality, ", conversion.quality)]
    judged = conversion.fidelity if recipe.budget is None else conversion.quality
    results = [
        (f"{side}{function}", result)
        for side, fidelity in sides
        for function, entry in fidelity.items()
        for result in (*entry.results, *(entry.with_gates(recipe.gates).results if fidelity is judged else ()))
    ]
    return "; ".join(dict.fromkeys(_told(where, result) for where, result in results if not result.passed))


def _told(where: str, result: "GateResult") -> str:
    figure = "nothing measured" if result.figure is None else f"{result.figure:.5g}"
    gate = f"{'at least' if result.bound.at_least else 'at most'} {result.gate:g} {result.bound.unit}".strip()
    return f"{where}: {result.name}: expected {gate}, got {figure}"


def report_values(
    recipe: Recipe,
    conversion: Conversion,
    package: Path,
    notices: list[str],
    inputs: Mapping[str, str],
    missed: str,
) -> dict[str, Any]:
    """All there is to say of a package, the same each time: bytes, dB, shares, nats."""
    record = conversion.record
    gates = recipe.gates
    own, quality = (gates, {}) if recipe.budget is None else ({}, gates)
    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "asked": dataclasses.asdict(recipe),
        "error": missed,
        "inputs": dict(inputs),
        "package": package.name,
        "sha256": digest_of(package),
        "bytes": conversion.bytes,
        "operations": conversion.operations,
        "target": conversion.target,
        "classes": conversion.classes,
        "weights": dataclasses.asdict(record.weights),
        "untrained": record.weights.untrained,
        "sizes": {name: list(pixels.input_size) for name, pixels in record.by_function().items()},
        "fidelity": {name: _measured(entry, own) for name, entry in conversion.fidelity.items()},
        "quality": {name: _measured(entry, quality) for name, entry in conversion.quality.items()},
        "compression": dict(record.compression),
        "notices": notices,
    }


def _measured(fidelity: "Fidelity", gates: Mapping[str, float]) -> dict[str, Any]:
    asked = fidelity.with_gates({**fidelity.gates, **gates})
    return {
        "passed": fidelity.passed and asked.passed,
        "figures": asked.figures,
        **dataclasses.asdict(asked),
    }


def plain(value: Any) -> Any:
    """A structure whose numbers JSON has: those it has not, as infinite dB, are texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / MEGABYTE:.2f} MB"
