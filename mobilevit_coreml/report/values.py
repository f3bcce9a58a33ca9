"""A validation as plain values, for programs to read; validation.schema.json says what each of them is."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS, AccuracyMeter, Fidelity, GateResult, MaskMeter
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.forecast import RULES
from mobilevit_coreml.validation.measure import ORIGINAL, PACKAGE, ImageResult
from mobilevit_coreml.validation.program import Mismatch, ProgramReport
from mobilevit_coreml.validation.run import PlannedOperation, Run, Validation
from mobilevit_coreml.validation.steps import Step
from mobilevit_coreml.verification import decibels_text

SCHEMA = 1  # counts up when something in the values changes its meaning
FORECAST = "A forecast by documented rules: nothing was run on a Neural Engine, and an operation may be there or not."

Values = dict[str, Any]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `report_values` as strict JSON, whole or not at all; raises OutputError."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def report_values(validation: Validation) -> Values:
    """All there is to say of a package: sizes in bytes, SNR in dB, agreements as shares, divergences in nats.

    A number that JSON does not have is one of the texts "inf", "-inf" and "nan".
    """
    values = {
        "schema": SCHEMA,
        "verdict": validation.verdict,
        "reasons": list(reasons(validation)),
        "asked": [str(backend) for backend in validation.asked],
        "seconds": validation.seconds,
        "package": _package(validation),
        "pictures": {"source": validation.source, "count": validation.pictures, "labelled": validation.labelled},
        "classes": validation.original.classes,
        "notes": validation.original.notices,
        "forecast": {"note": FORECAST, "rules": RULES},
        "functions": {name: _function(validation, name) for name in validation.programs},
        "runs": [_run(run, validation) for run in validation.runs],
        "curve": [{"bytes": size, "snr": snr, "agreement": agreement} for size, snr, agreement in curve_of(validation)],
    }
    strict: Values = _strict(values)
    return strict


# What both this and the page say.


def reasons(validation: Validation) -> Iterator[str]:
    """Why the verdict is no PASS, a sentence each."""
    several = len(validation.programs) > 1
    for function, check in validation.checks:
        if not check.passed:
            yield f"{_of(function, several)}{check.name}: {check.detail}"
    for function, program in validation.programs.items():
        if program.mismatch is not None:
            yield f"{_of(function, several)}first mismatch: {mismatch_text(program.mismatch)}"
    if validation.unmeasured:
        yield f"gate {', '.join(validation.unmeasured)}: not measured on any backend"
    for run in validation.runs:
        if run.backend in validation.asked and run.verdict != PASS:
            missed = [gate_text(result) for result in run.results if result.passed is False]
            yield f"{_of(run.function, several)}{run.backend}: {'; '.join(missed) or run.reason}"


def mismatch_text(mismatch: Mismatch) -> str:
    """Where a program departs, and how."""
    module = f" of {mismatch.module}" if mismatch.module else ""
    return f"{mismatch.type} {mismatch.operation}{module}: {mismatch.detail}".lstrip()


def gate_text(result: GateResult) -> str:
    """A gate with what was got, in words."""
    needed = f"{'at least' if result.bound.at_least else 'at most'} {with_unit(result.gate, result.bound.unit)}"
    got = "not measured" if result.figure is None else f"got {with_unit(result.figure, result.bound.unit)}"
    return f"{result.name} has to be {needed}, {got}"


def gate_verdict(result: GateResult) -> str:
    """PASS or FAIL, or NOT_RUN of what was not measured, which has passed nothing."""
    return NOT_RUN if result.passed is None else PASS if result.passed else FAIL


def with_unit(value: float, unit: str) -> str:
    """A figure for people; a share is a plain number."""
    if math.isnan(value):
        return "no number"
    return decibels_text(value) if unit == "dB" else f"{value:.4g} {'' if unit == 'share' else unit}".rstrip()


def curve_of(validation: Validation) -> Sequence[tuple[int, float, float | None]]:
    """Bytes, dB and agreement of all packages that were built on the way to a budget; of others nothing."""
    return [(size, snr, agreement) for size, snr, agreement in validation.record.compression.get("curve", ())]


def departs(step: Step, program: ProgramReport) -> bool:
    """Whether an operation does not do what it should on the inputs it has."""
    return not step.own >= program.gate


def class_name(validation: Validation, index: int) -> str:
    """What the checkpoint calls a class, or its number."""
    classes = validation.original.classes
    return classes[index] if index < len(classes) else f"class {index}"


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """What Core ML means to run on a device: operations, as a number and a share of all placed ones, and cost."""

    device: str
    operations: int
    share: float
    cost: float


def device_shares(plan: Sequence[PlannedOperation]) -> list[DeviceShare]:
    """Of each device, the one with most operations first; operations without a device, such as constants, do not count.

    `cost` is a share of Core ML's estimate for the whole program.
    """
    placed = [one for one in plan if one.device is not None]
    counts = Counter(one.device for one in placed if one.device is not None)
    return [
        DeviceShare(device, count, count / len(placed), sum(one.cost for one in placed if one.device == device))
        for device, count in counts.most_common()
    ]


@dataclasses.dataclass(frozen=True)
class ClassOverlap:
    """A class in both sides' masks: how many pixels the original has of it, and the overlap (IoU, 0 to 1)."""

    index: int
    pixels: int
    iou: float


def overlaps(meter: MaskMeter | None) -> list[ClassOverlap]:
    """Of each class that is in any mask."""
    if meter is None:
        return []
    counts = zip(meter.same, meter.either, meter.reference, strict=True)
    return [ClassOverlap(index, pixels, same / either) for index, (same, either, pixels) in enumerate(counts) if either]


def correct(seen: ImageResult) -> dict[str, bool]:
    """Whether each side puts a picture's true class first; {} where that is not known."""
    return {side: meter.first == 1 for side, meter in seen.truths.items() if isinstance(meter, AccuracyMeter)}


# The values.


def _of(function: str, several: bool) -> str:
    return f"{function}, " if several else ""


def _package(validation: Validation) -> Values:
    record = dataclasses.asdict(validation.record)
    record["weights"]["untrained"] = validation.record.weights.untrained
    return {
        "name": validation.package.name,
        "bytes": validation.bytes,
        "sha256": validation.digest,
        "record": record,
    }


def _function(validation: Validation, name: str) -> Values:
    program = validation.programs[name]
    height, width = validation.original.contracts[name].input_size
    return {
        "input": {"height": height, "width": width},
        "checks": [_check(check) for check in (*validation.declared[name], *program.checks)],
        "operations_in_program": program.operations,
        "operation_gate": program.gate,
        "departure": None if program.mismatch is None else dataclasses.asdict(program.mismatch),
        "failure": program.failure,
        "weights": [
            {
                "operation": one.operation,
                "type": one.type,
                "module": one.module,
                "parameter": one.parameter,
                "format": one.format,
                "stored": one.stored is not None,
                "snr": one.snr,
                "units": one.units,
                "passed": one.passed,
            }
            for one in program.tensors
        ],
        "operations": [{**dataclasses.asdict(step), "departs": departs(step, program)} for step in program.steps],
        "ranges": [
            {"operation": one.name, "type": one.type, "largest": one.max_abs, "near_limit": one.near_limit}
            for one in program.ranges
        ],
        "forecast": [dataclasses.asdict(finding) for finding in program.findings],
    }


def _check(check: Check) -> Values:
    return {"name": check.name, "passed": check.passed, "detail": check.detail}


def _run(run: Run, validation: Validation) -> Values:
    modules = {step.operation: step.module for step in validation.programs[run.function].steps}
    return {
        "backend": run.backend.name,
        "compute_units": run.backend.units,
        "function": run.function,
        "asked": run.backend in validation.asked,
        "verdict": run.verdict,
        "reason": run.reason,
        "seconds": run.seconds,
        "pictures": 0 if run.fidelity is None else run.fidelity.images,
        "figures": None if run.fidelity is None else _figures(run.fidelity, run.measured.meters.masks, validation),
        "gates": [_gate(result) for result in run.results],
        "accuracy": _accuracy(run.accuracy),
        "latency": dict(run.latency) or None,
        "plan": _plan(run.plan, modules) if run.plan else None,
        "worst": [_seen(seen, validation) for seen in run.measured.worst],
    }


def _figures(fidelity: Fidelity, masks: MaskMeter | None, validation: Validation) -> Values:
    ranking, mask = fidelity.ranking, fidelity.masks
    return {
        "signals": {
            name: {
                "snr": signal.snr,
                "worst_snr": signal.worst_snr,
                "cosine": signal.cosine,
                "largest_difference": signal.max_abs_difference,
            }
            for name, signal in fidelity.signals.items()
        },
        "ranking": ranking
        and {
            "top1": ranking.top1_agreement,
            "top5": ranking.top5_agreement,
            "margin": ranking.margin,
            "largest_difference": ranking.max_abs_difference,
            "kl": ranking.kl,
        },
        "masks": mask
        and {
            "pixels": mask.pixel_agreement,
            "mean_iou": mask.mean_iou,
            "classes": mask.classes,
            "by_class": [
                {"index": one.index, "class": class_name(validation, one.index), "pixels": one.pixels, "iou": one.iou}
                for one in overlaps(masks)
            ],
        },
    }


def _gate(result: GateResult) -> Values:
    return {
        "name": result.name,
        "what": result.bound.description,
        "unit": result.bound.unit,
        "needed": result.gate,
        "at_least": result.bound.at_least,
        "got": result.figure,
        "passed": result.passed,
        "verdict": gate_verdict(result),
    }


def _accuracy(accuracy: Mapping[str, Mapping[str, float]]) -> Values | None:
    if not accuracy:
        return None
    ours, theirs = accuracy[ORIGINAL], accuracy[PACKAGE]
    return {
        ORIGINAL: dict(ours),
        PACKAGE: dict(theirs),
        "difference": {name: theirs[name] - ours[name] for name in ours},
    }


def _plan(plan: Sequence[PlannedOperation], modules: Mapping[str, str]) -> Values:
    return {
        "devices": {
            one.device: {"operations": one.operations, "share": one.share, "cost": one.cost}
            for one in device_shares(plan)
        },
        "operations": [{**dataclasses.asdict(one), "module": modules.get(one.operation, "")} for one in plan],
    }


def _seen(seen: ImageResult, validation: Validation) -> Values:
    fidelity = seen.meters.fidelity({})
    figures = fidelity.figures
    differences = [signal.max_abs_difference for signal in fidelity.signals.values()]
    ranking = fidelity.ranking
    return {
        "picture": seen.picture,
        "snr": figures.get("snr"),
        "cosine": figures.get("cosine"),
        "largest_difference": max(differences, key=_no_number_last) if differences else None,
        "kl": figures.get("kl"),
        "same_first": None if ranking is None else ranking.top1_agreement == 1,
        "margin": None if ranking is None else ranking.margin,
        "pixels": figures.get("pixels"),
        "mean_iou": figures.get("miou"),
        "correct": correct(seen) or None,
        "classes": [
            {"index": index, "class": class_name(validation, index), ORIGINAL: ours, PACKAGE: theirs}
            for index, ours, theirs in seen.first
        ],
    }


def _no_number_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _strict(value: Any) -> Any:
    """What strict JSON has: numbers that are some, texts that can be encoded, lists, keys that are texts."""
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value
