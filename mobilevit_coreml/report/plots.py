"""Plots of the reports: error along the program, probabilities, devices, size against quality.

No text in a plot comes from outside, whose characters may be in no font: names stand beside it on the page.
"""

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mobilevit_coreml.metrics import MIN_PROBABILITY
from mobilevit_coreml.package.files import MEGABYTE
from mobilevit_coreml.report import values
from mobilevit_coreml.validation.core_ml import CPU, GPU, NEURAL_ENGINE

# Distinct to colour-blind readers, and dark enough for text on white
BLUE, ORANGE, GREEN, GREY = "#1F5FA8", "#C2410C", "#1B7F4D", "#7A8794"
WIDTH = 8  # inches, 96 pixels each
MAX_SHAPES = 500  # points beyond are one embedded image, since a page of many shapes is slow
FEW_DECADES = 300  # ratio of an axis' ends; below, it has numbers between its powers of ten
MIN_LABEL_SHARE = 0.05  # of the width: narrower parts of the network get no name
DEVICES = {  # colour, hatching, name
    NEURAL_ENGINE: (BLUE, "", "Neural Engine"),
    GPU: ("#E5A823", "", "GPU"),
    CPU: (ORANGE, "//", "CPU"),
}


@contextlib.contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """A matplotlib figure of `height` inches, to be plotted and saved in the block; saving it is deterministic."""
    # texts as texts, which can be read aloud and searched
    with rc_context({"svg.hashsalt": "mobilevit_coreml", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def svg(figure: Figure, description: str) -> Markup:
    """A figure as SVG inside a page, with a description for screen readers."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    # matplotlib's ids are the same in each figure, and a page has several
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1))


def operation_errors(function: values.Function) -> Markup:
    """Own and accumulated SNR of each operation in program order, the gate, and the first mismatch."""
    steps, gate = function.operations, function.operation_gate
    with drawing(4.2) as figure:
        axes = figure.add_subplot()
        finite = [value for step in steps for value in (step.own, step.accumulated) if math.isfinite(value)]
        low, high = min([*finite, gate]) - 10, max([*finite, gate]) + 10
        for snrs, style, color, label in (
            ([step.own for step in steps], ".", GREY, "its own"),
            ([step.accumulated for step in steps], "-", BLUE, "accumulated"),
        ):
            axes.plot([snr if math.isfinite(snr) else math.nan for snr in snrs], style, color=color, label=label)
        exact = [index for index, step in enumerate(steps) if step.own == math.inf]
        lost = [index for index, step in enumerate(steps) if math.isnan(step.own) or step.own == -math.inf]
        if exact:
            axes.plot(exact, [high - 4] * len(exact), "^", color=GREEN, markersize=4, label="exact")
        if lost:
            axes.plot(lost, [low + 4] * len(lost), "x", color=ORANGE, label="NaN")
        axes.axhline(gate, color=ORANGE, linestyle="--", linewidth=1, label=f"gate of its own, {gate:g} dB")
        mismatch = _mismatch_index(function)
        if mismatch is not None:
            axes.axvline(mismatch, color=ORANGE, linewidth=1)
            snr = steps[mismatch].own
            place = snr if math.isfinite(snr) else low + 4
            axes.plot([mismatch], [place], "D", color=ORANGE, markersize=8, label="first mismatch")
        axes.set(xlim=(-1, len(steps)), ylim=(low, high), ylabel="SNR against PyTorch, dB")
        axes.grid(axis="y", alpha=0.3)
        _name_parts(axes, [step.module for step in steps])
        figure.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return svg(figure, "SNR of each operation in program order, its own and accumulated")


def probabilities(points: Sequence[tuple[float, float]]) -> Markup:
    """The package's probabilities against PyTorch's, and their differences."""
    pairs = [pair for pair in points if all(map(math.isfinite, pair))]
    ours = [max(pair[0], MIN_PROBABILITY) for pair in pairs]
    theirs = [max(pair[1], MIN_PROBABILITY) for pair in pairs]
    with drawing(3.4) as figure:
        against, difference = figure.subplots(1, 2)
        style: dict[str, Any] = {"color": BLUE, "alpha": 0.5, "markersize": 4, "rasterized": len(pairs) > MAX_SHAPES}
        ends = [min(*ours, *theirs), max(*ours, *theirs)] if pairs else [MIN_PROBABILITY, 1]
        against.plot(ends, ends, color=GREY, linewidth=1)
        against.plot(ours, theirs, ".", **style)
        against.set(xscale="log", yscale="log", xlabel="PyTorch's probability", ylabel="package's")
        difference.axhline(0, color=GREY, linewidth=1)
        difference.plot(ours, [other - own for own, other in pairs], ".", **style)
        difference.set(xscale="log", xlabel="PyTorch's probability", ylabel="package's minus PyTorch's")
        for axis in (against.xaxis, against.yaxis, difference.xaxis):
            _plain_decades(axis)
        for axes in (against, difference):
            axes.grid(alpha=0.3)
        return svg(figure, "Probabilities of the package against PyTorch's, and their differences")


def devices(runs: Sequence[values.Run]) -> Markup:
    """Planned device of each operation in program order, a strip for each run, which all have a plan."""
    with drawing(1.1 + 0.55 * len(runs)) as figure:
        axes = figure.add_subplot()
        used = set()
        longest: list[values.PlacedOperation] = []
        for row, plan in enumerate(run.plan for run in runs if run.plan is not None):
            placed = [one for one in plan.operations if one.device is not None]
            longest = max(longest, placed, key=len)
            for device, start, length in _stretches(placed):
                color, hatch, _ = DEVICES[device]
                style: dict[str, Any] = {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
                axes.broken_barh([(start, length)], (row - 0.35, 0.7), zorder=2, **style)
                used.add(device)
        axes.set_yticks(range(len(runs)), [run.title for run in runs])
        axes.set(ylim=(len(runs) - 0.5, -0.5), xlim=(0, max(len(longest), 1)))
        _name_parts(axes, [one.module for one in longest])
        for device, (color, hatch, name) in DEVICES.items():
            if device in used:
                axes.bar([0], [0], facecolor=color, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return svg(figure, "Devices that Core ML plans to use, in program order")


def size_against_quality(curve: Sequence[values.Point], size: int, snr: float | None) -> Markup:
    """Size and SNR of other choices, scored in PyTorch, and of the package itself if its SNR is known."""
    with drawing(4) as figure:
        _draw_curve(figure, curve, size, snr)
        return svg(figure, "Size against SNR of choices scored in PyTorch")


def save_curve(file: IO[bytes], curve: Sequence[values.Point], size: int, snr: float) -> None:
    """The same as a PNG, 150 dots an inch."""
    with drawing(4) as figure:
        _draw_curve(figure, curve, size, snr)
        figure.savefig(file, format="png", dpi=150)


def _draw_curve(figure: Figure, curve: Sequence[values.Point], size: int, snr: float | None) -> None:
    axes = figure.add_subplot()
    if curve:
        sizes, snrs = [one.bytes / MEGABYTE for one in curve], [one.snr for one in curve]
        axes.plot(sizes, snrs, "o-", color=GREY, label="scored in PyTorch, size predicted")
    if snr is not None:
        axes.plot([size / MEGABYTE], [snr], "D", color=ORANGE, markersize=9, label="this package")
    axes.set(xlabel="package, MB (10^6 bytes)", ylabel="SNR of the worst output, dB")
    axes.grid(alpha=0.3)
    axes.legend()


def _plain_decades(axis: Any) -> None:
    """Plain numbers at the ticks of a logarithmic axis: at 1, 2 and 5 of each decade, or fewer if it is long."""
    low, high = axis.get_view_interval()
    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _mismatch_index(function: values.Function) -> int | None:
    """Index of the first mismatch among the operations compared, or of the next one; None where there is neither."""
    if function.departure is None:
        return None
    order = {one.operation: index for index, one in enumerate(function.ranges)}
    place = order.get(function.departure.operation)
    for index, step in enumerate(function.operations):
        behind = place is not None and order.get(step.operation, -1) >= place
        if step.operation == function.departure.operation or behind:
            return index
    return None


def _stretches(placed: Sequence[values.PlacedOperation]) -> Iterator[tuple[str, int, int]]:
    """Device, start and length of operations in a row on one device."""
    start = 0
    for device, stretch in itertools.groupby(placed, key=lambda one: one.device or ""):
        length = len(list(stretch))
        yield device, start, length
        start += length


def _name_parts(axes: Any, modules: Sequence[str]) -> None:
    """Name the parts of the network below the axis by the operations' modules, with lines between them."""
    parts = _parts(modules)
    named = [(name, start, end) for name, start, end in parts if end - start >= MIN_LABEL_SHARE * len(modules)]
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
