"""Loading of a checkpoint: weights, configuration, preprocessing and origin."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mobilevit_coreml.checkpoints import cvnets, hugging_face, timm
from mobilevit_coreml.checkpoints.files import (
    FOREIGN_SUFFIXES,
    Saved,
    read_json_object,
    read_weights,
    refuse_foreign,
    sha256_of,
)
from mobilevit_coreml.checkpoints.hub import PUBLISHED, WEIGHT_FILES, HubUnreachableError, snapshot
from mobilevit_coreml.checkpoints.naming import (
    TRAINING,
    Naming,
    has_expansion,
    head_keys,
    infer_config,
    infer_task,
    recognize,
    remap_state_dict,
    with_linear_heads,
)
from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.checkpoints.own import OWN
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.checkpoints.untrained import SEED, untrained_state
from mobilevit_coreml.config import REGRESSION, VARIANTS, MobileViTConfig, Task, published_config, variant_of
from mobilevit_coreml.errors import CheckpointError, LabelsError, check_choice, os_error_text
from mobilevit_coreml.labels import imagenet_labels, placeholder_labels, read_labels, voc_labels
from mobilevit_coreml.model import Model, model_for
from mobilevit_coreml.preprocessing import GRAY, Preprocessing, default_preprocessing

NAMINGS = (OWN, hugging_face.HUGGING_FACE, cvnets.CVNETS, timm.TIMM)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")
SETTINGS_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "config.yaml")
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
    assumed: tuple[str, ...] = ()  # what no file says and the user did not either, each with the option that changes it
    notices: tuple[str, ...] = ()  # for the user, on a fallback or a choice
    path: Path | None = None  # of the weights file; None of untrained weights

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
    weights: str | os.PathLike[str] = AUTO,
    variant: str | None = None,
    task: str | None = None,
    overrides: CheckpointOverrides | None = None,
) -> Checkpoint:
    """Load a checkpoint from a file, a directory or the Hugging Face hub.

    weights: a file, a directory, a hub id (owner/name or owner/name@revision), "auto" (Apple's published
    weights, or random weights if the hub cannot be reached), "pretrained" (the same without fallback)
    or "untrained". Code base and variant are inferred from keys and shapes; task, too, if None.
    Features can be extracted with the weights of any task. `overrides` stand in place of what the files say.

    Raises CheckpointError, ConfigError for an invalid configuration, LabelsError for labels that do not fit.
    """
    overrides = overrides or CheckpointOverrides()
    weights = os.fspath(weights)
    if task is not None:
        check_choice("task", task, tuple(Task), CheckpointError)
    head = None if task is None else Task(task)
    if weights in (AUTO, PRETRAINED, UNTRAINED):
        if variant is None:
            raise CheckpointError(
                f"--weights {weights}: expected a --variant with it ({', '.join(VARIANTS)}), got none; add one"
            )
        return _published(weights, variant, head or Task.CLASSIFICATION, overrides)
    try:
        path = Path(weights).expanduser()
        is_directory, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError for ~unknown_user
        raise CheckpointError(
            f"weights {weights:.200}: expected a path, got {os_error_text(error)}; check the path"
        ) from None
    if is_directory:
        checkpoint = _from_directory(path, weights, head, overrides)
    elif is_file:
        checkpoint = _from_file(path, weights, head, _settings_beside(path), overrides)
    elif path.suffix in WEIGHT_SUFFIXES or weights.count("/") != 1 or weights.startswith((".", "~", "/")):
        raise CheckpointError(
            f"weights {weights}: expected a file, a directory, a hub id (owner/name) or one of {AUTO}, {PRETRAINED}, "
            f"{UNTRAINED}, got a path that does not exist; check the path"
        )
    else:
        try:
            checkpoint = _from_hub(weights, head, overrides)
        except HubUnreachableError as error:
            raise HubUnreachableError(f"path {weights} does not exist; {error}") from None
    if variant is not None and checkpoint.variant != variant:
        raise CheckpointError(
            f"weights {weights}: expected variant {variant} (--variant), got {checkpoint.variant} (from their shapes); "
            "drop --variant or give other weights"
        )
    return checkpoint


def _published(weights: str, variant: str, task: Task, overrides: CheckpointOverrides) -> Checkpoint:
    notices: tuple[str, ...] = ()
    if weights != UNTRAINED:
        try:
            return _from_hub(PUBLISHED[task][variant], task, overrides)
        except HubUnreachableError as error:
            if weights == PRETRAINED:
                raise
            notices = (str(error),)
    published = published_config(variant, task)
    config = dataclasses.replace(published, **overrides.config())
    checkpoint = Checkpoint(
        task,
        task != Task.SEGMENTATION,
        config,
        untrained_state(published, SEED, task),  # the same weights at every size
        default_preprocessing(task, published.image_hw, hugging_face.HUGGING_FACE.channel_order),
        WeightsSource(UNTRAINED, "mobilevit_coreml", seed=SEED),
        notices=notices,
    )
    return _overridden(checkpoint, overrides)


def _from_hub(hub_id: str, task: Task | None, overrides: CheckpointOverrides) -> Checkpoint:
    directory = snapshot(hub_id)
    checkpoint = _from_directory(directory, hub_id, task, overrides)
    source = dataclasses.replace(checkpoint.source, revision=directory.name)
    return dataclasses.replace(checkpoint, source=source)


def _from_directory(directory: Path, name: str, task: Task | None, overrides: CheckpointOverrides) -> Checkpoint:
    refuse_foreign(directory)
    preferred = [directory / file for file in WEIGHT_FILES if (directory / file).is_file()]
    others = sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if (directory / "adapter_config.json").is_file() and not preferred:
        raise CheckpointError(
            f"weights {name}: expected the weights of a whole model, got a PEFT adapter; save "
            "model.merge_and_unload().save_pretrained(DIRECTORY)"
        )
    if not preferred and len(others) != 1:
        foreign = sorted(path.name for path in directory.iterdir() if path.suffix in FOREIGN_SUFFIXES)
        found = ", ".join([path.name for path in others[:6]] or foreign[:6]) or "none"
        raise CheckpointError(
            f"weights {name}: expected {' or '.join(WEIGHT_FILES)}, or a single {'/'.join(WEIGHT_SUFFIXES)} file, "
            f"got {found}; name the file itself"
        )
    path = (preferred or others)[0]
    return _from_file(path, name, task, _settings_beside(path), overrides)


def _settings_beside(weights: Path) -> dict[str, Path]:
    return {name: path for name in SETTINGS_FILES if (path := weights.with_name(name)).is_file()}


def _from_file(
    path: Path, name: str, task: Task | None, files: Mapping[str, Path], overrides: CheckpointOverrides
) -> Checkpoint:
    """Checkpoint in a weights file; `files` are those of SETTINGS_FILES that are beside it."""
    saved = read_weights(path)
    tensors, notices = _chosen_weights(saved, overrides.ema, name)
    naming, tensors = recognize(tensors, NAMINGS, name)
    unread = [field for field in ("mean", "std", "act_layer") if naming is not timm.TIMM and field in saved.arguments]
    notices += (f"the file's training options have {', '.join(unread)}: not read; give --mean, --std",) * bool(unread)
    if task != Task.FEATURES:
        keys = tensors.keys()
        tensors = with_linear_heads(tensors, naming, name)
        numbered = sorted(keys - tensors.keys())
        if numbered:
            notices += (f"the head is {numbered[-1]} alone: layers without weights beside it are taken for dropout",)
    trained = _trained_task(tensors, naming, task, name)
    task = task or trained
    inferred = infer_config(tensors, naming, trained)
    given = overrides.config()
    if overrides.labels is not None:
        given["id2label"] = placeholder_labels(inferred.num_labels)
    order = GRAY if inferred.num_channels == 1 else naming.channel_order
    preprocessing = default_preprocessing(trained, inferred.image_hw, order)
    settings = read_json_object(files["config.json"]) if "config.json" in files else {}
    known = timm.knows(settings) if naming is timm.TIMM else hugging_face.knows(settings)
    if settings and not known:
        raise CheckpointError(
            f"{name}: config.json: expected the configuration of {'timm' if naming is timm.TIMM else 'transformers'}, "
            f"got {', '.join(list(settings)[:3])}; if it is of something else, move it away"
        )
    if naming is timm.TIMM:
        config, preprocessing = timm.read(settings, saved.arguments, inferred, name, **given)
        told = settings or timm.is_training(saved.arguments)
        assumed = [] if told else _assumed_of_timm(config, preprocessing, task, overrides)
    else:
        config, preprocessing, assumed = _network(naming, settings, files, inferred, preprocessing, task, name, given)
        preprocessing, more = _pixels(naming, files, preprocessing, overrides, name)
        assumed += more
    if task != Task.FEATURES and config.num_labels != inferred.num_labels:
        raise LabelsError(
            f"{name}: config.json: expected the names of {inferred.num_labels} classes, as the head has, "
            f"got {config.num_labels}; --labels FILE names them"
        )
    if task == Task.CLASSIFICATION and overrides.problem_type is None and not (settings and "problem_type" in settings):
        assumed.append(_assumed_meaning(config, naming.name, bool(settings)))
    config = dataclasses.replace(config, **{"image_size": preprocessing.crop, **overrides.config()})
    checkpoint = Checkpoint(
        task,
        has_expansion(tensors, naming),
        config,
        remap_state_dict(tensors, naming, config, name, task),
        preprocessing,
        WeightsSource(name, naming.name, sha256=sha256_of(path)),
        tuple(filter(None, assumed)),
        notices,
        path,
    )
    return _overridden(checkpoint, overrides)


def _chosen_weights(saved: Saved, ema: bool | None, name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The plain or the averaged tensors of a file, and what the user should know of them."""
    has = {True: saved.averaged, False: saved.tensors}
    if ema is not None and not has[ema]:
        option, wanted = ("--ema", "averaged") if ema else ("--no-ema", "plain")
        raise CheckpointError(f"weights {name}: expected {wanted} weights ({option}), got none; leave the option out")
    tensors = has[not saved.tensors if ema is None else ema]
    notices = []
    if saved.averaged and saved.tensors and ema is None:
        notices.append("the file has plain and averaged weights (EMA): took the plain; --ema the averaged ones")
    left_out = [key for key in tensors if TRAINING.fullmatch(key)]
    if left_out:
        notices.append(f"left out {', '.join(left_out[:3])}: of the training")
    return tensors, tuple(notices)


def _trained_task(tensors: Mapping[str, Tensor], naming: Naming, task: Task | None, name: str) -> Task:
    """The task that weights were trained for; CheckpointError where `task` cannot be had of them."""
    trained = infer_task(tensors, naming)
    head = head_keys(tensors, naming)
    if trained == Task.FEATURES and task is None and head:
        raise CheckpointError(
            f"weights {name}: expected a linear head, or DeepLabV3's, got {', '.join(head[:3])}; "
            "train such a head, or leave it out with --task features"
        )
    if task not in (None, trained, Task.FEATURES):
        raise CheckpointError(
            f"weights {name}: expected weights for {task} (--task), got weights for {trained} (from their keys); "
            "drop --task or give other weights"
        )
    return trained


def _network(
    naming: Naming,
    settings: Mapping[str, Any],
    files: Mapping[str, Path],
    inferred: MobileViTConfig,
    preprocessing: Preprocessing,
    task: Task,
    name: str,
    given: Mapping[str, Any],
) -> tuple[MobileViTConfig, Preprocessing, list[str]]:
    """Configuration, preprocessing as far as its file tells, and assumptions: of transformers, cvnets, or bare."""
    if settings:
        config = hugging_face.read_config(settings, f"{name}: config.json", **given)
        return config, preprocessing.with_crop(config.image_hw), []
    config, assumed = inferred, []
    if naming is cvnets.CVNETS and "config.yaml" in files:
        config, preprocessing = cvnets.read_config(
            files["config.yaml"], config, preprocessing, task, f"{name}: config.yaml"
        )
    else:
        assumed.append(_assumed_network(dataclasses.replace(config, **given), task, given))
    config = dataclasses.replace(config, **{"image_size": preprocessing.crop, **given})
    if config.num_labels == 1 and task == Task.CLASSIFICATION and "problem_type" not in given:
        config = dataclasses.replace(config, problem_type=REGRESSION)
    return config, preprocessing, assumed


def _pixels(
    naming: Naming, files: Mapping[str, Path], default: Preprocessing, overrides: CheckpointOverrides, name: str
) -> tuple[Preprocessing, list[str]]:
    """Preprocessing by transformers' file, where there is one, and assumptions."""
    if "preprocessor_config.json" in files:
        values, where = read_json_object(files["preprocessor_config.json"]), f"{name}: preprocessor_config.json"
    elif "processor_config.json" in files:  # of transformers 5, for processors of several kinds of input
        values = read_json_object(files["processor_config.json"]).get("image_processor") or {}
        where = f"{name}: processor_config.json: image_processor"
    else:
        return default, [_assumed_pixels(default, naming.name, overrides)]
    preprocessing, assumed = hugging_face.read_preprocessor(values, default, where)
    return preprocessing, [] if overrides.mean and overrides.std else list(assumed)


def _overridden(checkpoint: Checkpoint, overrides: CheckpointOverrides) -> Checkpoint:
    """The checkpoint with the pixels and labels that the user gave."""
    preprocessing = checkpoint.preprocessing.with_crop(checkpoint.config.image_hw)
    preprocessing = dataclasses.replace(preprocessing, **overrides.preprocessing())
    config = checkpoint.config
    if (preprocessing.channel_order == GRAY) != (config.num_channels == 1):
        raise CheckpointError(
            f"channel_order: expected that of {config.num_channels} channels, got {preprocessing.channel_order}; "
            "leave it out"
        )
    if overrides.labels is not None:
        labels = read_labels(overrides.labels)
        if len(labels) != config.num_labels:
            raise LabelsError(
                f"labels: expected {config.num_labels} names, one for each class of the checkpoint, got {len(labels)}; "
                "give a file that names every class once"
            )
        config = dataclasses.replace(config, id2label=labels)
    return dataclasses.replace(checkpoint, config=config, preprocessing=preprocessing)


def _assumed_network(config: MobileViTConfig, task: str, given: Mapping[str, Any]) -> str:
    """Values that weights without a config.json do not determine."""
    names = {imagenet_labels(): " and ImageNet's class names", voc_labels(): " and PASCAL VOC's class names"}
    labels = "" if task == Task.FEATURES else names.get(config.id2label, "")
    values = {
        "hidden_act": f"{config.hidden_act}",
        "num_attention_heads": f"{config.num_attention_heads} heads",
        "patch_size": f"patches of {config.patch_size}",
        "output_stride": f"output stride {config.output_stride}",
    }
    if task == Task.SEGMENTATION:
        values["atrous_rates"] = f"atrous rates {' '.join(map(str, config.atrous_rates))}"
    texts = ", ".join(text for name, text in values.items() if name not in given)
    options = " ".join(f"--{name.replace('_', '-')}" for name in values if name not in given)
    return f"no config.json next to the weights: assumed {texts}{labels}; others: {options}, or give the directory"


def _assumed_of_timm(
    config: MobileViTConfig, preprocessing: Preprocessing, task: Task, overrides: CheckpointOverrides
) -> list[str]:
    """What timm's weights alone do not determine: its mobilevit models are taken for it."""
    published = config.id2label == imagenet_labels() and overrides.labels is None and task != Task.FEATURES
    names = ", ImageNet's class names" if published else ""
    act = "" if overrides.hidden_act else f", {config.hidden_act} (--hidden-act), mean pooling"
    first = f"crop 0.9, bicubic{act}{names} (assumed: no config.json: timm's for mobilevit; --resize, --interpolation)"
    return [first, _assumed_pixels(preprocessing, "timm", overrides)]


def _assumed_meaning(config: MobileViTConfig, naming: str, configured: bool) -> str:
    """What the outputs mean, where no file says; "" for transformers' own rule for its configurations."""
    if configured and naming == "Hugging Face":
        return ""
    if config.num_labels == 1:
        return "one output: its value as it is (assumed: regression; else --problem-type)"
    return "one class of all: softmax (assumed; independent labels: --problem-type multi_label_classification)"


def _assumed_pixels(preprocessing: Preprocessing, naming: str, overrides: CheckpointOverrides) -> str:
    """What weights without a description of their images do not determine; "" where the user gave it."""
    cvnets_order = {
        "BGR": "ml-cvnets v0.1; from v0.2 on it trains on RGB: --channel-order RGB",
        "RGB": "ml-cvnets v0.2 or later, by its config.yaml: else --channel-order BGR",
        GRAY: "",
    }
    by = {
        "cvnets": cvnets_order[preprocessing.channel_order],
        "Hugging Face": "no preprocessor_config.json: as Apple's models; others: --channel-order RGB",
        "timm": "no config.json: timm's for mobilevit; others: --channel-order BGR",
    }.get(naming, "no file says: --channel-order RGB")
    normalized = overrides.mean is not None and overrides.std is not None
    ordered = overrides.channel_order is not None or preprocessing.channel_order == GRAY
    normalized = normalized or preprocessing.normalizes
    texts = [*([] if normalized else ["pixels 0 to 1"]), *([] if ordered else [preprocessing.channel_order])]
    hints = ["no file says" if ordered else by, *([] if normalized else ["normalized: --mean, --std"])]
    if naming != "timm" and not (overrides.resize and overrides.interpolation):
        hints.append("resized as Apple evaluates: --resize, --interpolation")
    return f"{', '.join(texts)} (assumed: {'; '.join(hints)})" if texts else ""
