"""The command, on packages of untrained networks, whose answers are noise, and on one that finds colors."""

import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from sklearn.metrics.pairwise import cosine_similarity

from mobilevit_coreml import masks
from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.cli.predict import main
from mobilevit_coreml.config import CLASSIFICATION, FEATURES
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.images import read_image
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.preprocessing import Preprocessing
from tests.test_inference import (
    FP32,
    brightest,
    colorful,
    pixels_of,
    save_colors_package,
    save_photographs,
)
from tests.untrained import untrained_model

NOTE = "note: the package has untrained weights; its predictions are noise\n"
SIZES = [(64, 64), (64, 96)]
KINDS = ("mask", "overlay", "legend")
PALETTE = ("#000000", "#00FF00", "#0000FF")

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(autouse=True)
def off_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one too, "auto" is the reference evaluator here: Core ML rounds as its hardware does."""
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture
def classifier(shallow: None, converted: Callable[..., Conversion]) -> Path:
    return converted("untrained", "xxs", image_sizes=SIZES[:1], **FP32).path


@pytest.fixture
def extractor(shallow: None, converted: Callable[..., Conversion]) -> Path:
    """Features at two sizes."""
    return converted("untrained", "xxs", task=FEATURES, image_sizes=SIZES, **FP32).path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes red, green and blue by the color of a pixel; red's own is black."""
    path = tmp_path_factory.mktemp("segmenter") / "colors.mlpackage"
    return save_colors_package(path, OutputOptions(), Preprocessing(136, (128, 160), "RGB"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_photographs(tmp_path_factory.mktemp("photos"), 3)


@pytest.fixture
def colorful_photos(tmp_path: Path) -> list[Path]:
    """One wider than high, one higher than wide that its EXIF data turn: as stored it is the other way around."""
    directory = tmp_path / "photos"
    directory.mkdir()
    colorful(333, 250).save(directory / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    colorful(150, 230).transpose(Image.Transpose.ROTATE_90).save(directory / "turned.png", exif=exif)
    return [directory / "wide.png", directory / "turned.png"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    directory = tmp_path / "output"
    directory.mkdir()
    return directory


@torch.no_grad()
def expected_classes(photo: Path) -> dict[str, float]:
    """PyTorch's five most probable classes."""
    model = untrained_model(CLASSIFICATION, SIZES[0])
    top = model(pixels_of(photo, SIZES[0], 72)).logits.softmax(1)[0].topk(5)
    return {model.config.id2label[i]: p for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}


@torch.no_grad()
def expected_features(photo: Path, size: tuple[int, int]) -> tuple[Any, Any]:
    """PyTorch's pooled features and map."""
    result = untrained_model(FEATURES, size)(pixels_of(photo, size, 72))
    return result.pooled.numpy(), result.feature_map.numpy()


def test_prints_the_first_classes(classifier: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(classifier), *map(str, photos[:2]), "--top", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == NOTE
    lines = captured.out.splitlines()
    assert [lines[0], lines[4]] == list(map(str, photos[:2]))
    assert len(lines) == 8
    for photo, printed in zip(photos, (lines[1:4], lines[5:]), strict=False):
        matches = [re.fullmatch(r" {2,}(\d+\.\d\d)%  (.+)", line) for line in printed]
        found = {match[2]: float(match[1]) / 100 for match in matches if match}
        expected = dict(list(expected_classes(photo).items())[:3])
        assert found == pytest.approx(expected, rel=1e-3, abs=5e-5)  # printed to 0.01 %, fp32 on both sides
        assert list(found) == list(expected)  # the most probable first


def test_prints_the_classes_as_json(classifier: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(classifier), *map(str, photos[:2]), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == NOTE
    answers = json.loads(captured.out)
    assert [list(entry) for entry in answers] == [["image", "classes"]] * 2
    for photo, entry in zip(photos, answers, strict=False):
        assert entry["image"] == str(photo)
        classes = [(one["label"], one["probability"]) for one in entry["classes"]]
        assert [probability for _, probability in classes] == sorted((p for _, p in classes), reverse=True)
        # fp32 on both sides: sums in another order
        assert dict(classes) == pytest.approx(expected_classes(photo), rel=1e-3)


def test_writes_the_pictures_of_a_segmenter(
    segmenter: Path, colorful_photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(segmenter), *map(str, colorful_photos), "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # these are no untrained weights
    assert {path.name for path in output.iterdir()} == {
        f"{stem}_{kind}.png" for stem in ("wide", "turned") for kind in KINDS
    }
    lines = captured.out.splitlines()
    assert [lines[0], lines[7]] == list(map(str, colorful_photos))
    assert len(lines) == 14
    for stem, size, printed in (("wide", (333, 250), lines[1:7]), ("turned", (150, 230), lines[8:])):
        photograph = colorful(*size)
        mask, overlay, legend = (read_image(output / f"{stem}_{kind}.png") for kind in KINDS)
        assert (mask.mode, mask.size) == ("P", size)
        values = np.asarray(mask)
        known = values != 255
        assert 0.5 < known.mean() < 1
        assert (values == brightest(photograph))[known].mean() > 0.98  # the rest is where colors meet
        colors = np.array([ImageColor.getrgb(color) for color in PALETTE])
        assert np.array_equal(np.asarray(mask.convert("RGB"))[known], colors[values[known]])
        before, after = np.asarray(photograph), np.asarray(overlay)
        alone = (values == 255) | (values == 0)
        assert np.array_equal(after[alone], before[alone])
        mixed = 0.4 * before + 0.6 * colors[np.where(known, values, 0)]
        assert np.abs(after - mixed)[~alone].max() <= 0.5 + 1e-6  # rounded
        names = [line.split()[1] for line in printed[:3]]
        swatches = [tuple(pixel) for pixel in np.asarray(legend.convert("RGB"))[20::28, 19].tolist()][:3]
        assert swatches == [tuple(colors[("red", "green", "blue").index(name)].tolist()) for name in names]
        shares = {name: float(line.split("%")[0]) / 100 for name, line in zip(names, printed[:3], strict=True)}
        counts = np.bincount(values[known], minlength=3) / known.sum()
        assert [shares[name] for name in ("red", "green", "blue")] == pytest.approx(counts.tolist(), abs=6e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert printed[3:] == [f"  -> {output / f'{stem}_{kind}.png'}" for kind in KINDS]


def test_prints_the_shares_as_json(
    segmenter: Path, colorful_photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(segmenter), *map(str, colorful_photos), "--output", str(output), "--json"]) == 0
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert captured.err == ""
    assert [entry["image"] for entry in answers] == list(map(str, colorful_photos))
    for entry, stem in zip(answers, ("wide", "turned"), strict=True):
        assert list(entry) == ["image", "classes", "files"]
        assert entry["files"] == [str(output / f"{stem}_{kind}.png") for kind in KINDS]
        values = np.asarray(read_image(Path(entry["files"][0])))
        counts = np.bincount(values[values != 255], minlength=3) / (values != 255).sum()
        shares = {one["label"]: one["share"] for one in entry["classes"]}
        assert shares == pytest.approx(dict(zip(("red", "green", "blue"), counts.tolist(), strict=True)))


def test_pictures_go_to_the_working_directory(
    segmenter: Path, colorful_photos: list[Path], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output)
    assert main([str(segmenter), str(colorful_photos[0])]) == 0
    assert {path.name for path in output.iterdir()} == {f"wide_{kind}.png" for kind in KINDS}


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line a command says that it fails with."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert (code, captured.err.count("\n")) == (2, 1)
    return captured.err.removeprefix("error: ").rstrip()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_are_there_stay(
    segmenter: Path, colorful_photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Nothing is written when one of them all is taken; --force replaces it."""
    taken = output / f"turned_{kind}.png"
    taken.write_bytes(b"mine")
    arguments = [str(segmenter), *map(str, colorful_photos), "--output", str(output)]
    message = fails(arguments, capsys)
    assert message == f"output {taken}: expected a free name, got an existing file; add --force to replace it"
    assert [(path, path.read_bytes()) for path in output.iterdir()] == [(taken, b"mine")]
    assert main([*arguments, "--force"]) == 0
    assert len(list(output.iterdir())) == 6
    assert read_image(taken).size[0] > 0


def test_photographs_of_the_same_name_would_share_their_pictures(
    segmenter: Path, colorful_photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = output / "wide.jpg"
    colorful(100, 100).save(other)
    for second in (other, colorful_photos[0]):
        message = fails([str(segmenter), str(colorful_photos[0]), str(second), "--output", str(output)], capsys)
        assert message.startswith("images: expected a name each, for the masks to be called after, got one twice")
    assert list(output.iterdir()) == [other]


def test_a_directory_that_is_not_there(
    segmenter: Path, colorful_photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (output / "none", colorful_photos[0]):
        message = fails([str(segmenter), str(colorful_photos[0]), "--output", str(place)], capsys)
        assert message == (f"output {place}: expected a directory for the masks, got none; create it first")
    assert not (output / "none").exists()


@pytest.mark.parametrize("kind", ["palette_image", "legend"])
def test_a_failure_leaves_no_half_picture(
    segmenter: Path,
    colorful_photos: list[Path],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    class Full(Image.Image):
        def save(self, fp: Any, *args: Any, **kwargs: Any) -> None:
            fp.write(b"\x89PNG")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(masks, kind, lambda *_: Full())
    message = fails([str(segmenter), str(colorful_photos[0]), "--output", str(output)], capsys)
    failed = {"palette_image": "mask", "legend": "legend"}[kind]
    assert message == f"cannot write {output / f'wide_{failed}.png'}: No space left on device; make room"
    assert {path.name for path in output.iterdir()} == {
        f"wide_{whole}.png" for whole in itertools.takewhile(lambda whole: whole != failed, KINDS)
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_no_half_picture(
    segmenter: Path, colorful_photos: list[Path], output: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    class Interrupted(Image.Image):
        def save(self, fp: Any, *args: Any, **kwargs: Any) -> None:
            fp.write(b"\x89PNG")
            os.kill(os.getpid(), number)

    monkeypatch.setattr(masks, "palette_image", lambda *_: Interrupted())
    assert main([str(segmenter), str(colorful_photos[0]), "--output", str(output)]) == code
    assert list(output.iterdir()) == []


def test_prints_the_features(extractor: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(extractor), *map(str, photos)]) == 0
    captured = capsys.readouterr()
    assert captured.err == NOTE
    lines = captured.out.splitlines()
    assert len(lines) == 3 * 4 + 1 + 3
    pooled = np.concatenate([expected_features(photo, SIZES[0])[0] for photo in photos])
    for photo, values, first in zip(photos, pooled, (0, 4, 8), strict=True):
        assert lines[first : first + 3] == [
            str(photo),
            "  pooled       1 x 320",
            "  featureMap   1 x 320 x 2 x 2",
        ]
        match = re.fullmatch(r"  values       pooled: (.*) …, length (\S+)", lines[first + 3])
        assert match is not None
        assert float(match[2]) == pytest.approx(np.linalg.norm(values), rel=1e-3)  # four digits
        assert [float(number) for number in match[1].split()] == pytest.approx(values[:4].tolist(), rel=1e-2)
    assert lines[12] == "cosine similarity of pooled"
    expected = cosine_similarity(pooled)
    for line, (i, j) in zip(lines[13:], [(0, 1), (0, 2), (1, 2)], strict=True):
        cosine, names = line[:9], line[9:]
        assert float(cosine) == pytest.approx(expected[i, j], abs=1e-4)  # four decimals
        assert names == f"  {photos[i]}  {photos[j]}"
    assert np.ptp(expected[np.triu_indices(3, 1)]) > 0.01  # not alike, all of them


def test_one_photograph_is_like_no_other(
    extractor: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(extractor), str(photos[0])]) == 0
    assert "cosine" not in capsys.readouterr().out


def test_prints_the_features_as_json(extractor: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(extractor), *map(str, photos), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == NOTE
    answer = json.loads(captured.out)
    assert list(answer) == ["images", "cosine"]
    assert [entry["image"] for entry in answer["images"]] == list(map(str, photos))
    pooled = np.concatenate([expected_features(photo, SIZES[0])[0] for photo in photos])
    # fp32 on both sides: sums in another order
    assert np.array([entry["pooled"] for entry in answer["images"]]) == pytest.approx(pooled, rel=1e-3, abs=1e-4)
    assert np.array(answer["cosine"]) == pytest.approx(cosine_similarity(pooled), abs=1e-5)


@pytest.mark.parametrize("function", [None, "size_64", "size_64x96"])
def test_saves_the_features(
    extractor: Path, photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str], function: str | None
) -> None:
    """Of the function asked for, by default the first."""
    path = output / "features.npz"
    chosen = [] if function is None else ["--function", function]
    assert main([str(extractor), *map(str, photos[:2]), "--output", str(path), *chosen]) == 0
    assert f"-> {path}\n" in capsys.readouterr().out
    assert list(output.iterdir()) == [path]
    with np.load(path) as archive:
        arrays = dict(archive)  # nothing is pickled: numpy would refuse to load it
    assert set(arrays) == {"images", "pooled", "featureMap"}
    assert arrays["images"].tolist() == list(map(str, photos[:2]))
    size = SIZES[1] if function == "size_64x96" else SIZES[0]
    expected = [expected_features(photo, size) for photo in photos[:2]]
    for name, values in zip(("pooled", "featureMap"), zip(*expected, strict=True), strict=True):
        reference = np.concatenate(values)
        assert arrays[name].dtype == np.float32
        assert arrays[name].shape == reference.shape
        # fp32 on both sides: sums in another order, and values near 0
        assert arrays[name] == pytest.approx(reference, rel=1e-3, abs=1e-4)


def test_core_ml_has_the_same_function_first(extractor: Path) -> None:
    """Without a name coremltools takes the one the package calls its default."""
    description = ct.models.MLModel(str(extractor), skip_model_load=True).get_spec().description
    assert [function.name for function in description.functions] == ["size_64", "size_64x96"]
    assert description.defaultFunctionName == "size_64"


def test_features_that_are_there_stay(
    extractor: Path, photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = output / "features.npz"
    path.write_bytes(b"mine")
    arguments = [str(extractor), str(photos[0]), "--output", str(path)]
    assert fails(arguments, capsys) == (
        f"output {path}: expected a free name, got an existing file; add --force to replace it"
    )
    assert path.read_bytes() == b"mine"
    assert main([*arguments, "--force"]) == 0
    with np.load(path) as archive:
        assert archive["pooled"].shape == (1, 320)


def test_features_of_which_one_fails_are_not_saved(
    extractor: Path, photos: list[Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = output / "features.npz"
    assert "none.png: expected an image" in fails(
        [str(extractor), str(photos[0]), str(output / "none.png"), "--output", str(path)], capsys
    )
    assert list(output.iterdir()) == []


def test_a_failure_leaves_no_half_archive(
    extractor: Path,
    photos: list[Path],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def savez(file: Any, **_: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    path = output / "features.npz"
    message = fails([str(extractor), str(photos[0]), "--output", str(path)], capsys)
    assert message == f"cannot write {path}: No space left on device; make room"
    assert list(output.iterdir()) == []


@pytest.fixture
def packages(classifier: Path, segmenter: Path, extractor: Path) -> dict[str, Path]:
    return {"classifier": classifier, "segmenter": segmenter, "extractor": extractor}


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        (
            "extractor",
            ["--output", "x.npy"],
            "output x.npy: expected a name ending in .npz, got another; add the ending",
        ),
        (
            "extractor",
            ["--output", "none/x.npz"],
            "output none/x.npz: expected none to be a directory, got none there; create it first",
        ),
        (
            "extractor",
            ["--function", "size_128"],
            "function: expected one of size_64, size_64x96, got 'size_128'; choose one of these",
        ),
        (
            "segmenter",
            ["--function", "size_128"],
            "function: expected one of main, got 'size_128'; choose one of these",
        ),
        (
            "classifier",
            ["--output", "x.json"],
            "output x.json: expected none of a classifier, which writes no files; leave it out",
        ),
        ("classifier", ["none.png"], "image none.png: expected an image Pillow can read, got No such file"),
        ("classifier", ["x.png"], "x.png: expected an image Pillow can read, got "),
        ("classifier", ["--top", "0"], "argument --top: expected a number of classes, at least 1, got '0'; see --help"),
        ("classifier", ["--backend", "tpu"], "backend: expected one of auto, coreml, reference, got 'tpu'; choose one"),
        ("segmenter", ["--backend", "tpu"], "backend: expected one of auto, coreml, reference, got 'tpu'; choose one"),
    ],
)
def test_bad_requests_are_one_line(
    packages: dict[str, Path],
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(b"no picture")
    assert message in fails([str(packages[package]), str(photos[0]), *arguments], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_packages_that_are_none(photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (
            [str(tmp_path / "no.mlpackage"), str(photos[0])],
            "expected a .mlpackage directory, got nothing there; check the path",
        ),
        ([str(tmp_path), str(photos[0])], "expected a Core ML package, got a damaged package or another file ("),
        ([str(tmp_path)], "the following arguments are required: IMAGE; see --help"),
    ):
        assert message in fails(arguments, capsys)


def test_a_package_from_elsewhere_has_no_record(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    @mb.program(input_specs=[mb.TensorSpec((1, 3))])  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return mb.relu(x=x)

    ct.convert(program, skip_model_load=True).save(str(tmp_path / "x.mlpackage"))
    capsys.readouterr()  # coremltools' progress
    assert "x.mlpackage: expected the record of a conversion by mobilevit_coreml, got none that is whole" in fails(
        [str(tmp_path / "x.mlpackage"), str(photos[0])], capsys
    )


def test_core_ml_off_a_mac_is_not_run(
    segmenter: Path,
    photos: list[Path],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert main([str(segmenter), str(photos[0]), "--backend", "coreml", "--output", str(output)]) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "not run: Core ML is on a Mac only; use --backend reference here\n")
    assert list(output.iterdir()) == []


def test_the_library_is_told_what_the_command_was(
    classifier: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Mac too, where "auto" is Core ML."""
    asked: list[tuple[Any, ...]] = []

    def predict(*arguments: Any) -> Iterator[dict[str, float]]:
        asked.append(arguments)
        yield {"a": 1.0}

    monkeypatch.setattr("mobilevit_coreml.inference.predict", predict)
    monkeypatch.setattr(sys, "platform", "darwin")
    photo = str(photos[0])
    assert main([str(classifier), photo]) == 0
    assert main([str(classifier), photo, "--backend", "coreml", "--function", "main"]) == 0
    assert asked == [
        (classifier, [photos[0]], "auto", None),
        (classifier, [photos[0]], "coreml", "main"),
    ]


def test_no_picture_is_written_where_a_later_one_cannot_be_read(
    segmenter: Path, colorful_photos: list[Path], output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    message = fails([str(segmenter), str(colorful_photos[0]), str(broken), "--output", str(output)], capsys)
    assert message.startswith(f"image {broken}: expected an image Pillow can read, got ")
    assert list(output.iterdir()) == []


def test_no_picture_takes_the_place_of_one_to_read(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.png", tmp_path / "a_mask.png"
    for path in (first, second):
        colorful(64, 64).save(path)
    before = second.read_bytes()
    message = fails([str(segmenter), str(first), str(second), "--output", str(tmp_path), "--force"], capsys)
    assert message == f"output {second}: expected another file than the images to read, got one; move it away"
    assert second.read_bytes() == before
