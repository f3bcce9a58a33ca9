"""Figures as people read them, rounded down: what is just under a gate must not look as if it reached it."""

import math
import textwrap
from collections.abc import Iterable, Sequence

from mobilevit_coreml.package.files import MEGABYTE

WIDTH = 65  # of the second column of a table, whose lines have 80


def decibels(value: float) -> str:
    """To a tenth of a dB."""
    if math.isnan(value):
        return "NaN dB"
    return f"{math.floor(value * 10) / 10:.1f} dB" if math.isfinite(value) else f"{value} dB"


def percent(share: float) -> str:
    """To a hundredth of a percent, without zeros at its end."""
    if math.isnan(share):
        return "NaN"
    return f"{math.floor(1e4 * share + 1e-6) / 100:.2f}".rstrip("0").rstrip(".") + "%"


def noise(power: float | None) -> str:
    """Noise power as dB of the signal's."""
    if power is None:
        return "not measured"
    return f"{10 * math.log10(power):.1f} dB" if power > 0 else "none"


def megabytes(size: int) -> str:
    """Of 10^6 bytes."""
    return f"{size / MEGABYTE:.2f} MB"


def counted(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def table(title: str, rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A title, and below it names with their lines, at most 80 columns wide; names without lines are left out."""
    lines = [title]
    for name, texts in rows:
        wrapped = [line for text in texts for line in _wrapped(text)]
        lines += [f"  {label:<12} {line}" for label, line in zip([name, *[""] * len(wrapped)], wrapped, strict=False)]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text.lstrip())
