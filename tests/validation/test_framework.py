"""The framework's own answer: it agrees with good readings, and finds misreadings that everything else agrees with."""

import dataclasses
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mobilevit_coreml as mc
from mobilevit_coreml.checkpoints.load import Checkpoint, load_checkpoint
from mobilevit_coreml.cli import convert as convert_command
from mobilevit_coreml.cli import validate as validate_command
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.metrics import FAIL, PASS
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.prepare import make_record
from mobilevit_coreml.validation import framework
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.framework import Reading, check_framework
from mobilevit_coreml.validation.framework_worker import open_framework
from mobilevit_coreml.validation.worker import in_this_process
from tests.cache import once_per_run
from tests.checkpoints import saved as s
from tests.checkpoints.test_saved import SAVED
from tests.peers import hugging_face_classifier
from tests.validation.fault_injection import CHECKPOINTS, MISREADINGS, Misreading, misread

# Good readings of every public way of saving: by default one of a kind, the others with `pytest -m slow`
GOOD_BY_DEFAULT = (
    "transformers: classifier",
    "transformers: multi-label",
    "transformers: regression of one label",
    "transformers: segmenter",
    "transformers: features",
    "transformers: id2label with white space",
    "transformers: CLIPImageProcessor",
    "transformers: one channel",
    "timm for the hub: save_for_hf",
    "timm for the hub: one channel",
    "timm for the hub: max pooling",
    "timm for the hub: no classes",
    "timm's training: mean, std, img_size, gp",
    "timm's training: --ema",
    "bare: timm, 256 pixels",
)
# Saved so that the library itself cannot read it, or reads it by another rule than the one that was asked for
NOT_READ = {
    "transformers: Sequential(Dropout, Linear)": "transformers itself finds no weights for classifier.",
    "transformers: segmenter, a plain convolution last": "transformers itself finds no weights for segmentation_head.",
    "timm for the hub: Sequential(Dropout, Linear)": "timm gave no answer: ",
    "timm for the hub: one level of config.json, as timm 0.8": "timm gave no answer: ",
    "timm for the hub: TimmWrapper of transformers": "timm gave no answer: ",
    "timm for the hub: TimmWrapper, multi-label": "timm gave no answer: ",
}
END_TO_END_BY_DEFAULT = "softmax for sigmoid"


@pytest.fixture
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two image files with odd sides."""
    return once_per_run(tmp_path_factory, "odd_photographs", s.save_photographs)


opened = lru_cache(16)(open_framework)  # a checkpoint is misread in several ways


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library in this process, which has imported it already; environment and logging are put back."""
    monkeypatch.setattr(framework, "in_worker", lambda _timeout, _, *rest: in_this_process(opened, *rest))
    before, disabled = dict(os.environ), logging.root.manager.disable
    yield
    logging.disable(disabled)
    os.environ.clear()
    os.environ.update(before)


def reading_of(weights: Path | str, change: Callable[[Checkpoint], Checkpoint] | None = None, **given: Any) -> Reading:
    """A checkpoint as a conversion reads it, or misreads it."""
    options = ConversionOptions(attention="packed", **given)
    checkpoint = load_checkpoint(weights, "xxs" if weights == "untrained" else None, options.task, options)
    checkpoint = checkpoint if change is None else change(checkpoint)
    record, classes = make_record(checkpoint, options)
    return Reading(checkpoint.model("packed"), record.preprocessing, classes, record, checkpoint.path)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Path and options of a checkpoint by its key in CHECKPOINTS, saved once."""

    def save(key: str, directory: Path) -> tuple[Path, Any]:
        saved = CHECKPOINTS[key](directory)
        return saved.weights, dict(saved.options)

    return lambda key: once_per_run(tmp_path_factory, f"saved_{key.replace(', ', '_')}", partial(save, key))


@pytest.mark.parametrize(
    "name",
    [
        name if name in GOOD_BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
        for name in SAVED
        if not name.startswith("cvnets") and (name in GOOD_BY_DEFAULT or not name.startswith("bare"))
    ],
)
def test_good_readings_pass(name: str, no_process: None, photographs: list[Path], tmp_path: Path) -> None:
    saved = SAVED[name](tmp_path)
    check = check_framework(reading_of(saved.weights, **saved.options), photographs)
    if name in NOT_READ:
        assert check.passed is None
        assert NOT_READ[name] in check.detail
        return
    assert check.passed, check.detail
    assert check.name == "framework"
    assert check.detail.removesuffix(" (pixels as read here)").endswith("on 4 images")
    assert check.detail.startswith("transformers" if name.startswith("transformers") else "timm")


@pytest.mark.slow
@pytest.mark.parametrize("key", CHECKPOINTS)
def test_good_readings_of_the_checkpoints_that_are_misread_pass(
    key: str, no_process: None, checkpoint_of: Callable[[str], tuple[Path, Any]]
) -> None:
    weights, options = checkpoint_of(key)
    assert check_framework(reading_of(weights, **options)).passed  # with synthetic images


@pytest.mark.parametrize("misreading", MISREADINGS, ids=lambda misreading: misreading.name)
def test_misreadings_fail(
    misreading: Misreading, no_process: None, checkpoint_of: Callable[[str], tuple[Path, Any]]
) -> None:
    weights, options = checkpoint_of(misreading.checkpoint)
    check = check_framework(reading_of(weights, misreading.apply, **options))
    assert check.passed is False, check.detail


@pytest.mark.parametrize(
    "misreading",
    [
        pytest.param(one, id=one.name, marks=() if one.name == END_TO_END_BY_DEFAULT else pytest.mark.slow)
        for one in MISREADINGS
    ],
)
def test_nothing_else_finds_a_misreading(
    misreading: Misreading,
    no_process: None,
    checkpoint_of: Callable[[str], tuple[Path, Any]],
    one_image: Path,
    tmp_path: Path,
) -> None:
    weights, options = checkpoint_of(misreading.checkpoint)
    with misread(misreading):
        conversion = mc.convert(
            weights, None, ConversionOptions(attention="packed", **options), output=tmp_path, images=one_image
        )
        validation = mc.validate(conversion.path, images=one_image, backend="reference")
    assert conversion.passed
    assert [check.name for _, check in validation.checks if check.passed is False] == ["framework"]
    assert all(program.mismatch is None for program in validation.programs.values())
    assert [run.verdict for run in validation.runs if run.backend in validation.asked] == [PASS]
    assert validation.verdict == FAIL


@pytest.mark.slow
def test_a_conversion_checks_at_once(
    checkpoint_of: Callable[[str], tuple[Path, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own; the package is saved as one that failed."""
    weights, _ = checkpoint_of("timm, max")
    misreading = next(one for one in MISREADINGS if one.checkpoint == "timm, max")
    arguments = ["--weights", str(weights), "--check-framework", "--no-verify", "--output"]
    with misread(misreading):
        code = convert_command.main([*arguments, str(tmp_path / "made.mlpackage")])
    text = "".join(capsys.readouterr())
    assert code == 1
    assert "timm differs by at most" in text
    assert [path.name for path in tmp_path.iterdir()] == ["made_failed.mlpackage"]


def test_synthetic_images_are_added_to_the_users(
    no_process: None, checkpoint_of: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """Square photographs do not tell a shorter edge from both."""
    image = tmp_path / "square.png"
    synthetic_images(160, 160, 1)[0].save(image)
    weights, _ = checkpoint_of("transformers")
    stretched = next(one for one in MISREADINGS if one.name == "stretched for the shorter edge")
    assert check_framework(reading_of(weights), [image]).detail.endswith("on 3 images")
    assert check_framework(reading_of(weights, stretched.apply), [image]).passed is False


@pytest.mark.parametrize("name", ["transformers: classifier", "timm for the hub: relu", "bare: timm, 256 pixels"])
def test_features_of_classifiers_are_compared(name: str, no_process: None, tmp_path: Path) -> None:
    saved = SAVED[name](tmp_path)

    def maximum_for_mean(checkpoint: Checkpoint) -> Checkpoint:
        config = dataclasses.replace(checkpoint.config, global_pool="max")
        return dataclasses.replace(checkpoint, config=config)

    assert check_framework(reading_of(saved.weights, task="features")).passed
    assert check_framework(reading_of(saved.weights, maximum_for_mean, task="features")).passed is False


# Not run


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("bare: cvnets", {}, "cvnets has no package; give its published outputs with --expected FILE.npz"),
        ("cvnets' training: config.yaml", {}, "cvnets has no package; give its published outputs with --expected"),
        (
            "transformers: classifier",
            {"image_sizes": ((96, 96),)},
            "transformers takes 64x64 pixels, the package 96x96",
        ),
        (
            "transformers: classifier",
            {"hidden_act": "relu"},
            "options stand in place of what the files say: hidden_act",
        ),
        (
            "transformers: classifier",
            {"hidden_act": "relu", "output_stride": 16},
            "options stand in place of what the files say: hidden_act, output_stride",
        ),
        ("bare: transformers", {}, "transformers gave no answer: ValueError: no config.json, by which transformers"),
    ],
)
def test_not_run_with_the_reason(
    name: str, given: dict[str, Any], reason: str, no_process: None, photographs: list[Path], tmp_path: Path
) -> None:
    saved = SAVED[name](tmp_path)
    check = check_framework(reading_of(saved.weights, **{**saved.options, **given}), photographs)
    assert check.passed is None
    assert check.detail.startswith(reason)


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_not_run_without_the_library(
    library: str, checkpoint_of: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = checkpoint_of(library)
    reading = reading_of(weights)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert check_framework(reading) == Check("framework", None, f"{library} is not installed")


def test_weights_of_no_framework_are_not_run(small_weights: dict[str, Path]) -> None:
    for reading in (reading_of("untrained"), reading_of(small_weights["classification"])):
        assert check_framework(reading) == Check("framework", None, "the weights are of no other framework")


def test_an_answer_that_does_not_come_is_not_run(checkpoint_of: Callable[[str], tuple[Path, Any]]) -> None:
    weights, _ = checkpoint_of("timm")
    check = check_framework(reading_of(weights), timeout=0.01)
    assert check.passed is None
    assert check.detail == "timm gave no answer: no answer within 0.01 seconds"


def test_pixels_of_the_user_are_given_to_the_library(no_process: None, photographs: list[Path], tmp_path: Path) -> None:
    """The network, classes and outputs are compared all the same."""
    saved = s.pretrained(tmp_path)
    given: dict[str, Any] = {"mean": (0.5,), "std": (0.25,), "channel_order": "RGB"}
    check = check_framework(reading_of(saved.weights, **given), photographs)
    assert check.passed
    assert check.detail.endswith("on 4 images (pixels as read here)")
    sigmoid_for_softmax = MISREADINGS[1].apply
    assert check_framework(reading_of(saved.weights, sigmoid_for_softmax, **given), photographs).passed is False


def test_names_of_the_user_are_not_compared(no_process: None, photographs: list[Path], tmp_path: Path) -> None:
    saved = s.pretrained(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("\n".join("vwxyz"))
    assert check_framework(reading_of(saved.weights, labels=names), photographs).passed


# Published outputs


def expected_file(path: Path, saved: s.Saved, images: list[Path], **changes: Any) -> Path:
    """A .npz file of the framework's answers."""
    arrays = {saved.kind + ("s" if saved.kind == s.MASK else ""): np.stack([saved.answer(image) for image in images])}
    np.savez(path, images=np.array([image.name for image in images]), **{**arrays, **changes})
    return path


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("cvnets' training: config.yaml", {"channel_order": "RGB"}),
        ("cvnets' training: config.yaml of a segmenter", {"channel_order": "RGB"}),
        ("transformers: regression of several values", {"channel_order": "RGB"}),
        ("transformers: features", {"hidden_act": "relu"}),
    ],
)
def test_published_outputs(name: str, wrong: dict[str, Any], photographs: list[Path], tmp_path: Path) -> None:
    saved = SAVED[name](tmp_path)
    expected = expected_file(tmp_path / "outputs.npz", saved, photographs)
    check = check_framework(reading_of(saved.weights, **saved.options), photographs, expected)
    assert check.passed, check.detail
    assert check.detail.startswith("outputs.npz ")
    assert check_framework(reading_of(saved.weights, **saved.options, **wrong), photographs, expected).passed is False


def test_published_outputs_of_another_kind_or_number(photographs: list[Path], tmp_path: Path) -> None:
    saved = s.pretrained(tmp_path)
    reading = reading_of(saved.weights)
    for arrays, detail in (
        ({"values": np.zeros((2, 5))}, "outputs.npz answers with values, expected probabilities"),
        ({"probabilities": np.full((2, 4), 0.25)}, "outputs.npz has outputs of 4, expected 5 on 2 images"),
        ({"probabilities": np.full((2, 5), np.nan)}, "outputs.npz differs by at most nan"),
    ):
        path = tmp_path / "outputs.npz"
        np.savez(path, images=np.array([image.name for image in photographs]), **arrays)
        check = check_framework(reading, photographs, path)
        assert check.passed is False
        assert check.detail.startswith(detail)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": ["lying.png"]}, "expected images, the names of files, and one of probabilities, values, masks and"),
        ({"probabilities": np.zeros((1, 5))}, "got probabilities; save these arrays"),
        ({"images": ["lying.png"], "probabilities": np.zeros((2, 5))}, "and one of probabilities, values, masks and"),
        ({"images": ["lying.png"], "probabilities": [["a", "b"]]}, "and one of probabilities, values, masks and"),
        ({"images": ["a.png"], "probabilities": np.zeros((1, 5))}, "expected a.png among the images, got none; give"),
    ],
)
def test_published_outputs_that_are_none(
    arrays: dict[str, Any], text: str, photographs: list[Path], small_weights: dict[str, Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "outputs.npz", **arrays)
    with pytest.raises(InputError) as raised:
        check_framework(reading_of(small_weights["classification"]), photographs, tmp_path / "outputs.npz")
    assert text in str(raised.value)


def test_a_file_that_is_no_archive(photographs: list[Path], small_weights: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "outputs.npz"
    reading = reading_of(small_weights["classification"])
    with pytest.raises(InputError, match="expected a .npz file, got No such file or directory; check the path"):
        check_framework(reading, photographs, path)
    np.save(tmp_path / "outputs.npy", np.zeros(3))
    for content in ((tmp_path / "outputs.npy").read_bytes(), b"nothing", b"PK\x03\x04nothing", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match="expected a .npz file, got "):
            check_framework(reading, photographs, path)


def test_validate_compares_with_published_outputs(
    small_packages: dict[str, Path], one_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "outputs.npz"
    for probabilities, verdict in (([0.0, 1.0], FAIL), (None, PASS)):
        if probabilities is None:
            image = next(one_image.iterdir())
            (answer,) = mc.predict(small_packages["classification"], [image], backend="reference")
            probabilities = [answer["LABEL_0"], answer["LABEL_1"]]
        np.savez(path, images=["0.png"], probabilities=[probabilities])
        arguments = [str(small_packages["classification"]), "--images", str(one_image), "--backend", "reference"]
        code = validate_command.main([*arguments, "--expected", str(path)])
        assert (code == 0) == (verdict == PASS)
        assert "outputs.npz differs by at most" in "".join(capsys.readouterr())


def test_the_library_gets_no_code_of_a_checkpoint(no_process: None, tmp_path: Path) -> None:
    """A pickle that would run code is read by neither side."""
    saved = s.pickled(tmp_path)
    reading = reading_of(saved.weights)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    check = check_framework(reading)
    assert check.passed is None
    assert check.detail.startswith("transformers gave no answer: ")


def test_small_values_are_compared_in_their_own_size(no_process: None, tmp_path: Path) -> None:
    """A misreading of a regression whose values are thousandths."""
    peer = hugging_face_classifier("xxs", 1, image_size=64)
    with torch.no_grad():
        peer.classifier.weight *= 0.002
        peer.classifier.bias *= 0.002
    peer.save_pretrained(tmp_path)
    processor = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 72}, "resample": 2}
    file = {**processor, "crop_size": {"height": 64, "width": 64}, "do_flip_channel_order": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    assert check_framework(reading_of(tmp_path)).passed
    misread = reading_of(tmp_path)
    misread = dataclasses.replace(
        misread, preprocessing=dataclasses.replace(misread.preprocessing, channel_order="RGB")
    )
    assert check_framework(misread).passed is False


def test_other_weights_in_the_same_directory_are_not_compared(no_process: None, tmp_path: Path) -> None:
    hugging_face_classifier("xxs", 3, image_size=64).save_pretrained(tmp_path)
    other = hugging_face_classifier("xxs", 3, image_size=64)
    torch.save({key: 2 * value for key, value in other.state_dict().items()}, tmp_path / "best.pt")
    check = check_framework(reading_of(tmp_path / "best.pt"))
    assert check.passed is None
    assert "transformers would load model.safetensors there, not best.pt" in check.detail
