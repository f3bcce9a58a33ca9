"""The pages in a browser: nothing is loaded or wrong, and all of it can be read, on a phone and in the dark."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.report.compression import write_report
from mobilevit_coreml.report.page import write_html
from tests.report.test_compression import PLAN, QUALITY
from tests.validation.examples import faulty, good, images_for, with_core_ml, with_curve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH = 400  # pixels
MIN_CONTRAST = 4.5  # of WCAG 2.1, level AA
MIN_PLOT_WIDTH = 500  # pixels at which labels of 10 points in a plot 768 wide are 9 pixels high; it scrolls

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

# The page is in a frame, since its own policy forbids scripts, and all of it is opened.
FRAME = """<!doctype html>
<meta name="color-scheme" content="light dark">
<iframe id="frame" style="width: WIDTHpx; height: 2000px; border: 0; color-scheme: light dark" srcdoc="PAGE"></iframe>
<pre id="result"></pre>
<script>
const channels = color => color.match(/[\\d.]+/g).map(Number);
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function background(element, view) {
  for (let one = element; one; one = one.parentElement) {
    const color = channels(view.getComputedStyle(one).backgroundColor);
    if (color.length === 3 || color[3] > 0) return color;
  }
  return [255, 255, 255];
}
function contrast(element, view) {
  const [a, b] = [channels(view.getComputedStyle(element).color), background(element, view)].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
onload = () => {
  const view = frame.contentWindow, page = view.document;
  for (const one of page.querySelectorAll("details")) one.open = true;
  const all = [...page.body.querySelectorAll("*")];
  const hasText = one => [...one.childNodes].some(child => child.nodeType === 3 && child.data.trim());
  const texts = all.filter(one => !one.closest("svg") && hasText(one));
  const boxes = [...page.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  result.textContent = JSON.stringify({
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    plots: boxes.map(box => [box.width, box.height]),
    images: [...page.images].map(one => [one.clientWidth, one.clientHeight, one.naturalWidth]),
    width: page.documentElement.scrollWidth,
    loaded: view.performance.getEntriesByType("resource").map(one => one.name).filter(one => !one.startsWith("data:")),
    faint: texts.filter(one => contrast(one, view) < CONTRAST).map(one => one.outerHTML.slice(0, 200)),
    small: texts.filter(one => parseFloat(view.getComputedStyle(one).fontSize) < 12).map(one => one.textContent),
    texts: texts.length,
  });
};
</script>
"""


def measure(page: Path, directory: Path, dark: bool = False) -> dict[str, Any]:
    """Sizes, colours and console messages of a page in a browser, WIDTH wide."""
    assert CHROMIUM is not None
    frame = directory / "frame.html"
    text = FRAME.replace("WIDTH", str(WIDTH)).replace("CONTRAST", str(MIN_CONTRAST))
    frame.write_text(text.replace("PAGE", html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={directory / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    values: dict[str, Any] = json.loads(html.unescape(found[1]))
    return {**values, "console": [line for line in done.stderr.splitlines() if ":CONSOLE" in line]}


def classifier(path: Path) -> None:
    validation = with_curve(with_core_ml(good("classifier")), [[700_000, 15.1, 0.5], [998_000, 28.6, 0.75]])
    write_html(path, validation, images_for(validation, "classifier"))


def segmenter(path: Path) -> None:
    write_html(path, good("segmenter"), images_for(good("segmenter"), "segmenter"))


def failing(path: Path) -> None:
    write_html(path, faulty(), images_for(faulty(), ""))


def compression(path: Path) -> None:
    write_report(path, Path("MobileViT_XXS_features_1MB.mlpackage"), 998_000, PLAN, QUALITY)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("write", "plots", "images"),
    [(classifier, 5, 4), (segmenter, 1, 24), (failing, 2, 6), (compression, 1, 0)],
)
def test_a_page_can_be_read(write: Callable[[Path], None], plots: int, images: int, dark: bool, tmp_path: Path) -> None:
    write(tmp_path / "page.html")
    found = measure(tmp_path / "page.html", tmp_path, dark)
    assert found["dark"] == dark
    assert found["console"] == []
    assert found["loaded"] == []
    assert len(found["plots"]) == plots
    assert all(width >= MIN_PLOT_WIDTH and height > 100 for width, height in found["plots"])
    assert len(found["images"]) == images
    assert all(min(sizes) >= 64 for sizes in found["images"])
    assert found["width"] == WIDTH
    assert found["texts"] > 20
    assert found["faint"] == []
    assert found["small"] == []


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ('<img src="http://127.0.0.1:9/x.png">', "console"),
        ("<script>1</script>", "console"),
        ('<p style="width: 500px">wide</p>', "width"),
        ('<p style="color: #999">faint</p>', "faint"),
        ('<p style="font-size: 8px">small</p>', "small"),
    ],
)
def test_what_is_wrong_is_found(wrong: str, key: str, tmp_path: Path) -> None:
    compression(tmp_path / "page.html")
    good_page = measure(tmp_path / "page.html", tmp_path)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{wrong}</body>"), encoding="utf-8")
    assert measure(tmp_path / "page.html", tmp_path)[key] != good_page[key]
