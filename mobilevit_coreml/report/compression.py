"""The report of a compression: JSON, a page, or a plot of size against quality."""

import math
from pathlib import Path

from mobilevit_coreml.compression.plan import Plan
from mobilevit_coreml.metrics import Fidelity
from mobilevit_coreml.publish import atomic_write
from mobilevit_coreml.report.collect import compression_report
from mobilevit_coreml.report.page import render
from mobilevit_coreml.report.plots import save_curve
from mobilevit_coreml.strict_json import to_json


def write_report(path: Path, package: Path, size: int, plan: Plan, quality: Fidelity) -> None:
    """Write `path`, a .json, .html or .png file; raises OutputError where it cannot be written."""
    report = compression_report(package, size, plan, quality)
    worst = min(report.quality.snr.values(), default=math.nan)
    with atomic_write(path) as file:
        if path.suffix == ".json":
            file.write(to_json(report))
        elif path.suffix == ".png":
            save_curve(file, report.curve, size, worst)
        else:
            render(file, "compression.html", {"report": report, "worst_snr": worst})
