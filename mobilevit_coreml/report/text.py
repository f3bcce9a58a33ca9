"""A validation for a person at a terminal, 80 columns wide."""

import itertools
from collections import Counter
from collections.abc import Iterator

from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS, GateResult
from mobilevit_coreml.package.files import MEGABYTE
from mobilevit_coreml.reference.comparison import FP16_MAX
from mobilevit_coreml.report.formatting import table
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE
from mobilevit_coreml.validation.measure import ORIGINAL, PACKAGE
from mobilevit_coreml.validation.program import ProgramReport
from mobilevit_coreml.validation.run import Run, Validation
from mobilevit_coreml.verification import figure_lines

LISTED = 5  # operations that left the Neural Engine, and values near fp16's limit; JSON and HTML have all


def summary(validation: Validation) -> str:
    """The verdict, and what it rests on."""
    weights = validation.record.weights
    origin = f"seed {weights.seed}" if weights.untrained else f"sha256 {weights.sha256:.12}…"
    functions = list(validation.programs)
    shown = "1 picture" if validation.pictures == 1 else f"{validation.pictures} pictures"
    labelled = ", with labels" if validation.labelled else ""
    rows = [
        ("size", [f"{validation.bytes / MEGABYTE:.2f} MB"]),
        ("made of", [weights.name, origin]),
        ("shown", [f"{shown}{labelled}: {validation.source}"]),
    ]
    for function in functions:
        program = validation.programs[function]
        if len(functions) > 1:
            rows.append(("function", [function]))
        rows += [(check.name, [_check(check)]) for check in (*validation.declared[function], *program.checks)]
        rows += [
            ("departs", _mismatch(program)),
            ("fp16 range", list(_range(program)) if validation.record.precision == "fp16" else []),
            *((run.backend.name, list(_run(run, program))) for run in validation.runs if run.function == function),
            ("forecast", _forecast(program)),
        ]
    rows += [
        ("note", list(validation.original.notices)),
        ("seconds", [f"{validation.seconds:.1f}"]),
    ]
    return table(f"{validation.package}: {validation.verdict}", rows)


def _check(check: Check) -> str:
    return f"{PASS if check.passed else FAIL}, {check.detail}"


def _mismatch(program: ProgramReport) -> list[str]:
    mismatch = program.mismatch
    if mismatch is None:
        return []
    module = f", of {mismatch.module}" if mismatch.module else ""
    return [f"first at {mismatch.type} {mismatch.operation}{module}", mismatch.detail]


def _range(program: ProgramReport) -> Iterator[str]:
    """How near the values come to what fp16 can hold."""
    if not program.ranges:
        return
    largest = max(program.ranges, key=lambda one: one.max_abs)
    yield f"up to {largest.max_abs:.4g} in {largest.name}, of {FP16_MAX:.0f}"
    near = [one for one in program.ranges if one.near_limit]
    for one in near[:LISTED]:
        yield f"near the limit: {one.type} {one.name}, {one.max_abs:.4g}"
    if len(near) > LISTED:
        yield f"and {len(near) - LISTED} more"


def _run(run: Run, program: ProgramReport) -> Iterator[str]:
    units = f"{run.backend.units}: " if run.backend.units else ""
    if run.fidelity is None:
        yield f"{units}{run.verdict}, {run.reason}"
        return
    gates = {result.name: result.gate for result in run.results if result.figure is not None}
    first, *others = figure_lines(run.fidelity.with_gates(gates), "PyTorch fp32")
    yield f"{units}{run.verdict}, {first}"
    yield from others
    for name in run.accuracy.get(ORIGINAL, {}):
        ours, theirs = run.accuracy[ORIGINAL][name], run.accuracy[PACKAGE][name]
        yield f"against labels: {name.replace('_', ' ')} {theirs:.2%}, PyTorch's {ours:.2%} ({theirs - ours:+.2%})"
    if run.latency:
        yield (
            f"compiled in {run.latency['compile_seconds']:.1f} s, loaded in {run.latency['load_seconds']:.1f} s; "
            f"of {run.latency['predictions']:.0f} predictions the median took {run.latency['median_ms']:.2f} ms, "
            f"95 % at most {run.latency['p95_ms']:.2f} ms"
        )
    yield from _devices(run, program)
    yield from (_missed(result) for result in run.results if result.passed is False)
    if run.reason:
        yield run.reason
    unmeasured = [result.name for result in run.results if result.passed is None]
    if unmeasured:
        yield f"{NOT_RUN} here: gate {', '.join(unmeasured)}"


def _devices(run: Run, program: ProgramReport) -> Iterator[str]:
    """What Core ML means to run where, and what left the Neural Engine."""
    placed = [one for one in run.plan if one.device is not None]
    if not placed:
        return
    counts = Counter(one.device for one in placed)
    costs = {device: sum(one.cost for one in placed if one.device == device) for device in counts}
    shares = (f"{device} {count} operations, {costs[device]:.0%} of the cost" for device, count in counts.most_common())
    yield f"planned: {'; '.join(shares)}"
    modules = {step.operation: step.module for step in program.steps}
    left = [one for one in placed if one.device != NEURAL_ENGINE]
    if counts[NEURAL_ENGINE]:
        for one in itertools.islice(left, LISTED):
            yield f"  left the Neural Engine: {one.type} {one.operation} {modules.get(one.operation, '')}".rstrip()
        if len(left) > LISTED:
            yield f"  and {len(left) - LISTED} more"


def _missed(result: GateResult) -> str:
    side = "at least" if result.bound.at_least else "at most"
    return f"gate {result.name}: expected {side} {result.gate:g} {result.bound.unit}, got {result.figure:.4g}"


def _forecast(program: ProgramReport) -> list[str]:
    counts = Counter(finding.rule for finding in program.findings)
    found = ", ".join(f"{rule} {count}" for rule, count in counts.items())
    return [
        "of what may leave or slow the Neural Engine by documented rules; nothing was run there",
        f"operations by rule: {found}" if found else "no operation is against a rule",
    ]
