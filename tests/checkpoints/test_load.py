import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit_coreml.checkpoints import download
from mobilevit_coreml.checkpoints.load import Checkpoint, load_checkpoint
from mobilevit_coreml.errors import CheckpointError, MobileViTError
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.preprocessing import Preprocessing
from tests.peers import hugging_face_classifier, images, snr, timm_classifier

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_in_hub(cache: Path, repo: str, snapshot: Path, revision: str = "main") -> None:
    """Lay a snapshot into a cache as huggingface_hub does."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    shutil.copytree(snapshot, folder / "snapshots" / COMMIT)


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    model = ImageClassifier(checkpoint.config).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    with torch.no_grad():
        return model(images(1, *checkpoint.config.image_hw)).logits


@pytest.mark.parametrize(
    "weights", ["auto", "pretrained", "apple/mobilevit-x-small", f"apple/mobilevit-x-small@{COMMIT}"]
)
def test_published_weights_come_from_the_cache(empty_hub: Path, xs_snapshot: Path, weights: str) -> None:
    put_in_hub(empty_hub, "apple/mobilevit-x-small", xs_snapshot)
    checkpoint = load_checkpoint(weights, "xs")
    assert checkpoint.source.name == weights if "/" in weights else "apple/mobilevit-x-small"
    assert checkpoint.source.revision == COMMIT
    assert checkpoint.source.sha256 == hashlib.sha256((xs_snapshot / "model.safetensors").read_bytes()).hexdigest()
    assert (checkpoint.source.untrained, checkpoint.notice) == (False, None)
    expected = hugging_face_classifier("xs")(images(1, 256, 256)).logits
    assert snr(expected, logits_of(checkpoint)) > 100


def test_auto_without_hub_or_cache_is_untrained_and_says_so(empty_hub: Path) -> None:
    checkpoint = load_checkpoint("auto", "xxs")
    assert checkpoint.source.untrained
    assert (checkpoint.source.name, checkpoint.source.seed, checkpoint.source.sha256) == ("untrained", 0, None)
    assert checkpoint.notice is not None
    assert checkpoint.notice.startswith("weights apple/mobilevit-xx-small: expected in the local cache or on the")


def test_pretrained_without_hub_or_cache_is_an_error(empty_hub: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^weights apple/mobilevit-small: expected in the local cache or on the"):
        load_checkpoint("pretrained", "s")


class Hub:
    """Stands in for huggingface_hub.HfApi: a hub that answers."""

    def __init__(self, files: list[str] | Exception) -> None:
        self.files = files

    def __call__(self) -> "Hub":
        return self

    def model_info(self, repo: str, revision: str | None, timeout: float) -> Any:
        if isinstance(self.files, Exception):
            raise self.files
        from huggingface_hub.hf_api import ModelInfo

        return ModelInfo(id=repo, sha=COMMIT, siblings=[{"rfilename": name} for name in self.files])


def test_downloads_configuration_and_one_file_of_weights(
    empty_hub: Path, xs_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(repo: str, name: str, revision: str) -> str:
        fetched.append((repo, name, revision))
        directory = empty_hub / revision
        directory.mkdir(exist_ok=True)
        return str(shutil.copy(xs_snapshot / name, directory / name))

    files = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(files))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    checkpoint = load_checkpoint("someone/model")
    assert fetched == [("someone/model", name, COMMIT) for name in ("config.json", "model.safetensors")]
    assert (checkpoint.variant, checkpoint.source.revision) == ("xs", COMMIT)


def test_a_repository_without_weights(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(["README.md"]))
    with pytest.raises(
        CheckpointError, match="expected model.safetensors or pytorch_model.bin on the hub, got neither"
    ):
        load_checkpoint("someone/model")


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_an_answer_that_there_is_no_repository_is_an_error_even_for_auto(
    empty_hub: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(error))
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(weights, "xs")
    assert not isinstance(raised.value, download.HubUnreachableError)
    assert "expected a repository on the Hugging Face hub, got none that is public or yours" in str(raised.value)


def test_untrained_weights_are_the_same_each_time() -> None:
    state, again = (load_checkpoint("untrained", "xxs").state for _ in range(2))
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_untrained_weights_leave_the_callers_generator_alone() -> None:
    before = torch.get_rng_state()
    load_checkpoint("untrained", "xxs")
    assert torch.equal(before, torch.get_rng_state())


def test_untrained_weights_keep_the_signal_alive() -> None:
    checkpoint = load_checkpoint("untrained", "xxs")
    model = ImageClassifier(checkpoint.config).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    with torch.no_grad():
        output = model(images(2, 256, 256))
    assert all(0.05 < float(state.std()) < 20 for state in output.hidden_states)
    assert float(output.logits.std()) > 0.01


def test_bare_file_next_to_nothing(tmp_path: Path) -> None:
    peer = hugging_face_classifier("xxs", classes=3)
    torch.save({"model": peer.state_dict()}, tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"))
    assert (checkpoint.variant, checkpoint.config.num_labels) == ("xxs", 3)
    assert checkpoint.config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert checkpoint.preprocessing == Preprocessing(288, (256, 256), "BGR")
    assert checkpoint.notice == (
        "no config.json beside the weights: took silu, 4 heads, patches of 2, output stride 32; "
        "where that is wrong, give the directory"
    )
    assert snr(peer(images(1, 256, 256)).logits, logits_of(checkpoint)) > 100


def test_a_thousand_classes_without_names_are_imagenets(tmp_path: Path) -> None:
    torch.save(hugging_face_classifier("xxs").state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"))
    assert checkpoint.config.id2label[0] == "tench, Tinca tinca"
    assert "output stride 32 and ImageNet's class names;" in (checkpoint.notice or "")


def test_a_segmenter_is_no_classifier(tmp_path: Path) -> None:
    state = hugging_face_classifier("xxs").state_dict()
    state["segmentation_head.classifier.convolution.bias"] = state.pop("classifier.bias")
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match="expected a classifier, got a segmenter with DeepLabV3's head; only"):
        load_checkpoint(str(tmp_path / "best.pth"))


def test_a_path_that_looks_like_a_hub_id_is_said_not_to_be_there(empty_hub: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^no path runs/7 here; weights runs/7: expected in the local cache or on"
    ):
        load_checkpoint("runs/7")


def test_directory_with_all_its_settings(tmp_path: Path) -> None:
    labels = {0: "no", 1: "yes"}
    hugging_face_classifier("xxs", 2, id2label=labels, image_size=320).save_pretrained(tmp_path)
    write_preprocessor(tmp_path, size={"shortest_edge": 400}, crop_size={"height": 320, "width": 384}, resample=3)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.config.id2label == ("no", "yes")
    assert checkpoint.config.image_hw == (320, 384)
    assert checkpoint.preprocessing == Preprocessing(400, (320, 384), "RGB", "bicubic")


def write_preprocessor(directory: Path, **values: Any) -> None:
    values = {"do_flip_channel_order": False, "do_resize": True, "do_center_crop": True, **values}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))


def test_old_preprocessor_files_have_plain_numbers(xs_snapshot: Path, tmp_path: Path) -> None:
    shutil.copytree(xs_snapshot, tmp_path / "model")
    write_preprocessor(tmp_path / "model", size=320, crop_size=288, do_flip_channel_order=True)
    checkpoint = load_checkpoint(str(tmp_path / "model"))
    assert checkpoint.preprocessing == Preprocessing(320, (288, 288), "BGR")
    assert checkpoint.config.image_hw == (288, 288)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_normalize": True}, "expected no mean and deviation (do_normalize), got them switched on"),
        ({"crop_size": {"height": 256}}, "crop_size: expected pixels, 1 to 8192, got None"),
        ({"size": {"shortest_edge": "big"}}, "size.shortest_edge: expected pixels, 1 to 8192, got 'big'"),
        ({"resample": 9}, "resample: expected 0 to 5 as in Pillow, got 9"),
        ({"rescale_factor": -1}, "rescale_factor: expected a number above 0, at most 1000, got -1"),
    ],
)
def test_a_preprocessor_that_is_not_mobilevits(
    xs_snapshot: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(xs_snapshot, tmp_path / "model")
    write_preprocessor(tmp_path / "model", **values)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(tmp_path / "model"))
    assert f"model: preprocessor_config.json: {message}" in str(error.value)


def test_timm_directory(tmp_path: Path) -> None:
    peer = timm_classifier("xxs", classes=2)
    torch.save(peer.state_dict(), tmp_path / "pytorch_model.bin")
    settings = {"mean": [0.0] * 3, "std": [1.0] * 3, "label_names": ["no", "yes"]}
    config = {"architecture": "mobilevit_xxs", "num_classes": 2, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.config.id2label == ("no", "yes")
    assert checkpoint.preprocessing.channel_order == "RGB"
    assert snr(peer(images(1, 256, 256)), logits_of(checkpoint)) > 100
    assert checkpoint.preprocessing.resize == 288
    settings |= {"input_size": [3, 224, 192], "crop_pct": 0.9, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.preprocessing == Preprocessing(213, (224, 192), "RGB", "bicubic")
    assert checkpoint.config.image_hw == (224, 192)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.485, 0.456, 0.406]}, "mean: expected 0 for every channel, got [0.485, 0.456, 0.406]"),
        ({"std": 0.5}, "std: expected 1 for every channel, got 0.5"),
        ({"input_size": None}, "input_size: expected channels, height and width, got None"),
        ({"crop_pct": 7}, "crop_pct: expected a share, 0.1 to 1, got 7"),
        ({"interpolation": "random"}, "interpolation: expected one of nearest, lanczos, bilinear"),
        (
            {"architecture": "resnet50"},
            "architecture: expected mobilevit_xxs, mobilevit_xs or mobilevit_s, got resnet50",
        ),
    ],
)
def test_a_timm_config_that_is_not_mobilevits(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save(timm_classifier("xxs", classes=2).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": None, **changes}))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(tmp_path))
    assert f"config.json: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("files", "got"), [([], "none"), (["a.pth", "b.pth"], "a.pth, b.pth")], ids=["none", "several"]
)
def test_a_directory_must_leave_no_choice(tmp_path: Path, files: list[str], got: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(tmp_path))
    assert str(error.value) == (
        f"weights {tmp_path}: expected model.safetensors or pytorch_model.bin, or a single "
        f".safetensors/.bin/.pt/.pth/.ckpt file, got {got}; name the file itself"
    )


def test_a_variant_that_contradicts_the_weights(xs_snapshot: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(xs_snapshot), "s")
    assert str(error.value) == (
        f"weights {xs_snapshot}: expected variant s (--variant), got xs (from their shapes); "
        "drop --variant or give other weights"
    )


def test_a_config_that_contradicts_the_weights(xs_snapshot: Path, tmp_path: Path) -> None:
    shutil.copytree(xs_snapshot, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "hidden_sizes": [144, 192, 240]}))
    with pytest.raises(CheckpointError, match=r"mis-shaped: .*encoder.layer.2.conv_1x1.convolution.weight"):
        load_checkpoint(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "weights", ["missing.pth", "./missing", "/missing/model", "a/b/c", "nothing", "dir/model.safetensors"]
)
def test_nothing_there(empty_hub: Path, weights: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected a file, a directory, a hub id \(owner/name\) or one of auto"):
        load_checkpoint(weights)


@pytest.mark.parametrize("weights", ["auto", "pretrained", "untrained"])
def test_published_weights_need_a_variant(weights: str) -> None:
    with pytest.raises(MobileViTError, match=rf"--weights {weights}: expected a --variant beside it \(xxs, xs, s\)"):
        load_checkpoint(weights)


@pytest.mark.network
def test_published_logits(tmp_path: Path) -> None:
    """apple/mobilevit-small on the photograph 000000039769 of COCO, as its model card has them."""
    import io
    import urllib.request

    from PIL import Image

    checkpoint = load_checkpoint("apple/mobilevit-small")
    with urllib.request.urlopen("http://images.cocodataset.org/val2017/000000039769.jpg", timeout=30) as response:
        photo = Image.open(io.BytesIO(response.read()))
    model = ImageClassifier(checkpoint.config).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    pixels = torch.from_numpy(checkpoint.preprocessing.pixels(checkpoint.preprocessing.prepare(photo)))
    with torch.no_grad():
        logits = model(pixels).logits[0, :3]
    assert logits.tolist() == pytest.approx([-0.9866, 0.2392, -1.1241], abs=1e-3)
