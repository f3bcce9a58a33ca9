"""Fields of the files beside weights: none that could change the function is passed over."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mobilevit_coreml.checkpoints import cvnets, hugging_face, timm
from mobilevit_coreml.checkpoints.fields import Fields
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.errors import CheckpointError, MobileViTError
from tests.peers import cvnets_state, hugging_face_classifier, timm_classifier

TABLES = {
    "config.json": hugging_face.CONFIG,
    "preprocessor_config.json": hugging_face.PREPROCESSOR,
    "timm": timm.CONFIG,
    "pretrained_cfg": timm.PRETRAINED_CFG,
    "model_args": timm.MODEL_ARGS,
    "config.yaml": cvnets.CONFIG,
}


def write(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


def hugging_face_directory(directory: Path, config: dict[str, Any], preprocessor: dict[str, Any]) -> None:
    hugging_face_classifier("xxs", 2).save_pretrained(directory)
    write(directory / "config.json", {**json.loads((directory / "config.json").read_text()), **config})
    write(directory / "preprocessor_config.json", preprocessor)


def timm_directory(directory: Path, config: dict[str, Any]) -> None:
    torch.save(timm_classifier("xxs", 2).state_dict(), directory / "pytorch_model.bin")
    write(directory / "config.json", {"architecture": "mobilevit_xxs", **config})


def cvnets_directory(directory: Path, options: dict[str, Any]) -> None:
    torch.save(cvnets_state(hugging_face_classifier("xxs", 2)), directory / "checkpoint.pt")
    values = {"model": {"classification": {"name": "mobilevit", "activation": {"name": "swish"}, **options}}}
    (directory / "config.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("save", "named"),
    [
        (lambda path: hugging_face_directory(path, {"warp": 3}, {}), "config.json: warp: "),
        (lambda path: hugging_face_directory(path, {}, {"warp": 3}), "preprocessor_config.json: warp: "),
        (lambda path: timm_directory(path, {"warp": 3}), "config.json: warp: "),
        (lambda path: timm_directory(path, {"pretrained_cfg": {"warp": 3}}), "config.json: warp: "),
        (lambda path: timm_directory(path, {"model_args": {"warp": 3}}), "model_args: warp: "),
        (lambda path: cvnets_directory(path, {"warp": 3}), "config.yaml: model.classification.warp: "),
    ],
    ids=TABLES,
)
def test_an_unknown_field_is_named(save: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    assert str(error.value).endswith(
        f"{named}expected a field that is known, got 3; remove it if inference does not depend on it"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: hugging_face_directory(path, {"warp": None}, {"warp": None}),
        lambda path: timm_directory(path, {"warp": None, "pretrained_cfg": {"warp": None}, "model_args": None}),
        lambda path: cvnets_directory(path, {"warp": None}),
    ],
    ids=["transformers", "timm", "cvnets"],
)
def test_null_is_as_good_as_absent(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path)
    assert load_checkpoint(tmp_path).config.num_labels == 2


@pytest.mark.parametrize("name", TABLES)
def test_no_field_is_of_two_kinds(name: str) -> None:
    table = TABLES[name]
    read, unused = table.read.split(), " ".join(table.unused.values()).split()
    names = [*read, *unused, *table.fixed]
    assert sorted(set(names)) == sorted(names)


def test_a_fixed_value_is_taken_and_another_is_refused() -> None:
    table = Fields(read="a", unused={"colour": "b_*"}, fixed={"c": (1, 2), "d": ()})
    assert table.select({"a": 0, "b_x": 1, "c": 2, "d": None}, "x") == {"a": 0}
    with pytest.raises(CheckpointError, match=r"^x: c: expected 1 or 2, got 3; other values cannot be converted$"):
        table.select({"c": 3}, "x")
    with pytest.raises(CheckpointError, match=r"^x: d: expected .*, got 0"):
        table.select({"d": 0}, "x")
    with pytest.raises(CheckpointError, match=r"^x: B_x: expected a field that is known"):  # case counts
        table.select({"B_x": 0}, "x")


def test_all_that_transformers_writes_is_known() -> None:
    from transformers import MobileViTConfig

    values = MobileViTConfig(num_labels=3).to_dict()
    assert len(values) > 20
    hugging_face.CONFIG.select(values, "x")
    hugging_face.CONFIG.select(json.loads(MobileViTConfig(num_labels=3).to_json_string(use_diff=False)), "x")


def test_all_that_timm_writes_is_known(tmp_path: Path) -> None:
    from timm.models import save_for_hf
    from timm.models._pretrained import PretrainedCfg

    save_for_hf(timm_classifier("xxs", 2), tmp_path, model_args={"drop_rate": 0.1, "act_layer": "silu"})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["pretrained_cfg"]["crop_pct"] == 0.9
    load_checkpoint(tmp_path)
    table = timm.PRETRAINED_CFG
    known = {*table.read.split(), *" ".join(table.unused.values()).split(), *table.fixed}
    assert set(PretrainedCfg.__dataclass_fields__) <= known


def saved_by_timms_training(path: Path, **arguments: Any) -> None:
    peer = timm_classifier("xxs", 2)
    torch.save({"state_dict": peer.state_dict(), "args": argparse.Namespace(lr=0.1, aa="rand-m9", **arguments)}, path)


def test_what_timms_training_script_was_given_is_honoured(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    saved_by_timms_training(
        path,
        model="mobilevit_xxs",
        img_size=192,
        crop_pct=0.8,
        interpolation="bilinear",
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.3],
        gp="max",
        model_kwargs={"act_layer": "relu"},
        bn_eps=None,
    )
    checkpoint = load_checkpoint(path)
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (240, (192, 192))
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    assert checkpoint.preprocessing.interpolation == "bilinear"
    assert (checkpoint.config.global_pool, checkpoint.config.hidden_act) == ("max", "relu")
    (meaning,) = checkpoint.assumed
    assert meaning.startswith("one class of all: softmax (assumed; independent labels: --problem-type")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet50"}, "architecture: expected mobilevit_xxs, mobilevit_xs or mobilevit_s, got resnet50"),
        ({"bn_eps": 1e-3}, "args: bn_eps: expected 1e-05, got 0.001"),
        ({"tta": 4}, "args: tta: expected 0 or 1, got 4"),
        ({"crop_mode": "border"}, "crop_mode: expected center or squash, got 'border'"),
        ({"model_kwargs": {"warp": 1}}, "model_args: warp: expected a field that is known, got 1"),
        ({"model_kwargs": "act_layer=relu"}, "model_kwargs: expected names and values, got 'act_layer=relu'"),
        ({"gp": "catavgmax"}, "global_pool: expected avg or fast or fastavg or max or fastmax, got 'catavgmax'"),
    ],
)
def test_what_timms_training_script_was_given_is_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved_by_timms_training(tmp_path / "last.pth.tar", **arguments)
    with pytest.raises(MobileViTError) as error:
        load_checkpoint(tmp_path / "last.pth.tar")
    assert f": {message}" in str(error.value)


def read_yaml(tmp_path: Path, options: dict[str, Any], task: str = "classification") -> Any:
    cvnets_directory(tmp_path, options)
    from mobilevit_coreml.preprocessing import default_preprocessing

    default = default_preprocessing(task, (256, 256), "BGR")
    return cvnets.read_config(tmp_path / "config.yaml", VARIANTS["xxs"], default, task, "config.yaml")


def test_cvnets_options_are_read_by_their_dotted_names(tmp_path: Path) -> None:
    options = {"mit": {"number_heads": 2}, "activation": {"name": "hard_swish"}}
    config, preprocessing = read_yaml(tmp_path, options)
    assert (config.num_attention_heads, config.hidden_act) == (2, "hardswish")
    assert (preprocessing.resize, preprocessing.crop) == (288, (256, 256))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mobilevit_v2"}, "model.classification.name: expected 'mobilevit', got 'mobilevit_v2'"),
        ({"activation": {"name": "prelu"}}, "activation: expected one of swish, relu, relu6, gelu, hard_swish, got 'p"),
        ({"activation": {"name": ["swish"]}}, "activation: expected one of swish, relu, relu6, gelu, hard_swish, got"),
        ({"mit": {"number_heads": "many"}}, "num_attention_heads: expected an int, 1 to 16384, got 'many'"),
    ],
)
def test_cvnets_options_that_cannot_be_honoured(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MobileViTError) as error:
        read_yaml(tmp_path, options)
    assert str(error.value).startswith(f"config.yaml: {message}")


@pytest.mark.parametrize("content", ["- 1", "a: [", "!!python/object/apply:os.getcwd []", "\x00", "a: &a {b: *a}"])
def test_yaml_that_is_no_options(content: str, tmp_path: Path) -> None:
    cvnets_directory(tmp_path, {})
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.yaml: "):
        load_checkpoint(tmp_path)
