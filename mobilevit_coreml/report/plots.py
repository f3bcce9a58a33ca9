"""What a validation looks like: errors along the program, probabilities against probabilities, devices.

No text in a plot comes from outside: names of operations, classes and files stand beside it on the page.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mobilevit_coreml.metrics import MIN_PROBABILITY
from mobilevit_coreml.report.html import BLUE, GREEN, GREY, ORANGE, Html, drawing, svg
from mobilevit_coreml.validation.core_ml import CPU, GPU, NEURAL_ENGINE
from mobilevit_coreml.validation.program import ProgramReport
from mobilevit_coreml.validation.run import PlannedOperation, Run
from mobilevit_coreml.validation.steps import Step

WIDE = 10  # inches, of which the page shows as many as it is wide
MANY_POINTS = 500  # points are a picture instead of shapes where there are more
FEW_DECADES = 300  # of largest to smallest: below, an axis has numbers between its powers of ten
LEAST_LABEL = 0.05  # of the width: parts of the network that are narrower get no name
DEVICES = {  # colour, hatching, words
    NEURAL_ENGINE: (BLUE, "", "Neural Engine"),
    GPU: ("#E5A823", "", "GPU"),
    CPU: (ORANGE, "//", "CPU"),
}


def operation_errors(program: ProgramReport) -> Html:
    """Own and accumulated SNR of each operation in program order, the gate, and the first mismatch."""
    steps = program.steps
    with drawing(WIDE, 4.2) as figure:
        axes = figure.add_subplot()
        finite = [value for step in steps for value in (step.own, step.accumulated) if math.isfinite(value)]
        low, high = min([*finite, program.gate]) - 10, max([*finite, program.gate]) + 10
        for values, style, color, label in (
            ([step.own for step in steps], ".", GREY, "its own, on the inputs it has"),
            ([step.accumulated for step in steps], "-", BLUE, "accumulated up to it"),
        ):
            drawn = [value if math.isfinite(value) else math.nan for value in values]
            axes.plot(drawn, style, color=color, label=label)
        exact = [index for index, step in enumerate(steps) if step.own == math.inf]
        lost = [index for index, step in enumerate(steps) if math.isnan(step.own) or step.own == -math.inf]
        if exact:
            axes.plot(exact, [high - 4] * len(exact), "^", color=GREEN, markersize=4, label="exact")
        if lost:
            axes.plot(lost, [low + 4] * len(lost), "x", color=ORANGE, label="no number")
        gate = f"gate of its own, {program.gate:g} dB"
        axes.axhline(program.gate, color=ORANGE, linestyle="--", linewidth=1, label=gate)
        mismatch = _mismatch_index(program)
        if mismatch is not None:
            own = steps[mismatch].own
            axes.axvline(mismatch, color=ORANGE, linewidth=1)
            place = own if math.isfinite(own) else low + 4
            axes.plot([mismatch], [place], "D", color=ORANGE, markersize=8, label="first mismatch")
        axes.set_xlim(-1, len(steps))
        axes.set_ylim(low, high)
        axes.set_ylabel("SNR against PyTorch, dB")
        axes.grid(axis="y", alpha=0.3)
        _name_parts(axes, steps)
        figure.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return svg(figure, "SNR of each operation in program order, its own and accumulated")


def probabilities(points: Sequence[tuple[float, float]]) -> Html:
    """The package's probabilities against the original's, and how far they are apart."""
    pairs = [pair for pair in points if all(map(math.isfinite, pair))]
    ours = [max(pair[0], MIN_PROBABILITY) for pair in pairs]
    theirs = [max(pair[1], MIN_PROBABILITY) for pair in pairs]
    with drawing(WIDE, 4) as figure:
        against, apart = figure.subplots(1, 2)
        style = {"color": BLUE, "alpha": 0.5, "markersize": 4, "rasterized": len(pairs) > MANY_POINTS}
        ends = [min(*ours, *theirs), max(*ours, *theirs)] if pairs else [MIN_PROBABILITY, 1]
        against.plot(ends, ends, color=GREY, linewidth=1)
        against.plot(ours, theirs, ".", **style)
        against.set(xscale="log", yscale="log", xlabel="PyTorch's probability", ylabel="the package's")
        apart.axhline(0, color=GREY, linewidth=1)
        apart.plot(ours, [other - own for own, other in pairs], ".", **style)
        apart.set(xscale="log", xlabel="PyTorch's probability", ylabel="the package's, less PyTorch's")
        for axis in (against.xaxis, against.yaxis, apart.xaxis):
            _plain_decades(axis)
        for axes in (against, apart):
            axes.grid(alpha=0.3)
        return svg(figure, "Probabilities of the package against PyTorch's, and their differences")


def devices(runs: Sequence[Run], program: ProgramReport) -> Html:
    """Where Core ML means to run each operation, in program order, a strip for each run that has a plan."""
    modules = {step.operation: step for step in program.steps}
    with drawing(WIDE, 1.1 + 0.55 * len(runs)) as figure:
        axes = figure.add_subplot()
        used = set()
        longest: list[PlannedOperation] = []
        for row, run in enumerate(runs):
            placed = [one for one in run.plan if one.device is not None]
            longest = max(longest, placed, key=len)
            for device, start, length in _stretches(placed):
                color, hatch, _ = DEVICES[device]
                style = {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
                axes.broken_barh([(start, length)], (row - 0.35, 0.7), zorder=2, **style)
                used.add(device)
        axes.set_yticks(range(len(runs)), [str(run.backend) for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(0, max(len(longest), 1))
        _name_parts(axes, [modules.get(one.operation) for one in longest])
        for device, (color, hatch, words) in DEVICES.items():
            if device in used:
                axes.bar([0], [0], facecolor=color, hatch=hatch, edgecolor="white", linewidth=0, label=words)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return svg(figure, "Devices that Core ML means to use, in program order")


def _plain_decades(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade where it has few of them, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _mismatch_index(program: ProgramReport) -> int | None:
    """The place of the first mismatch among the steps, or of the step behind it; None where there is neither."""
    if program.mismatch is None:
        return None
    order = {one.name: index for index, one in enumerate(program.ranges)}
    place = order.get(program.mismatch.operation)
    for index, step in enumerate(program.steps):
        behind = place is not None and order.get(step.operation, -1) >= place
        if step.operation == program.mismatch.operation or behind:
            return index
    return None


def _stretches(placed: Sequence[PlannedOperation]) -> Iterator[tuple[str, int, int]]:
    """Device, start and length of operations in a row on one device."""
    start = 0
    for device, stretch in itertools.groupby(placed, key=lambda one: one.device):
        length = len(list(stretch))
        if device is not None:
            yield device, start, length
        start += length


def _name_parts(axes: Any, steps: Sequence[Step | None]) -> None:
    """Name the parts of the network below, by the modules that operations come from, and draw where they begin."""
    parts = _parts([step.module if step else "" for step in steps])
    named = [(name, start, end) for name, start, end in parts if end - start >= LEAST_LABEL * len(steps)]
    for _, start, _ in parts[1:]:
        axes.axvline(start - 0.5, color=GREY, linewidth=0.5, alpha=0.6, zorder=0)
    axes.set_xticks([(start + end - 1) / 2 for _, start, end in named], [name for name, _, _ in named])
    axes.tick_params(axis="x", length=0)


def _parts(modules: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, start and end of each part, such as stage3; operations of no module belong to the part before."""
    parts: list[tuple[str, int, int]] = []
    for index, module in enumerate(modules):
        name = module.removeprefix("backbone.").partition(".")[0]
        if parts and name in ("", parts[-1][0]):
            parts[-1] = (*parts[-1][:2], index + 1)
        elif name:
            parts.append((name, parts[-1][2] if parts else 0, index + 1))
    return parts
