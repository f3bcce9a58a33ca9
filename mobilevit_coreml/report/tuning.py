"""A tuning as text, 80 columns wide: what was measured, the fastest, and how to make it."""

import dataclasses
import shlex
from collections.abc import Iterator

from mobilevit_coreml.metrics import PASS
from mobilevit_coreml.report.device import SHORT
from mobilevit_coreml.report.formatting import decibels, percent, table
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE
from mobilevit_coreml.validation.run import Run
from mobilevit_coreml.validation.tune import Trial, Tuning

HEAD = f"{'load s':>7} {'median ms':>10} {'p95 ms':>8} {'Neural Engine':>14} {'SNR':>9}"
COMMAND_WIDTH = 60
LABELS = "FILE"  # in a command, since a package does not record what its file of labels was called
BEST = "cpuAndNeuralEngine"  # the compute units that a command is for, where they were measured


def tuning_table(tuning: Tuning) -> str:
    """All trials with their times on each compute unit, and the command for the fastest."""
    title = f"{tuning.package}: {tuning.verdict}"
    if not tuning.trials:
        return table(title, [("tuning", ["Core ML is on a Mac only"])])
    rows = [("", [HEAD])]
    for trial in tuning.trials:
        rows.append(("tried", [str(trial), *([trial.reason] if trial.reason else [])]))
        rows += [(SHORT[run.backend.units or ""], [_figures(run)]) for run in trial.runs]
    fastest = [f"{SHORT[units]}: {tuning.fastest(units) or 'none passes'}" for units in tuning.units]
    rows += [("fastest", fastest), ("notes", list(_notes(tuning)))]
    best = tuning.fastest(BEST if BEST in tuning.units else tuning.units[0])
    if best is not None:
        rows.append(("command", _command_lines(tuning, best)))
    return table(title, rows)


def command(tuning: Tuning, trial: Trial) -> list[str]:
    """The words of the command that converts a package's weights in the implementations of a trial."""
    options = dataclasses.replace(tuning.options, attention=trial.attention, unfold=trial.unfold)
    words = ["python", "-m", "mobilevit_coreml.convert", "--weights", tuning.weights]
    words += [] if tuning.variant is None else ["--variant", tuning.variant]
    for field in dataclasses.fields(options):
        value, option = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if value != field.default:
            words += {
                "precision": [f"--{value}"],
                "image_sizes": ["--image-size", ",".join(f"{height}x{width}" for height, width in options.image_sizes)],
                "labels": [option, LABELS],
            }.get(field.name, [option] if value is True else [option, str(value)])
    return words


def _notes(tuning: Tuning) -> Iterator[str]:
    if tuning.compressed:
        yield f"measured with weights in {tuning.options.precision}; ask for the package's compression again"
    if len(tuning.options.image_sizes) > 1:
        yield f"measured at the first of {len(tuning.options.image_sizes)} sizes"
    if tuning.options.labels is not None:
        yield f"{LABELS} stands for the class names the package was given"


def _figures(run: Run) -> str:
    if not run.latency or run.fidelity is None:
        return f"{run.verdict}, {run.reason}"
    figures = run.fidelity.figures
    fidelity = decibels(figures["snr"]) if "snr" in figures else percent(figures["pixels"])  # of masks alone: pixels
    placed = [operation for operation in run.plan if operation.device is not None]
    share = percent(sum(one.device == NEURAL_ENGINE for one in placed) / len(placed)) if placed else "-"
    times = f"{run.latency['load_seconds']:>7.2f} {run.latency['median_ms']:>10.2f} {run.latency['p95_ms']:>8.2f}"
    row = f"{times} {share:>14} {fidelity:>9}"
    return row if run.verdict == PASS else f"{row} {run.verdict}"


def _command_lines(tuning: Tuning, trial: Trial) -> list[str]:
    """Lines that a shell takes as one."""
    lines = [""]
    for word in map(shlex.quote, command(tuning, trial)):
        if lines[-1] and len(lines[-1]) + len(word) > COMMAND_WIDTH:
            lines.append("")
        lines[-1] += f"{word} "
    return [f"{line}\\" for line in lines[:-1]] + [lines[-1].rstrip()]
