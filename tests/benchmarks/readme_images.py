"""The images of the READMEs: `python -m tests.benchmarks.readme_images CHECKPOINT IMAGES`.

CHECKPOINT is a trained network of any variant, IMAGES a directory of photographs; `size_against_quality.png` and, where
there is a Chromium, `report.png` are written to .github/images/.
"""

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import mobilevit_coreml as mc
from mobilevit_coreml.package.files import MEGABYTE

IMAGES = Path(__file__).parents[2] / ".github" / "images"
BUDGETS = (0.7, 0.85, 1.0, 1.2, 1.5, 1.9)  # MB
UNIFORM = (mc.Quantize("int8"), mc.Palettize(8), mc.Palettize(6), mc.Palettize(4))
BLUE, ORANGE, GREY = "#1F5FA8", "#C2410C", "#7A8794"

Point = tuple[float, float, str]  # MB, dB, name


def main() -> None:
    """Convert, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    values = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        budgets = list(_points(values, [mc.Budget(max_size=round(size * MEGABYTE)) for size in BUDGETS], directory))
        uniform = list(_points(values, UNIFORM, directory))
        _draw(budgets, uniform)
        _screenshot(values, Path(directory))


def _points(
    values: argparse.Namespace, schemes: Iterable[mc.Budget | mc.Palettize | mc.Quantize], directory: str
) -> Iterator[Point]:
    for scheme in schemes:
        options = mc.ConversionOptions(task="features", attention="packed", compression=scheme)
        made = mc.convert(values.checkpoint, options=options, output=directory, images=values.images, force=True)
        (quality,) = made.quality.values()
        name = str(scheme) if isinstance(scheme, mc.Budget) else str(scheme.format)
        print(f"{name:>8} {made.bytes / MEGABYTE:.2f} MB {quality.signals['pooled'].snr:.1f} dB", flush=True)
        yield made.bytes / MEGABYTE, quality.signals["pooled"].snr, name


def _draw(budgets: list[Point], uniform: list[Point]) -> None:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        *zip(*(point[:2] for point in budgets), strict=True),
        "o-",
        color=BLUE,
        label="a format for each layer: --max-size",
    )
    axes.plot(
        *zip(*(point[:2] for point in uniform), strict=True), "s", color=ORANGE, label="one format for all layers"
    )
    for size, snr, name in uniform:
        axes.annotate(name, (size, snr), textcoords="offset points", xytext=(8, -4), color=ORANGE)
    axes.axhline(20, color=GREY, linestyle="--", linewidth=1, label="gate: a package below fails")
    axes.set(
        xlabel="package, MB (10^6 bytes)",
        ylabel="SNR against PyTorch fp32, dB",
        title="MobileViT-xxs, trained: pooled features of images not calibrated with",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(IMAGES / "size_against_quality.png", dpi=110)


def _screenshot(values: argparse.Namespace, directory: Path) -> None:
    """The top of a validation's page, 1000 pixels wide; checkpoint and images have plain names on it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("report.png: not written, there is no chromium")
        return
    from mobilevit_coreml.cli.validate import main as validate

    (directory / "best.pth").symlink_to(values.checkpoint.resolve())
    (directory / "photos").symlink_to(values.images.resolve())
    with contextlib.chdir(directory):
        made = mc.convert("best.pth", output="MobileViT_XXS_fp16.mlpackage", images="photos")
        validate([str(made.path), "--images", "photos", "--html", "report.html"])
    size = "--window-size=1000,1400"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
    command += [f"--screenshot={IMAGES / 'report.png'}", (directory / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
