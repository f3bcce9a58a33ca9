"""The command, on a package of an untrained network: its answers are noise, but PyTorch's noise."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.images import drawn_images
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.predict import main, predict
from mobilevit_coreml.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("untrained", "xxs", precision="fp32", output=tmp_path_factory.mktemp("package"), verify=False).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(drawn_images(333, 500, 2)):
        image.save(directory / f"photo {number}.png")
    return sorted(directory.iterdir())


@torch.no_grad()
def expected(photo: Path) -> dict[str, float]:
    """PyTorch's five most probable classes."""
    from PIL import Image

    checkpoint = load_checkpoint("untrained", "xxs")
    model = ImageClassifier(checkpoint.config).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    preprocessing = Preprocessing(288, (256, 256), "BGR")
    pixels = torch.from_numpy(preprocessing.pixels(preprocessing.prepare(Image.open(photo))))
    top = model(pixels).logits.softmax(1)[0].topk(5)
    return {checkpoint.config.id2label[i]: p for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}


def test_says_what_pytorch_says(package: Path, photos: list[Path]) -> None:
    for photo, probabilities in zip(photos, predict(package, photos), strict=True):
        assert len(probabilities) == 1000
        first = dict(list(probabilities.items())[:5])
        assert first == pytest.approx(expected(photo), rel=1e-3)


def test_prints_the_first_classes(package: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package), *map(str, photos), "--top", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "note: the package is made of untrained weights; its answers are noise\n"
    lines = captured.out.splitlines()
    assert [lines[0], lines[4]] == list(map(str, photos))
    assert len(lines) == 8
    label, probability = next(iter(expected(photos[0]).items()))
    assert lines[1] == f"  {probability:7.2%}  {label}"


def test_prints_json(package: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package), str(photos[1]), "--json"]) == 0
    ((image, classes),) = (entry.values() for entry in json.loads(capsys.readouterr().out))
    assert image == str(photos[1])
    assert {entry["label"]: entry["probability"] for entry in classes} == pytest.approx(expected(photos[1]), rel=1e-3)


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert (code, captured.err.count("\n")) == (2, 1)
    return captured.err.removeprefix("error: ").rstrip()


def test_bad_requests_are_one_line(
    package: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    photo = str(photos[0])
    for arguments, message in (
        ([str(tmp_path / "no.mlpackage"), photo], "expected a .mlpackage directory, got nothing there; check the path"),
        ([str(tmp_path), photo], "expected a Core ML package, got a damaged or different thing ("),
        (
            [str(package), "none.png"],
            "image none.png: expected a picture Pillow can read, got No such file or directory",
        ),
        ([str(package), photo, str(tmp_path / "x.png")], "x.png: expected a picture Pillow can read, got "),
        (
            [str(package), photo, "--top", "0"],
            "argument --top: expected a number of classes, at least 1, got '0'; see --help",
        ),
        (
            [str(package), photo, "--backend", "tpu"],
            "backend: expected one of auto, coreml, reference, got 'tpu'; choose one",
        ),
        ([str(package)], "the following arguments are required: IMAGE; see --help"),
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
    package: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert main([str(package), str(photos[0]), "--backend", "coreml"]) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "not run: Core ML is on a Mac only; use --backend reference here\n")


@pytest.mark.parametrize("backend", ["auto", "coreml"])
def test_core_ml_on_a_mac(package: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """With a stand-in for MLModel that has coremltools' signatures: a str path, and predict of a dict of pictures."""
    seen: list[Any] = []

    def model(path: str) -> Any:
        assert path == str(package)

        def predict(data: dict[str, Any]) -> dict[str, Any]:
            seen.append((data["image"].mode, data["image"].size))
            return {"classLabel": "b", "classLabel_probs": {"a": 0.25, "b": 0.75}}

        return SimpleNamespace(predict=predict)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", model)
    assert list(predict(package, photos, backend)) == [{"b": 0.75, "a": 0.25}] * 2
    assert seen == [("RGB", (256, 256))] * 2
