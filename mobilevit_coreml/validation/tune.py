"""Which form of a package is the fastest on this Mac: all that compute the same are made, measured and checked."""

import dataclasses
import itertools
import json
import shlex
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.config import FEATURES, SEGMENTATION, AttentionImplementation, UnfoldImplementation
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.errors import ConfigError, ConversionError
from mobilevit_coreml.inference import core_ml_is_here, read_record
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS
from mobilevit_coreml.options import TARGETS
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.progress import Progress
from mobilevit_coreml.reference.reader import read_package, read_specification
from mobilevit_coreml.report.formatting import table
from mobilevit_coreml.validation.backends import CORE_ML
from mobilevit_coreml.validation.checks import class_names
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE, UNITS
from mobilevit_coreml.validation.original import BY_VARIANT, Original, load_original, recorded_name
from mobilevit_coreml.validation.run import Run, validate

FORMS = tuple(itertools.product(AttentionImplementation, UnfoldImplementation))
FIRST_SPECIFICATION = 6  # iOS15's; each target has its own
BEST = "cpuAndNeuralEngine"  # what the forms are there for
COLUMNS = 80
LABELS = "FILE"  # in a command, where nobody knows any more what the file was called

Options = Mapping[str, Any]  # convert's arguments


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A form of attention and unfold; `reason` says why it cannot be had, or is wrong whatever runs it."""

    attention: str
    unfold: str
    reason: str = ""
    runs: tuple[Run, ...] = ()

    def __str__(self) -> str:
        return f"{self.attention}, {self.unfold}"

    def run_on(self, units: str) -> Run | None:
        """What was measured on compute units, where that came out right."""
        runs = (run for run in self.runs if run.backend.units == units and run.verdict == PASS and run.latency)
        return None if self.reason else next(runs, None)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """All forms of a package on this machine. `options` are what makes it again, but for the form; `notes` are to read.

    Without `candidates` nothing was run.
    """

    package: Path
    units: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    options: Options = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """PASS if all compute units have a form that is right, NOT_RUN off a Mac."""
        if not self.candidates:
            return NOT_RUN
        return PASS if all(self.fastest(units) for units in self.units) else FAIL

    def fastest(self, units: str) -> Candidate | None:
        """The form with the least median time on compute units, of those that are right there."""
        runs = [(run.latency["median_ms"], one) for one in self.candidates if (run := one.run_on(units)) is not None]
        return min(runs, key=lambda entry: entry[0], default=(0.0, None))[1]

    @property
    def best(self) -> Candidate | None:
        """The fastest on CPU and Neural Engine, or without that among the units on the first of them."""
        return self.fastest(BEST if BEST in self.units else self.units[0]) if self.candidates else None


def tune(package: Path, weights: str | None, units: Sequence[str], timeout: float, progress: Progress) -> Tuning:
    """Convert a package's weights in every form, and measure and check each on this Mac's compute units.

    `weights` are those the package records unless they are somewhere else now, `units` of core_ml.UNITS,
    all of them if empty. Everything is shown the same drawn pictures. Off a Mac nothing is done.

    Raises MobileViTError for a package or weights that cannot be read.
    """
    if not core_ml_is_here():
        return Tuning(package)
    record = read_record(package)
    weights = weights or recorded_name(record.weights)
    chosen = tuple(units or UNITS)
    with tempfile.TemporaryDirectory(prefix="mobilevit-tune-") as directory:
        progress("weights")
        original = load_original(record, weights)
        names = _names(package, record)
        labels = None
        if names and names != original.classes:
            labels = Path(directory, "labels.json")
            labels.write_text(json.dumps(names), encoding="utf-8")
        options = _options(package, record, weights, labels, original)
        candidates = []
        for attention, unfold in FORMS:
            progress(f"{attention} {unfold}")
            candidates.append(_candidate(attention, unfold, options, Path(directory), chosen, timeout))
    return Tuning(package, chosen, tuple(candidates), options, tuple(_notes(record, options)))


def _candidate(
    attention: str, unfold: str, options: Options, directory: Path, units: Sequence[str], timeout: float
) -> Candidate:
    form = {"attention": attention, "unfold": unfold}
    path = directory / f"{attention}_{unfold}.mlpackage"
    smaller = {"image_sizes": options["image_sizes"][:1]}
    try:
        made = convert(**{**options, **form, **smaller}, output=path, verify=False).path
    except (ConfigError, ConversionError) as error:  # a patch that is no square, an iOS that lacks an operation
        return Candidate(attention, unfold, f"not to be had: {error}")
    validation = validate(
        made,
        options["weights"],
        labels=options.get("labels"),
        channel_order=options.get("channel_order"),
        backend=CORE_ML,
        compute_units=units,
        timeout=timeout,
    )
    wrong = [f"{check.name}: {check.detail}" for _, check in validation.checks if not check.passed]
    return Candidate(attention, unfold, f"{FAIL}, {wrong[0]}" if wrong else "", validation.runs)


def _names(package: Path, record: PackageRecord) -> tuple[str, ...]:
    """The class names that a package has."""
    if record.task == FEATURES:
        return ()
    return record.labels if record.task == SEGMENTATION else tuple(class_names(read_package(package).function))


def _options(
    package: Path, record: PackageRecord, weights: str, labels: Path | None, original: Original
) -> dict[str, Any]:
    """What `convert` was asked for, but for the form and any compression."""
    form, default = dataclasses.asdict(record.outputs), dataclasses.asdict(OutputOptions())
    order = record.preprocessing.channel_order
    options = {
        "weights": weights,
        "variant": record.variant if weights in BY_VARIANT else None,
        "task": record.task,
        "precision": record.precision,
        "target": TARGETS[read_specification(package).specificationVersion - FIRST_SPECIFICATION],
        "image_sizes": list(record.sizes.values()) or [record.preprocessing.crop],
        "include_crop": record.preprocessing.include_crop,
        "hidden_states": bool(record.outputs.hidden_states),
        "labels": labels,
        "channel_order": order if order != original.record.preprocessing.channel_order else None,
        **{f"output_{name}": form[name] for name in ("type", "size", "dtype") if form[name] != default[name]},
    }
    return {name: value for name, value in options.items() if value not in (None, False)}


def _notes(record: PackageRecord, options: Options) -> Iterator[str]:
    if record.compression:
        yield f"measured with weights in {record.precision}; the package's own compression is to be asked for again"
    if len(options["image_sizes"]) > 1:
        yield f"measured at the first of {len(options['image_sizes'])} sizes"
    if "labels" in options:
        yield f"{LABELS} stands for the class names the package was given"


def command(tuning: Tuning, candidate: Candidate) -> list[str]:
    """The arguments that convert a package's weights in a form, from `python` on."""
    options = {**tuning.options, "attention": candidate.attention, "unfold": candidate.unfold}
    arguments = ["python", "-m", "mobilevit_coreml.cli.convert"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name == "precision":
            arguments += [f"--{value}"]
        elif name == "image_sizes":
            arguments += ["--image-size", ",".join(f"{height}x{width}" for height, width in value)]
        elif value is True:
            arguments += [option]
        else:
            arguments += [option, LABELS if name == "labels" else str(value)]
    return arguments


def tuning_table(tuning: Tuning) -> str:
    """What was measured of each form, the fastest, and how to make it, 80 columns wide."""
    title = f"{tuning.package}: {tuning.verdict}"
    if not tuning.candidates:
        return table(title, [("tuning", ["Core ML is on a Mac only"])])
    lines = [title, f"{'':22}{'load s':>7} {'median ms':>10} {'p95 ms':>8} {'Neural Engine':>14} {'SNR':>8}"]
    for one in tuning.candidates:
        lines += [f"  {one}", *(_text(one.reason, "    ") if one.reason else [])]
        lines += [line for run in one.runs for line in _row(run)]
    lines += ["  fastest", *(f"    {units:<18} {tuning.fastest(units) or 'none is right'}" for units in tuning.units)]
    lines += [line for note in tuning.notes for line in _text(f"note: {note}", "  ")]
    if tuning.best is not None:
        lines += ["  to make it so:", *_shell(command(tuning, tuning.best))]
    return "\n".join(lines)


def _row(run: Run) -> list[str]:
    units = f"    {run.backend.units or '':<18}"
    if not run.latency or run.fidelity is None:
        return _text(f"{run.verdict}, {run.reason}", f"{units} ")
    figures = run.fidelity.figures
    fidelity = f"{figures['snr']:.1f} dB" if "snr" in figures else f"{figures['pixels']:.2%}"  # of masks alone: pixels
    placed = [one for one in run.plan if one.device is not None]
    share = f"{sum(one.device == NEURAL_ENGINE for one in placed) / len(placed):.0%}" if placed else "-"
    times = f"{run.latency['load_seconds']:>7.2f} {run.latency['median_ms']:>10.2f} {run.latency['p95_ms']:>8.2f}"
    row = f"{units}{times} {share:>14} {fidelity:>8}"
    return [row if run.verdict == PASS else f"{row} {run.verdict}"]


def _text(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )


def _shell(arguments: Sequence[str]) -> list[str]:
    """A command for a shell, in lines that it takes as one."""
    lines = [""]
    for word in map(shlex.quote, arguments):
        if lines[-1] and len(lines[-1]) + len(word) > COLUMNS - 8:
            lines.append("")
        lines[-1] += f"{word} "
    return [f"    {line}\\" for line in lines[:-1]] + [f"    {lines[-1].rstrip()}"]
