"""A validation as text, 80 columns wide, and the sentences that the page has, too."""

from collections import Counter
from collections.abc import Iterator, Mapping

from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS, Fidelity, nan_lowest, verdict_text
from mobilevit_coreml.reference.comparison import FP16_MAX
from mobilevit_coreml.report import values
from mobilevit_coreml.report.collect import figures_of, gate_text, validation_report
from mobilevit_coreml.report.formatting import counted, decibels, megabytes, percent, table
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE
from mobilevit_coreml.validation.measure import ORIGINAL, PACKAGE
from mobilevit_coreml.validation.run import Validation

PYTORCH = "PyTorch fp32"
SYNTHETIC = "synthetic"  # source of images that are not the user's
LISTED = 5  # operations outside the Neural Engine, and values near fp16's limit; JSON and HTML have all


def summary(validation: Validation) -> str:
    """The verdict, and what it rests on."""
    report = validation_report(validation)
    weights = report.package.record.weights
    origin = f"seed {weights.seed}" if weights.untrained else f"sha256 {weights.sha256:.12}…"
    rows = [
        ("size", [megabytes(report.package.bytes)]),
        ("checkpoint", [weights.name, origin]),
        ("images", [images_text(report.pictures)]),
        ("framework", [_check(report.framework)]),
    ]
    for name, function in report.functions.items():
        if len(report.functions) > 1:
            rows.append(("function", [name]))
        rows += [(check.name, [_check(check)]) for check in function.checks]
        rows += [
            ("mismatch", _mismatch(function)),
            ("fp16 range", list(_range(function)) if report.package.record.precision == "fp16" else []),
            *((run.backend, list(_run(run))) for run in report.runs if run.function == name),
            ("forecast", _forecast(function)),
        ]
    rows += [("note", list(report.notes)), ("seconds", [f"{report.seconds:.1f}"])]
    return table(f"{validation.package}: {report.verdict}", rows)


def verification_lines(fidelity: Fidelity, reference: str) -> list[str]:
    """A verdict, unless there are no gates, and `fidelity_lines`."""
    verdict = f"{PASS if fidelity.passed else FAIL}, " if fidelity.gates else ""
    first, *others = fidelity_lines(fidelity, fidelity.gates, reference)
    return [verdict + first, *others]


def fidelity_lines(fidelity: Fidelity, gates: Mapping[str, float], reference: str = PYTORCH) -> Iterator[str]:
    """Figures in short lines, the worst signal first, with their gates."""
    figures = figures_of(fidelity)
    yield from _signal_lines(figures, gates, reference)
    yield from _output_lines(figures, fidelity.images, gates)


def result_lines(run: values.Run) -> Iterator[str]:
    """Figures of the outputs, accuracy and times, a line each."""
    if run.figures is not None:
        yield from _output_lines(run.figures, run.pictures, _gates(run))
    accuracy = run.accuracy or {ORIGINAL: {}}
    for name, ours in accuracy[ORIGINAL].items():
        theirs, difference = accuracy[PACKAGE][name], accuracy["difference"][name]
        name = name.replace("_", " ")
        yield f"{name} against labels {percent(theirs)}, PyTorch's {percent(ours)} ({100 * difference:+.2f} points)"
    if run.latency is not None:
        latency = run.latency
        yield (
            f"compiled in {latency.compile_seconds:.1f} s, loaded in {latency.load_seconds:.1f} s; a prediction takes "
            f"{latency.median_ms:.2f} ms in the median, {latency.p95_ms:.2f} ms at the 95th percentile of "
            f"{latency.predictions}, {latency.with_python_ms:.2f} ms from Python"
        )


def images_text(images: values.Images) -> str:
    """Number and source of the images."""
    source = images.source if images.source == SYNTHETIC else f"of {images.source}"
    return f"{images.count} {source}{', with labels' if images.labelled else ''}"


def range_text(function: values.Function) -> str:
    """Largest value of a function, against fp16's limit."""
    largest = max(function.ranges, key=lambda one: -nan_lowest(-one.max_abs))
    return f"up to {largest.max_abs:.4g} in {largest.operation}, of {FP16_MAX:.0f}"


def _gates(run: values.Run) -> dict[str, float]:
    return {gate.name: gate.needed for gate in run.gates if gate.got is not None}


def _signal_lines(figures: values.Figures, gates: Mapping[str, float], reference: str) -> Iterator[str]:
    gate = f" (gate {gates['snr']:g} dB)" if "snr" in gates else ""
    for index, (name, one) in enumerate(sorted(figures.signals.items(), key=lambda entry: nan_lowest(entry[1].snr))):
        worst = f"worst image {decibels(one.worst_snr)}, cosine {one.cosine:.6f}"
        if index:
            yield f"{name} {decibels(one.snr)}, {worst}"
        else:
            yield f"{name} {decibels(one.snr)} SNR against {reference}{gate}"
            yield worst


def _output_lines(figures: values.Figures, count: int, gates: Mapping[str, float]) -> Iterator[str]:
    def gate(name: str) -> str:
        return f" (gate {gates[name]:.4g})" if name in gates else ""

    images, ranking, masks = counted(count, "image"), figures.ranking, figures.masks
    if ranking is not None:
        yield f"largest difference of a probability {ranking.max_abs_difference:.2g}, KL {ranking.kl:.2g} nats"
        yield f"top-1 equal on {percent(ranking.top1)}{gate('top1')}, top-5 on {percent(ranking.top5)} of {images}"
        yield f"smallest top-1 margin {ranking.margin:.2g}"
    elif figures.labels is not None:
        yield f"largest difference of a probability {figures.labels.max_abs_difference:.2g}"
        yield f"{percent(figures.labels.agreement)}{gate('labels')} of the labels on the same side of 0.5, {images}"
        worst = min(figures.labels.by_label, key=lambda one: one.agreement)
        if worst.agreement < 1:
            yield f"least often of {worst.class_}: {percent(worst.agreement)}"
    elif masks is not None:
        yield f"pixel agreement {percent(masks.pixels)}{gate('pixels')}"
        yield f"mean IoU {masks.mean_iou:.3f} over {masks.classes} classes, {images}"
    else:
        yield f"largest difference {max(one.max_abs_difference for one in figures.signals.values()):.2g} over {images}"


def _check(check: Check) -> str:
    return f"{verdict_text(check.passed)}, {check.detail}"


def _mismatch(function: values.Function) -> list[str]:
    found = function.departure
    if found is None:
        return []
    module = f", of {found.module}" if found.module else ""
    return [f"first at {found.type} {found.operation}{module}", found.detail]


def _range(function: values.Function) -> Iterator[str]:
    if function.ranges:
        yield range_text(function)
        near = [
            f"near the limit: {one.type} {one.operation}, {one.max_abs:.4g}"
            for one in function.ranges
            if one.near_limit
        ]
        yield from _first(near)


def _run(run: values.Run) -> Iterator[str]:
    units = f"{run.compute_units}: " if run.compute_units else ""
    if run.figures is None:
        yield f"{units}{run.verdict}, {run.reason}"
        return
    first, *others = *_signal_lines(run.figures, _gates(run), PYTORCH), *result_lines(run)
    yield f"{units}{run.verdict}, {first}"
    yield from others
    yield from _devices(run)
    yield from (gate_text(gate) for gate in run.gates if gate.passed is False)
    if run.reason:
        yield run.reason
    unmeasured = [gate.name for gate in run.gates if gate.got is None]
    if unmeasured:
        yield f"{NOT_RUN} here: gate {', '.join(unmeasured)}"


def _devices(run: values.Run) -> Iterator[str]:
    """Core ML's plan, and the operations outside the Neural Engine."""
    if run.plan is None or not run.plan.devices:
        return
    shares = (
        f"{name} {counted(one.operations, 'operation')}, {percent(one.cost)} of the cost"
        for name, one in run.plan.devices.items()
    )
    yield f"planned: {'; '.join(shares)}"
    if NEURAL_ENGINE in run.plan.devices:
        outside = [one for one in run.plan.operations if one.device not in (None, NEURAL_ENGINE)]
        lines = [f"  outside the Neural Engine: {one.type} {one.operation} {one.module}".rstrip() for one in outside]
        yield from _first(lines, "  ")


def _first(lines: list[str], indent: str = "") -> Iterator[str]:
    yield from lines[:LISTED]
    if len(lines) > LISTED:
        yield f"{indent}and {len(lines) - LISTED} more"


def _forecast(function: values.Function) -> list[str]:
    counts = Counter(finding.rule for finding in function.forecast)
    found = ", ".join(f"{rule} {count}" for rule, count in counts.items())
    return [
        "of what may leave or slow the Neural Engine by documented rules; nothing was run there",
        f"operations by rule: {found}" if found else "no operation is against a rule",
    ]
