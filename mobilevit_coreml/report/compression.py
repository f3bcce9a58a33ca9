"""What a compression chose and what it cost, as JSON, as a page, or as a picture."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from mobilevit_coreml.compression.plan import Plan
from mobilevit_coreml.metrics import Fidelity
from mobilevit_coreml.package.files import MEGABYTE
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.report.html import GREY, ORANGE, drawing, escaped, page, save_png, svg, table
from mobilevit_coreml.report.html import check_drawable as check_drawable  # for who asks for a report

SCHEMA = 1  # of the JSON; counts up when something in it changes its meaning


def write_report(path: Path, package: Path, size: int, plan: Plan, quality: Fidelity) -> None:
    """Write `path`, by its ending: JSON, a self-contained page, or a plot of size against quality.

    Raises OutputError where matplotlib, which draws, is not installed.
    """
    values = report_values(package, size, plan, quality)
    writers = {".json": _write_json, ".html": _write_html, ".png": _write_png}
    with atomic_write(path) as file:
        writers[path.suffix](file, values)


def report_values(package: Path, size: int, plan: Plan, quality: Fidelity) -> dict[str, Any]:
    """The report as plain values: sizes in bytes, SNR in dB, agreements and noise as shares."""
    return {
        "schema": SCHEMA,
        "package": package.name,
        "bytes": size,
        "scheme": plan.scheme,
        "calibrated_with": plan.pictures,
        "tested_with": quality.images,
        "quality": {
            "snr": {name: signal.snr for name, signal in quality.signals.items()},
            "worst_picture_snr": {name: signal.worst_snr for name, signal in quality.signals.items()},
            "cosine": {name: signal.cosine for name, signal in quality.signals.items()},
            "agreement": quality.agreement,
        },
        "curve": [{"bytes": size, "snr": snr, "agreement": agreement} for size, snr, agreement in plan.curve],
        "layers": [
            {"path": one.path, "format": one.format, "weights": one.weights, "bytes": one.bytes, "noise": one.noise}
            for one in plan.layers
        ],
        "left": dict(plan.left),
    }


def _write_json(file: IO[bytes], values: dict[str, Any]) -> None:
    file.write(json.dumps(values, indent=2, ensure_ascii=False).encode())


def _write_png(file: IO[bytes], values: dict[str, Any]) -> None:
    with drawing() as figure:
        _draw(figure, values)
        save_png(figure, file)


def _write_html(file: IO[bytes], values: dict[str, Any]) -> None:
    with drawing() as figure:
        _draw(figure, values)
        plot = svg(figure, "Size against SNR of all packages that were built")
    quality = values["quality"]
    figures = [
        (name, f"{snr:.1f} dB", f"{quality['worst_picture_snr'][name]:.1f} dB", f"{quality['cosine'][name]:.6f}")
        for name, snr in quality["snr"].items()
    ]
    layers = [
        (one["path"], one["format"], f"{one['weights']:,}", f"{one['bytes']:,}", _decibels(one["noise"]))
        for one in values["layers"]
    ]
    agreement = "" if quality["agreement"] is None else f", the same class on {quality['agreement']:.1%}"
    summary = (
        f"{values['bytes'] / MEGABYTE:.2f} MB (asked for: {values['scheme']}), "
        f"calibrated with {values['calibrated_with']} "
        f"pictures; measured on the saved package with {values['tested_with']} others{agreement}."
    )
    body = BODY.format(
        title=escaped(values["package"]),
        summary=escaped(summary),
        svg=plot,
        quality=table(("output", "SNR", "worst picture", "cosine"), figures, (1, 2, 3)),
        layers=table(("layer", "stored as", "weights", "bytes, about", "its noise at the output"), layers, (2, 3, 4)),
        left=table(("layer", "left in half precision, since it is"), list(values["left"].items())),
    )
    file.write(page(values["package"], body))


def _decibels(noise: float | None) -> str:
    if noise is None:
        return "not measured"
    return f"{10 * math.log10(noise):.1f} dB" if noise > 0 else "none"


def _draw(figure: Any, values: dict[str, Any]) -> None:
    points = [(one["bytes"], one["snr"]) for one in values["curve"]]
    worst = min(values["quality"]["snr"].values())
    size_against_quality(figure.add_subplot(), points, values["bytes"], worst)


def size_against_quality(axes: Any, points: Sequence[tuple[int, float]], size: int, snr: float | None) -> None:
    """Plot the bytes and dB of all packages that were built, and of the one that was kept where its dB are known."""
    if points:
        sizes, decibels = zip(*points, strict=True)
        axes.plot([one / MEGABYTE for one in sizes], decibels, "o-", color=GREY, label="built and measured")
    if snr is not None:
        axes.plot([size / MEGABYTE], [snr], "D", color=ORANGE, markersize=9, label="this package")
    axes.set_xlabel("package, MB (10^6 bytes)")
    axes.set_ylabel("SNR of the worst output, dB")
    axes.grid(alpha=0.3)
    axes.legend()


BODY = """\
<h1>{title}</h1>
<p>{summary}</p>
<h2>Quality, against the original in PyTorch</h2>
{quality}
<h2>Size against quality</h2>
{svg}
<h2>Layers</h2>
{layers}
<h2>Left alone</h2>
{left}"""
