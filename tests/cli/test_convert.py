"""The command, and a fresh read of what it wrote."""

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mobilevit_coreml
from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.cli.convert import main
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.package.metadata import PackageRecord
from tests.cache import once_per_run
from tests.peers import hugging_face_classifier

UNTRAINED = ["--weights", "untrained", "--variant", "xxs", "--image-size", "64", "--attention", "packed"]
COMMAND = [sys.executable, "-m", "mobilevit_coreml.convert"]


def run_in_pipe(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a pipeline runs it."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture
def command_run(xs_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The xs snapshot as a package, and what the command printed."""

    def convert(directory: Path) -> tuple[Path, str]:
        finished = run_in_pipe("--weights", str(xs_snapshot), "--fp16", "--attention", "packed", cwd=directory)
        assert finished.stderr == ""  # neither progress nor coremltools' chatter in a pipe
        assert finished.returncode == 0
        assert [path.name for path in directory.iterdir()] == ["MobileViT_XS_fp16.mlpackage"]
        return directory / "MobileViT_XS_fp16.mlpackage", finished.stdout

    return once_per_run(tmp_path_factory, "command", convert)


@pytest.fixture
def spec(command_run: tuple[Path, str]) -> Any:
    return ct.utils.load_spec(str(command_run[0]))


def test_prints_what_a_person_wants_to_know(command_run: tuple[Path, str], xs_snapshot: Path) -> None:
    digest = hashlib.sha256((xs_snapshot / "model.safetensors").read_bytes()).hexdigest()
    expected = rf"""MobileViT_XS_fp16\.mlpackage
  size         4\.\d\d MB
  operations   2\d\d
  target       iOS16, fp16, packed attention
  input        image, 256x256 pixels, any pixel buffer \(BGR inside\)
  outputs      classLabel; classLabel_probs, 1000 classes
  weights      {re.escape(str(xs_snapshot))}
               Hugging Face naming, sha256 {digest[:12]}…
  Swift class  MobileViT_XS_fp16
  verified     PASS, logits \d\d\.\d dB SNR against PyTorch fp32 \(gate 30 dB\)
               worst image \d\d\.\d dB, cosine 0\.99\d+
               largest difference of a probability [\d.e-]+, KL [\d.e-]+ nats
               top-1 equal on [\d.]+%, top-5 on [\d.]+% of 8 images
               smallest top-1 margin [\d.e-]+
  seconds      weights [\d.]+, model [\d.]+, convert [\d.]+, save [\d.]+, verify [\d.]+
"""
    assert re.fullmatch(expected, command_run[1]), command_run[1]


def test_interface(spec: Any) -> None:
    assert spec.specificationVersion == 7  # iOS16
    (image,) = spec.description.input
    picture = image.type.imageType
    assert (image.name, picture.width, picture.height) == ("image", 256, 256)
    assert picture.ColorSpace.Name(picture.colorSpace) == "BGR"
    label, probabilities = spec.description.output
    assert (label.name, label.type.WhichOneof("Type")) == ("classLabel", "stringType")
    assert (probabilities.name, probabilities.type.WhichOneof("Type")) == ("classLabel_probs", "dictionaryType")
    assert spec.description.predictedFeatureName == "classLabel"
    assert all(feature.shortDescription for feature in (image, label, probabilities))


def values_in(spec: Any, operation: Any, name: str) -> Any:
    """A constant input of an operation of the saved program, weights in weight.bin not included."""
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    source = operation.inputs[name].arguments[0].name
    (constant,) = (op for op in block.operations if op.outputs[0].name == source)
    return constant.attributes["val"].immediateValue.tensor


def class_names(spec: Any) -> list[str]:
    """The names in the `classify` operation of the saved program."""
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (classify,) = (operation for operation in block.operations if operation.type == "classify")
    names = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    return [name.immediateValue.tensor.strings.values[0] for name in names]


def test_class_names_are_in_the_program(spec: Any) -> None:
    assert class_names(spec) == [f"class {index}" for index in range(1000)]


def test_scale_is_in_the_program(spec: Any) -> None:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    first = next(operation for operation in block.operations if operation.type != "const")
    assert (first.type, first.inputs["x"].arguments[0].name) == ("mul", "image")
    assert values_in(spec, first, "y").floats.values[0] == np.float32(1 / 255)


def test_metadata(spec: Any, xs_snapshot: Path) -> None:
    metadata = spec.description.metadata
    assert metadata.author
    assert metadata.license
    assert metadata.versionString == mobilevit_coreml.__version__
    assert "MobileViT-XS" in metadata.shortDescription
    record = PackageRecord.from_metadata(metadata.userDefined)
    assert (record.variant, record.task, record.attention, record.precision) == (
        "xs",
        "classification",
        "packed",
        "fp16",
    )
    assert record.weights.name == str(xs_snapshot)
    assert record.weights.sha256 == hashlib.sha256((xs_snapshot / "model.safetensors").read_bytes()).hexdigest()
    assert (record.preprocessing.resize, record.preprocessing.crop) == (288, (256, 256))
    assert record.config["neck_hidden_sizes"] == [16, 32, 48, 64, 80, 96, 384]
    assert metadata.userDefined["mobilevit_coreml.channel_order"] == "BGR"


def test_equal_conversions_have_equal_weights_and_programs(
    command_run: tuple[Path, str], xs_snapshot: Path, tmp_path: Path
) -> None:
    arguments = ["--weights", str(xs_snapshot), "--attention", "packed", "--no-verify", "--output", str(tmp_path)]
    assert main(arguments) == 0
    for name in ("weights/weight.bin", "model.mlmodel"):
        first, second = (
            package / "Data" / "com.apple.CoreML" / name
            for package in (command_run[0], tmp_path / "MobileViT_XS_fp16.mlpackage")
        )
        assert first.read_bytes() == second.read_bytes(), name


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two classes without their names."""
    path = tmp_path_factory.mktemp("fine_tuned") / "best.pth"
    torch.save({"epoch": 3, "state_dict": hugging_face_classifier("xxs", classes=2).state_dict()}, path)
    return path


@pytest.fixture
def small(small_weights: dict[str, Path], stub_program: Callable[[str], None], tmp_path: Path) -> list[str]:
    """Arguments of a conversion to `tmp_path` that is spared the ML Program's making."""
    stub_program("classification")
    return ["--weights", str(small_weights["classification"]), "--image-size", "64", "--output", str(tmp_path)]


def test_every_option_shows_in_the_package(
    fine_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("nicht süß\nsüß\n", encoding="utf-8")
    output = tmp_path / "Mein Modell.mlpackage"
    arguments = ["--variant", "xxs", "--weights", str(fine_tuned), "--labels", str(tmp_path / "names.txt")]
    arguments += ["--fp32", "--attention", "packed", "--target", "iOS17", "--image-size", "160x192"]
    assert main([*arguments, "--channel-order", "RGB", "--output", str(output)]) == 0
    assert "Swift class  Mein_Modell" in capsys.readouterr().out
    spec = ct.utils.load_spec(str(output))
    picture = spec.description.input[0].type.imageType
    assert spec.specificationVersion == 8
    assert (picture.height, picture.width) == (160, 192)
    assert picture.ColorSpace.Name(picture.colorSpace) == "RGB"
    record = PackageRecord.from_metadata(spec.description.metadata.userDefined)
    assert (record.precision, record.attention) == ("fp32", "packed")
    assert (record.preprocessing.resize, record.preprocessing.crop) == (180, (160, 192))
    assert (record.config["image_size"], record.preprocessing.channel_order) == ([160, 192], "RGB")
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    assert not any(operation.type in ("cast", "transpose", "einsum") for operation in block.operations)
    assert class_names(spec) == ["nicht süß", "süß"]


def test_classes_without_names_are_pointed_out(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*small, "--no-verify"]) == 0
    assert capsys.readouterr().err == (
        "note: no config.json next to the weights: assumed silu, 4 heads, patches of 2, output stride 32; "
        "others: --hidden-act --num-attention-heads --patch-size --output-stride, or give the directory\n"
        "note: pixels 0 to 1, BGR (assumed: no file says: --channel-order RGB; normalized: --mean, --std; "
        "resized as Apple evaluates: --resize, --interpolation)\n"
        "note: one class of all: softmax (assumed; independent labels: --problem-type multi_label_classification)\n"
        "note: the checkpoint names no classes: they are called LABEL_0 to LABEL_1; give --labels\n"
    )


@pytest.mark.usefixtures("shallow")
def test_without_a_hub_the_package_cannot_be_mistaken_for_a_trained_one(
    empty_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--variant", "xxs", "--fp16", "--attention", "packed", "--no-verify"]) == 0
    assert (tmp_path / "MobileViT_XXS_fp16_untrained.mlpackage").is_dir()
    captured = capsys.readouterr()
    assert "weights      untrained\n               seed 0" in captured.out
    assert (
        "note: weights apple/mobilevit-xx-small: expected in the local cache or on the Hugging Face hub" in captured.err
    )
    assert "UNTRAINED WEIGHTS: this package recognizes nothing." in captured.err
    assert max(map(len, captured.err.splitlines()[1:])) <= 80
    spec = ct.utils.load_spec(str(tmp_path / "MobileViT_XXS_fp16_untrained.mlpackage"))
    assert spec.description.metadata.shortDescription.startswith("UNTRAINED")
    assert spec.description.metadata.userDefined["mobilevit_coreml.untrained"] == "true"
    assert json.loads(spec.description.metadata.userDefined["mobilevit_coreml.weights"])["seed"] == 0
    names = class_names(spec)
    assert (len(set(names)), names[0], names[517]) == (1000, "tench, Tinca tinca", "crane (517)")
    assert json.loads(spec.description.metadata.userDefined["mobilevit_coreml.labels_renamed"]) == {"517": "crane"}


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a failing command prints."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "m"], "variant: expected one of xxs, xs, s, got 'm'; choose one of these"),
        (
            ["--variant", "xs", "--target", "iOS14"],
            "target: expected one of iOS15, iOS16, iOS17, iOS18, iOS26, got 'iOS14'",
        ),
        (["--variant", "xs", "--attention", "flash"], "attention: expected one of split_einsum, packed, got 'flash'"),
        (
            ["--variant", "xs", "--unfold", "im2col"],
            "unfold: expected one of space_to_batch, pixel_shuffle, got 'im2col'",
        ),
        (
            ["--variant", "xs", "--unfold", "pixel_shuffle", "--target", "iOS15"],
            "target: expected iOS16 or later for unfold pixel_shuffle, got iOS15; raise it",
        ),
        (["--variant", "xs", "--channel-order", "GRB"], "channel_order: expected one of BGR, RGB, got 'GRB'"),
        (["--variant", "xs", "--fp16", "--fp32"], "argument --fp32: not allowed with argument --fp16; see --help"),
        (
            ["--variant", "xs", "--image-size", "big"],
            "argument --image-size: expected pixels as N or HEIGHTxWIDTH, several with commas, got 'big'",
        ),
        (
            ["--variant", "xxs", "--weights", "untrained", "--image-size", "0"],
            "image_size: expected an int or (height, width)",
        ),
        (
            ["--variant", "xxs", "--weights", "untrained", "--image-size", "64x99999"],
            "each 8 to 4096, got (64, 99999)",
        ),
        ([], "--weights auto: expected a --variant with it (xxs, xs, s), got none; add one"),
        (["--weights", "none.pth"], "weights none.pth: expected a file, a directory, a hub id (owner/name) or one of"),
        (
            ["--variant", "xxs", "--labels", "none.txt"],
            "labels none.txt: expected a UTF-8 text or JSON file, got No such",
        ),
        (["--variant", "xxs", "--output", "x.mlmodel"], "output x.mlmodel: expected a name ending in .mlpackage or an"),
        (
            ["--variant", "xxs", "--output", "no/x.mlpackage"],
            "output no/x.mlpackage: expected no to be a directory, got none",
        ),
        (["--variant", "xxs", "--images", "no"], "images no: expected a directory of images, got No such file"),
        (["--fp8"], "unrecognized arguments: --fp8; see --help"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_wrong_number_of_labels(fine_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert fails(["--weights", str(fine_tuned), "--labels", str(tmp_path / "names.txt")], capsys) == (
        "labels: expected 2 names, one for each class of the checkpoint, got 3; give a file that names every class once"
    )


def test_contradicting_variant(fine_tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(["--weights", str(fine_tuned), "--variant", "s"], capsys) == (
        f"weights {fine_tuned}: expected variant s (--variant), got xxs (from their shapes); "
        "drop --variant or give other weights"
    )


def test_patches_that_are_no_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = hugging_face_classifier("xxs", classes=2)
    peer.config.patch_size = [2, 1]  # which transformers itself does not take
    peer.save_pretrained(tmp_path / "peer")
    capsys.readouterr()  # transformers' progress
    arguments = ["--weights", str(tmp_path / "peer"), "--output", str(tmp_path), "--attention", "packed"]
    arguments += ["--image-size", "64"]
    assert fails([*arguments, "--unfold", "pixel_shuffle"], capsys) == (
        "patch_size: expected a square patch for the unfold implementation pixel_shuffle, got 2x1; use space_to_batch"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["peer"]
    assert main(arguments) == 0


def test_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 and then nothing")
    assert "expected a torch checkpoint, got a truncated or damaged file" in fails(
        ["--weights", str(tmp_path / "x.pth")], capsys
    )


def test_an_existing_package_stays_without_force(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.mlpackage"
    output.mkdir()
    (output / "mine").touch()
    arguments = [*small, "--output", str(output), "--no-verify"]
    expected = f"output {output}: expected a free name or a package, got something else; move it away"
    assert fails([*arguments, "--force"], capsys) == expected
    (output / "Manifest.json").touch()
    assert fails(arguments, capsys) == (
        f"output {output}: expected a free name, got an existing package; add --force to replace it"
    )
    assert (output / "mine").exists()
    assert main([*arguments, "--force"]) == 0
    assert not (output / "mine").exists()
    assert (output / "Manifest.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.mlpackage"]


def test_unwritable_place(fine_tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = "/proc" if Path("/proc").is_dir() else "/System"
    assert fails(["--weights", str(fine_tuned), "--output", f"{place}/x.mlpackage"], capsys).startswith(
        f"cannot write {place}/x.mlpackage: "
    )


@pytest.mark.parametrize(
    ("classes", "channels", "message"),
    [
        (2, 4, "num_channels: expected 1 or 3, as an image input has, got 4"),
    ],
)
def test_networks_that_make_no_image_classifier(
    classes: int, channels: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = hugging_face_classifier("xxs", classes, num_channels=channels)
    torch.save(peer.state_dict(), tmp_path / "x.pth")
    assert fails(["--weights", str(tmp_path / "x.pth")], capsys).startswith(message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_nothing(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def programs(*_: Any) -> dict[str, Any]:
        (staging,) = tmp_path.iterdir()
        (staging / "half").touch()
        os.kill(os.getpid(), number)
        raise AssertionError("not interrupted")

    monkeypatch.setattr("mobilevit_coreml.stages.build_programs", programs)
    assert main(small) == 128 + number
    assert tuple(capsys.readouterr()) == ("", "interrupted: nothing half-made is left\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_process_leaves_nothing(fine_tuned: Path, tmp_path: Path, number: int) -> None:
    command = [*COMMAND, "--weights", str(fine_tuned), "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:  # until it has staged something
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", "interrupted: nothing half-made is left\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("shallow")
def test_a_terminal_sees_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main([*UNTRAINED, "--output", str(tmp_path)]) == 0
    printed = os.read(ours, 100_000).decode()
    os.close(ours)
    stages = ["weights", "model", "convert", "save", "verify"]
    assert [name for name in stages if f"\r{name:<10} " in printed] == stages
    assert "Running MIL" not in printed
    assert "\r" not in capsys.readouterr().out


@pytest.fixture
def lost_bias(shallow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the conversion lose the bias of the stem on the way."""
    from mobilevit_coreml import model, stages

    honest = model.fold_for_inference

    def fold(module: Any) -> Any:
        folded = honest(module)
        folded.backbone.stem.conv.bias.zero_()
        return folded

    monkeypatch.setattr(stages, "fold_for_inference", fold)


@pytest.mark.usefixtures("lost_bias")
def test_a_package_that_computes_something_else_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.mlpackage"
    failed = tmp_path / "x_untrained_failed.mlpackage"
    for _ in range(2):  # the second one replaces the first
        assert main([*UNTRAINED, "--output", str(output)]) == 1
        captured = capsys.readouterr()
        assert captured.out.startswith(f"{failed}\n")
        assert "  verified     FAIL, logits " in captured.out
        assert captured.err.endswith(f"failed: a gate was not reached; the package is {failed}\n")
        assert [path.name for path in tmp_path.iterdir()] == ["x_untrained_failed.mlpackage"]


@pytest.mark.usefixtures("lost_bias")
def test_verification_can_be_left_out_and_is_not_claimed_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*UNTRAINED, "--output", str(tmp_path), "--no-verify"]) == 0
    assert "  verified     not verified\n" in capsys.readouterr().out


def test_verifies_on_the_users_images(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, mode in enumerate(("RGB", "L", "RGBA")):
        synthetic_images(200 + 50 * number, 300)[number].convert(mode).save(images / f"{number}.png")
    (images / "notes.txt").touch()
    assert main([*small, "--images", str(images)]) == 0
    assert "of 3 " in capsys.readouterr().out
    (images / "3.png").write_bytes(b"no image")
    assert "3.png: expected an image Pillow can read, got " in fails(
        [*small, "--images", str(images), "--force"], capsys
    )


@pytest.mark.slow
def test_coremltools_is_quiet_on_import_and_heard_afterwards() -> None:
    script = (
        "import logging\n"
        "from mobilevit_coreml._coremltools import ct\n"
        "logging.getLogger('coremltools').warning('something real')"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("", "something real\n")


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from mobilevit_coreml.cli.convert import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'coremltools', 'numpy', 'PIL') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("usage: python -m mobilevit_coreml.convert")
    assert finished.stdout.endswith("[]\n")
