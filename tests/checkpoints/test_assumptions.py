"""What no file says of a checkpoint is said to the user, with the option that changes it; what one says is read."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mobilevit_coreml.errors import CheckpointError, ConfigError
from tests.peers import cvnets_state, hugging_face_classifier, images, snr, timm_classifier

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def state_of(naming: str, classes: int = 5) -> dict[str, Any]:
    if naming == "timm":
        return dict(timm_classifier("xxs", classes).state_dict())
    peer = hugging_face_classifier("xxs", classes)
    return cvnets_state(peer) if naming == "cvnets" else dict(peer.state_dict())


@pytest.mark.parametrize("naming", ["timm", "cvnets", "transformers"])
def test_the_meaning_of_bare_outputs_is_an_assumption_and_an_option(naming: str, tmp_path: Path) -> None:
    torch.save(state_of(naming), tmp_path / "x.pth")
    checkpoint = load_checkpoint(tmp_path / "x.pth")
    assert checkpoint.config.problem_type == SINGLE_LABEL
    assert any("softmax (assumed; independent labels: --problem-type" in text for text in checkpoint.assumed)
    checkpoint = load_checkpoint(tmp_path / "x.pth", overrides=CheckpointOverrides(problem_type=MULTI_LABEL))
    assert checkpoint.config.problem_type == MULTI_LABEL
    assert not any("--problem-type" in text for text in checkpoint.assumed)


@pytest.mark.parametrize("naming", ["timm", "cvnets", "transformers"])
def test_so_is_that_of_one_output(naming: str, tmp_path: Path) -> None:
    torch.save(state_of(naming, 1), tmp_path / "x.pth")
    checkpoint = load_checkpoint(tmp_path / "x.pth")
    assert checkpoint.config.problem_type == REGRESSION
    assert any("assumed: regression; else --problem-type" in text for text in checkpoint.assumed)


def test_an_unknown_problem_type(tmp_path: Path) -> None:
    torch.save(state_of("timm"), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"problem_type: expected one of single_label_classification, .*got 'bce'"):
        load_checkpoint(tmp_path / "x.pth", overrides=CheckpointOverrides(problem_type="bce"))


def test_a_processor_among_others_is_read(tmp_path: Path) -> None:
    hugging_face_classifier("xxs", 5).save_pretrained(tmp_path)
    image = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 192, "width": 160},
        "resample": 2,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": image, "processor_class": "X"}))
    preprocessing = load_checkpoint(tmp_path).preprocessing
    assert (preprocessing.resize, preprocessing.crop, preprocessing.channel_order) == ((192, 160), (192, 160), "RGB")
    assert (preprocessing.mean, preprocessing.std) == (tuple(MEAN), tuple(STD))


@pytest.mark.parametrize("key", ["args", "hyper_parameters"])
def test_training_options_of_other_scripts_count_for_timm(key: str, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": state_of("timm"), key: {"mean": MEAN, "std": STD, "act_layer": "relu", "lr": 0.1}},
        tmp_path / "x.pth",
    )
    checkpoint = load_checkpoint(tmp_path / "x.pth")
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.std) == (tuple(MEAN), tuple(STD))
    assert checkpoint.config.hidden_act == "relu"
    assert any("crop 0.9" in text for text in checkpoint.assumed)  # of which they say nothing
    assert not any("pixels 0 to 1" in text for text in checkpoint.assumed)


def test_elsewhere_they_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": state_of("cvnets"), "args": {"mean": MEAN, "std": STD}}, tmp_path / "x.pth")
    checkpoint = load_checkpoint(tmp_path / "x.pth")
    assert "the file's training options have mean, std: not read; give --mean, --std" in checkpoint.notices


def test_a_head_without_bias_is_a_head(tmp_path: Path) -> None:
    peer = timm_classifier("xxs", 5)
    peer.head.fc = torch.nn.Linear(320, 5, bias=False)
    torch.save(peer.state_dict(), tmp_path / "x.pth")
    checkpoint = load_checkpoint(tmp_path / "x.pth")
    with torch.no_grad():
        pixels = images(1, 256, 256)
        assert snr(peer.eval()(pixels), checkpoint.model()(pixels).logits) > 100


def test_layers_that_may_be_beside_a_numbered_head_are_named(tmp_path: Path) -> None:
    peer = timm_classifier("xxs", 5)
    peer.head.fc = torch.nn.Sequential(torch.nn.Tanh(), peer.head.fc)
    torch.save(peer.state_dict(), tmp_path / "x.pth")
    (notice,) = load_checkpoint(tmp_path / "x.pth").notices
    assert notice == "the head is head.fc.1.weight alone: layers without weights beside it are taken for dropout"


@pytest.mark.parametrize("naming", ["timm", "transformers"])
def test_somebody_elses_configuration_is_told_for_what_it_is(naming: str, tmp_path: Path) -> None:
    torch.save(state_of(naming), tmp_path / "best.pth")
    (tmp_path / "config.json").write_text(json.dumps({"lr": 0.1, "epochs": 3}))
    with pytest.raises(
        CheckpointError, match=rf"config.json: expected the configuration of {naming}, got lr, epochs; if"
    ):
        load_checkpoint(tmp_path / "best.pth")


def test_tensors_of_a_training_are_left_out(tmp_path: Path) -> None:
    state = OrderedDict(state_of("timm"))
    for key in ("criterion.scale", "class_weights", "val_acc.tp", "loss_fn.weight"):
        state[key] = torch.ones(5)
    torch.save(state, tmp_path / "x.pth")
    (notice,) = load_checkpoint(tmp_path / "x.pth").notices
    assert notice == "left out criterion.scale, class_weights, val_acc.tp: of the training"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_center_crop": "false"}, "do_center_crop: expected true or false, got 'false'"),
        ({"image_processor_type": "CLIPImageProcessor", "image_mean": None}, "expected resample, image_mean, "),
        ({"crop_pct": 0.9}, "crop_pct: expected none, got 0.9"),
    ],
)
def test_processors_that_do_not_say_all(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    hugging_face_classifier("xxs", 5).save_pretrained(tmp_path)
    file = {"size": {"shortest_edge": 72}, "crop_size": 64, **values}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["do_resize", "do_center_crop", "do_flip_channel_order"])
def test_a_step_that_is_null_is_left_out(name: str, tmp_path: Path) -> None:
    """As transformers does: its processors take None for false."""
    hugging_face_classifier("xxs", 5, image_size=64).save_pretrained(tmp_path)
    file = {"image_processor_type": "MobileViTImageProcessor", "size": {"height": 64, "width": 64}, "crop_size": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**file, "resample": 2, name: None}))
    preprocessing = load_checkpoint(tmp_path).preprocessing
    assert (preprocessing.resize is None) == (name == "do_resize")
    assert (preprocessing.channel_order == "RGB") == (name == "do_flip_channel_order")


def test_resizing_is_an_option_too(tmp_path: Path) -> None:
    torch.save(state_of("cvnets"), tmp_path / "x.pth")
    checkpoint = load_checkpoint(tmp_path / "x.pth")
    assert any("resized as Apple evaluates: --resize, --interpolation" in text for text in checkpoint.assumed)
    checkpoint = load_checkpoint(tmp_path / "x.pth", overrides=CheckpointOverrides(resize=300, interpolation="bicubic"))
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.interpolation) == (300, "bicubic")
    assert not any("--resize" in text for text in checkpoint.assumed)
