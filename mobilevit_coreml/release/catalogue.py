"""What was made, for machines and for people: catalogue.json, CATALOGUE.md, and the README's table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.package.interface import CLASS_LABEL, OutputOptions, output_names
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.release.build import megabytes
from mobilevit_coreml.release.recipe import Recipe
from mobilevit_coreml.shipped import PACKAGE

SCHEMA = 1  # of catalogue.json; counts up when something in it changes its meaning
MAX_CATALOGUE = 16 * 1024**2  # bytes
MEASURED = PACKAGE.parent / "conversions" / "catalogue.json"  # of the packages in the README
PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"
BEGIN = "<!-- packages: `python -m conversions --readme README.md` writes what follows -->"
END = "<!-- end of packages -->"


def entry_of(recipe: Recipe, verdict: str, error: str, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """A recipe and what became of it: sizes in bytes, figures by their names in verification.BOUNDS."""
    asked = {
        "name": recipe.name,
        "verdict": verdict,
        "error": error,
        "task": recipe.task,
        "variant": recipe.variant,
        "target": recipe.target,
        "stored": recipe.stored,
        "outputs": _outputs(recipe),
        "notes": recipe.notes,
    }
    if report is None or not report.get("package"):
        return asked
    same = ("package", "bytes", "operations", "untrained", "weights", "sha256", "sizes")
    return {
        **asked,
        **{key: report[key] for key in same},
        "fidelity": {name: side["figures"] for name, side in report["fidelity"].items()},
        "quality": {name: side["figures"] for name, side in report["quality"].items()},
    }


def _outputs(recipe: Recipe) -> list[str]:
    values = {**recipe.output, "hidden_states": 5 if recipe.output.get("hidden_states") else 0}
    return [name for name in output_names(recipe.task, OutputOptions(**values)) if name != CLASS_LABEL]


def write_catalogue(output: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write catalogue.json and CATALOGUE.md; equal packages give equal bytes."""
    text = json.dumps({"schema": SCHEMA, "packages": entries}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("catalogue.json", text), ("CATALOGUE.md", page(entries))):
        with atomic_write(output / name) as file:
            file.write(content.encode())


def read_catalogue(path: Path) -> list[dict[str, Any]]:
    """The packages of a catalogue.json; raises InputError for another file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CATALOGUE + 1)
        values = json.loads(content) if len(content) <= MAX_CATALOGUE else {}
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"no schema {SCHEMA}")
        return list(values["packages"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:100]
        raise InputError(f"catalogue {path}: expected what --all writes, got {reason}; make it anew") from None


def page(entries: Sequence[Mapping[str, Any]]) -> str:
    """CATALOGUE.md: a table of all packages, and what went wrong."""
    head = ("recipe", "package", "task", "target", "size", "operations", "fidelity", "weights", "sha256 of contents")
    rows = [
        (
            one["name"],
            f"`{one['package']}`" if "package" in one else one["verdict"],
            one["task"],
            one["target"],
            megabytes(one["bytes"]) if "bytes" in one else "",
            f"{one['operations']}" if "bytes" in one else "",
            _fidelity(one),
            _weights(one),
            f"`{one['sha256']}`" if "sha256" in one else "",
        )
        for one in entries
    ]
    wrong = [f"- {one['name']}: {one['verdict']}, {_cell(one['error'])}" for one in entries if one["error"]]
    parts = [
        "# Packages",
        _table(head, rows),
        "Fidelity is of the saved package against PyTorch in fp32, by the reference evaluator; of a budget's package "
        "against the weights as they were. 1 MB = 10^6 bytes, the sum of a package's files.",
        *(["UNTRAINED packages recognize nothing: do not ship them."] if any(map(_is_untrained, entries)) else []),
        *(["## What went wrong", "\n".join(wrong)] if wrong else []),
    ]
    return "\n\n".join(parts) + "\n"


def readme_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The README's table, which claims nothing of weights that were not there to be measured."""
    head = ("recipe", "what it is", "weights stored as", "package", "operations", "for", "fidelity")
    rows = [
        (
            f"`{one['name']}`",
            one["notes"],
            one["stored"],
            megabytes(one["bytes"]) if "bytes" in one else "unmeasured",
            f"{one['operations']}" if "bytes" in one else "unmeasured",
            one["target"],
            "unmeasured" if one["verdict"] != PASS or _is_untrained(one) else _fidelity(one),
        )
        for one in entries
    ]
    untrained = [one["name"] for one in entries if _is_untrained(one)]
    which = "all of these packages" if len(untrained) == len(entries) else ", ".join(untrained)
    told = (
        f"Measured on **untrained** weights of the real shapes: {which}. In half precision neither size nor operations "
        "depend on the values, and a budget is a size; fidelity does, and of trained weights it is unmeasured."
    )
    return "\n\n".join([_table(head, rows), *([told] if untrained else [])])


def rewrite(readme: Path, catalogue: Path) -> bool:
    """Put a catalogue's table between a README's two markers; returns whether that changed it.

    Raises InputError where the file has no such place.
    """
    entries = read_catalogue(catalogue)
    try:
        table = readme_table(entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"catalogue {catalogue}: expected what --all writes, got {type(error).__name__} at {error}; make it anew"
        ) from None
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "no UTF-8"
        raise InputError(f"readme {readme}: expected a text file, got {reason}; check the path") from None
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
    """A text with the table between its markers; None where it has not both of them, once and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        return None
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def _is_untrained(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("untrained"))


def _weights(entry: Mapping[str, Any]) -> str:
    if "weights" not in entry:
        return ""
    source = entry["weights"]
    return f"**UNTRAINED**, seed {source['seed']}" if entry["untrained"] else f"{source['name']}, `{source['sha256']}`"


def _fidelity(entry: Mapping[str, Any]) -> str:
    return figures_text(entry.get("quality") or entry.get("fidelity") or {})


def figures_text(by_function: Mapping[str, Mapping[str, Any]]) -> str:
    """The worst function's figures, briefly."""
    if not by_function:
        return ""
    worst = min(by_function.values(), key=lambda figures: float(figures.get("snr", "inf")))
    texts = [f"{int(float(worst['snr']) * 10) / 10:.1f} dB"] if "snr" in worst and float(worst["snr"]) < 1e6 else []
    names = {"top1": "top-1", "pixels": "pixels"}
    return ", ".join([*texts, *(f"{text} {worst[key]:.1%}" for key, text in names.items() if key in worst)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
