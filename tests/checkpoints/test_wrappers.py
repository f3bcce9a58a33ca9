"""How people save weights: wrappers, parts, averages, losses, heads; and errors for other networks and files."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilevit_coreml.checkpoints.files import read_weights
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import CheckpointError
from tests.peers import (
    cvnets_state,
    hugging_face_classifier,
    hugging_face_segmenter,
    images,
    ours,
    randomize,
    snr,
    timm_classifier,
)

State = Mapping[str, Tensor]
ENOUGH = 100  # dB


@pytest.fixture(scope="module")
def peer() -> Any:
    """transformers' xxs classifier of five classes."""
    return hugging_face_classifier("xxs", 5)


@pytest.fixture(scope="module")
def average() -> Any:
    """Another one, in the place of the average of the first."""
    return randomize(hugging_face_classifier("xxs", 5), seed=1)


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def check(path: Path, expected: Any, **options: Any) -> Any:
    """The checkpoint at a path, whose logits must be those of a peer."""
    checkpoint = load_checkpoint(path, **options)
    pixels = images(1, *checkpoint.config.image_hw)
    with torch.no_grad():
        logits, got = expected(pixels), checkpoint.model()(pixels).logits
    assert snr(getattr(logits, "logits", logits), got) > ENOUGH
    return checkpoint


def refusal(path: Path, **options: Any) -> str:
    """The error for a path: no longer than five lines of 120 characters."""
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, **options)
    text = str(error.value)
    assert "\n" not in text
    assert len(text.replace(str(path), "")) < 5 * 120
    return text


WRAPPERS: dict[str, Callable[[State], object]] = {
    "Lightning": lambda state: {"state_dict": prefixed("model.", state), "epoch": 3, "hyper_parameters": {"lr": 1}},
    "Lightning, twice": lambda state: {"state_dict": prefixed("model.net.", state), "loops": {}},
    "DDP": lambda state: prefixed("module.", state),
    "torch.compile": lambda state: prefixed("_orig_mod.", state),
    "compiled DDP": lambda state: prefixed("module._orig_mod.", state),
    "FSDP": lambda state: prefixed("_fsdp_wrapped_module.", state),
    "a class of one's own": lambda state: prefixed("backbone.", state),
    "AveragedModel": lambda state: {**prefixed("module.", state), "n_averaged": torch.tensor(7)},
    "optimizer beside it": lambda state: {"net": state, "optimizer": {"state": {}}, "best_acc": 0.9},
    "DeepSpeed": lambda state: {"module": state, "ds_version": "0.14"},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_unwrapped(wrapper: str, peer: Any, tmp_path: Path) -> None:
    torch.save(WRAPPERS[wrapper](peer.state_dict()), tmp_path / "last.ckpt")
    assert check(tmp_path / "last.ckpt", peer).notices == ()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_parts_with_an_index_are_read(suffix: str, peer: Any, tmp_path: Path) -> None:
    state = peer.state_dict()
    name = "model" if suffix == "safetensors" else "pytorch_model"
    peer.config.save_pretrained(tmp_path)
    files = {key: f"{name}-0000{1 + index % 2}-of-00002.{suffix}" for index, key in enumerate(state)}
    for file in set(files.values()):
        part = {key: tensor.contiguous() for key, tensor in state.items() if files[key] == file}
        save_file(part, tmp_path / file) if suffix == "safetensors" else torch.save(part, tmp_path / file)
    index = tmp_path / f"{name}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    whole = check(tmp_path, peer)
    assert check(index, peer).source.sha256 == whole.source.sha256
    assert whole.source.sha256 is not None
    next(tmp_path.glob(f"*-00002-of-*.{suffix}")).unlink()
    assert f"{index.name}: expected {name}-00002-of-00002.{suffix} beside it, got no such file; fetch all parts" in (
        refusal(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a weight_map, the file of each tensor, got none"),
        ({"weight_map": {"a": "../secret.bin"}}, "expected ../secret.bin beside it, got no such file"),
        ({"weight_map": {"a": "/etc/passwd"}}, "expected /etc/passwd beside it, got no such file"),
        ({"weight_map": ["a.bin"]}, "expected a weight_map, the file of each tensor, got none"),
    ],
)
def test_an_index_names_only_files_beside_it(content: object, message: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "secret.bin")
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    assert message in refusal(directory)


AVERAGES: dict[str, Callable[[State, State], object]] = {
    "timm": lambda plain, average: {"state_dict": plain, "state_dict_ema": average},
    "torchvision": lambda plain, average: {"model": plain, "model_ema": prefixed("module.", average)},
    "cvnets": lambda plain, average: {"model_state_dict": plain, "ema_model_state_dict": average},
    "one dictionary": lambda plain, average: {**prefixed("model.", plain), **prefixed("ema_model.module.", average)},
    "Lightning": lambda plain, average: {
        "state_dict": {**prefixed("net.", plain), **prefixed("net_ema.module.", average)}
    },
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_of_plain_and_averaged_weights_one_is_taken_and_named(
    kind: str, peer: Any, average: Any, tmp_path: Path
) -> None:
    path = tmp_path / "last.pth"
    torch.save(AVERAGES[kind](peer.state_dict(), average.state_dict()), path)
    assert check(path, peer).notices == (
        "the file has plain and averaged weights (EMA): took the plain; --ema the averaged ones",
    )
    assert check(path, average, overrides=CheckpointOverrides(ema=True)).notices == ()
    assert check(path, peer, overrides=CheckpointOverrides(ema=False)).notices == ()


def test_averaged_weights_alone_are_taken(average: Any, peer: Any, tmp_path: Path) -> None:
    path = tmp_path / "ema.pth"
    torch.save({"state_dict_ema": average.state_dict()}, path)
    assert check(path, average).notices == ()
    assert "expected plain weights (--no-ema), got none; leave the option out" in (
        refusal(path, overrides=CheckpointOverrides(ema=False))
    )
    torch.save(peer.state_dict(), path)
    assert "expected averaged weights (--ema), got none; leave the option out" in (
        refusal(path, overrides=CheckpointOverrides(ema=True))
    )


def test_tensors_of_a_loss_are_left_out_by_name(peer: Any, tmp_path: Path) -> None:
    state = {
        **prefixed("model.", peer.state_dict()),
        "criterion.weight": torch.ones(5),
        "loss_fn.pos_weight": torch.ones(5),
    }
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    assert check(tmp_path / "last.ckpt", peer).notices == (
        "left out criterion.weight, loss_fn.pos_weight: of the training",
    )


def test_any_other_tensor_is_refused_by_name(peer: Any, tmp_path: Path) -> None:
    torch.save({**peer.state_dict(), "temperature": torch.ones(1)}, tmp_path / "last.pth")
    assert "got 1 unexpected: temperature; tensors that the network does not have" in refusal(tmp_path / "last.pth")
    assert "got 1 unexpected: temperature;" in refusal(tmp_path / "last.pth", task=FEATURES)


def dropout_and(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.3), layer)


def mlp(inside: int = 24) -> nn.Module:
    return nn.Sequential(nn.Linear(320, inside), nn.ReLU(), nn.Linear(inside, 3))


def with_head(model: Any, path: str, head: nn.Module) -> Any:
    """A model with another module at a dotted path."""
    model = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, head)
    return randomize(model)


def test_dropout_before_a_linear_head_is_nothing(peer: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    model = with_head(peer, "classifier", dropout_and(nn.Linear(320, 3)))
    torch.save(model.state_dict(), path)
    assert check(path, model).task == CLASSIFICATION
    model = with_head(timm_classifier("xxs"), "head.fc", dropout_and(nn.Linear(320, 3)))
    torch.save(model.state_dict(), path)
    assert check(path, model).config.num_labels == 3
    model = with_head(ours(peer), "classifier", dropout_and(nn.Linear(320, 3)))
    torch.save(model.state_dict(), path)
    assert load_checkpoint(path).config.num_labels == 3
    state = {key.replace("classifier.fc.", "classifier.1."): value for key, value in cvnets_state(peer).items()}
    torch.save(state, path)
    assert check(path, peer).source.naming == "cvnets"


@pytest.mark.parametrize("head", [nn.Conv2d(256, 3, 1), dropout_and(nn.Conv2d(256, 3, 1))], ids=["alone", "dropout"])
def test_a_segmenters_last_convolution_may_be_one_of_torchs(head: nn.Module, tmp_path: Path) -> None:
    model = with_head(hugging_face_segmenter("xxs"), "segmentation_head.classifier", head)
    torch.save(model.state_dict(), tmp_path / "last.pth")
    checkpoint = load_checkpoint(tmp_path / "last.pth", overrides=CheckpointOverrides(image_sizes=((96, 96),)))
    assert (checkpoint.task, checkpoint.config.num_labels) == (SEGMENTATION, 3)
    with torch.no_grad():
        assert snr(model(images(1, 96, 96)).logits, checkpoint.model()(images(1, 96, 96)).logits) > ENOUGH


@pytest.mark.parametrize(
    ("make", "path", "keys"),
    [
        (lambda: hugging_face_classifier("xxs", 3), "classifier", "classifier.0.weight, classifier.2.weight"),
        (lambda: timm_classifier("xxs", 3), "head.fc", "head.fc.0.weight, head.fc.2.weight"),
        (lambda: ours(hugging_face_classifier("xxs", 3)), "classifier", "classifier.0.weight, classifier.2.weight"),
    ],
    ids=["transformers", "timm", "own"],
)
def test_a_head_of_several_layers_is_refused_but_its_features_are_not(
    make: Callable[[], Any], path: str, keys: str, tmp_path: Path
) -> None:
    model, plain = with_head(make(), path, mlp()), make()
    torch.save(model.state_dict(), tmp_path / "last.pth")
    assert refusal(tmp_path / "last.pth").endswith(
        f"expected a head of one linear layer, got 2: {keys}; train such a head, or convert --task features and "
        "compute the head in the app"
    )
    assert refusal(tmp_path / "last.pth", task=CLASSIFICATION) == refusal(tmp_path / "last.pth")
    checkpoint = load_checkpoint(tmp_path / "last.pth", task=FEATURES)
    assert checkpoint.task == FEATURES
    torch.save({**plain.state_dict(), **{k: v for k, v in model.state_dict().items() if path not in k}}, tmp_path / "b")
    pixels = images(1, 256, 256)
    with torch.no_grad():
        assert snr(load_checkpoint(tmp_path / "b").model()(pixels).pooled, checkpoint.model()(pixels).pooled) > ENOUGH


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.LayerNorm(320), nn.Linear(320, 3)),
        nn.Sequential(nn.BatchNorm1d(320), nn.Dropout(0.1), nn.Linear(320, 3)),
        nn.Sequential(nn.BatchNorm1d(320, affine=False), nn.Linear(320, 3)),
        nn.Sequential(nn.Linear(320, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(320, 3), nn.PReLU()),
    ],
    ids=["LayerNorm", "BatchNorm", "statistics only", "BatchNorm after it", "PReLU"],
)
def test_norms_in_a_head_are_not_passed_over(head: nn.Module, peer: Any, tmp_path: Path) -> None:
    model = with_head(peer, "classifier", head)
    torch.save(model.state_dict(), tmp_path / "last.pth")
    text = refusal(tmp_path / "last.pth")
    assert "unexpected: classifier." in text
    assert text.endswith("this is no head of a MobileViT: --task features leaves it out")
    assert load_checkpoint(tmp_path / "last.pth", task=FEATURES).task == FEATURES


def test_a_head_of_another_name_is_not_passed_over(peer: Any, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in peer.state_dict().items() if not key.startswith("classifier.")}
    torch.save({**state, "fc.weight": torch.zeros(3, 320), "fc.bias": torch.zeros(3)}, tmp_path / "last.pth")
    assert "got 2 unexpected: fc.bias, fc.weight;" in refusal(tmp_path / "last.pth")


PEFT = "save the whole model: model.merge_and_unload().save_pretrained(DIRECTORY)"
QUERY = "mobilevit.encoder.layer.2.transformer.layer.0.attention.attention.query"
NETWORKS: dict[str, tuple[Callable[[], State], str]] = {
    "LoRA alone": (
        lambda: {f"base_model.model.{QUERY}.lora_A.weight": torch.zeros(8, 64)},
        f"expected the weights of a MobileViT, got a PEFT adapter (base_model.model.{QUERY:.30}",
    ),
    "LoRA in a model": (
        lambda: {
            **hugging_face_classifier("xxs", 3).state_dict(),
            f"{QUERY}.lora_B.default.weight": torch.zeros(64, 8),
        },
        "got a PEFT adapter (mobilevit.encoder",
    ),
    "mmpretrain": (
        lambda: {
            "backbone.stem.conv.weight": torch.zeros(16, 3, 3, 3),
            "backbone.layers.0.0.conv.0.conv.weight": torch.zeros(32, 16, 1, 1),
            "backbone.layers.2.1.local_rep.0.conv.weight": torch.zeros(48, 48, 3, 3),
            "head.fc.weight": torch.zeros(3, 320),
        },
        "got a MobileViT of mmpretrain (backbone.layers.2.1.local_rep.0.conv.weight); give the weights in the names of",
    ),
    "quantized": (
        lambda: {"model.fc._packed_params.dtype": torch.zeros(1), "model.fc.scale": torch.ones(1)},
        "got a quantized model (model.fc._packed_params.dtype); give the weights from before quantization",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_are_told(name: str, tmp_path: Path) -> None:
    make, told = NETWORKS[name]
    torch.save(dict(make()), tmp_path / "last.pth")
    text = refusal(tmp_path / "last.pth")
    assert told in text
    assert not name.startswith("LoRA") or text.endswith(PEFT)


def test_a_directory_of_an_adapter_is_told(tmp_path: Path) -> None:
    save_file({f"base_model.model.{QUERY}.lora_A.weight": torch.zeros(8, 64)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refusal(tmp_path).endswith(
        "expected the weights of a whole model, got a PEFT adapter; save model.merge_and_unload().save_pretrained("
        "DIRECTORY)"
    )


@pytest.mark.parametrize("library", ["transformers", "timm"])
@pytest.mark.parametrize("directory", [False, True])
def test_the_second_version_is_told(library: str, directory: bool, tmp_path: Path) -> None:
    if library == "timm":
        import timm

        model: Any = timm.create_model("mobilevitv2_050", num_classes=2)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        from transformers import MobileViTV2Config, MobileViTV2ForImageClassification

        model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5))
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        model.config.save_pretrained(tmp_path)
    text = refusal(tmp_path if directory else tmp_path / "pytorch_model.bin")
    assert "expected the weights of a MobileViT, got a MobileViTv2 (" in text
    assert text.endswith("; give the weights of a MobileViT of the first version")


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_torchscript_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.trace(Twice(), torch.zeros(1)).save(str(path))
    assert refusal(path).endswith(
        "expected a state dict, got a TorchScript or Keras archive; for TorchScript save torch.jit.load(FILE)."
        "state_dict()"
    )


def test_an_exported_program_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Twice(), (torch.zeros(1),)), path)
    assert refusal(path).endswith("got an exported program; give the weights: torch.export.load(FILE).state_dict")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.onnx", b"\x08\x07", "got an ONNX file; give the PyTorch weights it was exported from"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "got a Keras or TensorFlow file; transformers 4 converts it: from_pretr"),
        ("tf.bin", b"\x89HDF\r\n\x1a\n", "got a Keras or TensorFlow file (HDF5); transformers 4 converts it: "),
        ("saved_model.pb", b"\x08", "got a TensorFlow file; give the PyTorch weights"),
        ("model.TFLITE", b"TFL3", "got a TensorFlow Lite file; give the PyTorch weights"),
        ("model.keras", b"PK\x03\x04", "got a Keras file; give the PyTorch weights"),
        ("flax_model.msgpack", b"\x81", "got a Flax file; give the PyTorch weights"),
        ("model.mlmodel", b"\x08", "got a Core ML model; give the PyTorch weights it was converted from"),
    ],
)
def test_files_of_other_formats_are_told(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name}: expected PyTorch weights, {told}" in refusal(tmp_path / name)


def test_arrays_and_packages_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", a=np.ones(3))
    assert "model.npz: expected PyTorch weights, got a NumPy archive" in refusal(tmp_path / "model.npz")
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    assert "model.mlpackage: expected PyTorch weights, got a Core ML package" in refusal(package)


def test_the_tensors_are_those_of_the_file(peer: Any, average: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.safetensors"
    save_file({"model.a": torch.ones(2), "model_ema.module.a": torch.zeros(2), "schema.b": torch.ones(1)}, path)
    saved = read_weights(path)
    assert (sorted(saved.tensors), sorted(saved.averaged)) == (["model.a", "schema.b"], ["model_ema.module.a"])
    assert saved.arguments == {}
