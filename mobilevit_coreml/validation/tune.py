"""The fastest implementation of a package on this Mac: all of them are converted, measured and checked."""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mobilevit_coreml.config import AttentionImplementation, UnfoldImplementation
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.errors import ConfigError, ConversionError
from mobilevit_coreml.inference import StrPath, core_ml_is_here, read_record
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS
from mobilevit_coreml.options import TARGETS, ConversionOptions
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.progress import Progress, silent
from mobilevit_coreml.reference.reader import read_package, read_specification
from mobilevit_coreml.validation.backends import CORE_ML
from mobilevit_coreml.validation.checks import class_names
from mobilevit_coreml.validation.core_ml import UNITS
from mobilevit_coreml.validation.original import BY_VARIANT, load_original, recorded_name, recorded_options
from mobilevit_coreml.validation.run import TIMEOUT, Run, validate

IMPLEMENTATIONS = tuple(itertools.product(AttentionImplementation, UnfoldImplementation))
FIRST_SPECIFICATION = 6  # iOS15's; each target has its own


@dataclasses.dataclass(frozen=True)
class Trial:
    """A pair of implementations; `reason` is why it cannot be converted, or is wrong on any compute unit."""

    attention: str
    unfold: str
    reason: str = ""
    runs: tuple[Run, ...] = ()

    def __str__(self) -> str:
        return f"{self.attention}, {self.unfold}"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """All trials of a package, none off a Mac; `options` make the package again, but for its compression."""

    package: Path
    units: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    weights: str = ""
    variant: str | None = None
    options: ConversionOptions = dataclasses.field(default_factory=ConversionOptions)
    compressed: bool = False

    @property
    def verdict(self) -> str:
        """PASS if each compute unit has an implementation that passes there, NOT_RUN off a Mac."""
        if not self.trials:
            return NOT_RUN
        return PASS if all(self.fastest(units) for units in self.units) else FAIL

    def fastest(self, units: str) -> Trial | None:
        """The trial with the least median time on compute units, of those that pass there."""
        times = [
            (run.latency["median_ms"], index)
            for index, trial in enumerate(self.trials)
            for run in trial.runs
            if not trial.reason and run.verdict == PASS and run.backend.units == units and run.latency
        ]
        return self.trials[min(times)[1]] if times else None


def tune(
    package: StrPath,
    weights: str | None = None,
    units: Sequence[str] = (),
    timeout: float = TIMEOUT,
    progress: Progress = silent,
) -> Tuning:
    """Convert a package's weights in every implementation, and validate each on this Mac's compute units.

    `weights` are those the package records unless they are somewhere else now, `units` of core_ml.UNITS,
    all of them if empty. The images are synthetic. Off a Mac nothing is done.

    Raises MobileViTError for a package or weights that cannot be read.
    """
    package, chosen = Path(package), tuple(units or UNITS)
    if not core_ml_is_here():
        return Tuning(package, chosen)
    progress("weights")
    record = read_record(package)
    weights = weights or recorded_name(record.weights)
    variant = record.variant if weights in BY_VARIANT else None
    trials = []
    with tempfile.TemporaryDirectory(prefix="mobilevit-tune-") as directory:
        options = _options(package, record, weights, Path(directory))
        for attention, unfold in IMPLEMENTATIONS:
            progress(f"{attention} {unfold}")
            output, first = Path(directory, f"{attention}_{unfold}.mlpackage"), options.image_sizes[:1]
            try:
                tried = dataclasses.replace(options, attention=attention, unfold=unfold, image_sizes=first)
                made = convert(weights, variant, tried, output=output, verify=False).path
            except (ConfigError, ConversionError) as error:  # patches or a target that it does not work with
                trials.append(Trial(attention, unfold, f"cannot be converted: {error}"))
                continue
            validation = validate(
                made,
                weights,
                labels=options.labels,
                backend=CORE_ML,
                compute_units=chosen,
                timeout=timeout,
            )
            wrong = (f"{FAIL}, {check.name}: {check.detail}" for _, check in validation.checks if check.passed is False)
            trials.append(Trial(attention, unfold, next(wrong, ""), validation.runs))
    return Tuning(package, chosen, tuple(trials), weights, variant, options, bool(record.compression))


def _options(package: Path, record: PackageRecord, weights: str, directory: Path) -> ConversionOptions:
    """Options that make the package again, but for its compression; its class names become a file in `directory`."""
    original = load_original(record, weights)
    names = record.labels or tuple(class_names(read_package(package).function))
    labels = None
    if names and names != original.classes:
        labels = directory / "labels.json"
        labels.write_text(json.dumps(names), encoding="utf-8")
    return dataclasses.replace(
        recorded_options(record),
        target=TARGETS[read_specification(package).specificationVersion - FIRST_SPECIFICATION],
        labels=labels,
    )
