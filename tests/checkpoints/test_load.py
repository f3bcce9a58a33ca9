import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit_coreml.checkpoints import hub as download
from mobilevit_coreml.checkpoints.load import Checkpoint, load_checkpoint
from mobilevit_coreml.checkpoints.untrained import untrained_state
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION, TASKS, Task, published_config
from mobilevit_coreml.errors import CheckpointError, MobileViTError
from mobilevit_coreml.labels import voc_labels
from mobilevit_coreml.model import ATTENTION_IMPLEMENTATIONS
from mobilevit_coreml.model.attention import SelfAttention
from mobilevit_coreml.model.block import UNFOLD_IMPLEMENTATIONS, MobileViTBlock
from mobilevit_coreml.preprocessing import Preprocessing
from tests.peers import (
    cvnets_state,
    hugging_face_backbone,
    hugging_face_classifier,
    hugging_face_segmenter,
    images,
    snr,
    timm_classifier,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What is said of images where no file does, by the code base of the weights
PIXELS = {
    "Hugging Face": "pixels 0 to 1, BGR (assumed: no preprocessor_config.json: as Apple's models; "
    "others: --channel-order RGB; normalized: --mean, --std; resized as Apple evaluates: --resize, --interpolation)",
    "cvnets": "pixels 0 to 1, BGR (assumed: ml-cvnets v0.1; from v0.2 on it trains on RGB: --channel-order RGB; "
    "normalized: --mean, --std; resized as Apple evaluates: --resize, --interpolation)",
    "timm": "pixels 0 to 1, RGB (assumed: no config.json: timm's for mobilevit; others: --channel-order BGR; "
    "normalized: --mean, --std)",
}
MEANING = "one class of all: softmax (assumed; independent labels: --problem-type multi_label_classification)"
TIMM_ASSUMED = (
    "crop 0.9, bicubic, silu (--hidden-act), mean pooling (assumed: no config.json: timm's for mobilevit; "
    "--resize, --interpolation)",
    PIXELS["timm"],
)
TIMM_DEFAULT = Preprocessing(284, (256, 256), "RGB", "bicubic", rounding="even")


def put_in_hub(cache: Path, repo: str, snapshot: Path, revision: str = "main") -> None:
    """Lay a snapshot into a cache as huggingface_hub does."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    shutil.copytree(snapshot, folder / "snapshots" / COMMIT)


def at_size(checkpoint: Checkpoint, height: int, width: int) -> Checkpoint:
    """The same weights for smaller pictures, to be quick."""
    config = dataclasses.replace(checkpoint.config, image_size=(height, width))
    return dataclasses.replace(checkpoint, config=config)


@torch.no_grad()
def output_of(checkpoint: Checkpoint) -> Any:
    return checkpoint.model()(images(1, *checkpoint.config.image_hw))


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    logits = output_of(checkpoint).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def save_segmenter(directory: Path, classes: int = 21, **overrides: Any) -> Any:
    """What transformers saves of an xxs segmenter: its configuration, its processor's, and its weights."""
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    peer = hugging_face_segmenter("xxs", classes, **overrides)
    peer.save_pretrained(directory)
    MobileViTImageProcessorPil(
        size={"shortest_edge": 544},
        crop_size={"height": 512, "width": 512},
        resample=2,
        do_flip_channel_order=True,
        do_reduce_labels=False,
    ).save_pretrained(directory)
    return peer


@pytest.mark.parametrize(
    "weights", ["auto", "pretrained", "apple/mobilevit-x-small", f"apple/mobilevit-x-small@{COMMIT}"]
)
def test_published_weights_come_from_the_cache(empty_hub: Path, xs_snapshot: Path, weights: str) -> None:
    put_in_hub(empty_hub, "apple/mobilevit-x-small", xs_snapshot)
    checkpoint = load_checkpoint(weights, "xs")
    assert checkpoint.source.name == (weights if "/" in weights else "apple/mobilevit-x-small")
    assert checkpoint.source.revision == COMMIT
    assert checkpoint.source.sha256 == hashlib.sha256((xs_snapshot / "model.safetensors").read_bytes()).hexdigest()
    assert (checkpoint.source.untrained, checkpoint.notices) == (False, ())
    expected = hugging_face_classifier("xs")(images(1, 256, 256)).logits
    assert snr(expected, logits_of(checkpoint)) > 100


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_published_segmenters_come_from_the_cache(empty_hub: Path, tmp_path: Path, weights: str) -> None:
    peer = save_segmenter(tmp_path / "model", id2label=dict(enumerate(voc_labels())))
    put_in_hub(empty_hub, "apple/deeplabv3-mobilevit-xx-small", tmp_path / "model")
    checkpoint = load_checkpoint(weights, "xxs", SEGMENTATION)
    assert (checkpoint.source.name, checkpoint.source.revision) == ("apple/deeplabv3-mobilevit-xx-small", COMMIT)
    assert (checkpoint.task, checkpoint.expand) == (SEGMENTATION, False)
    assert (checkpoint.notices, checkpoint.assumed) == ((), ())
    assert checkpoint.config.id2label == voc_labels()
    assert checkpoint.preprocessing == Preprocessing(544, (512, 512), "BGR")
    assert snr(peer(images(1, 96, 128)).logits, logits_of(at_size(checkpoint, 96, 128))) > 100


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_published_features_are_the_classifiers(empty_hub: Path, xs_snapshot: Path, weights: str) -> None:
    put_in_hub(empty_hub, "apple/mobilevit-x-small", xs_snapshot)
    checkpoint = load_checkpoint(weights, "xs", FEATURES)
    assert (checkpoint.source.name, checkpoint.source.revision) == ("apple/mobilevit-x-small", COMMIT)
    assert (checkpoint.task, checkpoint.expand, checkpoint.notices) == (FEATURES, True, ())
    expected = hugging_face_classifier("xs").mobilevit(images(1, 96, 128)).pooler_output
    assert snr(expected, output_of(at_size(checkpoint, 96, 128)).pooled) > 100


@pytest.mark.parametrize(
    ("task", "variant", "repo"),
    [
        (None, "xxs", "apple/mobilevit-xx-small"),
        (CLASSIFICATION, "xs", "apple/mobilevit-x-small"),
        (SEGMENTATION, "xxs", "apple/deeplabv3-mobilevit-xx-small"),
        (SEGMENTATION, "xs", "apple/deeplabv3-mobilevit-x-small"),
        (SEGMENTATION, "s", "apple/deeplabv3-mobilevit-small"),
        (FEATURES, "s", "apple/mobilevit-small"),
    ],
)
def test_each_task_and_variant_has_weights_of_its_own(
    empty_hub: Path, task: str | None, variant: str, repo: str
) -> None:
    with pytest.raises(download.HubUnreachableError, match=rf"^weights {repo}: expected in the local cache or on the"):
        load_checkpoint("pretrained", variant, task)


def test_auto_without_hub_or_cache_is_untrained_and_says_so(empty_hub: Path) -> None:
    checkpoint = load_checkpoint("auto", "xxs")
    assert checkpoint.source.untrained
    assert (checkpoint.source.name, checkpoint.source.seed, checkpoint.source.sha256) == ("untrained", 0, None)
    (notice,) = checkpoint.notices
    assert notice.startswith("weights apple/mobilevit-xx-small: expected in the local cache or on the")


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
        CheckpointError, match=r"expected model.safetensors or .* or pytorch_model.bin.index.json on the hub, got none"
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


@pytest.fixture(scope="module", params=TASKS)
def untrained(request: pytest.FixtureRequest) -> Checkpoint:
    """Untrained xxs weights for each task."""
    return load_checkpoint("untrained", "xxs", request.param)


@pytest.mark.parametrize("task", TASKS)
def test_untrained_weights_are_the_same_each_time(task: str) -> None:
    config = dataclasses.replace(published_config("xxs", task), image_size=64)
    state, again, other = (untrained_state(config, seed, task) for seed in (0, 0, 1))
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert not torch.equal(state["backbone.stem.conv.weight"], other["backbone.stem.conv.weight"])


def test_untrained_weights_leave_the_callers_generator_alone() -> None:
    before = torch.get_rng_state()
    load_checkpoint("untrained", "xxs")
    assert torch.equal(before, torch.get_rng_state())


@torch.no_grad()
def test_untrained_weights_keep_the_signal_alive(untrained: Checkpoint) -> None:
    output = at_size(untrained, 256, 256).model()(images(2, 256, 256))
    assert all(0.05 < float(state.std()) < 20 for state in output.hidden_states)
    assert float((output.pooled if untrained.task == FEATURES else output.logits).std()) > 0.01


def test_untrained_weights_are_for_what_is_published(untrained: Checkpoint) -> None:
    is_segmenter = untrained.task == SEGMENTATION
    assert untrained.expand == ("backbone.expand.conv.weight" in untrained.state) == (not is_segmenter)
    assert untrained.config == published_config("xxs", untrained.task)
    resize, crop = (544, (512, 512)) if is_segmenter else (288, (256, 256))
    assert untrained.preprocessing == Preprocessing(resize, crop, "BGR")
    assert (untrained.source.untrained, untrained.notices, untrained.assumed) == (True, (), ())
    assert untrained.state.keys() == untrained.model().state_dict().keys()


@pytest.mark.parametrize("attention", ATTENTION_IMPLEMENTATIONS)
def test_a_checkpoints_model_attends_as_it_is_told(untrained: Checkpoint, attention: str) -> None:
    model = untrained.model(attention)
    assert not model.training
    forms = {module.attend for module in model.modules() if isinstance(module, SelfAttention)}
    assert forms == {ATTENTION_IMPLEMENTATIONS[attention]}


@pytest.mark.parametrize("unfold", UNFOLD_IMPLEMENTATIONS)
def test_a_checkpoints_model_unfolds_as_it_is_told(untrained: Checkpoint, unfold: str) -> None:
    blocks = [module for module in untrained.model(unfold=unfold).modules() if isinstance(module, MobileViTBlock)]
    assert {(block.unfold_implementation, block.fold_implementation) for block in blocks} == {
        UNFOLD_IMPLEMENTATIONS[unfold]
    }


def test_bare_file_next_to_nothing(tmp_path: Path) -> None:
    peer = hugging_face_classifier("xxs", classes=3)
    torch.save({"model": peer.state_dict()}, tmp_path / "best.pth")
    checkpoint = load_checkpoint(tmp_path / "best.pth")
    assert checkpoint.source.name == str(tmp_path / "best.pth")
    assert (checkpoint.variant, checkpoint.config.num_labels) == ("xxs", 3)
    assert checkpoint.config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert checkpoint.preprocessing == Preprocessing(288, (256, 256), "BGR")
    assert checkpoint.assumed == (
        "no config.json next to the weights: assumed silu, 4 heads, patches of 2, output stride 32; "
        "others: --hidden-act --num-attention-heads --patch-size --output-stride, or give the directory",
        PIXELS["Hugging Face"],
        MEANING,
    )
    assert snr(peer(images(1, 256, 256)).logits, logits_of(checkpoint)) > 100


def test_a_thousand_classes_without_names_are_imagenets(tmp_path: Path) -> None:
    torch.save(hugging_face_classifier("xxs").state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"))
    assert checkpoint.config.id2label[0] == "tench, Tinca tinca"
    assert "output stride 32 and ImageNet's class names;" in checkpoint.assumed[0]


@pytest.mark.parametrize("naming", ["Hugging Face", "cvnets"])
def test_bare_segmenter_next_to_nothing(tmp_path: Path, naming: str) -> None:
    peer = hugging_face_segmenter("xxs")
    torch.save(peer.state_dict() if naming == "Hugging Face" else cvnets_state(peer), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"))
    assert (checkpoint.task, checkpoint.expand, checkpoint.variant) == (SEGMENTATION, False, "xxs")
    assert checkpoint.config == dataclasses.replace(published_config("xxs", SEGMENTATION), image_size=(512, 512))
    assert checkpoint.preprocessing == Preprocessing(544, (512, 512), "BGR")
    assert checkpoint.assumed == (
        "no config.json next to the weights: assumed silu, 4 heads, patches of 2, output stride 16, "
        "atrous rates 6 12 18 and PASCAL VOC's class names; "
        "others: --hidden-act --num-attention-heads --patch-size --output-stride --atrous-rates, or give the directory",
        PIXELS[naming],
    )
    assert snr(peer(images(1, 96, 128)).logits, logits_of(at_size(checkpoint, 96, 128))) > 100


def test_a_segmenter_of_other_classes_has_nobodys_names(tmp_path: Path) -> None:
    torch.save(hugging_face_segmenter("xxs", classes=2).state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"))
    assert checkpoint.config.id2label == ("LABEL_0", "LABEL_1")
    assert checkpoint.assumed == (
        "no config.json next to the weights: assumed silu, 4 heads, patches of 2, output stride 16, "
        "atrous rates 6 12 18; "
        "others: --hidden-act --num-attention-heads --patch-size --output-stride --atrous-rates, or give the directory",
        PIXELS["Hugging Face"],
    )


@pytest.mark.parametrize("task", [None, SEGMENTATION])
def test_directory_of_a_segmenter(tmp_path: Path, task: str | None) -> None:
    labels = {0: "nothing", 1: "leaf", 2: "stem"}
    peer = save_segmenter(
        tmp_path, id2label=labels, output_stride=8, aspp_out_channels=48, atrous_rates=[2, 3, 5], image_size=512
    )
    checkpoint = load_checkpoint(str(tmp_path), task=task)
    assert (checkpoint.task, checkpoint.expand, checkpoint.assumed) == (SEGMENTATION, False, ())
    assert checkpoint.config.id2label == ("nothing", "leaf", "stem")
    assert (checkpoint.config.output_stride, checkpoint.config.image_hw) == (8, (512, 512))
    assert (checkpoint.config.aspp_out_channels, checkpoint.config.atrous_rates) == (48, (2, 3, 5))
    assert checkpoint.preprocessing == Preprocessing(544, (512, 512), "BGR", reduce_labels=False)
    assert snr(peer(images(1, 96, 128)).logits, logits_of(at_size(checkpoint, 96, 128))) > 100


def test_a_segmenters_preprocessor_says_how_masks_are_meant(tmp_path: Path) -> None:
    save_segmenter(tmp_path, classes=150)
    write_preprocessor(
        tmp_path, size={"shortest_edge": 300}, crop_size={"height": 256, "width": 288}, do_reduce_labels=True
    )
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.preprocessing == Preprocessing(300, (256, 288), "RGB", reduce_labels=True)
    assert checkpoint.config.image_hw == (256, 288)


def test_a_segmenters_margin_is_a_sixteenth(tmp_path: Path) -> None:
    hugging_face_segmenter("xxs", image_size=320).save_pretrained(tmp_path)  # without preprocessor_config.json
    assert load_checkpoint(str(tmp_path)).preprocessing == Preprocessing(340, (320, 320), "BGR")


def test_features_of_a_segmenter_have_no_expansion(tmp_path: Path) -> None:
    peer = hugging_face_segmenter("xxs")
    torch.save(peer.state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"), task=FEATURES)
    assert (checkpoint.task, checkpoint.expand) == (FEATURES, False)
    assert (checkpoint.config.output_stride, checkpoint.config.image_hw) == (16, (512, 512))
    assert checkpoint.preprocessing == Preprocessing(544, (512, 512), "BGR")
    assert checkpoint.assumed == (
        "no config.json next to the weights: assumed silu, 4 heads, patches of 2, output stride 16; "
        "others: --hidden-act --num-attention-heads --patch-size --output-stride, or give the directory",
        PIXELS["Hugging Face"],
    )
    output = output_of(at_size(checkpoint, 96, 128))
    assert snr(peer.mobilevit(images(1, 96, 128)).last_hidden_state, output.feature_map) > 100


@pytest.mark.parametrize("task", [None, FEATURES])
@pytest.mark.parametrize("expand", [True, False])
def test_features_of_a_backbone(tmp_path: Path, expand: bool, task: str | None) -> None:
    peer = hugging_face_backbone("xxs", expand)
    torch.save(peer.state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"), task=task)
    assert (checkpoint.task, checkpoint.expand, checkpoint.variant) == (FEATURES, expand, "xxs")
    assert checkpoint.preprocessing == Preprocessing(288, (256, 256), "BGR")
    assert checkpoint.assumed == (
        "no config.json next to the weights: assumed silu, 4 heads, patches of 2, output stride 32; "
        "others: --hidden-act --num-attention-heads --patch-size --output-stride, or give the directory",
        PIXELS["Hugging Face"],
    )
    output = output_of(at_size(checkpoint, 96, 128))
    assert snr(peer(images(1, 96, 128)).last_hidden_state, output.feature_map) > 100


@pytest.mark.parametrize("expand", [True, False])
def test_directory_of_a_backbone(tmp_path: Path, expand: bool) -> None:
    peer = hugging_face_backbone("xxs", expand, image_size=192, output_stride=8)
    peer.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(str(tmp_path))
    assert (checkpoint.task, checkpoint.expand) == (FEATURES, expand)
    assert checkpoint.assumed == (PIXELS["Hugging Face"],)
    assert checkpoint.preprocessing == Preprocessing(216, (192, 192), "BGR")
    output = output_of(checkpoint)
    assert snr(peer(images(1, 192, 192)).last_hidden_state, output.feature_map) > 100


def test_features_of_a_bare_classifier(tmp_path: Path) -> None:
    peer = hugging_face_classifier("xxs")
    torch.save(cvnets_state(peer), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"), task=FEATURES)
    assert (checkpoint.task, checkpoint.expand, checkpoint.source.naming) == (FEATURES, True, "cvnets")
    assert "output stride 32; others:" in checkpoint.assumed[0]  # features have no class names
    expected = peer.mobilevit(images(1, 96, 128)).pooler_output
    assert snr(expected, output_of(at_size(checkpoint, 96, 128)).pooled) > 100


@pytest.mark.parametrize(("classes", "task"), [(0, None), (0, FEATURES), (5, FEATURES)])
def test_features_of_timm(tmp_path: Path, classes: int, task: str | None) -> None:
    peer = timm_classifier("xxs", classes)
    torch.save(peer.state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"), task=task)
    assert (checkpoint.task, checkpoint.expand, checkpoint.assumed) == (FEATURES, True, TIMM_ASSUMED)
    assert checkpoint.preprocessing == TIMM_DEFAULT
    output = output_of(at_size(checkpoint, 96, 128))
    assert snr(peer.forward_features(images(1, 96, 128)), output.feature_map) > 100
    assert snr(peer.forward_head(output.feature_map, pre_logits=True), output.pooled) > 100


@pytest.mark.parametrize(
    ("trained", "asked"),
    [
        (SEGMENTATION, CLASSIFICATION),
        (CLASSIFICATION, SEGMENTATION),
        (FEATURES, CLASSIFICATION),
        (FEATURES, SEGMENTATION),
    ],
)
def test_a_task_that_contradicts_the_weights(tmp_path: Path, trained: Task, asked: str) -> None:
    make = {
        CLASSIFICATION: hugging_face_classifier,
        SEGMENTATION: hugging_face_segmenter,
        FEATURES: hugging_face_backbone,
    }
    path = tmp_path / "best.pth"
    torch.save(make[trained]("xxs").state_dict(), path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(path), task=asked)
    assert str(error.value) == (
        f"weights {path}: expected weights for {asked} (--task), got weights for {trained} (from their keys); "
        "drop --task or give other weights"
    )


@pytest.mark.parametrize("key", ["segmentation_head.classifier.convolution.weight", "classifier.weight"])
def test_a_head_with_a_part_missing_is_still_a_head(tmp_path: Path, key: str) -> None:
    peer = hugging_face_segmenter("xxs") if "segmentation" in key else hugging_face_classifier("xxs")
    state = peer.state_dict()
    del state[key]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"got 1 missing: {key}; check"):
        load_checkpoint(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("task", ["classification", "segmentation", "features"])
def test_what_was_trained_here_can_be_converted(tmp_path: Path, task: str) -> None:
    trained = load_checkpoint("untrained", "xxs", task).model()
    torch.save({"model": trained.state_dict()}, tmp_path / "x.pth")
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"))
    assert (checkpoint.task, checkpoint.source.naming) == (task, "mobilevit_coreml")
    state = checkpoint.model().state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in trained.state_dict().items() if "num_b" not in key)


def test_an_unknown_task() -> None:
    with pytest.raises(CheckpointError, match="task: expected one of classification, segmentation, features, got 'no'"):
        load_checkpoint("untrained", "xxs", "no")


def test_published_weights_of_another_task_are_an_error(empty_hub: Path, xs_snapshot: Path) -> None:
    put_in_hub(empty_hub, "apple/deeplabv3-mobilevit-x-small", xs_snapshot)
    with pytest.raises(CheckpointError, match=r"expected weights for segmentation .*, got weights for classification"):
        load_checkpoint("auto", "xs", SEGMENTATION)


def test_a_path_that_looks_like_a_hub_id_is_said_not_to_be_there(empty_hub: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^path runs/7 does not exist; weights runs/7: expected in the local cache or on"
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
        ({"crop_size": {"height": 256}}, "crop_size: expected pixels, 1 to 8192, got [256, None]"),
        ({"size": {"shortest_edge": "big"}}, "size.shortest_edge: expected pixels, 1 to 8192, got 'big'"),
        ({"size": {"longest_edge": 256}}, "size: expected shortest_edge, or height and width, got longest_edge"),
        ({"size": {"shortest_edge": 256, "longest_edge": 512}}, "size: expected shortest_edge, or height and width"),
        ({"do_center_crop": False}, "do_center_crop: expected a crop, or a size of height and width, got"),
        (
            {"do_center_crop": False, "do_resize": False},
            "do_center_crop: expected a crop, or a size of height and width, got images as large as they are; a",
        ),
        ({"do_pad": True}, "do_pad: expected False, got True; other values cannot be converted"),
        ({"do_trim": True}, "do_trim: expected a field that is known, got True; remove it if inference does not"),
        ({"image_processor_type": "SwinImageProcessor"}, "image_processor_type: expected the processor of MobileViT,"),
        ({"image_std": 10**400}, "image_std: expected a number for each channel, got 1000"),
        ({"image_mean": "x", "do_normalize": True}, "image_mean: expected a number for each channel, got 'x'"),
        ({"resample": 9}, "resample: expected 0 to 5 as in Pillow, got 9"),
        ({"rescale_factor": -1}, "rescale_factor: expected a number, 1e-09 to 1000, got -1"),
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


def save_timm(directory: Path, settings: dict[str, Any], classes: int = 2, **config: Any) -> Any:
    """A timm classifier with a config.json; `settings` is its pretrained_cfg."""
    peer = timm_classifier("xxs", classes=classes)
    torch.save(peer.state_dict(), directory / "pytorch_model.bin")
    values = {"architecture": "mobilevit_xxs", "num_classes": classes, "pretrained_cfg": settings, **config}
    (directory / "config.json").write_text(json.dumps(values))
    return peer


def test_timm_directory(tmp_path: Path) -> None:
    settings = {"mean": [0.0] * 3, "std": [1.0] * 3, "label_names": ["no", "yes"]}
    peer = save_timm(tmp_path, {**settings, "input_size": [3, 256, 256]})
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.config.id2label == ("no", "yes")
    assert (checkpoint.preprocessing.channel_order, checkpoint.assumed) == ("RGB", (MEANING,))
    assert snr(peer(images(1, 256, 256)), logits_of(checkpoint)) > 100
    assert checkpoint.preprocessing.resize == 292  # 256 / 0.875, PretrainedCfg's default
    save_timm(tmp_path, {**settings, "input_size": [3, 224, 192], "crop_pct": 0.9, "interpolation": "bilinear"})
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.preprocessing == Preprocessing(
        (248, 213), (224, 192), "RGB", mean=(0.0,) * 3, std=(1.0,) * 3, fill=True, rounding="even"
    )
    assert checkpoint.config.image_hw == (224, 192)


def test_what_timms_config_does_not_say_is_as_timm_takes_it(tmp_path: Path) -> None:
    from timm.data import resolve_data_config

    save_timm(tmp_path, {})
    preprocessing = load_checkpoint(str(tmp_path)).preprocessing
    expected = resolve_data_config({"interpolation": None})
    assert preprocessing.crop == expected["input_size"][1:] == (224, 224)
    assert (preprocessing.resize, expected["crop_pct"]) == (256, 0.875)
    assert (preprocessing.mean, preprocessing.std) == (expected["mean"], expected["std"])
    assert preprocessing.interpolation == expected["interpolation"]


def test_a_bare_timm_file_is_evaluated_as_timms_mobilevit(tmp_path: Path) -> None:
    from timm.data import resolve_model_data_config

    peer = timm_classifier("xxs", classes=3)
    torch.save(peer.state_dict(), tmp_path / "best.pth")
    checkpoint = load_checkpoint(str(tmp_path / "best.pth"))
    expected = resolve_model_data_config(peer)
    assert checkpoint.preprocessing == TIMM_DEFAULT
    assert (expected["input_size"], expected["interpolation"]) == ((3, 256, 256), "bicubic")
    assert (expected["crop_pct"], expected["mean"], expected["std"]) == (0.9, (0.0,) * 3, (1.0,) * 3)
    assert checkpoint.assumed == (*TIMM_ASSUMED, MEANING)


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({"mean": [0.5, 0.5]}, {}, "mean: expected a number for each of 3 channels, at most 1000, got 0.5, 0.5"),
        ({"std": 0}, {}, "std: expected a number above 0 for each of 3 channels, at most 1000, got 0"),
        ({"std": "x"}, {}, "std: expected a number for each channel, got 'x'"),
        ({"input_size": 256}, {}, "input_size: expected channels, height and width, got 256"),
        ({"input_size": [1, 256, 256]}, {}, "input_size: expected 3 channels, as the first convolution has, got 1"),
        ({"crop_pct": 7}, {}, "crop_pct: expected a number, 0.1 to 1, got 7"),
        ({"crop_mode": "border"}, {}, "crop_mode: expected center or squash, got 'border'"),
        ({"interpolation": "random"}, {}, "interpolation: expected one of nearest, lanczos, bilinear"),
        ({"first_conv": "stem.proj"}, {}, "first_conv: expected 'stem.conv', got 'stem.proj'"),
        ({"label_offset": 1}, {}, "label_offset: expected 0, got 1"),
        ({"gamma": 2.2}, {}, "gamma: expected a field that is known, got 2.2"),
        ({}, {"colour": "warm"}, "colour: expected a field that is known, got 'warm'"),
        ({}, {"global_pool": "catavgmax"}, "global_pool: expected avg or fast or fastavg or max or fastmax, got 'cat"),
        ({}, {"global_pool": "max"}, "global_pool: expected 'avg' as in model_args, by which timm builds the model,"),
        ({}, {"model_args": {"stem_type": "7x7"}}, "model_args: stem_type: expected a field that is known, got '7x7'"),
        ({}, {"model_args": {"output_stride": 16}}, "model_args: output_stride: expected 32, got 16"),
        ({}, {"model_args": {"act_layer": "mish"}}, "hidden_act: expected one of silu, swish, relu"),
        (
            {},
            {"architecture": "resnet50"},
            "architecture: expected mobilevit_xxs, mobilevit_xs or mobilevit_s, got resnet50",
        ),
    ],
)
def test_a_timm_config_that_cannot_be_honoured(
    tmp_path: Path, settings: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    save_timm(tmp_path, settings, **config)
    with pytest.raises(MobileViTError) as error:
        load_checkpoint(str(tmp_path))
    assert f": {message}" in str(error.value)


@pytest.mark.parametrize(
    ("files", "got"), [([], "none"), (["a.pth", "b.pth"], "a.pth, b.pth")], ids=["none", "several"]
)
def test_a_directory_must_leave_no_choice(tmp_path: Path, files: list[str], got: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(tmp_path))
    assert str(error.value) == (
        f"weights {tmp_path}: expected model.safetensors or model.safetensors.index.json or pytorch_model.bin "
        f"or pytorch_model.bin.index.json, or a single .safetensors/.bin/.pt/.pth/.ckpt/.tar file, "
        f"got {got}; name the file itself"
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
    with pytest.raises(MobileViTError, match=rf"--weights {weights}: expected a --variant with it \(xxs, xs, s\)"):
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
    pixels = torch.from_numpy(checkpoint.preprocessing.pixels(checkpoint.preprocessing.prepare(photo)))
    with torch.no_grad():
        logits = checkpoint.model()(pixels).logits[0, :3]
    assert logits.tolist() == pytest.approx([-0.9866, 0.2392, -1.1241], abs=1e-3)
