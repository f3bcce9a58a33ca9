"""The values of a report, from what a validation or a compression measured."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.compression.plan import Plan as CompressionPlan
from mobilevit_coreml.metrics import (
    PASS,
    AccuracyMeter,
    Fidelity,
    GateResult,
    MaskMeter,
    nan_lowest,
    verdict_text,
)
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.report import values
from mobilevit_coreml.report.formatting import decibels
from mobilevit_coreml.strict_json import plain, to_json
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.forecast import RULES
from mobilevit_coreml.validation.measure import ORIGINAL, PACKAGE, ImageResult
from mobilevit_coreml.validation.program import Mismatch
from mobilevit_coreml.validation.run import PlannedOperation, Run, Validation

FORECAST = "A forecast by documented rules: nothing was run on a Neural Engine, and an operation may be there or not."


def report_values(validation: Validation) -> dict[str, Any]:
    """`validation_report` as strict JSON has it."""
    found: dict[str, Any] = plain(validation_report(validation))
    return found


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write `report_values` as strict JSON, whole or not at all; raises OutputError."""
    with atomic_write(path) as file:
        file.write(to_json(found))


def validation_report(validation: Validation) -> values.ValidationReport:
    """Everything that is reported of a validation."""
    record, weights = validation.record, validation.record.weights
    recorded = {**vars(record), "weights": values.Weights(**vars(weights), untrained=weights.untrained)}
    functions = {name: _function(validation, name) for name in validation.programs}
    runs = tuple(_run(run, validation) for run in validation.runs)
    return values.ValidationReport(
        verdict=validation.verdict,
        reasons=tuple(_reasons(validation.framework, functions, runs, validation.unmeasured)),
        asked=tuple(map(str, validation.asked)),
        seconds=validation.seconds,
        package=values.Package(validation.package.name, validation.bytes, validation.digest, values.Record(**recorded)),
        pictures=values.Images(validation.source, validation.images, validation.labelled),
        classes=validation.original.classes,
        notes=validation.original.notices,
        framework=validation.framework,
        forecast=values.Forecast(FORECAST, RULES),
        functions=functions,
        runs=runs,
        curve=tuple(values.Point(*point) for point in record.compression.get("curve", ())),
    )


def compression_report(package: Path, size: int, plan: CompressionPlan, quality: Fidelity) -> values.CompressionReport:
    """Everything that is reported of a compression."""
    signals = quality.signals.items()
    return values.CompressionReport(
        package=package.name,
        bytes=size,
        scheme=plan.scheme,
        calibrated_with=plan.images,
        tested_with=quality.images,
        quality=values.Quality(
            {name: signal.snr for name, signal in signals},
            {name: signal.worst_snr for name, signal in signals},
            {name: signal.cosine for name, signal in signals},
            quality.agreement,
        ),
        curve=tuple(values.Point(*point) for point in plan.curve),
        layers=plan.layers,
        left=plan.left,
    )


def figures_of(fidelity: Fidelity, masks: MaskMeter | None = None, classes: Sequence[str] = ()) -> values.Figures:
    """Fidelity as it is reported; `masks` and class names give the overlap of each class."""
    ranking = None
    if fidelity.ranking is not None:
        one = fidelity.ranking
        ranking = values.Ranking(one.top1_agreement, one.top5_agreement, one.margin, one.max_abs_difference, one.kl)
    mask = None
    if fidelity.masks is not None:
        both, by_class = fidelity.masks, tuple(overlaps(masks, classes))
        mask = values.Masks(both.pixel_agreement, both.mean_iou, both.classes, by_class)
    labels = None
    if fidelity.labels is not None:
        several = fidelity.labels
        by_label = enumerate(several.by_label)
        each = tuple(values.LabelAgreement(index, _class_name(classes, index), *one) for index, one in by_label)
        labels = values.Labels(several.agreement, several.max_abs_difference, each)
    return values.Figures(fidelity.signals, ranking, mask, labels)


def gate_of(result: GateResult) -> values.Gate:
    """A gate as it is reported: NOT_RUN if it was not measured, since it has not passed then."""
    bound = result.bound
    verdict = verdict_text(result.passed)
    return values.Gate(
        result.name, bound.description, bound.unit, result.gate, bound.at_least, result.figure, result.passed, verdict
    )


def gate_text(gate: values.Gate) -> str:
    """A gate with the figure it got."""
    return f"gate {gate.name}: expected {bound_text(gate)}, got {got_text(gate)}"


def bound_text(gate: values.Gate) -> str:
    """A gate's bound with its unit; a share is a plain number."""
    unit = "" if gate.unit in ("", "share") else f" {gate.unit}"
    return f"{'at least' if gate.at_least else 'at most'} {gate.needed:g}{unit}"


def got_text(gate: values.Gate) -> str:
    """A gate's figure in the unit of the bound, with all digits if rounding would make it reach the bound."""
    if gate.got is None:
        return "not measured"
    if gate.unit == "dB":
        return decibels(gate.got)
    text = f"{gate.got:.4g}"
    if gate.passed is False and float(text) == gate.needed:
        text = str(gate.got)
    return f"{text} {gate.unit.replace('share', '')}".rstrip()


def mismatch_text(mismatch: Mismatch) -> str:
    """Place and kind of a mismatch."""
    module = f" of {mismatch.module}" if mismatch.module else ""
    return f"{mismatch.type} {mismatch.operation}{module}: {mismatch.detail}".lstrip()


def overlaps(meter: MaskMeter | None, classes: Sequence[str]) -> Iterator[values.ClassOverlap]:
    """Overlap of each class that is in any mask."""
    if meter is not None:
        counts = zip(meter.same, meter.either, meter.reference, strict=True)
        for index, (same, either, pixels) in enumerate(counts):
            if either:
                yield values.ClassOverlap(index, _class_name(classes, index), pixels, same / either)


def device_shares(plan: Sequence[PlannedOperation]) -> dict[str, values.DeviceShare]:
    """Share of each device, most operations first; operations without a device, such as constants, do not count."""
    devices = [one.device for one in plan if one.device is not None]
    return {
        device: values.DeviceShare(count, count / len(devices), sum(one.cost for one in plan if one.device == device))
        for device, count in Counter(devices).most_common()
    }


def _reasons(
    framework: Check, functions: Mapping[str, values.Function], runs: Sequence[values.Run], unmeasured: Sequence[str]
) -> Iterator[str]:
    def of(function: str) -> str:
        return f"{function}, " if len(functions) > 1 else ""

    if framework.passed is False:
        yield f"{framework.name}: {framework.detail}"
    for name, function in functions.items():
        for check in function.checks:
            if check.passed is False:
                yield f"{of(name)}{check.name}: {check.detail}"
    for name, function in functions.items():
        if function.departure is not None:
            yield f"{of(name)}first mismatch: {mismatch_text(function.departure)}"
    if unmeasured:
        yield f"gate {', '.join(unmeasured)}: not measured on any backend"
    for run in runs:
        if run.asked and run.verdict != PASS:
            missed = [gate_text(gate) for gate in run.gates if gate.passed is False]
            yield f"{of(run.function)}{run.title}: {'; '.join(missed) or run.reason}"


def _function(validation: Validation, name: str) -> values.Function:
    program = validation.programs[name]
    return values.Function(
        input=values.Size(*validation.original.preprocessing[name].input_size),
        checks=(*validation.declared[name], *program.checks),
        operations_in_program=program.operations,
        operation_gate=program.gate,
        departure=program.mismatch,
        failure=program.failure,
        weights=tuple(values.Weight(**{**vars(one), "stored": one.stored is not None}) for one in program.tensors),
        operations=tuple(
            values.Operation(**vars(step), departs=not step.own >= program.gate) for step in program.steps
        ),
        ranges=tuple(values.Range(one.name, one.type, one.max_abs, one.near_limit) for one in program.ranges),
        forecast=program.findings,
    )


def _run(run: Run, validation: Validation) -> values.Run:
    modules = {step.operation: step.module for step in validation.programs[run.function].steps}
    operations = tuple(values.PlacedOperation(**vars(one), module=modules.get(one.operation, "")) for one in run.plan)
    classes = validation.original.classes
    return values.Run(
        backend=run.backend.name,
        compute_units=run.backend.units,
        function=run.function,
        asked=run.backend in validation.asked,
        verdict=run.verdict,
        reason=run.reason,
        seconds=run.seconds,
        pictures=0 if run.fidelity is None else run.fidelity.images,
        figures=None if run.fidelity is None else figures_of(run.fidelity, run.measured.meters.masks, classes),
        gates=tuple(map(gate_of, run.results)),
        accuracy=_with_difference(run.accuracy) if run.accuracy else None,
        latency=values.Latency(**run.latency) if run.latency else None,  # type: ignore[arg-type]
        plan=values.Plan(device_shares(run.plan), operations) if run.plan else None,
        worst=tuple(_worst(result, classes) for result in run.measured.worst),
    )


def _with_difference(accuracy: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    ours, theirs = accuracy[ORIGINAL], accuracy[PACKAGE]
    return {ORIGINAL: ours, PACKAGE: theirs, "difference": {name: theirs[name] - ours[name] for name in ours}}


def _worst(result: ImageResult, classes: Sequence[str]) -> values.WorstImage:
    fidelity = result.meters.fidelity({})
    figures, ranking = fidelity.figures, fidelity.ranking
    differences = [signal.max_abs_difference for signal in fidelity.signals.values()]
    correct = {side: meter.first == 1 for side, meter in result.truths.items() if isinstance(meter, AccuracyMeter)}
    return values.WorstImage(
        picture=result.name,
        snr=figures.get("snr"),
        cosine=figures.get("cosine"),
        max_abs_difference=max(differences, key=lambda one: -nan_lowest(-one), default=None),
        kl=figures.get("kl"),
        same_first=None if ranking is None else ranking.top1_agreement == 1,
        margin=None if ranking is None else ranking.margin,
        pixels=figures.get("pixels"),
        mean_iou=figures.get("miou"),
        correct=correct or None,
        classes=tuple(
            values.ClassProbability(index, _class_name(classes, index), *sides) for index, *sides in result.first
        ),
    )


def _class_name(classes: Sequence[str], index: int) -> str:
    """Name that the checkpoint has for a class, or its number."""
    return classes[index] if index < len(classes) else f"class {index}"
