"""Loading of a checkpoint: weights, configuration, preprocessing and origin."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mobilevit_coreml.checkpoints.files import read_json_object, read_tensors, sha256_of
from mobilevit_coreml.checkpoints.hub import PUBLISHED, WEIGHT_FILES, HubUnreachableError, snapshot
from mobilevit_coreml.checkpoints.naming import has_expansion, infer_config, infer_task, recognize, remap_state_dict
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.checkpoints.tables import HUGGING_FACE, NAMINGS, TIMM
from mobilevit_coreml.checkpoints.untrained import SEED, untrained_state
from mobilevit_coreml.config import (
    VARIANTS,
    MobileViTConfig,
    Task,
    config_from_hugging_face,
    published_config,
    variant_of,
)
from mobilevit_coreml.errors import CheckpointError, check_choice, os_error_text
from mobilevit_coreml.labels import imagenet_labels, labels_from_mapping, voc_labels
from mobilevit_coreml.model import Model, model_for
from mobilevit_coreml.preprocessing import (
    Preprocessing,
    default_preprocessing,
    from_hugging_face,
    from_timm,
    timm_settings,
)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
AUTO, PRETRAINED, UNTRAINED = "auto", "pretrained", "untrained"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights of a model for a task, with configuration, preprocessing and origin."""

    task: Task
    expand: bool  # True if the weights have the backbone's final expansion
    config: MobileViTConfig
    state: dict[str, Tensor]  # state dict of `model`, float32
    preprocessing: Preprocessing
    source: WeightsSource
    notice: str | None = None  # for the user, on assumptions or a fallback

    @property
    def variant(self) -> str:
        """Name of the variant: xxs, xs, s or custom."""
        return variant_of(self.config)

    def model(self, attention: str = "split_einsum", unfold: str = "space_to_batch") -> Model:
        """The model with these weights, in eval mode."""
        model = model_for(self.task, self.config, attention, unfold, self.expand)
        model.load_state_dict(self.state, strict=False)  # without the step counters of batch norm
        return model.eval()


def load_checkpoint(
    weights: str | os.PathLike[str] = AUTO, variant: str | None = None, task: str | None = None
) -> Checkpoint:
    """Load a checkpoint from a file, a directory or the Hugging Face hub.

    weights: a file, a directory, a hub id (owner/name or owner/name@revision), "auto" (Apple's published
    weights, or random weights if the hub cannot be reached), "pretrained" (the same without fallback)
    or "untrained". Code base and variant are inferred from keys and shapes; task, too, if None.
    Features can be extracted with the weights of any task.

    Raises CheckpointError, or ConfigError for an invalid config.json.
    """
    weights = os.fspath(weights)
    if task is not None:
        check_choice("task", task, tuple(Task), CheckpointError)
    head = None if task is None else Task(task)
    if weights in (AUTO, PRETRAINED, UNTRAINED):
        if variant is None:
            raise CheckpointError(
                f"--weights {weights}: expected a --variant with it ({', '.join(VARIANTS)}), got none; add one"
            )
        return _published(weights, variant, head or Task.CLASSIFICATION)
    try:
        path = Path(weights).expanduser()
        is_directory, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError for ~unknown_user
        raise CheckpointError(
            f"weights {weights:.200}: expected a path, got {os_error_text(error)}; check the path"
        ) from None
    if is_directory:
        checkpoint = _from_directory(path, weights, head)
    elif is_file:
        checkpoint = _from_file(path, weights, head, settings={}, preprocessor={})
    elif path.suffix in WEIGHT_SUFFIXES or weights.count("/") != 1 or weights.startswith((".", "~", "/")):
        raise CheckpointError(
            f"weights {weights}: expected a file, a directory, a hub id (owner/name) or one of {AUTO}, {PRETRAINED}, "
            f"{UNTRAINED}, got a path that does not exist; check the path"
        )
    else:
        try:
            checkpoint = _from_hub(weights, head)
        except HubUnreachableError as error:
            raise HubUnreachableError(f"path {weights} does not exist; {error}") from None
    if variant is not None and checkpoint.variant != variant:
        raise CheckpointError(
            f"weights {weights}: expected variant {variant} (--variant), got {checkpoint.variant} (from their shapes); "
            "drop --variant or give other weights"
        )
    return checkpoint


def _published(weights: str, variant: str, task: Task) -> Checkpoint:
    notice = None
    if weights != UNTRAINED:
        try:
            return _from_hub(PUBLISHED[task][variant], task)
        except HubUnreachableError as error:
            if weights == PRETRAINED:
                raise
            notice = str(error)
    config = published_config(variant, task)
    return Checkpoint(
        task,
        task != Task.SEGMENTATION,
        config,
        untrained_state(config, SEED, task),
        default_preprocessing(task, config.image_hw, HUGGING_FACE.channel_order),
        WeightsSource(UNTRAINED, "mobilevit_coreml", seed=SEED),
        notice,
    )


def _from_hub(hub_id: str, task: Task | None) -> Checkpoint:
    directory = snapshot(hub_id)
    checkpoint = _from_directory(directory, hub_id, task)
    source = dataclasses.replace(checkpoint.source, revision=directory.name)
    return dataclasses.replace(checkpoint, source=source)


def _from_directory(directory: Path, name: str, task: Task | None) -> Checkpoint:
    preferred = [directory / file for file in WEIGHT_FILES if (directory / file).is_file()]
    others = sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if not preferred and len(others) != 1:
        found = ", ".join(path.name for path in others[:6]) or "none"
        raise CheckpointError(
            f"weights {name}: expected {' or '.join(WEIGHT_FILES)}, or a single {'/'.join(WEIGHT_SUFFIXES)} file, "
            f"got {found}; name the file itself"
        )
    configs = [directory / "config.json", directory / "preprocessor_config.json"]
    settings, preprocessor = (read_json_object(path) if path.is_file() else {} for path in configs)
    return _from_file((preferred or others)[0], name, task, settings, preprocessor)


def _from_file(
    path: Path, name: str, task: Task | None, settings: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> Checkpoint:
    """Checkpoint in a weights file; `settings` and `preprocessor` are the JSON files next to it, {} if missing."""
    naming, tensors = recognize(read_tensors(path), NAMINGS, name)
    trained = infer_task(tensors, naming)
    task = task or trained
    if task not in (trained, Task.FEATURES):
        raise CheckpointError(
            f"weights {name}: expected weights for {task} (--task), got weights for {trained} (from their keys); "
            "drop --task or give other weights"
        )
    config = infer_config(tensors, naming, trained)
    preprocessing = default_preprocessing(trained, config.image_hw, naming.channel_order)
    if naming is TIMM and settings:
        config = _with_timm_labels(config, settings, name)
        preprocessing = from_timm(settings, preprocessing, f"{name}: config.json")
        config = dataclasses.replace(config, image_size=preprocessing.crop)
    elif settings:
        config = config_from_hugging_face(settings, f"{name}: config.json")
        preprocessing = preprocessing.with_crop(config.image_hw)
    if preprocessor:
        preprocessing = from_hugging_face(preprocessor, preprocessing, f"{name}: preprocessor_config.json")
        config = dataclasses.replace(config, image_size=preprocessing.crop)
    return Checkpoint(
        task,
        has_expansion(tensors, naming),
        config,
        remap_state_dict(tensors, naming, config, name, task),
        preprocessing,
        WeightsSource(name, naming.name, sha256=sha256_of(path)),
        None if settings or naming is TIMM else _assumptions(config, task),
    )


def _assumptions(config: MobileViTConfig, task: str) -> str:
    """Notice about values that weights without a config.json do not determine."""
    names = {imagenet_labels(): " and ImageNet's class names", voc_labels(): " and PASCAL VOC's class names"}
    labels = "" if task == Task.FEATURES else names.get(config.id2label, "")
    return (
        f"no config.json next to the weights: assumed {config.hidden_act}, {config.num_attention_heads} heads, patches "
        f"of {config.patch_size}, output stride {config.output_stride}{labels}; if that is wrong, give the directory"
    )


def _with_timm_labels(config: MobileViTConfig, settings: Mapping[str, Any], name: str) -> MobileViTConfig:
    """Configuration with the class names of timm's config.json, which must be for a MobileViT."""
    architecture = str(settings.get("architecture", "mobilevit_"))
    if not architecture.startswith("mobilevit_"):
        raise CheckpointError(
            f"{name}: config.json: architecture: expected mobilevit_xxs, mobilevit_xs or mobilevit_s, "
            f"got {architecture:.60}; only MobileViT v1 is supported"
        )
    labels = timm_settings(settings).get("label_names")
    if isinstance(labels, list):
        return dataclasses.replace(
            config, id2label=labels_from_mapping(dict(enumerate(labels)), f"{name}: label_names")
        )
    return config
