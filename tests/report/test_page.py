"""The page of a validation: what it shows, that it is one file, and that nothing in it is taken for HTML."""

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.metrics import NOT_RUN
from mobilevit_coreml.report.collect import validation_report
from mobilevit_coreml.report.page import write_html
from mobilevit_coreml.report.plots import ORANGE, operation_errors, probabilities
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.program import Mismatch
from mobilevit_coreml.validation.run import Validation
from tests.validation.examples import FUNCTION, faulty, good, images_for, reference_run, with_core_ml, with_curve

EVIL = '<script>alert("1")</script>\'&\u202e$x$'
VOID = ("meta", "img", "br", "path", "use", "rect", "image", "hr")


class Page(HTMLParser):
    """A page taken apart: tags in order, texts by tag, what would be loaded; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.loaded: list[str] = []
        self.labels: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._read(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._read(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def _read(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "data", "action", "srcset") or name.endswith(":href"):
                self.loaded.append(value or "")
            if name == "aria-label":
                self.labels.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def all(self, tag: str) -> list[str]:
        return [text for kind, text in self.texts if kind == tag]


def written(tmp_path: Path, validation: Validation, kind: str = "classifier") -> str:
    write_html(tmp_path / "report.html", validation, images_for(validation, kind))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "features"])
def test_a_page_loads_nothing(kind: str, tmp_path: Path) -> None:
    text = written(tmp_path, good(kind), kind)
    found = Page(text)
    assert [one for one in found.loaded if not one.startswith(("#", "data:image/"))] == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    assert re.findall(r"url\((?!#)[^)]*\)|@import", text) == []
    assert "default-src 'none'" in text
    assert "<metadata>" not in text
    plotted = [one for one in found.ids if one.startswith(("figure", "axes", "patch", "text"))]
    assert plotted == []  # which would be there once a plot


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    found = Page(written(tmp_path, good("classifier")))
    assert found.all("title") == ["PASS: classifier.mlpackage"]
    assert found.all("p")[0] == "✓ PASS"
    assert found.all("h1") == ["classifier.mlpackage"]
    assert "NOT_RUN: coreml. Core ML is on a Mac only; the verdict says nothing of it." in found.all("p")
    assert "NOT_RUN: gate latency was not measured on reference." in found.all("p")
    assert found.all("span").count("○ NOT_RUN") == 4  # Core ML twice, that gate, and the framework
    assert "not measured" in found.all("td")


def test_a_package_that_fails_says_why_and_where(tmp_path: Path) -> None:
    found = Page(written(tmp_path, faulty(), ""))
    assert "✗ FAIL" in found.all("p")
    assert any(text.startswith("first mismatch: gelu stage3_1_layers_1_activation of ") for text in found.all("li"))
    assert "First mismatch:" in found.all("strong")
    assert "Mismatch: 1 operation" in found.all("h3")
    assert "first mismatch" in found.all("text")  # of the plot


def test_what_was_asked_for_and_not_run_is_no_pass(tmp_path: Path) -> None:
    validation = good("features")
    left = next(run for run in validation.runs if run.verdict == NOT_RUN)
    text = written(tmp_path, dataclasses.replace(validation, asked=(left.backend,), runs=(left,)), "features")
    found = Page(text)
    assert found.all("title") == ["NOT_RUN: features.mlpackage"]
    assert '<header class="NOT_RUN">' in text
    assert "coreml: Core ML is on a Mac only" in found.all("li")
    assert "Worst images" not in found.all("h2")


def test_each_plot_is_there_where_there_is_something_to_plot(tmp_path: Path) -> None:
    errors, points, curve, strips = (
        "SNR of each operation in program order, its own and accumulated",
        "Probabilities of the package against PyTorch's, and their differences",
        "Size against SNR of choices scored in PyTorch",
        "Devices that Core ML plans to use, in program order",
    )
    assert Page(written(tmp_path, good("classifier"))).labels == [points, errors]
    assert Page(written(tmp_path, good("segmenter"), "segmenter")).labels == [errors]
    budget = with_curve(good("features"), [[700_000, 15.1, None], [998_000, 28.6, None]])
    assert Page(written(tmp_path, budget, "features")).labels == [curve, errors]
    assert Page(written(tmp_path, with_core_ml(good("classifier")))).labels == [points, points, errors, strips]
    validation = good("features")
    failed = dataclasses.replace(validation.programs[FUNCTION], steps=(), failure="a loop <that> is not implemented")
    found = Page(written(tmp_path, dataclasses.replace(validation, programs={FUNCTION: failed}), "features"))
    assert found.labels == []
    assert "The operations could not be compared: a loop <that> is not implemented" in found.all("p")


def test_core_ml_has_devices_and_times(tmp_path: Path) -> None:
    found = Page(written(tmp_path, with_core_ml(good("classifier"))))
    assert "crashed with SIGABRT" in found.all("p")
    assert "1.25 ms" in found.all("td")
    assert {"Neural Engine", "CPU"} <= set(found.all("td"))
    assert "GPU" not in found.all("text")
    assert "coreml all: 1 operation outside the Neural Engine" in found.all("summary")


def test_the_worst_images_are_on_the_page(tmp_path: Path) -> None:
    validation = good("classifier")
    text = written(tmp_path, validation)
    found = Page(text)
    names = [result.name for result in reference_run(validation).measured.worst]
    assert [name for name in found.all("h4") if name in names] == names
    images = [one for one in found.loaded if one.startswith("data:image/jpeg;base64,")]
    assert len(images) == len(names)
    with Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))) as image:
        assert (image.format, image.size) == ("JPEG", (64, 64))
    first = reference_run(validation).measured.worst[0].first[0]
    assert f"{100 * first[1]:.3f}%" in found.all("td")


def pixels(uri: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """(H, W, RGB) of an image in a page."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.array(image.convert("RGB"))


def test_a_segmenter_has_both_masks_and_where_they_differ(tmp_path: Path) -> None:
    """In pixels: the page's images against the class maps of the first of the worst images."""
    validation = good("segmenter")
    found = Page(written(tmp_path, validation, "segmenter"))
    assert found.all("figcaption")[-4:] == ["image", "PyTorch's mask", "package's mask", "difference"]
    result = reference_run(validation).measured.worst[0]
    assert result.masks is not None
    colors = np.array([ImageColor.getrgb(color) for color in validation.record.colors])
    first = [one for one in found.loaded if one.startswith("data:image/")][:4]
    photograph, *maps = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).convert("RGB")) for one in first
    )
    assert photograph.shape == (128, 128, 3)
    for side, plotted in zip(result.masks, maps, strict=False):
        np.testing.assert_array_equal(plotted, colors[side])
    differs = result.masks[0] != result.masks[1]
    assert 0 < differs.mean() < 0.1
    np.testing.assert_array_equal((maps[2] == ImageColor.getrgb(ORANGE)).all(-1), differs)
    assert len(found.all("figcaption")) == 1 + 4 * len(reference_run(validation).measured.worst)


def test_masks_are_at_most_256_pixels_large_and_lose_no_difference(tmp_path: Path) -> None:
    """A single pixel that differs, and a class that is none, in a mask at half its size."""
    validation = good("segmenter")
    preprocessing = dataclasses.replace(validation.original.record.preprocessing, crop=(512, 384))
    ours = np.zeros((512, 384), np.int16)
    theirs = ours.copy()
    theirs[101, 200], theirs[0, 0] = 999, 2
    run = reference_run(validation)
    worst = [dataclasses.replace(run.measured.worst[0], masks=(ours, theirs))]
    changed = dataclasses.replace(run, measured=dataclasses.replace(run.measured, worst=worst))
    original = dataclasses.replace(
        validation.original, record=dataclasses.replace(validation.original.record, preprocessing=preprocessing)
    )
    found = Page(written(tmp_path, dataclasses.replace(validation, runs=(changed,), original=original), "segmenter"))
    differs = pixels(found.loaded[-1])
    assert differs.shape == (256, 192, 3)
    assert np.argwhere((differs == ImageColor.getrgb(ORANGE)).all(-1)).tolist() == [[0, 0], [50, 100]]


def test_images_that_are_gone_leave_a_page(tmp_path: Path) -> None:
    def gone() -> Image.Image:
        raise InputError("image a.png: expected an image Pillow can read, got none")

    validation = good("classifier")
    names = [result.name for result in reference_run(validation).measured.worst]
    write_html(tmp_path / "report.html", validation, {FUNCTION: [LabelledImage(names[0], gone)]})
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "the image can no longer be read" in found.all("p")
    assert "no image" in found.all("p")
    assert "img" not in found.tags


def evil(validation: Validation) -> Validation:
    """The same, with everything that comes from outside called EVIL."""
    original = dataclasses.replace(
        validation.original, classes=(EVIL,) * len(validation.original.classes), notices=(EVIL,)
    )
    weights = dataclasses.replace(validation.record.weights, name=EVIL, revision=EVIL)
    record = dataclasses.replace(validation.record, version=EVIL, variant=EVIL, weights=weights)
    checks = [dataclasses.replace(check, detail=EVIL) for check in validation.declared[FUNCTION]]
    program = validation.programs[FUNCTION]
    program = dataclasses.replace(
        program,
        steps=tuple(dataclasses.replace(step, operation=EVIL, type=EVIL, own=0.0) for step in program.steps),
        tensors=tuple(dataclasses.replace(one, operation=EVIL, format=EVIL, passed=False) for one in program.tensors),
        ranges=tuple(dataclasses.replace(one, name=EVIL, type=EVIL, max_abs=65000.0) for one in program.ranges),
        findings=tuple(dataclasses.replace(one, operation=EVIL, detail=EVIL) for one in program.findings),
        mismatch=Mismatch(EVIL, EVIL, EVIL, EVIL),
    )
    run = reference_run(validation)
    worst = [dataclasses.replace(result, name=EVIL) for result in run.measured.worst]
    run = dataclasses.replace(run, reason=EVIL, measured=dataclasses.replace(run.measured, worst=worst))
    return dataclasses.replace(
        validation,
        package=Path(EVIL.replace("/", "")),
        source=EVIL,
        original=original,
        record=record,
        declared={FUNCTION: tuple(checks)},
        programs={FUNCTION: program},
        runs=(run, *with_core_ml(validation).runs[1:]),
    )


def test_nothing_from_outside_is_html(tmp_path: Path) -> None:
    validation = evil(good("classifier"))
    image = LabelledImage(EVIL, lambda: Image.new("RGB", (64, 64)))
    write_html(tmp_path / "report.html", validation, {FUNCTION: [image]})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in found.tags
    assert "<script" not in text
    assert EVIL in found.all("td")
    assert EVIL in found.all("h4")
    assert [one for one in found.all("text") if "script" in one] == []  # plots have no text from outside


def test_file_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    validation = dataclasses.replace(good("features"), source="\udcff")
    assert "8 of ?" in Page(written(tmp_path, validation, "features")).all("td")


def test_equal_validations_make_equal_pages(tmp_path: Path) -> None:
    validation = with_curve(with_core_ml(good("classifier")), [[700_000, 15.1, 0.5]])
    assert written(tmp_path, validation) == written(tmp_path, validation)


def test_numbers_that_are_not_finite_are_plotted() -> None:
    function = validation_report(good("features")).functions[FUNCTION]
    odd = [
        dataclasses.replace(step, own=own, accumulated=own)
        for step, own in zip(function.operations, (math.nan, -math.inf, math.inf, 60.0), strict=False)
    ]
    for steps in (odd, odd[:1], odd[2:3]):
        plotted = Page(operation_errors(dataclasses.replace(function, operations=tuple(steps))))
        assert ("NaN" in plotted.all("text")) == (steps is not odd[2:3] and math.isnan(steps[0].own))
    for points in ([], [(0.0, 0.0)], [(math.nan, 0.5), (0.25, 0.25)], [(1.0, 1.0)]):
        assert probabilities(points).startswith("<svg")


def test_many_points_are_one_embedded_image() -> None:
    many = probabilities([(index / 1000, index / 1001) for index in range(1, 1000)])
    assert "data:image/png;base64," in many
    assert many.count("<use") < 200


def test_an_operation_that_was_added_is_marked_where_it_is_read() -> None:
    function = validation_report(good("features")).functions[FUNCTION]
    second = function.ranges[1]
    without = tuple(step for step in function.operations if step.operation != second.operation)
    mismatch = Mismatch(second.operation, second.type, "", "")
    added = dataclasses.replace(function, operations=without, departure=mismatch)
    assert "first mismatch" in Page(operation_errors(added)).all("text")
    missing = dataclasses.replace(function, departure=Mismatch("nowhere", "", "", ""))
    assert "first mismatch" not in Page(operation_errors(missing)).all("text")
