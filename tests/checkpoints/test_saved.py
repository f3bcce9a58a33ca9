"""One row a public way of saving: the framework's own answer for two image files, or the text of the refusal."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mobilevit_coreml as mc
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.config import FEATURES, SEGMENTATION
from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.images import read_image
from mobilevit_coreml.inference import SegmentedImage
from mobilevit_coreml.mil.export import CLASSIFIER_OUTPUTS
from mobilevit_coreml.package.interface import LABELS, LOGITS, SCORES, VALUES
from mobilevit_coreml.preprocessing import Preprocessing
from tests.cache import once_per_run
from tests.checkpoints import saved as s
from tests.checkpoints.saved import IMAGENET, SIDE, Array, Saved, pretrained

Build = Callable[[Path], Saved]

# fp16, and libraries that resize 8-bit images by code of their own, one gray level apart
MAX_DIFFERENCE = 0.01  # of a probability, or of a value or logit in shares of the largest
MIN_COSINE = 0.999
# classes of an image's pixels are compared at the places of the network's, half a pixel off at borders of regions
MIN_AGREEMENT = 0.97
MIN_AGREEMENT_OF_IMAGE = 0.85

HUGGING_FACE, TIMM, CVNETS = "Hugging Face", "timm", "cvnets"
STRETCHED = {"size": {"height": SIDE, "width": SIDE}}
CROPPED = {"size": {"shortest_edge": 72}, "crop_size": {"height": SIDE, "width": SIDE}}
NORMALIZED = {"image_mean": list(IMAGENET["mean"]), "image_std": list(IMAGENET["std"])}
# as in transformers 4; its torchvision pads by other halves of a pixel, and has fewer filters
BY_PILLOW = "pil"
EMOJI = ("apple 🍎", "family 👩‍👩‍👧", "می‌روم", "non breaking", "plain")


def fc(**kwargs: Any) -> Build:
    return partial(s.for_hub, **kwargs)


TRANSFORMERS: Mapping[str, Build] = {
    "classifier": pretrained,
    "single label": partial(pretrained, problem_type="single_label_classification"),
    "multi-label": partial(pretrained, problem_type="multi_label_classification"),
    "regression of several values": partial(pretrained, problem_type="regression", num_labels=3),
    "one of several labels": partial(pretrained, num_labels=1, problem_type="multi_label_classification"),
    "regression of one label": partial(pretrained, num_labels=1),
    "logits": lambda directory: s.raw_scores(pretrained(directory)),
    "segmenter": partial(pretrained, head=SEGMENTATION, output_stride=16),
    "segmenter of stride 8": partial(pretrained, head=SEGMENTATION, output_stride=8, atrous_rates=[12, 24, 36]),
    "segmenter, a plain convolution last": partial(
        pretrained, head=SEGMENTATION, output_stride=16, change=s.with_plain_convolution
    ),
    "features": partial(pretrained, head=FEATURES),
    "Sequential(Dropout, Linear)": partial(pretrained, change=s.with_sequential_head),
    "ViTImageProcessor": partial(pretrained, processor="ViT", pixels={**STRETCHED, **NORMALIZED}),
    "ViTImageProcessor without do_normalize": partial(
        pretrained, processor="ViT", pixels={**STRETCHED, "do_normalize": False}
    ),
    "CLIPImageProcessor": partial(pretrained, processor="CLIP", pixels={**CROPPED, "resample": 3}),
    "CLIPImageProcessor with height and width": partial(
        pretrained, processor="CLIP", pixels={"size": {"height": 80, "width": 70}, "crop_size": CROPPED["crop_size"]}
    ),
    "height and width, no crop": partial(pretrained, pixels={**STRETCHED, "do_center_crop": False}),
    "height and width, then a crop": partial(
        pretrained, pixels={**CROPPED, "size": {"height": 80, "width": 72}, "resample": 2}
    ),
    "do_resize false": partial(pretrained, pixels={**CROPPED, "do_resize": False}),
    "do_rescale false": partial(
        pretrained,
        processor="CLIP",
        pixels={
            **CROPPED,
            "do_rescale": False,
            "image_mean": [123.675, 116.28, 103.53],
            "image_std": [58.4, 57.1, 57.4],
        },
    ),
    "rescale_factor 1/127.5": partial(
        pretrained, processor="CLIP", pixels={**CROPPED, "rescale_factor": 1 / 127.5, "do_normalize": False}
    ),
    "do_flip_channel_order false": partial(pretrained, pixels={**CROPPED, "do_flip_channel_order": False}),
    "resample nearest": partial(pretrained, pixels={**CROPPED, "resample": 0}),
    "resample bicubic": partial(pretrained, pixels={**CROPPED, "resample": 3}),
    "crop of odd margins": partial(
        pretrained, pixels={"size": {"shortest_edge": 77}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 2}
    ),
    "crop that is not square": partial(
        pretrained,
        pixels={"size": {"shortest_edge": 96}, "crop_size": {"height": 64, "width": 96}, "resample": 2},
    ),
    "28 pixels": partial(
        pretrained, pixels={"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}, image_size=28
    ),
    "32 pixels": partial(
        pretrained, pixels={"size": {"height": 32, "width": 32}, "do_center_crop": False}, image_size=32
    ),
    "config.json of another size": partial(pretrained, image_size=256),
    "relu": partial(pretrained, hidden_act="relu"),
    "gelu, 2 heads, no qkv bias": partial(pretrained, hidden_act="gelu", num_attention_heads=2, qkv_bias=False),
    "epsilon, stride 16": partial(pretrained, layer_norm_eps=0.1, output_stride=16),
    "id2label of numbers": partial(
        pretrained,
        num_labels=3,
        edit={"id2label": {"0": 1, "1": 2, "2": 0}, "label2id": {"1": 0, "2": 1, "0": 2}},
        names=("1", "2", "0"),
    ),
    "id2label null": partial(pretrained, num_labels=2, edit={"id2label": "null", "label2id": "null"}),
    "id2label with white space": partial(
        pretrained, num_labels=2, edit={"id2label": {"0": " cat ", "1": "dog\n"}}, names=("cat", "dog")
    ),
    "id2label with emoji": partial(pretrained, id2label=dict(enumerate(EMOJI)), names=EMOJI),
    "id2label in another order": partial(
        pretrained, num_labels=3, edit={"id2label": {"2": "c", "0": "a", "1": "b"}}, names=("a", "b", "c")
    ),
    "pytorch_model.bin": s.pickled,
    "shards": partial(pretrained, saving={"max_shard_size": "1MB"}),
    "shards of .bin": s.sharded_pickles,
    "Trainer's checkpoint": s.trainer_checkpoint,
    "MobileViTFeatureExtractor of transformers 4": partial(
        pretrained,
        edit_pixels={
            "image_processor_type": None,
            "feature_extractor_type": "MobileViTFeatureExtractor",
            "size": 72,
            "crop_size": 64,
        },
    ),
    "MobileViTImageProcessorFast": partial(
        pretrained, edit_pixels={"image_processor_type": "MobileViTImageProcessorFast"}
    ),
    "MobileViTImageProcessor with do_normalize": partial(
        pretrained, pixels={**CROPPED, "resample": 2, "do_normalize": True, **NORMALIZED}
    ),
    "one channel": partial(
        pretrained,
        processor="ViT",
        pixels={**STRETCHED, "image_mean": [0.5], "image_std": [0.25]},
        num_channels=1,
    ),
    "DeiTImageProcessor": partial(pretrained, processor="DeiT", pixels=CROPPED),
    "BitImageProcessor": partial(pretrained, processor="Bit", pixels=CROPPED),
    "MobileNetV1ImageProcessor": partial(pretrained, processor="MobileNetV1", pixels=CROPPED),
    "MobileNetV2ImageProcessor": partial(pretrained, processor="MobileNetV2", pixels=CROPPED),
    "ViTImageProcessorPil": partial(
        pretrained, processor="ViT", pixels=STRETCHED, edit_pixels={"image_processor_type": "ViTImageProcessorPil"}
    ),
    "64x96, stretched": partial(
        pretrained,
        pixels={"size": {"height": 64, "width": 96}, "do_center_crop": False, "resample": 2},
        image_size=[64, 96],
    ),
    "do_resize false, larger than the image": partial(
        pretrained,
        pixels={"do_resize": False, "crop_size": {"height": 176, "width": 176}},
        backend=BY_PILLOW,
        image_size=176,
    ),
    "shorter edge below the crop": partial(
        pretrained,
        pixels={"size": {"shortest_edge": 51}, "crop_size": {"height": 64, "width": 64}, "resample": 2},
        backend=BY_PILLOW,
    ),
    "64x96 of the shorter edge": partial(
        pretrained,
        pixels={"size": {"shortest_edge": 96}, "crop_size": {"height": 64, "width": 96}, "resample": 2},
        image_size=[64, 96],
    ),
    "resample lanczos": partial(pretrained, pixels={**CROPPED, "resample": 1}),
    "resample box": partial(pretrained, pixels={**CROPPED, "resample": 4}, backend=BY_PILLOW),
    "resample hamming": partial(pretrained, pixels={**CROPPED, "resample": 5}, backend=BY_PILLOW),
}

HUB: Mapping[str, Build] = {
    "save_for_hf": fc(),
    "relu": fc(act_layer="relu"),
    "hard_swish": fc(act_layer="hard_swish"),
    "max pooling": fc(global_pool="max"),
    "one channel": fc(in_chans=1, data={"mean": (0.1,), "std": (0.3,)}),
    "ImageNet's mean and std": fc(data=IMAGENET),
    "crop_pct 0.75": fc(data={"crop_pct": 0.75}),
    "crop_pct 1": fc(data={"crop_pct": 1.0}),
    "bilinear": fc(data={"interpolation": "bilinear"}),
    "crop_mode squash": fc(data={"crop_mode": "squash", "crop_pct": 0.8}),
    "64x96 pixels": fc(data={"input_size": (3, 64, 96)}),
    "32 pixels": fc(data={"input_size": (3, 32, 32)}),
    "odd margins": fc(data={"crop_pct": 0.83}),
    "label_names": fc(
        num_classes=3, saving={"model_config": {"label_names": ["one", "two", "three"]}}, names=("one", "two", "three")
    ),
    "no classes": fc(num_classes=0),
    "one class": fc(num_classes=1),
    "Sequential(Dropout, Linear)": fc(change=s.with_sequential_fc),
    "one level of config.json, as timm 0.8": lambda directory: flattened(s.for_hub(directory, IMAGENET)),
    "no classes, max pooling": fc(num_classes=0, global_pool="max"),
    "TimmWrapper of transformers": s.wrapped_by_transformers,
    "TimmWrapper, multi-label": partial(s.wrapped_by_transformers, problem_type="multi_label_classification"),
    "safetensors and .bin": fc(saving={"safe_serialization": "both"}),
}

TRAINING: Mapping[str, Build] = {
    "mean, std, img_size, gp": partial(
        s.checkpoint_saver,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.4],
        img_size=SIDE,
        input_size=None,
        gp="max",
        in_chans=None,
        crop_pct=0.8,
        crop_mode=None,
        interpolation="bilinear",
        model_kwargs={},
    ),
    "act_layer, input_size": partial(
        s.checkpoint_saver, input_size=[3, 48, 64], gp=None, img_size=None, model_kwargs={"act_layer": "relu"}
    ),
    "img_size and input_size": partial(
        s.checkpoint_saver, input_size=[3, 64, 64], img_size=96, gp=None, model_kwargs={}
    ),
    "in_chans 1": partial(
        s.checkpoint_saver, img_size=SIDE, in_chans=1, gp=None, mean=[0.2], std=[0.5], model_kwargs={}
    ),
    "--ema": partial(s.checkpoint_saver, averaged=True, img_size=SIDE, model_kwargs={}),
    "--no-ema": partial(s.checkpoint_saver, averaged=False, img_size=SIDE, model_kwargs={}),
}

BARE: Mapping[str, Build] = {
    "timm": partial(s.bare, naming=TIMM),
    "timm, 256 pixels": partial(s.bare, naming=TIMM, pixels={"side": 256}, image_sizes=()),
    "timm, --mean --std": partial(s.bare, naming=TIMM, pixels=IMAGENET, **IMAGENET),
    "timm under backbone": partial(s.bare, naming=TIMM, wrap=s.under("backbone.")),
    "timm of torch.compile in DDP": partial(s.bare, naming=TIMM, wrap=s.under("_orig_mod.module.")),
    "timm of Lightning": partial(s.bare, naming=TIMM, wrap=s.lightning, name="last.ckpt"),
    "timm of accelerate": partial(s.bare, naming=TIMM, name="model.safetensors"),
    "timm, half precision": partial(
        s.bare, naming=TIMM, wrap=lambda state: {key: tensor.half() for key, tensor in state.items()}
    ),
    "transformers": partial(s.bare, naming=HUGGING_FACE),
    "transformers, RGB": partial(
        s.bare, naming=HUGGING_FACE, pixels={"order": "RGB", **IMAGENET}, channel_order="RGB", **IMAGENET
    ),
    "transformers of DDP": partial(s.bare, naming=HUGGING_FACE, wrap=s.under("module.")),
    "transformers of torch.compile": partial(s.bare, naming=HUGGING_FACE, wrap=s.under("_orig_mod.")),
    "transformers under net.model": partial(s.bare, naming=HUGGING_FACE, wrap=s.under("net.model.")),
    "transformers under model.model": partial(s.bare, naming=HUGGING_FACE, wrap=s.under("model.model.")),
    "transformers of Lightning": partial(s.bare, naming=HUGGING_FACE, wrap=s.lightning, name="epoch=3.ckpt"),
    "transformers of accelerate": partial(s.bare, naming=HUGGING_FACE, name="model.safetensors"),
    "transformers of a training loop": partial(s.bare, naming=HUGGING_FACE, wrap=s.training_loop),
    "transformers of a loop with numbers of numpy and paths": partial(
        s.bare,
        naming=HUGGING_FACE,
        wrap=lambda state: {"model": state, "best_acc": np.float64(0.9), "auc": np.float32(1), "data": Path("/data")},
    ),
    "transformers of DeepSpeed": partial(
        s.bare, naming=HUGGING_FACE, wrap=lambda state: {"module": state, "ds_version": "0.14"}
    ),
    "transformers, --ema": partial(s.bare, naming=HUGGING_FACE, wrap=s.averaged_is_right, ema=True),
    "transformers, plain without --ema": partial(s.bare, naming=HUGGING_FACE, wrap=s.plain_is_right),
    "transformers, --ema by prefix": partial(s.bare, naming=HUGGING_FACE, wrap=s.averaged_under_prefix, ema=True),
    "cvnets": partial(s.bare, naming=CVNETS),
    "cvnets of DDP": partial(s.bare, naming=CVNETS, wrap=s.under("module.")),
    "cvnets, --channel-order RGB": partial(s.bare, naming=CVNETS, pixels={"order": "RGB"}, channel_order="RGB"),
}

CVNETS_TRAINING: Mapping[str, Build] = {
    "no config.yaml": s.cvnets_training,
    "no config.yaml, --ema": partial(s.cvnets_training, averaged=True),
    "no config.yaml, --no-ema": partial(s.cvnets_training, averaged=False),
    "config.yaml": partial(s.cvnets_training, config={}, pixels={"resample": 3}),
    "config.yaml of v0.2": partial(
        s.cvnets_training,
        config={"stats.name": None, "stats.val": ["loss", "top1"], "stats.train": ["loss"]},
        pixels={"resample": 3, "order": "RGB"},
    ),
    "config.yaml, --channel-order RGB": partial(
        s.cvnets_training, config={}, pixels={"resample": 3, "order": "RGB"}, options={"channel_order": "RGB"}
    ),
    "config.yaml, relu": partial(
        s.cvnets_training,
        config={"model.classification.activation.name": "relu"},
        pixels={"resample": 3},
        network={"hidden_act": "relu"},
    ),
    "config.yaml, 2 heads, stretched": partial(
        s.cvnets_training,
        config={"model.classification.mit.number_heads": 2, "image_augmentation.resize.size": [80, 72]},
        pixels={"resample": 3, "edge": (80, 72)},
        network={"num_attention_heads": 2},
    ),
    "config.yaml of a segmenter": partial(
        s.cvnets_training,
        config={},
        head=SEGMENTATION,
        pixels={"resample": 3},
        network={"output_stride": 8, "atrous_rates": [12, 24, 36], "aspp_out_channels": 512},
    ),
    "a segmenter by options": partial(
        s.cvnets_training,
        head=SEGMENTATION,
        pixels={"edge": 68},
        network={"output_stride": 8, "atrous_rates": [12, 24, 36], "aspp_out_channels": 512},
        options={"output_stride": 8, "atrous_rates": (12, 24, 36)},
    ),
}

SAVED: Mapping[str, Build] = {
    f"{source}: {name}": build
    for source, rows in (
        ("transformers", TRANSFORMERS),
        ("timm for the hub", HUB),
        ("timm's training", TRAINING),
        ("bare", BARE),
        ("cvnets' training", CVNETS_TRAINING),
    )
    for name, build in rows.items()
}
# Of these the default tests convert one of a kind; `pytest -m slow` converts all.
CONVERTED_BY_DEFAULT = (
    "transformers: multi-label",
    "timm for the hub: ImageNet's mean and std",
)


def flattened(saved: Saved) -> Saved:
    """The fields of pretrained_cfg beside the others, as before timm 0.9."""
    path = saved.weights / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values.pop("pretrained_cfg"), **values}))
    return saved


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two image files with odd sides."""
    return once_per_run(tmp_path_factory, "odd_photographs", s.save_photographs)


def compare(saved: Saved, theirs: Array, ours: Array, min_agreement: float = MIN_AGREEMENT) -> None:
    """Assert that a framework's answer and ours are the same to a user."""
    assert theirs.shape == ours.shape
    if saved.kind == s.MASK:
        assert len(np.unique(theirs)) > 1
        assert (theirs == ours).mean() >= min_agreement
        return
    if saved.kind == s.POOLED:
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) >= MIN_COSINE
    largest = 1.0 if saved.kind == s.PROBABILITIES else max(1.0, float(np.abs(theirs).max()))
    assert np.abs(theirs - ours).max() <= MAX_DIFFERENCE * largest


def as_read(saved: Saved) -> Callable[[Path], Array]:
    """The answer of our model with our preprocessing, for an image file."""
    overrides = CheckpointOverrides(**{name: value for name, value in saved.options.items() if name != "output_type"})
    checkpoint = load_checkpoint(saved.weights, overrides=overrides)
    assert checkpoint.task == FEATURES or checkpoint.config.id2label == saved.names
    model, preprocessing = checkpoint.model(), checkpoint.preprocessing
    meaning = {"multi_label_classification": SCORES, "regression": VALUES}.get(checkpoint.config.problem_type, LABELS)

    @torch.inference_mode()
    def answer(path: Path) -> Array:
        output: Any = model(torch.from_numpy(preprocessing.pixels(preprocessing.prepare(read_image(path)))))
        if checkpoint.task == FEATURES:
            return output.pooled[0].numpy()
        if checkpoint.task == SEGMENTATION:
            return nn.functional.interpolate(output.logits, preprocessing.crop, mode="bilinear")[0].argmax(0).numpy()
        return CLASSIFIER_OUTPUTS[LOGITS if saved.kind == LOGITS else meaning](output.logits)[0].numpy()

    return answer


# every third row by default: some of each kind
@pytest.mark.parametrize(
    "name", [name if index % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for index, name in enumerate(SAVED)]
)
def test_read_as_its_framework_reads_it(name: str, photographs: list[Path], tmp_path: Path) -> None:
    saved = SAVED[name](tmp_path)
    answer = as_read(saved)
    for path in photographs:
        ours = answer(path)
        compare(saved, saved.answer(path), ours - ours.mean() if saved.kind == LOGITS else ours)


@pytest.mark.parametrize(
    "name", [name if name in CONVERTED_BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in SAVED]
)
def test_predicts_as_its_framework(name: str, photographs: list[Path], tmp_path: Path) -> None:
    directory = tmp_path / "saved"
    directory.mkdir()
    saved = SAVED[name](directory)
    options = mc.ConversionOptions(attention="packed", **saved.options)
    conversion = mc.convert(saved.weights, None, options, output=tmp_path / "made.mlpackage", verify=False)
    for path, predicted in zip(photographs, mc.predict(conversion.path, photographs, backend="reference"), strict=True):
        theirs = saved.answer(path)
        if saved.kind == s.MASK:
            compare(saved, theirs, inside(predicted, conversion.record.preprocessing), MIN_AGREEMENT_OF_IMAGE)
        elif saved.kind == s.POOLED:
            compare(saved, theirs, predicted["pooled"][0])
        else:
            assert set(predicted) == set(saved.names)
            ours = np.array([predicted[name] for name in saved.names], np.float32)
            compare(saved, theirs, ours - ours.mean() if saved.kind == LOGITS else ours)


def inside(predicted: SegmentedImage, preprocessing: Preprocessing) -> Array:
    """The classes of an image at the centres of the network's pixels."""
    left, top, right, bottom = preprocessing.crop_box(predicted.image.size)
    height, width = preprocessing.crop
    rows = top + (np.arange(height) + 0.5) * (bottom - top) / height
    columns = left + (np.arange(width) + 0.5) * (right - left) / width
    return np.asarray(predicted.class_map)[np.ix_(rows.astype(int), columns.astype(int))]


def test_the_table(photographs: list[Path], tmp_path: Path) -> None:
    """The rows are enough, and their answers far from one another, where they should be: no tolerance hides a field."""
    assert len(SAVED) + len(REFUSED) >= 45
    assert set(CONVERTED_BY_DEFAULT) <= set(SAVED)
    for names in (PIXELS_OF_TRANSFORMERS, PIXELS_OF_TIMM):
        answers = []
        for name in names:
            directory = tmp_path / str(len(list(tmp_path.iterdir())))
            directory.mkdir()
            saved = SAVED[name](directory)
            answers.append(np.concatenate([saved.answer(path) for path in photographs]))
        gaps = [
            (float(np.abs(one - other).max()), names[i], names[j])
            for i, one in enumerate(answers)
            for j, other in enumerate(answers[:i])
        ]
        assert min(gaps)[0] > 2 * MAX_DIFFERENCE, min(gaps)


PIXELS_OF_TRANSFORMERS = [
    f"transformers: {name}"
    for name in (
        "classifier",
        "ViTImageProcessor",
        "ViTImageProcessor without do_normalize",
        "CLIPImageProcessor",
        "height and width, no crop",
        "height and width, then a crop",
        "do_resize false",
        "do_rescale false",
        "rescale_factor 1/127.5",
        "do_flip_channel_order false",
        "resample nearest",
        "crop of odd margins",
        "relu",
        "epsilon, stride 16",
        "multi-label",
    )
]
PIXELS_OF_TIMM = [
    f"timm for the hub: {name}"
    for name in (
        "save_for_hf",
        "relu",
        "hard_swish",
        "max pooling",
        "one channel",
        "ImageNet's mean and std",
        "crop_pct 0.75",
        "crop_pct 1",
        "crop_mode squash",
        "64x96 pixels",
        "32 pixels",
    )
]


# Refusals


@dataclasses.dataclass(frozen=True)
class Refused:
    """A checkpoint that cannot be converted: how it is saved, and the text of the error."""

    save: Callable[[Path], Path]
    text: str
    overrides: CheckpointOverrides | None = None


def edited(build: Build, **changes: Any) -> Callable[[Path], Path]:
    """The directory of a row with other values in config.json."""

    def save(directory: Path) -> Path:
        weights = build(directory).weights
        s.edit_json(directory / "config.json", changes)
        return weights

    return save


def processed(**changes: Any) -> Callable[[Path], Path]:
    """A classifier's directory with other values in preprocessor_config.json."""

    def save(directory: Path) -> Path:
        weights = pretrained(directory).weights
        s.edit_json(directory / "preprocessor_config.json", changes)
        return weights

    return save


def for_hub_edited(**changes: Any) -> Callable[[Path], Path]:
    """timm's directory with other values in pretrained_cfg."""

    def save(directory: Path) -> Path:
        weights = s.for_hub(directory).weights
        settings = json.loads((directory / "config.json").read_text())["pretrained_cfg"]
        s.edit_json(directory / "config.json", {"pretrained_cfg": {**settings, **changes}})
        return weights

    return save


def trained_by_cvnets(head: str = "classification", **changes: Any) -> Callable[[Path], Path]:
    """cvnets' results with other values in config.yaml."""
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda directory: s.cvnets_training(directory, names, head).weights


def of_state(change: Callable[[s.State], Any], naming: str = HUGGING_FACE) -> Callable[[Path], Path]:
    """A file with what becomes of a state dict."""
    return lambda directory: s.bare(directory, naming, change).weights


def file_of(name: str, content: bytes) -> Callable[[Path], Path]:
    """A file of these bytes."""

    def save(directory: Path) -> Path:
        (directory / name).write_bytes(content)
        return directory / name

    return save


def torch_saved(make: Callable[[], Any], name: str = "best.pth") -> Callable[[Path], Path]:
    """A file by torch.save."""

    def save(directory: Path) -> Path:
        torch.save(make(), directory / name)
        return directory / name

    return save


def mlp_of_transformers(directory: Path) -> Path:
    def change(model: Any) -> Any:
        model.classifier = nn.Sequential(nn.Linear(320, 32), nn.ReLU(), nn.Linear(32, 5))
        return model

    s.transformers_model().save_pretrained(directory)
    change(s.transformers_model()).save_pretrained(directory)
    return directory


def mlp_of_timm() -> Any:
    model = s.timm_model()
    model.head.fc = nn.Sequential(nn.Linear(320, 32), nn.ReLU(), nn.Linear(32, 5))
    return model.state_dict()


def adapter(directory: Path) -> Path:
    """A directory that PEFT saves: the adapter alone."""
    from safetensors.torch import save_file

    name = "base_model.model.mobilevit.encoder.layer.2.transformer.layer.0.attention.attention.query"
    tensors = {f"{name}.lora_A.weight": torch.zeros(8, 64), f"{name}.lora_B.weight": torch.zeros(64, 8)}
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    return directory


def scripted(directory: Path) -> Path:
    torch.jit.script(nn.Linear(2, 2)).save(str(directory / "scripted.pt"))
    return directory / "scripted.pt"


def second_version_of_transformers(directory: Path) -> Path:
    import transformers

    config = transformers.MobileViTV2Config(width_multiplier=0.5, image_size=64)
    transformers.MobileViTV2ForImageClassification(config).save_pretrained(directory)
    return directory


def second_version_of_timm() -> Any:
    import timm

    return timm.create_model("mobilevitv2_050", num_classes=5).state_dict()


def mmpretrain() -> Any:
    keys = ("backbone.stem.conv.weight", "backbone.layers.2.1.local_rep.0.conv.weight", "head.fc.weight")
    return {"state_dict": {key: torch.zeros(16, 16, 1, 1) for key in keys}, "meta": {}}


def without_shard(directory: Path) -> Path:
    pretrained(directory, saving={"max_shard_size": "1MB"})
    next(directory.glob("model-00002*")).unlink()
    return directory


def two_networks(state: s.State) -> s.State:
    return {**s.under("student.")(state), **s.under("teacher.")(state)}


REFUSED: Mapping[str, Refused] = {
    "MLP head of transformers": Refused(
        mlp_of_transformers, "expected a head of one linear layer, got 2: classifier.0"
    ),
    "MLP head of timm": Refused(
        torch_saved(mlp_of_timm), "expected a head of one linear layer, got 2: head.fc.0.weight"
    ),
    "head of another name": Refused(
        of_state(lambda state: {key.replace("classifier.", "my_head."): value for key, value in state.items()}),
        "2 unexpected: my_head.bias, my_head.weight",
    ),
    "norm in the head": Refused(
        of_state(lambda state: {**state, "classifier.norm.gain": torch.ones(320)}), "unexpected: classifier.norm.gain"
    ),
    "a layer of one's own after transformers' model": Refused(
        of_state(
            lambda state: {
                key.replace("mobilevit.", "backbone.").replace("classifier.", "fc."): value
                for key, value in state.items()
            }
        ),
        "2 unexpected: fc.bias, fc.weight",
    ),
    "normalization inside the module": Refused(
        of_state(lambda state: {**s.under("net.")(state), "normalize.mean": torch.zeros(3)}, TIMM),
        "1 unexpected: normalize.mean",
    ),
    "features_only of timm": Refused(
        torch_saved(lambda: __import__("timm").create_model("mobilevit_xxs", features_only=True).state_dict()),
        "expected the keys of a MobileViT",
    ),
    "a tensor more": Refused(of_state(lambda state: {**state, "extra.weight": torch.ones(3)}), "extra.weight"),
    "PEFT adapter in a directory": Refused(
        adapter, r"got a PEFT adapter; save model.merge_and_unload().save_pretrained"
    ),
    "PEFT adapter in a file": Refused(
        of_state(lambda state: {"base_model.model.classifier.lora_A.default.weight": torch.zeros(8, 320), **state}),
        "got a PEFT adapter (base_model.model.classifier.lora_A.default.weight); save the whole model: model.merge",
    ),
    "TorchScript": Refused(scripted, "got a TorchScript or Keras archive; for TorchScript save torch.jit.load(FILE)"),
    "ONNX": Refused(file_of("model.onnx", b"\x08\x08\x12\x07pytorch"), "got an ONNX file; give the PyTorch weights"),
    "HDF5": Refused(file_of("tf_model.h5", b"\x89HDF\r\n\x1a\n"), "from_pretrained(…, from_tf=True).save_pretrained"),
    "HDF5 of another name": Refused(
        file_of("model.bin", b"\x89HDF\r\n\x1a\n"), "got a Keras or TensorFlow file (HDF5)"
    ),
    "TensorFlow Lite": Refused(file_of("model.tflite", b"\x1c\x00\x00\x00TFL3"), "got a TensorFlow Lite file"),
    "git-LFS pointer": Refused(
        file_of("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"
    ),
    "a pickled model": Refused(
        torch_saved(lambda: nn.Linear(2, 2)),
        "would run code to load (torch.nn.modules.linear.Linear); save model.state",
    ),
    "MobileViTv2 of timm": Refused(torch_saved(second_version_of_timm), "got a MobileViTv2"),
    "MobileViTv2 of transformers": Refused(second_version_of_transformers, "got a MobileViTv2"),
    "mmpretrain": Refused(torch_saved(mmpretrain), "got a MobileViT of mmpretrain"),
    "quantized": Refused(
        torch_saved(lambda: {"stem.conv.scale": torch.ones(()), "stem.conv.zero_point": torch.zeros(())}),
        "got a quantized model (stem.conv.scale); give the weights from before quantization",
    ),
    "another network": Refused(
        torch_saved(lambda: {f"layer{index}.weight": torch.zeros(1) for index in range(500)}),
        "got layer0.weight, layer1.weight, layer2.weight, layer3.weight and 496 more; check that these are the weights",
    ),
    "an optimizer": Refused(
        torch_saved(lambda: {"optimizer": {"state": {}}, "epoch": 3}), "got the keys optimizer, epoch; save model.state"
    ),
    "two networks": Refused(
        of_state(two_networks), "expected one network, got 2, under 'student.', 'teacher.'; save the state dict"
    ),
    "not a number": Refused(
        of_state(lambda state: {**state, "classifier.bias": torch.full((5,), torch.nan)}),
        "got NaN or infinity in classifier.bias; use an earlier checkpoint",
    ),
    "a shard is not there": Refused(without_shard, "expected model-00002-of-"),
    "--ema without an average": Refused(
        of_state(lambda state: state), "expected averaged weights (--ema), got none", CheckpointOverrides(ema=True)
    ),
    "transformers: unknown field": Refused(
        edited(pretrained, use_squeeze=True),
        "config.json: use_squeeze: expected a field that is known, got True; remove",
    ),
    "transformers: code of its own": Refused(
        edited(pretrained, auto_map={"AutoModel": "modeling.Mine"}), "config.json: auto_map: expected"
    ),
    "transformers: pruned heads": Refused(
        edited(pretrained, pruned_heads={"0": [1]}), "config.json: pruned_heads: expected"
    ),
    "transformers: activation": Refused(
        edited(pretrained, hidden_act="tanh"), "config.json: hidden_act: expected one of"
    ),
    "transformers: problem type": Refused(
        edited(pretrained, problem_type="ranking"), "config.json: problem_type: expected"
    ),
    "transformers: labels of another head": Refused(
        edited(pretrained, id2label={str(index): f"name {index}" for index in range(7)}),
        "expected the names of 5 classes, as the head has, got 7; --labels FILE names them",
    ),
    "transformers: labels with a hole": Refused(
        edited(pretrained, id2label={"0": "a", "1": "b", "2": "c", "3": "d", "5": "e"}),
        "got none for 4; name every class",
    ),
    "transformers: another model": Refused(
        edited(pretrained, model_type="vit"),
        "config.json: expected model_type 'mobilevit', got 'vit'; only MobileViT v1",
    ),
    "processor: unknown field": Refused(
        processed(do_equalize=True), "preprocessor_config.json: do_equalize: expected a field that is known, got True"
    ),
    "processor: shorter edge without a crop": Refused(
        processed(do_center_crop=False), "do_center_crop: expected a crop, or a size of height and width, got a shorter"
    ),
    "processor: neither resize nor crop": Refused(
        processed(do_center_crop=False, do_resize=False),
        "do_center_crop: expected a crop, or a size of height and width",
    ),
    "processor: padding": Refused(processed(do_pad=True), "preprocessor_config.json: do_pad: expected False, got True"),
    "processor: longest edge": Refused(
        processed(size={"longest_edge": 72}), "size: expected shortest_edge, or height and width, got longest_edge"
    ),
    "processor: another one": Refused(
        processed(image_processor_type="DonutImageProcessor"), "image_processor_type: expected the processor of"
    ),
    "processor: resample": Refused(
        processed(resample=9), "resample: expected 0 to 5 as in Pillow, got 9; 2 is bilinear"
    ),
    "processor: deviation of 0": Refused(
        processed(
            image_processor_type="CLIPImageProcessor", do_normalize=True, image_mean=[0.5] * 3, image_std=[0] * 3
        ),
        "std: expected a number above 0",
    ),
    "timm: unknown field": Refused(
        edited(s.for_hub, calibrated=1), "config.json: calibrated: expected a field that is"
    ),
    "timm: unknown field of pretrained_cfg": Refused(
        for_hub_edited(gamma=2.2), "config.json: gamma: expected a field that is known, got 2.2; remove it"
    ),
    "timm: unknown field of model_args": Refused(
        edited(s.for_hub, model_args={"aa_layer": "blur"}), "model_args: aa_layer: expected a field that is known"
    ),
    "timm: output_stride": Refused(
        edited(s.for_hub, model_args={"output_stride": 16}), "model_args: output_stride: expected 32, got 16"
    ),
    "timm: norm_layer": Refused(
        edited(s.for_hub, model_args={"norm_layer": "groupnorm"}), "model_args: norm_layer: expected 'batchnorm'"
    ),
    "timm: pooling": Refused(
        edited(s.for_hub, model_args={"global_pool": "avgmax"}, global_pool=None), "global_pool: expected avg or"
    ),
    "timm: two poolings": Refused(edited(s.for_hub, global_pool="max"), "global_pool: expected 'avg' as in model_args"),
    "timm: crop_mode border": Refused(for_hub_edited(crop_mode="border"), "crop_mode: expected center or squash, got"),
    "timm: interpolation random": Refused(for_hub_edited(interpolation="random"), "interpolation: expected one of"),
    "timm: label_offset": Refused(for_hub_edited(label_offset=1), "label_offset: expected 0, got 1"),
    "timm: channels": Refused(for_hub_edited(input_size=[1, 64, 64]), "input_size: expected 3 channels, as the first"),
    "timm: names of another head": Refused(
        edited(s.for_hub, label_names=["one", "two"]), "expected the names of 5 classes, as the head has, got 2"
    ),
    "timm: another architecture": Refused(
        edited(s.for_hub, architecture="mobilevitv2_050"),
        "architecture: expected mobilevit_xxs, mobilevit_xs or mobile",
    ),
    "timm's training: batch norm's epsilon": Refused(
        of_state(lambda state: {"state_dict": state, "args": argparse.Namespace(bn_eps=0.01)}, TIMM),
        "args: bn_eps: expected 1e-05, got 0.01",
    ),
    "cvnets: unknown field": Refused(
        trained_by_cvnets(model__classification__mit__use_shifted_windows=True),
        "config.yaml: model.classification.mit.use_shifted_windows: expected a field that is known, got True",
    ),
    "cvnets: no fusion": Refused(
        trained_by_cvnets(model__classification__mit__no_fuse_local_global_features=True),
        "no_fuse_local_global_features: expected False, got True",
    ),
    "cvnets: group norm": Refused(
        trained_by_cvnets(model__normalization__name="group_norm"), "model.normalization.name: expected 'batch_norm'"
    ),
    "cvnets: pooling": Refused(
        trained_by_cvnets(model__layer__global_pool="rms"), "model.layer.global_pool: expected 'mean', got 'rms'"
    ),
    "cvnets: activation": Refused(
        trained_by_cvnets(model__classification__activation__name="prelu"), "activation: expected one of"
    ),
    "cvnets: another network": Refused(
        trained_by_cvnets(model__classification__name="mobilevit_v2"), "model.classification.name: expected 'mobilevit'"
    ),
    "cvnets: separable convolutions": Refused(
        trained_by_cvnets(SEGMENTATION, model__segmentation__deeplabv3__aspp_sep_conv=True),
        "aspp_sep_conv: expected False",
    ),
    "cvnets: activation of the head": Refused(
        trained_by_cvnets(SEGMENTATION, model__segmentation__activation__name="swish"),
        "model.segmentation.activation.name: expected relu, got 'swish'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:`torch.jit:DeprecationWarning")
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    row = REFUSED[name]
    weights = row.save(tmp_path)
    with pytest.raises(MobileViTError) as raised:
        load_checkpoint(weights, overrides=row.overrides)
    text = str(raised.value)
    assert row.text in text
    assert "\n" not in text
    assert len(text) < 500 + text.count(str(tmp_path)) * len(str(tmp_path))


def test_labels_of_the_user_replace_those_that_do_not_fit(photographs: list[Path], tmp_path: Path) -> None:
    saved = pretrained(tmp_path, edit={"id2label": {"0": "a", "1": "b"}})
    names = tmp_path / "names.txt"
    names.write_text("\n".join("vwxyz"))
    checkpoint = load_checkpoint(tmp_path, overrides=CheckpointOverrides(labels=names))
    assert checkpoint.config.id2label == tuple("vwxyz")
    given = dataclasses.replace(saved, names=tuple("vwxyz"), options={"labels": names})
    compare(given, saved.answer(photographs[0]), as_read(given)(photographs[0]))


def test_a_size_of_the_user_replaces_one_that_cannot_be(tmp_path: Path) -> None:
    pretrained(tmp_path, edit={"image_size": 100_000})
    with pytest.raises(MobileViTError, match="image_size: expected"):
        load_checkpoint(tmp_path)
    checkpoint = load_checkpoint(tmp_path, overrides=CheckpointOverrides(image_sizes=((32, 32),)))
    assert checkpoint.config.image_hw == (32, 32)


def test_tensors_of_a_loss_are_left_out_by_name(tmp_path: Path) -> None:
    saved = s.bare(tmp_path, HUGGING_FACE, s.lightning, "last.ckpt")
    assert "left out criterion.weight: of the training" in load_checkpoint(saved.weights).notices


@pytest.mark.parametrize("ema", [None, True, False])
def test_the_choice_of_weights_is_told(ema: bool | None, tmp_path: Path) -> None:
    saved = s.bare(tmp_path, HUGGING_FACE, s.plain_is_right)
    notices = load_checkpoint(saved.weights, overrides=CheckpointOverrides(ema=ema)).notices
    said = "the file has plain and averaged weights (EMA): took the plain; --ema the averaged ones"
    assert (said in notices) == (ema is None)
