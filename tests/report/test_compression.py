"""Reports: the same figures in every form, on a page that needs nothing else."""

import dataclasses
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from mobilevit_coreml.compression.plan import Plan, StoredLayer
from mobilevit_coreml.metrics import Fidelity, SignalFidelity
from mobilevit_coreml.report.compression import write_report
from mobilevit_coreml.report.schema import schema_of
from mobilevit_coreml.report.values import CompressionReport

PLAN = Plan(
    "1MB",
    24,
    {},
    {},
    (
        StoredLayer("backbone.stage3.0.expand.conv", "fp16", 2304, 4672, 1e-5),
        StoredLayer("a < b & c", "6bit", 4608, 3900, None),
    ),
    {"backbone.stem.conv": "first convolution"},
    ((700_000, 15.123, 0.5), (998_000, 28.6, 0.75), (1_990_000, 38.7, 1.0)),
)
QUALITY = Fidelity(
    12,
    {},
    {"pooled": SignalFidelity(32.34, 28.9, 0.999715, 0.1), "featureMap": SignalFidelity(28.84, 26.5, 0.9993, 0.2)},
)


def written(path: Path) -> Path:
    write_report(path, Path("somewhere/MobileViT_XXS_features_1MB.mlpackage"), 998_000, PLAN, QUALITY)
    return path


def test_json_has_everything(tmp_path: Path) -> None:
    values = json.loads(written(tmp_path / "r.json").read_text())
    jsonschema.Draft202012Validator(schema_of(CompressionReport)).validate(values)
    assert (values["schema"], values["bytes"], values["calibrated_with"], values["tested_with"]) == (1, 998_000, 24, 12)
    assert values["quality"]["snr"] == {"pooled": 32.34, "featureMap": 28.84}
    assert values["curve"][0] == {"bytes": 700_000, "snr": 15.123, "agreement": 0.5}
    assert values["layers"][0] == {
        "path": "backbone.stage3.0.expand.conv",
        "format": "fp16",
        "weights": 2304,
        "bytes": 4672,
        "noise": 1e-5,
    }
    assert values["left"] == {"backbone.stem.conv": "first convolution"}


class Cells(HTMLParser):
    """The texts of a page's table cells, and whatever it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loaded: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href") or name.endswith(":href")]

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def test_figures_that_are_no_numbers_are_reported(tmp_path: Path) -> None:
    broken = dataclasses.replace(QUALITY, signals={"pooled": SignalFidelity(math.nan, math.nan, math.nan, math.inf)})
    write_report(tmp_path / "r.json", Path("x.mlpackage"), 998_000, PLAN, broken)
    assert json.loads((tmp_path / "r.json").read_text())["quality"]["snr"] == {"pooled": "nan"}
    write_report(tmp_path / "r.html", Path("x.mlpackage"), 998_000, PLAN, broken)
    assert '<td>pooled</td><td class="number">NaN dB</td>' in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_page_has_the_figures_and_loads_nothing(tmp_path: Path) -> None:
    page = Cells()
    text = written(tmp_path / "r.html").read_text(encoding="utf-8")
    page.feed(text)
    assert [value for value in page.loaded if not value.startswith("#")] == []
    assert "<script" not in text
    assert text.count("<svg") == 1
    for cell in ("32.3 dB", "28.9 dB", "0.999715", "backbone.stage3.0.expand.conv", "2,304", "-50.0 dB", "a < b & c"):
        assert cell in page.cells
    assert "not measured" in page.cells
    assert "first convolution" in page.cells


def test_the_png_has_both_series(tmp_path: Path) -> None:
    with Image.open(written(tmp_path / "r.png")) as image:
        assert image.format == "PNG"
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
    assert (0xC2, 0x41, 0x0C) in colors  # this package
    assert (0x7A, 0x87, 0x94) in colors  # the others


@pytest.mark.parametrize("suffix", [".json", ".html", ".png"])
def test_equal_reports_are_equal_files(tmp_path: Path, suffix: str) -> None:
    assert written(tmp_path / f"a{suffix}").read_bytes() == written(tmp_path / f"b{suffix}").read_bytes()
