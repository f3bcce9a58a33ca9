"""A checkpoint in the library that it comes from, transformers or timm, for a process of its own.

Nothing of this package's reading of the files is used here: the library reads configuration, weights, preprocessing,
class names, and says what the outputs mean. No code of a checkpoint is run.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mobilevit_coreml.checkpoints.hub import WEIGHT_FILES
from mobilevit_coreml.images import read_image
from mobilevit_coreml.preprocessing import upright_rgb
from mobilevit_coreml.validation.worker import Handlers

PROBABILITIES, VALUES, LOGITS, POOLED = "probabilities", "values", "logits", "pooled"


class FrameworkAnswer(NamedTuple):
    """A library's answer for one image.

    `kind` is probabilities (classes,), values (values,), logits of a segmenter (classes, h, w) or pooled features
    (channels,). `names` are the classes in the library's words, () if it has none. `pixels` (height, width) is the
    size of the network's input.
    """

    kind: str
    output: npt.NDArray[np.float32]
    names: tuple[str, ...]
    pixels: tuple[int, int]


def open_framework(naming: str, weights: str, task: str, variant: str, ema: bool, classes: int) -> Handlers:
    """Load a checkpoint; `run` takes the path of an image, or pixels (1, C, H, W) that are prepared already."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    logging.disable(logging.WARNING)
    make_torchvision_importable()
    with _quietly():
        if naming == "timm":
            return {"run": _timm(Path(weights), task, variant, ema, classes)}
        return {"run": _transformers(Path(weights), task)}


def make_torchvision_importable() -> None:
    """Let transformers and timm import torchvision where its native library does not fit torch's build.

    PyPI's torchvision is linked against CUDA: beside a CPU build of torch its import fails for want of two operators,
    which nothing here calls. Their names are enough.
    """
    global _operators
    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


_operators: torch.library.Library | None = None  # the definitions last as long as this does


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with (
        warnings.catch_warnings(action="ignore"),
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def _transformers(weights: Path, task: str) -> Callable[[Any], FrameworkAnswer]:
    """The model and processor of a directory that transformers saved."""
    import transformers

    directory = weights.parent
    if not (directory / "config.json").is_file():
        raise ValueError("no config.json, by which transformers builds the model")
    loaded = next((name for name in WEIGHT_FILES if (directory / name).is_file()), "nothing")
    if loaded != weights.name:
        raise ValueError(f"transformers would load {loaded} there, not {weights.name}")
    kind = {
        "classification": transformers.MobileViTForImageClassification,
        "segmentation": transformers.MobileViTForSemanticSegmentation,
        "features": transformers.MobileViTModel,
    }[task]
    model, loading = kind.from_pretrained(
        directory, local_files_only=True, weights_only=True, output_loading_info=True, dtype=torch.float32
    )
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise ValueError(f"transformers itself finds no weights for {', '.join(missing[:2])}")
    model.eval()
    processor = None
    if any((directory / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        # Pillow's: torchvision's lack some filters, and pad small images by the other half of a pixel
        by_pillow: dict[str, Any] = {"backend": "pil"} if int(transformers.__version__[0]) > 4 else {"use_fast": False}
        processor = transformers.AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **by_pillow
        )
    config = model.config
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels)) if task != "features" else ()

    @torch.inference_mode()
    def run(image: Any) -> FrameworkAnswer:
        if isinstance(image, np.ndarray):
            pixels = torch.from_numpy(image)
        elif processor is None:
            raise ValueError("no preprocessor_config.json")
        else:
            picture = upright_rgb(read_image(image))
            picture = picture.convert("L") if config.num_channels == 1 else picture
            pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        output = model(pixels)
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        if task == "features":
            return FrameworkAnswer(POOLED, _numbers(output.pooler_output), (), size)
        if task == "segmentation":
            return FrameworkAnswer(LOGITS, _numbers(output.logits), names, size)
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            return FrameworkAnswer(VALUES, _numbers(output.logits), names, size)
        several = config.problem_type == "multi_label_classification"
        probabilities = output.logits.sigmoid() if several else output.logits.softmax(-1)
        return FrameworkAnswer(PROBABILITIES, _numbers(probabilities), names, size)

    return run


def _timm(weights: Path, task: str, variant: str, ema: bool, classes: int) -> Callable[[Any], FrameworkAnswer]:
    """The model and evaluation transform of a directory for the hub, of a training's checkpoint, or of bare weights."""
    import timm
    from timm.data import create_transform, resolve_data_config
    from timm.models import load_checkpoint

    from mobilevit_coreml.checkpoints.files import read_weights

    arguments: dict[str, Any] = {}
    if (weights.parent / "config.json").is_file():
        model = timm.create_model(f"local-dir:{weights.parent}")
        load_checkpoint(model, str(weights), use_ema=ema)
    else:
        arguments = dict(read_weights(weights).arguments)
        options = {"global_pool": arguments.get("gp"), "in_chans": arguments.get("in_chans")}
        options = {name: value for name, value in options.items() if value} | (arguments.get("model_kwargs") or {})
        name = arguments.get("model") or f"mobilevit_{variant}"
        has_head = task != "features"
        model = timm.create_model(name, num_classes=classes if has_head else 0, **options)
        load_checkpoint(model, str(weights), use_ema=ema, strict=has_head)
    model.eval()
    config = resolve_data_config(arguments, model=model)
    transform = create_transform(**config)
    labels = (model.pretrained_cfg or {}).get("label_names") or ()
    if isinstance(labels, dict):
        labels = [labels[key] for key in sorted(labels, key=int)]

    @torch.inference_mode()
    def run(image: Any) -> FrameworkAnswer:
        if isinstance(image, np.ndarray):
            pixels = torch.from_numpy(image)
        else:
            pixels = transform(upright_rgb(read_image(image)).convert("L" if config["input_size"][0] == 1 else "RGB"))
            pixels = pixels[None]
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        output = model.forward_head(model.forward_features(pixels), pre_logits=task == "features")
        if task == "features":
            return FrameworkAnswer(POOLED, _numbers(output), (), size)
        if model.num_classes == 1:
            return FrameworkAnswer(VALUES, _numbers(output), (), size)
        return FrameworkAnswer(PROBABILITIES, _numbers(output.softmax(-1)), tuple(map(str, labels)), size)

    return run


def _numbers(output: Tensor) -> npt.NDArray[np.float32]:
    return output[0].float().numpy()
