"""Reports of packages, and the catalogue made of them, for machines and for people."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import SINGLE_LABEL
from mobilevit_coreml.errors import InputError, os_error_text
from mobilevit_coreml.package.interface import CLASS_LABEL, output_names
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.release.recipe import Recipe
from mobilevit_coreml.report.formatting import decibels, megabytes, percent
from mobilevit_coreml.shipped import PACKAGE
from mobilevit_coreml.strict_json import JsonError, load, plain, read_json, to_json

REPORT = "report.json"
SCHEMA = 1  # of both files; counts up when something in one changes its meaning
MAX_BYTES = 16 * 1024**2  # of a report or a catalogue
README = PACKAGE.parent / "conversions" / "README.md"
MEASURED = README.with_name("catalogue.json")  # of the packages in it
PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"
BEGIN = "<!-- packages: `python -m conversions --readme` writes what follows -->"
END = "<!-- end of packages -->"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """report.json: all that was measured of a package, the same each time; of a recipe without one only the error.

    Sizes are bytes, and (height, width) in pixels; figures have the names of metrics.BOUNDS.
    """

    schema: int = SCHEMA
    recipe: str
    error: str = ""
    package: str | None = None
    sha256: str = ""
    untrained: bool = False
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bytes: int | None = None
    operations: int | None = None
    target: str | None = None
    classes: int | None = None
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: WeightsSource | None = None
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    fidelity: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    quality: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    compression: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notices: list[str] = dataclasses.field(default_factory=list)


def read_report(directory: Path) -> Report | None:
    """The report in a recipe's directory; None where there is none that `build` wrote."""
    try:
        report = load(Report, read_json(directory / REPORT, MAX_BYTES), "")
    except JsonError:
        return None
    return report if report.schema == SCHEMA else None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A recipe and its outcome in catalogue.json; fields that are None are left out, all from `package` without one.

    Sizes are bytes, and (height, width) in pixels; figures, by function, have the names of metrics.BOUNDS.
    """

    name: str
    verdict: str
    error: str
    task: str
    variant: str
    target: str
    stored: str
    outputs: list[str]
    notes: str
    package: str | None = None
    bytes: int | None = None
    operations: int | None = None
    untrained: bool | None = None
    weights: WeightsSource | None = None
    sha256: str | None = None
    sizes: Mapping[str, tuple[int, int]] | None = None
    fidelity: Mapping[str, Mapping[str, float]] | None = None
    quality: Mapping[str, Mapping[str, float]] | None = None


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """catalogue.json."""

    schema: int
    packages: list[Entry]


def entry_of(recipe: Recipe, verdict: str, error: str, report: Report | None) -> Entry:
    """A recipe's entry in the catalogue."""
    outputs = output_names(recipe.task, recipe.outputs(recipe.task, SINGLE_LABEL, expand=True))
    asked = {name: getattr(recipe, name) for name in ("name", "task", "variant", "target", "stored", "notes")}
    entry = Entry(verdict=verdict, error=error, outputs=[name for name in outputs if name != CLASS_LABEL], **asked)
    if report is None or report.package is None:
        return entry
    same = ("package", "bytes", "operations", "untrained", "weights", "sha256", "sizes")
    return dataclasses.replace(
        entry,
        **{name: getattr(report, name) for name in same},
        fidelity={name: side["figures"] for name, side in report.fidelity.items()},
        quality={name: side["figures"] for name, side in report.quality.items()},
    )


def write_catalogue(output: Path, entries: Sequence[Entry]) -> None:
    """Write catalogue.json and CATALOGUE.md; equal packages give equal bytes."""
    packages = [{key: value for key, value in plain(entry).items() if value is not None} for entry in entries]
    json = to_json({"schema": SCHEMA, "packages": packages})
    for name, content in (("catalogue.json", json), ("CATALOGUE.md", page(entries).encode())):
        with atomic_write(output / name) as file:
            file.write(content)


def read_catalogue(path: Path) -> list[Entry]:
    """The packages of a catalogue.json; raises InputError for another file."""
    try:
        catalogue = load(Catalogue, read_json(path, MAX_BYTES), "")
        if catalogue.schema != SCHEMA:
            raise JsonError(f"schema: expected {SCHEMA}, got {catalogue.schema}")
    except JsonError as error:
        raise InputError(f"catalogue {path}: {str(error).lstrip('.: ')}; make it again with --all") from None
    return catalogue.packages


def page(entries: Sequence[Entry]) -> str:
    """CATALOGUE.md: a table of all packages, and the errors."""
    return _render("catalogue.md", entries) + "\n"


def readme_table(entries: Sequence[Entry]) -> str:
    """The README's table, which has no fidelity of packages with untrained weights."""
    return _render("readme.md", entries)


def _render(template: str, entries: Sequence[Entry]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mobilevit_coreml.release", "templates")
    # `finalize` is for what entries say: on one line, and without ending a table's cell
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, finalize=_cell)
    environment.filters |= {"figures": figures_text, "megabytes": megabytes}
    return environment.get_template(template).render(entries=entries).rstrip()


def _cell(value: object) -> str:
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def figures_text(entry: Entry) -> str:
    """The figures of the worst function: of quality, if the package is compressed."""
    by_function = entry.quality or entry.fidelity
    if not by_function:
        return "unmeasured"
    worst = min(by_function.values(), key=lambda figures: figures.get("snr", math.inf))
    texts = [decibels(worst["snr"])] if math.isfinite(worst.get("snr", math.inf)) else []
    names = {"top1": "top-1", "pixels": "pixels"}
    return ", ".join([*texts, *(f"{text} {percent(worst[key])}" for key, text in names.items() if key in worst)])


def rewrite(readme: Path, catalogue: Path) -> bool:
    """Put a catalogue's table between a README's two markers; returns True if that changed the file.

    Raises InputError for a file without them.
    """
    table = readme_table(read_catalogue(catalogue))
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"readme {readme}: expected UTF-8, got {os_error_text(error)}; check the path") from None
    new = with_table(text, table)
    if new is None:
        raise InputError(
            f"readme {readme}: expected {BEGIN} and {END}, each once and in this order, got no such place; add them"
        )
    if new != text:
        with atomic_write(readme) as file:
            file.write(new.encode())
    return new != text


def with_table(text: str, table: str) -> str | None:
    """The text with the table between its markers; None if it does not have each of them once and in order."""
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
    if parts[1::2] != [BEGIN, END]:
        return None
    return f"{parts[0]}{BEGIN}\n\n{table}\n\n{END}{parts[4]}"
