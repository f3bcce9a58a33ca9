"""A validation as one self-contained page: the verdict, what it rests on, plots, and the worst pictures."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS
from mobilevit_coreml.package.files import MEGABYTE
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.reference.comparison import FP16_MAX
from mobilevit_coreml.report.compression import size_against_quality
from mobilevit_coreml.report.html import Html, check_drawable, drawing, escaped, page, svg, table
from mobilevit_coreml.report.plots import DEVICES, devices, operation_errors, probabilities
from mobilevit_coreml.report.values import (
    FORECAST,
    class_name,
    correct,
    curve_of,
    departs,
    device_shares,
    gate_verdict,
    mismatch_text,
    overlaps,
    reasons,
    with_unit,
)
from mobilevit_coreml.validation.core_ml import NEURAL_ENGINE
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.forecast import RULES
from mobilevit_coreml.validation.measure import ORIGINAL, PACKAGE, ImageResult
from mobilevit_coreml.validation.program import ProgramReport
from mobilevit_coreml.validation.run import Run, Validation
from mobilevit_coreml.verification import decibels_text

THUMBNAIL = 160  # pixels of the longer edge
QUALITY = 80  # of its JPEG
LISTED = 20  # rows that are shown at once; all are in a table that opens
NOTHING = "—"  # in a table
SIGNS = {PASS: "✓", FAIL: "✗", NOT_RUN: "○"}  # beside the words, for who sees colours otherwise


def write_html(path: Path, validation: Validation, shown: Mapping[str, Sequence[LabelledImage]]) -> None:
    """Write the page, whole or not at all; `shown` has what each function was shown, for thumbnails of the worst.

    Equal validations make equal pages. Raises OutputError where matplotlib is not installed (`check_drawable`
    says so before anybody waits), or nothing can be written.
    """
    check_drawable()
    several = len(validation.programs) > 1
    body = [_head(validation), _subject(validation), _runs(validation, several), _curve(validation)]
    for function in validation.programs:
        body += [
            _program(validation, function, several),
            _plans(validation, function, several),
            _pictures(validation, function, several, shown.get(function, ())),
            _forecast(validation, function, several),
        ]
    text = page(f"{validation.verdict}: {validation.package.name}", _joined(body), STYLE)
    with atomic_write(path) as file:
        file.write(text)


# Pieces of HTML.


def _element(tag: str, content: str, kind: str = "") -> Html:
    return Html(f"<{tag}{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escaped(content)}</{tag}>")


def _joined(parts: Sequence[str]) -> Html:
    return Html("\n".join(escaped(part) for part in parts if part))


def _listed(items: Sequence[str]) -> Html:
    return _element("ul", _joined([_element("li", item) for item in items])) if items else Html()


def _badge(verdict: str) -> Html:
    return _element("span", f"{SIGNS[verdict]} {verdict}", f"badge {verdict}")


def _plot(drawn: Html, caption: str) -> Html:
    return _element("figure", _joined([drawn, _element("figcaption", caption)]))


def _details(summary: str, content: Html, is_open: bool = False) -> Html:
    opened = " open" if is_open else ""
    return Html(f"<details{opened}>{_element('summary', summary)}\n{content}</details>")


def _of(function: str, several: bool) -> str:
    return f" of {function}" if several else ""


# The sections.


def _head(validation: Validation) -> Html:
    verdict = validation.verdict
    asked = ", ".join(map(str, validation.asked)) or "no backend"
    sentence = {
        PASS: f"All checks of the package passed, and all gates that could be measured, on: {asked}.",
        FAIL: "The package, or what it computes, is not what it should be:",
        NOT_RUN: "Nothing is claimed of this package, since what was asked for could not be run:",
    }[verdict]
    others = {str(run.backend): run.reason for run in validation.runs if run.backend not in validation.asked}
    left = [f"{NOT_RUN}: {backend}. {reason}; the verdict says nothing of it." for backend, reason in others.items()]
    left += [
        f"{NOT_RUN}: gate {result.name}, which {run.backend} could not measure."
        for run in validation.runs
        for result in run.results
        if result.passed is None
    ]
    content = [
        _element("p", f"{SIGNS[verdict]} {verdict}", "word"),
        _element("h1", validation.package.name),
        _element("p", sentence),
        _listed(list(reasons(validation))),
        *(_element("p", one, "left") for one in left),
    ]
    return _element("header", _joined(content), verdict)


def _subject(validation: Validation) -> Html:
    record = validation.record
    weights = record.weights
    origin = f"untrained, seed {weights.seed}" if weights.untrained else f"sha256 {weights.sha256}"
    revision = f", revision {weights.revision}" if weights.revision else ""
    labelled = ", with their true classes" if validation.labelled else ""
    sizes = [
        f"{height}x{width}" for height, width in (one.input_size for one in validation.original.contracts.values())
    ]
    scheme = record.compression.get("scheme")
    rows = [
        ("package", f"{validation.package.name}, {validation.bytes / MEGABYTE:.2f} MB, sha256 {validation.digest}"),
        ("network", f"MobileViT {record.variant}, {record.task}, {record.precision}"),
        ("form", f"{record.attention} attention, {record.unfold} unfold"),
        ("weights", f"{weights.name}{revision}, {origin}"),
        ("compression", f"asked for: {scheme}" if scheme else "none"),
        ("input", f"{record.preprocessing.channel_order}, {', '.join(sizes)} pixels"),
        ("shown", f"{validation.pictures} pictures{labelled}: {validation.source}"),
        ("compared with", "the checkpoint's model in PyTorch, fp32, on the CPU"),
        ("made with", f"mobilevit_coreml {record.version}"),
        ("took", f"{validation.seconds:.1f} s"),
    ]
    parts = [
        _element("h2", "What was compared"),
        _element("div", table((), rows), "subject"),
        _listed(validation.original.notices),
    ]
    return _joined(parts)


def _runs(validation: Validation, several: bool) -> Html:
    head = ("backend", "verdict", "SNR", "worst picture", "cosine", "agreement", "median time")
    rows = [_run_row(run, several) for run in validation.runs]
    used = [column for column, _ in enumerate(head) if column < 2 or any(row[column] != NOTHING for row in rows)]
    figures = table([head[i] for i in used], [[row[i] for i in used] for row in rows], range(2, len(used)))
    parts = [_element("h2", "Backends"), figures]
    for index, run in enumerate(validation.runs):
        name = _joined([f"{run.backend}{_of(run.function, several)}", _badge(run.verdict)])
        parts.append(_details(name, _run(run, validation), is_open=index == 0 or run.verdict != PASS))
    return _joined(parts)


def _run_row(run: Run, several: bool) -> tuple[str, ...]:
    name = f"{run.backend}{_of(run.function, several)}"
    if run.fidelity is None:
        return (name, _badge(run.verdict), *[NOTHING] * 5)
    figures, agreement = run.fidelity.figures, run.fidelity.agreement
    what = "of pixels" if run.fidelity.masks is not None else "of pictures"
    return (
        name,
        _badge(run.verdict),
        decibels_text(figures["snr"]) if "snr" in figures else NOTHING,
        decibels_text(figures["worst-snr"]) if "worst-snr" in figures else NOTHING,
        f"{figures['cosine']:.6f}" if "cosine" in figures else NOTHING,
        NOTHING if agreement is None else f"{_percent(agreement)} {what}",
        with_unit(run.latency["median_ms"], "ms") if run.latency else NOTHING,
    )


def _run(run: Run, validation: Validation) -> Html:
    parts = []
    if run.reason:
        parts.append(_element("p", run.reason, "left" if run.verdict == NOT_RUN else "wrong"))
    if run.fidelity is not None:
        gates = [
            (
                result.name,
                f"at {'least' if result.bound.at_least else 'most'} {with_unit(result.gate, result.bound.unit)}",
                "not measured" if result.figure is None else with_unit(result.figure, result.bound.unit),
                _badge(gate_verdict(result)),
                result.bound.description,
            )
            for result in run.results
        ]
        head = ("SNR of", "all pictures", "worst picture", "cosine", "largest difference")
        parts += [
            table(("gate", "needed", "got", "", "what it is"), gates, (1, 2)),
            table(head, _signals(run), (1, 2, 3, 4)) if run.fidelity.signals else Html(),
            _listed(list(_sentences(run))),
            _overlaps(run, validation),
        ]
    if run.measured.points:
        parts.append(
            _plot(
                probabilities(run.measured.points),
                "Left: the first five classes of either side, each by both sides' probability; on the line they are "
                "the same. Right: the difference.",
            )
        )
    return _joined(parts)


def _signals(run: Run) -> list[tuple[str, ...]]:
    assert run.fidelity is not None
    return [
        (
            name,
            decibels_text(one.snr),
            decibels_text(one.worst_snr),
            f"{one.cosine:.6f}",
            f"{one.max_abs_difference:.3g}",
        )
        for name, one in run.fidelity.signals.items()
    ]


def _sentences(run: Run) -> Iterator[str]:
    """What else was measured."""
    assert run.fidelity is not None
    ranking, masks = run.fidelity.ranking, run.fidelity.masks
    yield f"{run.fidelity.images} pictures in {run.seconds:.1f} s, both sides together"
    if ranking is not None:
        yield (
            f"the same first class on {_percent(ranking.top1_agreement)}, the same first five on "
            f"{_percent(ranking.top5_agreement)} of the pictures"
        )
        yield f"KL divergence {ranking.kl:.3g} nats"
        yield f"largest difference of a probability {ranking.max_abs_difference:.3g}"
        yield f"smallest distance of PyTorch's first two probabilities {ranking.margin:.3g}"
    if masks is not None:
        yield (
            f"the same class on {_percent(masks.pixel_agreement)} of the pixels, mean IoU of both sides "
            f"{masks.mean_iou:.4f} over {masks.classes} classes"
        )
    for name, ours in run.accuracy.get(ORIGINAL, {}).items():
        theirs = run.accuracy[PACKAGE][name]
        yield (
            f"against labels, {name.replace('_', ' ')}: {_percent(theirs)}, PyTorch {_percent(ours)}, "
            f"difference {100 * (theirs - ours):+.2f} points"
        )
    if run.latency:
        latency = run.latency
        yield (
            f"compiled in {latency['compile_seconds']:.1f} s, loaded in {latency['load_seconds']:.1f} s; a prediction "
            f"takes {latency['median_ms']:.2f} ms in the median, {latency['p95_ms']:.2f} ms at the 95th percentile of "
            f"{latency['predictions']:.0f}, from Python {latency['with_python_ms']:.2f} ms"
        )


def _overlaps(run: Run, validation: Validation) -> Html:
    found = overlaps(run.measured.meters.masks)
    rows = [(class_name(validation, one.index), f"{one.pixels:,}", f"{one.iou:.4f}") for one in found]
    head = ("class", "pixels in PyTorch's masks", "IoU of both sides")
    return _details(f"Each of {len(rows)} classes", table(head, rows, (1, 2))) if rows else Html()


def _curve(validation: Validation) -> Html:
    """Size against quality; this package as it was measured here, by the first run that was."""
    curve = curve_of(validation)
    measured = [run.fidelity.figures["snr"] for run in validation.runs if run.fidelity and run.fidelity.signals]
    if not curve:
        return Html()
    with drawing() as figure:
        here = measured[0] if measured and math.isfinite(measured[0]) else None
        size_against_quality(figure.add_subplot(), [point[:2] for point in curve], validation.bytes, here)
        plot = svg(figure, "Size against SNR of all packages that were built")
    caption = (
        "Grey: packages that were built on the way to the budget, by the record, on the pictures they were tested with "
        "then. This package: on the pictures shown here."
    )
    rows = [
        (f"{size / MEGABYTE:.2f} MB", decibels_text(snr), NOTHING if agreement is None else _percent(agreement))
        for size, snr, agreement in curve
    ]
    figures = table(("size", "SNR", "agreement"), rows, (0, 1, 2))
    return _joined([_element("h2", "Size against quality"), _plot(plot, caption), figures])


def _program(validation: Validation, function: str, several: bool) -> Html:
    program = validation.programs[function]
    checks = [
        (check.name, _badge(PASS if check.passed else FAIL), check.detail)
        for check in (*validation.declared[function], *program.checks)
    ]
    parts = [
        _element("h2", f"Checks{_of(function, several)}"),
        table(("of", "", "found"), checks),
        _element("h2", f"Error by operation{_of(function, several)}"),
        _mismatch(program),
    ]
    if program.steps:
        caption = (
            "From the first operation to the last. Rounding alone leaves an operation about 73 dB in fp16; what "
            "adds up on the way is no fault of any of them."
        )
        parts.append(_plot(operation_errors(program), caption))
    return _joined([*parts, _wrong(program), _ranges(validation, program), _tables(program)])


def _mismatch(program: ProgramReport) -> Html:
    if program.failure is not None:
        return _element("p", f"The operations could not be compared: {program.failure}", "wrong")
    mismatch = program.mismatch
    if mismatch is None:
        what = f"{len(program.steps)} of {program.operations} operations"
        return _element("p", f"No mismatch: {what} were compared, and each does what it should on the inputs it has.")
    return _element("p", _joined([_element("strong", "First mismatch:"), mismatch_text(mismatch)]), "wrong")


def _wrong(program: ProgramReport) -> Html:
    """What departs: operations, and weights."""
    steps = [
        (step.operation, step.type, step.module, decibels_text(step.own), decibels_text(step.accumulated))
        for step in program.steps
        if departs(step, program)
    ]
    tensors = [row for one, row in zip(program.tensors, _tensor_rows(program), strict=True) if not one.passed]
    parts = []
    if steps:
        parts += [
            _element("h3", f"What departs: {_counted(len(steps), 'operation')}"),
            table(("operation", "type", "module", "own", "accumulated"), steps[:LISTED], (3, 4)),
        ]
    if tensors:
        parts += [
            _element("h3", f"What is not the checkpoint's: {_counted(len(tensors), 'weight')}"),
            table(_TENSOR_HEAD, tensors[:LISTED], (3, 4)),
        ]
    return _joined(parts)


def _ranges(validation: Validation, program: ProgramReport) -> Html:
    """How near the values come to what fp16 can hold."""
    if validation.record.precision != "fp16" or not program.ranges:
        return Html()
    largest = max(program.ranges, key=lambda one: math.inf if math.isnan(one.max_abs) else one.max_abs)
    near = [(one.name, one.type, f"{one.max_abs:.5g}") for one in program.ranges if one.near_limit]
    sentence = f"The largest value is {largest.max_abs:.5g}, of {largest.name}; fp16 ends at {FP16_MAX:.0f}. "
    sentence += "These come within a factor of 4 of it:" if near else "None comes within a factor of 4 of it."
    parts = [_element("h3", "Range of fp16"), _element("p", sentence)]
    return _joined([*parts, table(("operation", "type", "largest value"), near[:LISTED], (2,)) if near else ""])


_TENSOR_HEAD = ("module", "parameter", "format", "SNR", "units in the last place", "")


def _tensor_rows(program: ProgramReport) -> list[tuple[str, ...]]:
    return [
        (
            one.module,
            one.parameter,
            one.format,
            NOTHING if one.stored is None else decibels_text(one.snr),
            "missing" if one.stored is None else f"{one.units:.3g}",
            _badge(PASS if one.passed else FAIL),
        )
        for one in program.tensors
    ]


def _tables(program: ProgramReport) -> Html:
    """All operations and weights, to be opened."""
    largest = {one.name: f"{one.max_abs:.4g}" for one in program.ranges}
    steps = [
        (
            step.operation,
            step.type,
            step.module,
            decibels_text(step.own),
            decibels_text(step.accumulated),
            largest.get(step.operation, NOTHING),
            _badge(FAIL if departs(step, program) else PASS),
        )
        for step in program.steps
    ]
    head = ("operation", "type", "module", "own", "accumulated", "largest value", "")
    return _joined(
        [
            _details(f"All {len(steps)} operations that were compared", table(head, steps, (3, 4, 5))),
            _details(f"All {len(program.tensors)} weights", table(_TENSOR_HEAD, _tensor_rows(program), (3, 4))),
        ]
    )


def _plans(validation: Validation, function: str, several: bool) -> Html:
    """Where Core ML means to run what, where it said so."""
    program = validation.programs[function]
    runs = [run for run in validation.runs if run.function == function and device_shares(run.plan)]
    if not runs:
        return Html()
    modules = {step.operation: step.module for step in program.steps}
    head = ("compute units", "device", "operations", "share", "of the estimated cost")
    shares = [
        (str(run.backend), DEVICES[one.device][2], str(one.operations), _percent(one.share), _percent(one.cost))
        for run in runs
        for one in device_shares(run.plan)
    ]
    caption = "Operations from the first to the last, by the device that Core ML prefers for them: a plan of this Mac."
    parts = [_element("h2", f"Devices{_of(function, several)}")]
    parts += [_plot(devices(runs, program), caption), table(head, shares, (2, 3, 4))]
    for run in runs:
        left = [
            (one.operation, one.type, modules.get(one.operation, ""), DEVICES[one.device][2], f"{one.cost:.2%}")
            for one in run.plan
            if one.device is not None and one.device != NEURAL_ENGINE
        ]
        if left and any(one.device == NEURAL_ENGINE for one in run.plan):
            content = table(("operation", "type", "module", "device", "cost"), left, (4,))
            parts.append(
                _details(f"{run.backend}: {_counted(len(left), 'operation')} outside the Neural Engine", content)
            )
    return _joined(parts)


def _pictures(validation: Validation, function: str, several: bool, shown: Sequence[LabelledImage]) -> Html:
    """The worst pictures of each run, the first run's at once."""
    runs = [run for run in validation.runs if run.function == function and run.measured.worst]
    if not runs:
        return Html()
    by_name = {picture.name: picture for picture in shown}
    names = dict.fromkeys(seen.picture for run in runs for seen in run.measured.worst)
    thumbnails = {name: _thumbnail(by_name.get(name)) for name in names}
    parts = [_element("h2", f"Worst pictures{_of(function, several)}")]
    for index, run in enumerate(runs):
        cards = [_card(seen, validation, thumbnails[seen.picture]) for seen in run.measured.worst]
        content = _element("div", _joined(cards), "cards")
        parts.append(
            _details(str(run.backend), content) if index else _joined([_element("h3", str(run.backend)), content])
        )
    return _joined(parts)


def _thumbnail(picture: LabelledImage | None) -> Html:
    """A picture as the package takes it, small; a placeholder where it is not there any more."""
    if picture is None:
        return _element("p", "no picture", "thumbnail")
    try:
        image = picture.prepared()
    except MobileViTError:
        return _element("p", "the picture can no longer be read", "thumbnail")
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return Html(
        f'<img {size} alt="{escaped(f"{picture.name}, {width}x{height} pixels")}" src="data:image/jpeg;base64,{data}">'
    )


def _card(seen: ImageResult, validation: Validation, thumbnail: Html) -> Html:
    fidelity = seen.meters.fidelity({})
    figures = fidelity.figures
    facts = []
    if "snr" in figures:
        difference = max(signal.max_abs_difference for signal in fidelity.signals.values())
        facts.append(f"SNR {decibels_text(figures['snr'])}, cosine {figures['cosine']:.6f}")
        facts.append(f"largest difference {difference:.3g}")
    if fidelity.ranking is not None:
        same = "agrees" if fidelity.ranking.top1_agreement == 1 else "differs"
        facts.append(f"KL {fidelity.ranking.kl:.3g} nats")
        facts.append(f"the first class {same}; PyTorch's first two are {fidelity.ranking.margin:.3g} apart")
    if fidelity.masks is not None:
        facts.append(f"the same class on {_percent(fidelity.masks.pixel_agreement)} of the pixels")
        facts.append(f"mean IoU of both sides {fidelity.masks.mean_iou:.4f}")
    right = correct(seen)
    if right:
        words = {True: "right", False: "wrong"}
        facts.append(f"against its label: PyTorch {words[right[ORIGINAL]]}, the package {words[right[PACKAGE]]}")
    classes = [
        (class_name(validation, index), _probability(ours), _probability(theirs)) for index, ours, theirs in seen.first
    ]
    first = table(("class", "PyTorch", "package"), classes, (1, 2)) if classes else ""
    return _element("section", _joined([thumbnail, _element("h4", seen.picture), _listed(facts), first]), "card")


def _forecast(validation: Validation, function: str, several: bool) -> Html:
    findings = validation.programs[function].findings
    parts = [
        _element("h2", f"Forecast for the Neural Engine{_of(function, several)}"),
        _element("p", FORECAST, "left"),
    ]
    for rule, sentence in RULES.items():
        rows = [(one.operation, one.type, one.module, one.detail) for one in findings if one.rule == rule]
        if rows:
            content = table(("operation", "type", "module", "what is there"), rows)
            parts += [_element("h3", rule), _element("p", sentence)]
            parts.append(_details(_counted(len(rows), "operation"), content))
    if not findings:
        parts.append(_element("p", "No operation is against any of the rules."))
    return _element("section", _joined(parts), "forecast")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _percent(share: float) -> str:
    """To a hundredth, and down: what is just under all is not called all."""
    return "no number" if math.isnan(share) else f"{math.floor(1e4 * share + 1e-6) / 100:.2f} %"


def _probability(value: float) -> str:
    return "no number" if math.isnan(value) else f"{100 * value:.3f} %"


STYLE = """\
header { border-left: 0.5rem solid; padding: 0.5rem 1.25rem; border-radius: 0.25rem; }
header h1, header p { margin: 0.25rem 0; }
header .word { font-size: 2.5rem; line-height: 1.1; font-weight: 700; }
header.PASS { border-color: #1B7F4D; background: #EDF7F1; } header.PASS .word { color: #14603A; }
header.FAIL { border-color: #B42318; background: #FDF0EE; } header.FAIL .word { color: #912018; }
header.NOT_RUN { border-color: #6B7785; background: #F1F3F5; } header.NOT_RUN .word { color: #434E5B; }
.badge { display: inline-block; padding: 0 0.5rem; border-radius: 0.25rem; font-size: 0.8rem; font-weight: 600;
  white-space: nowrap; border: 1px solid; }
.badge.PASS { color: #14603A; background: #EDF7F1; }
.badge.FAIL { color: #912018; background: #FDF0EE; }
.badge.NOT_RUN { color: #434E5B; background: repeating-linear-gradient(45deg, #FFF 0 6px, #E9ECEF 6px 12px); }
.left { border-left: 0.25rem solid #6B7785; background: #F1F3F5; padding: 0.25rem 0.75rem; overflow-wrap: anywhere; }
.wrong { border-left: 0.25rem solid #B42318; background: #FDF0EE; padding: 0.25rem 0.75rem; overflow-wrap: anywhere; }
.forecast { border: 1px dashed #6B7785; border-radius: 0.25rem; padding: 0 1rem 1rem; margin-top: 2.5rem; }
.forecast h2 { margin-top: 1rem; }
figure { margin: 0.5rem 0; }
figcaption { font-size: 0.9rem; color: #4A5561; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; color: #1F5FA8; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #E4E7EB; border-radius: 0.25rem; padding: 0.75rem; font-size: 0.9rem; break-inside: avoid; }
.card h4 { margin: 0.5rem 0 0; overflow-wrap: anywhere; }
.card ul { padding-left: 1.1rem; margin: 0.25rem 0; }
.thumbnail { color: #4A5561; font-style: italic; }
li, .subject { overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
.card td:first-child { white-space: normal; }
summary .badge { margin-left: 0.5rem; }
"""
