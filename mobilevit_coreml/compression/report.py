"""What a compression chose and what it cost, as JSON, as a page, or as a picture."""

import html
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from mobilevit_coreml.atomic import whole_file
from mobilevit_coreml.compression.plan import Plan
from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.verification import Fidelity

SCHEMA = 1  # of the JSON; counts up when something in it changes its meaning


def write_report(path: Path, package: Path, size: int, plan: Plan, quality: Fidelity) -> None:
    """Write `path`, by its ending: JSON, a self-contained page, or a plot of size against quality.

    Raises OutputError where matplotlib, which draws, is not installed.
    """
    values = report_values(package, size, plan, quality)
    writers = {".json": _write_json, ".html": _write_html, ".png": _write_png}
    with whole_file(path) as file:
        writers[path.suffix](file, values)


def check_drawable() -> None:
    """Raise OutputError where there is nothing to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            "report: expected matplotlib to draw with, got none installed; pip install matplotlib, or ask for .json"
        )


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
    _draw(file, values, "png")


def _write_html(file: IO[bytes], values: dict[str, Any]) -> None:
    drawing = io.BytesIO()
    _draw(drawing, values, "svg")
    svg = drawing.getvalue().decode()
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
    page = PAGE.format(
        title=html.escape(values["package"]),
        summary=html.escape(
            f"{values['bytes'] / 1e6:.2f} MB (asked for: {values['scheme']}), "
            f"calibrated with {values['calibrated_with']} "
            f"pictures; measured on the saved package with {values['tested_with']} others{agreement}."
        ),
        svg=svg[svg.index("<svg") :],
        quality=_table(("output", "SNR", "worst picture", "cosine"), figures),
        layers=_table(("layer", "stored as", "weights", "bytes, about", "its noise at the output"), layers),
        left=_table(("layer", "left in half precision, since it is"), list(values["left"].items())),
    )
    file.write(page.encode())


def _decibels(noise: float | None) -> str:
    if noise is None:
        return "not measured"
    return f"{10 * math.log10(noise):.1f} dB" if noise > 0 else "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _draw(file: IO[bytes], values: dict[str, Any], kind: str) -> None:
    """Size against quality of all packages that were built, the one that was kept marked."""
    check_drawable()
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "mobilevit_coreml"  # the same picture each time
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [(one["bytes"] / 1e6, one["snr"]) for one in values["curve"]]
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color="#7A8794", label="built and measured")
    worst = min(values["quality"]["snr"].values())
    axes.plot([values["bytes"] / 1e6], [worst], "D", color="#C2410C", markersize=9, label="this package")
    axes.set_xlabel("package, MB (10^6 bytes)")
    axes.set_ylabel("SNR of the worst output, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1F2933; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #E4E7EB; }}
td:nth-child(n+3), th:nth-child(n+3) {{ text-align: right; font-variant-numeric: tabular-nums; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
<h2>Quality, against the original in PyTorch</h2>
{quality}
<h2>Size against quality</h2>
{svg}
<h2>Layers</h2>
{layers}
<h2>Left alone</h2>
{left}
</body>
</html>
"""
