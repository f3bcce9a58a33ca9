"""MobileViTs saved as their frameworks and public scripts save them, with the frameworks' own answers."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilevit_coreml.images import synthetic_images
from tests.peers import cvnets_state, randomize

Array = npt.NDArray[np.float32]
Answer = Callable[[Path], Array]
State = dict[str, Tensor]

SIDE, EDGE = 64, 72  # pixels
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLASSES = 5
XXS = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}
PROBABILITIES, VALUES, MASK, POOLED = "probabilities", "values", "mask", "pooled"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A saved checkpoint, and its framework's answer for an image file.

    `names` are the classes in the framework's words, by default LABEL_0 and so on. `options` are given to the
    conversion in place of what no file says.
    """

    weights: Path
    answer: Answer
    kind: str = PROBABILITIES
    names: tuple[str, ...] = tuple(f"LABEL_{index}" for index in range(CLASSES))
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def save_photographs(directory: Path) -> list[Path]:
    """Two image files with odd sides, one lying, one upright."""
    lying, upright = directory / "lying.png", directory / "upright.jpg"
    synthetic_images(147, 203, 1)[0].save(lying)
    synthetic_images(231, 165, 2)[1].save(upright, quality=95)
    return [lying, upright]


@torch.no_grad()
def telling(model: nn.Module, last: nn.Linear | nn.Conv2d, channels: int = 3) -> Any:
    """Random weights with which small changes of pixels or of the network change the probabilities."""
    randomize(model)
    pixels = np.stack([np.asarray(image, np.float32) for image in synthetic_images(SIDE, SIDE, 4)]) / 255
    last.weight *= 4
    if last.bias is not None:
        last.bias.zero_()
        output = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, :channels])
        logits = getattr(output, "logits", output)
        last.bias -= logits.mean([dim for dim in range(logits.dim()) if dim != 1])
    return model


# transformers


def transformers_model(head: str = "classification", **config: Any) -> Any:
    """A MobileViT of transformers, xxs: with the head of a classifier or segmenter, or "features" without."""
    import transformers

    kinds = {
        "classification": transformers.MobileViTForImageClassification,
        "segmentation": transformers.MobileViTForSemanticSegmentation,
        "features": transformers.MobileViTModel,
    }
    labels = {} if "id2label" in config else {"num_labels": CLASSES}
    values = {**XXS, "image_size": SIDE, **labels, **config}
    model = kinds[head](transformers.MobileViTConfig(**values))
    if head == "features":
        return randomize(model)
    last = model.classifier if head == "classification" else model.segmentation_head.classifier.convolution
    return telling(model, last, model.config.num_channels)


def with_sequential_head(model: Any) -> Any:
    """The classifier as Sequential(Dropout, Linear), a line of many public scripts."""
    model.classifier = nn.Sequential(nn.Dropout(0.2), model.classifier)
    return model.eval()


def with_plain_convolution(model: Any) -> Any:
    """The segmenter's last layer as a convolution itself."""
    model.segmentation_head.classifier = model.segmentation_head.classifier.convolution
    return model


def edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Write other values into a file of JSON; None leaves a field out, "null" is null."""
    values = json.loads(path.read_text(encoding="utf-8")) | dict(changes)
    kept = {name: None if value == "null" else value for name, value in values.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def pretrained(
    directory: Path,
    processor: str = "MobileViT",
    pixels: Mapping[str, Any] | None = None,
    head: str = "classification",
    change: Callable[[Any], Any] = lambda model: model,
    edit: Mapping[str, Any] | None = None,
    edit_pixels: Mapping[str, Any] | None = None,
    saving: Mapping[str, Any] | None = None,
    names: tuple[str, ...] | None = None,
    backend: str = "torchvision",
    **config: Any,
) -> Saved:
    """`save_pretrained` of a model and of an image processor, their files edited afterwards.

    The answer is that of the model in memory and of the processor that AutoImageProcessor makes of the file.
    """
    import transformers

    model = change(transformers_model(head, **config))
    model.save_pretrained(directory, **(saving or {}))
    edit_json(directory / "config.json", edit or {})
    sizes = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": SIDE, "width": SIDE}}
    given = {**sizes, "resample": 2} if pixels is None else pixels
    getattr(transformers, f"{processor}ImageProcessor")(**given).save_pretrained(directory)
    edit_json(directory / "preprocessor_config.json", edit_pixels or {})
    made = transformers.AutoImageProcessor.from_pretrained(directory, backend=backend)
    if names is None:
        names = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
    return Saved(directory, transformers_answer(model, made), _kind_of(model), names)


def _kind_of(model: Any) -> str:
    if hasattr(model, "segmentation_head"):
        return MASK
    if not hasattr(model, "classifier") and not hasattr(model, "timm_model"):
        return POOLED
    one_value = model.config.problem_type is None and model.config.num_labels == 1
    return VALUES if model.config.problem_type == "regression" or one_value else PROBABILITIES


def transformers_answer(model: Any, processor: Any) -> Answer:
    """Probabilities, values or pooled features (N,), or classes (H, W) of a segmenter's input."""
    kind = _kind_of(model)

    @torch.inference_mode()
    def answer(path: Path) -> Array:
        image = Image.open(path).convert("L" if getattr(model.config, "num_channels", 3) == 1 else "RGB")
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        output = model(pixels)
        if kind == POOLED:
            return output.pooler_output[0].numpy()
        if kind == MASK:
            return nn.functional.interpolate(output.logits, pixels.shape[2:], mode="bilinear")[0].argmax(0).numpy()
        if kind == VALUES:
            return output.logits[0].numpy()
        several = model.config.problem_type == "multi_label_classification"
        return (output.logits.sigmoid() if several else output.logits.softmax(1))[0].numpy()

    return answer


def raw_scores(saved: Saved) -> Saved:
    """The same with the logits in place of probabilities; those of a softmax up to a constant."""

    def answer(path: Path) -> Array:
        logits = np.log(saved.answer(path))
        return logits - logits.mean()

    return dataclasses.replace(saved, kind="logits", answer=answer, options={"output_type": "logits"})


def sharded_pickles(directory: Path) -> Saved:
    """Shards as transformers 4 wrote them: two .bin files and an index."""
    saved = pretrained(directory)
    (directory / "model.safetensors").unlink()
    state = transformers_model().state_dict()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    parts = [dict(list(state.items())[:100]), dict(list(state.items())[100:])]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, directory / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: names[key in parts[1]] for key in state}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return saved


def pickled(directory: Path) -> Saved:
    """`pytorch_model.bin`, as transformers 4 and `safe_serialization=False` wrote it."""
    saved = pretrained(directory)
    (directory / "model.safetensors").unlink()
    torch.save(transformers_model().state_dict(), directory / "pytorch_model.bin")
    return saved


def trainer_checkpoint(directory: Path) -> Saved:
    """A checkpoint directory of transformers' Trainer: optimizer and arguments beside the weights."""
    saved = pretrained(directory)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": {}}, directory / name)
    (directory / "trainer_state.json").write_text("{}")
    return saved


# Weights alone, whatever they are wrapped in


def bare_answer(naming: str, side: int = SIDE, **pixels: Any) -> tuple[Any, Answer]:
    """A model by the naming of its weights, and its answer with the pixels that are assumed for bare weights."""
    if naming == "timm":
        model = timm_model()
        return model, timm_answer(model, input_size=(3, side, side), **pixels)
    model = transformers_model()
    return model, cvnets_answer(model, **{"edge": round(side * 9 / 8), "side": side, **pixels})


def bare(
    directory: Path,
    naming: str,
    wrap: Callable[[State], Any] = lambda state: state,
    name: str = "best.pth",
    pixels: Mapping[str, Any] | None = None,
    **options: Any,
) -> Saved:
    """The state dict in a file or, called model.safetensors, in a directory."""
    model, answer = bare_answer(naming, **(pixels or {}))
    state = cvnets_state(model) if naming == "cvnets" else model.state_dict()
    content = wrap(dict(state))
    weights = directory / name
    if weights.suffix == ".safetensors":
        save_file(content, weights)
        weights = directory
    else:
        torch.save(content, weights)
    return Saved(weights, answer, options={"image_sizes": ((SIDE, SIDE),), **options})


def under(prefix: str) -> Callable[[State], State]:
    """The tensors under a prefix."""
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def lightning(state: State) -> dict[str, Any]:
    """A checkpoint of Lightning's: the module has the network as `model`, and a weighted loss."""
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**under("model.")(state), "criterion.weight": torch.ones(CLASSES)},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.001},
    }


def training_loop(state: State) -> dict[str, Any]:
    """As torchvision's references and most loops save."""
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 9, "best_acc1": 0.9}


def other_weights(state: State) -> State:
    """Weights of the same shapes that answer otherwise."""
    return {key: tensor * 0.9 if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def averaged_is_right(state: State) -> dict[str, Any]:
    """A training's checkpoint in which the moving average is the network."""
    return {"state_dict": other_weights(state), "state_dict_ema": under("module.")(state)}


def plain_is_right(state: State) -> dict[str, Any]:
    """A training's checkpoint in which the last weights are the network."""
    return {"state_dict": state, "state_dict_ema": other_weights(state)}


def averaged_under_prefix(state: State) -> State:
    """A module with the network, and its average, as Lightning's callbacks and others keep them."""
    return {**under("net.")(other_weights(state)), **under("ema_net.")(state)}


# timm


def timm_model(name: str = "mobilevit_xxs", change: Callable[[Any], Any] = lambda model: model, **options: Any) -> Any:
    """A MobileViT of timm, xxs."""
    import timm

    model = timm.create_model(name, **{"num_classes": CLASSES, **options})
    if not model.num_classes:
        return randomize(model)
    return change(telling(model, model.head.fc, model.stem.conv.in_channels))


def with_sequential_fc(model: Any) -> Any:
    """timm's classifier as Sequential(Dropout, Linear)."""
    model.head.fc = nn.Sequential(nn.Dropout(0.2), model.head.fc)
    return model.eval()


def timm_answer(model: Any, /, **config: Any) -> Answer:
    """By timm's evaluation transform, of the model's own configuration and what is given."""
    from timm.data import create_transform, resolve_data_config

    resolved = resolve_data_config(config, model=model)
    transform = create_transform(**resolved)

    @torch.inference_mode()
    def answer(path: Path) -> Array:
        image = Image.open(path).convert("L" if resolved["input_size"][0] == 1 else "RGB")
        output = model(transform(image)[None])[0]
        return (output if model.num_classes < 2 else output.softmax(0)).numpy()

    return answer


def for_hub(
    directory: Path,
    data: Mapping[str, Any] | None = None,
    saving: Mapping[str, Any] | None = None,
    edit: Mapping[str, Any] | None = None,
    edit_pretrained: Mapping[str, Any] | None = None,
    names: tuple[str, ...] | None = None,
    name: str = "mobilevit_xxs",
    change: Callable[[Any], Any] = lambda model: model,
    **options: Any,
) -> Saved:
    """`timm.models.save_for_hf`, config.json edited afterwards; timm reads the directory again for its answer."""
    import timm

    model = timm_model(name, change, **options)
    data = {"input_size": (model.stem.conv.in_channels, SIDE, SIDE), **(data or {})}
    timm.models.save_for_hf(model, directory, **{"data_config": data, **(saving or {})})
    edit_json(directory / "config.json", edit or {})
    if edit_pretrained:
        settings = json.loads((directory / "config.json").read_text())["pretrained_cfg"]
        edit_json(directory / "config.json", {"pretrained_cfg": {**settings, **edit_pretrained}})
    kind = {0: POOLED, 1: VALUES}.get(model.num_classes, PROBABILITIES)
    names = names or tuple(f"LABEL_{index}" for index in range(model.num_classes))
    return Saved(directory, timm_answer(model, **data), kind, names)


def wrapped_by_transformers(directory: Path, problem_type: str | None = None) -> Saved:
    """transformers' TimmWrapper, fine-tuned and saved by its Trainer: timm's network, transformers' config.json."""
    import transformers

    names = {index: f"name {index}" for index in range(CLASSES)}
    data = {"input_size": [3, SIDE, SIDE], "crop_pct": 0.8, "interpolation": "bilinear", **IMAGENET}
    config = transformers.TimmWrapperConfig(
        architecture="mobilevit_xxs", id2label=names, problem_type=problem_type, pretrained_cfg=data
    )
    model = transformers.TimmWrapperForImageClassification(config)
    telling(model, model.timm_model.head.fc)
    model.save_pretrained(directory)
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    answer = transformers_answer(model, processor)
    return Saved(directory, answer, names=tuple(names.values()))


def checkpoint_saver(directory: Path, averaged: bool | None = None, **arguments: Any) -> Saved:
    """timm's training script: CheckpointSaver with its arguments; with an average if `averaged` is not None."""
    from timm.utils import CheckpointSaver, ModelEmaV2

    options = {"global_pool": arguments.get("gp"), "in_chans": arguments.get("in_chans"), **arguments["model_kwargs"]}
    model = timm_model(**{name: value for name, value in options.items() if value is not None})
    ema = None
    answering = model
    if averaged is not None:
        ema = ModelEmaV2(model)
        with torch.no_grad():
            for tensor in (model if averaged else ema.module).state_dict().values():
                if tensor.is_floating_point():
                    tensor *= 0.9
        answering = ema.module if averaged else model
    used = argparse.Namespace(model="mobilevit_xxs", lr=0.1, opt="adamw", epochs=300, num_classes=CLASSES, **arguments)
    saver = CheckpointSaver(model, torch.optim.SGD(model.parameters(), 0.1), used, ema, checkpoint_dir=str(directory))
    saver.save_checkpoint(3, 0.9)
    answer = timm_answer(answering.eval(), **vars(used))
    return Saved(directory / "model_best.pth.tar", answer, options={} if averaged is None else {"ema": averaged})


# ml-cvnets, which is no package: transformers has the same network, and Pillow resizes


def cvnets_answer(
    model: Any,
    edge: int | tuple[int, int] = EDGE,
    side: int = SIDE,
    order: str = "BGR",
    resample: int = 2,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> Answer:
    """By cvnets' evaluation: resize the shorter edge, or stretch to (height, width), crop the centre, scale to 1."""
    kind = _kind_of(model)

    @torch.inference_mode()
    def answer(path: Path) -> Array:
        image = Image.open(path).convert("RGB")
        if isinstance(edge, tuple):
            image = image.resize(edge[::-1], resample)
        else:
            width, height = image.size
            short = min(width, height)
            image = image.resize((int(edge * width / short), int(edge * height / short)), resample)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
        pixels = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
        pixels = pixels[..., ::-1] if order == "BGR" else pixels
        logits = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())).logits
        if kind == MASK:
            return nn.functional.interpolate(logits, (side, side), mode="bilinear")[0].argmax(0).numpy()
        return logits.softmax(1)[0].numpy()

    return answer


def cvnets_config(head: str = "classification", **changes: Any) -> dict[str, Any]:
    """A config.yaml of a training with cvnets, its options by their dotted names, with changes."""
    options: dict[str, Any] = {
        "common.run_label": "run_1",
        "common.accum_freq": 1,
        "common.log_freq": 500,
        "common.mixed_precision": True,
        "dataset.root_train": "/data/training",
        "dataset.root_val": "/data/validation",
        "dataset.name": "imagenet",
        "dataset.category": "classification",
        "dataset.train_batch_size0": 32,
        "image_augmentation.random_resized_crop.enable": True,
        "image_augmentation.random_resized_crop.interpolation": "bilinear",
        "image_augmentation.random_horizontal_flip.enable": True,
        "image_augmentation.resize.enable": True,
        "image_augmentation.resize.size": EDGE,
        "image_augmentation.resize.interpolation": "bicubic",
        "image_augmentation.center_crop.enable": True,
        "image_augmentation.center_crop.size": SIDE,
        "sampler.name": "variable_batch_sampler",
        "sampler.vbs.crop_size_width": SIDE,
        "loss.category": "classification",
        "loss.classification.name": "cross_entropy",
        "loss.classification.label_smoothing": 0.1,
        "optim.name": "adamw",
        "optim.weight_decay": 0.01,
        "scheduler.name": "cosine",
        "model.classification.name": "mobilevit",
        "model.classification.classifier_dropout": 0.1,
        "model.classification.n_classes": CLASSES,
        "model.classification.mit.mode": "xx_small",
        "model.classification.mit.ffn_dropout": 0.0,
        "model.classification.mit.attn_dropout": 0.0,
        "model.classification.mit.dropout": 0.05,
        "model.classification.mit.number_heads": 4,
        "model.classification.mit.no_fuse_local_global_features": False,
        "model.classification.mit.conv_kernel_size": 3,
        "model.classification.activation.name": "swish",
        "model.normalization.name": "batch_norm_2d",
        "model.normalization.momentum": 0.1,
        "model.activation.name": "swish",
        "model.activation.neg_slope": 0.1,
        "model.layer.global_pool": "mean",
        "model.layer.conv_init": "kaiming_normal",
        "model.layer.linear_init": "trunc_normal",
        "model.layer.linear_init_std_dev": 0.02,
        "ema.enable": True,
        "ema.momentum": 0.0005,
        "stats.name": ["loss", "top1", "top5"],
        "stats.checkpoint_metric": "top1",
    }
    if head == "segmentation":
        options |= {
            "model.segmentation.name": "encoder_decoder",
            "model.segmentation.n_classes": CLASSES,
            "model.segmentation.seg_head": "deeplabv3",
            "model.segmentation.lr_multiplier": 1,
            "model.segmentation.output_stride": 8,
            "model.segmentation.use_aux_head": False,
            "model.segmentation.activation.name": "relu",
            "model.segmentation.deeplabv3.aspp_rates": [12, 24, 36],
            "model.segmentation.deeplabv3.aspp_out_channels": 512,
            "model.segmentation.deeplabv3.aspp_dropout": 0.1,
            "model.segmentation.deeplabv3.aspp_sep_conv": False,
        }
    nested: dict[str, Any] = {}
    for name, value in (options | changes).items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def cvnets_training(
    directory: Path,
    config: Mapping[str, Any] | None = None,
    head: str = "classification",
    averaged: bool | None = None,
    pixels: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Saved:
    """A results directory of cvnets' training: checkpoint, and config.yaml unless `config` is None."""
    model = transformers_model(head, **(network or {}))
    state = cvnets_state(model)
    plain, average = (other_weights(state), state) if averaged else (state, other_weights(state))
    content = {
        "iterations": 1000,
        "epoch": 7,
        "model_state_dict": plain,
        "optim_state_dict": {"state": {}, "param_groups": []},
        "best_metric": 0.9,
    }
    if averaged is not None:
        content |= {"ema_state_dict": average}
    weights = directory / "training_checkpoint_best.pt"
    torch.save(content, weights)
    if config is not None:
        (directory / "config.yaml").write_text(yaml.safe_dump(cvnets_config(head, **config)))
    given = dict(options or {})
    if config is None:
        given |= {"image_sizes": ((SIDE, SIDE),)}
    if averaged is not None:
        given |= {"ema": averaged}
    answer = cvnets_answer(model, **(pixels or {}))
    return Saved(weights, answer, MASK if head == "segmentation" else PROBABILITIES, options=given)
