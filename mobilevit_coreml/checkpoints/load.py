"""From what the user calls weights to a checkpoint that fits the model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mobilevit_coreml.checkpoints.cvnets import CVNETS
from mobilevit_coreml.checkpoints.download import PUBLISHED, WEIGHT_FILES, HubUnreachableError, snapshot
from mobilevit_coreml.checkpoints.files import read_json_object, read_tensors, sha256_of
from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE
from mobilevit_coreml.checkpoints.naming import infer_config, own_state, recognize
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.checkpoints.timm import TIMM
from mobilevit_coreml.checkpoints.untrained import SEED, untrained_state
from mobilevit_coreml.config import VARIANTS, MobileViTConfig, config_from_hugging_face, variant_of
from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.labels import labels_from_mapping
from mobilevit_coreml.preprocessing import Preprocessing, classification_preprocessing, from_hugging_face

NAMINGS = (HUGGING_FACE, CVNETS, TIMM)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
AUTO, PRETRAINED, UNTRAINED = "auto", "pretrained", "untrained"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights under the model's own names, with all that belongs to them. `notice` is for the user to read."""

    config: MobileViTConfig
    state: dict[str, Tensor]
    preprocessing: Preprocessing
    source: WeightsSource
    notice: str | None = None

    @property
    def variant(self) -> str:
        """xxs, xs, s or custom."""
        return variant_of(self.config)


def load_checkpoint(weights: str = AUTO, variant: str | None = None) -> Checkpoint:
    """Weights by any of the names a user may have for them.

    `weights` is "auto" (Apple's published weights, or untrained ones where the hub cannot be
    reached), "pretrained" (the same, or an error), "untrained", a file, a directory, or a hub id.
    Source and variant are recognized from keys and shapes.

    Raises CheckpointError, or ConfigError where the configuration beside the weights is at fault.
    """
    if weights in (AUTO, PRETRAINED, UNTRAINED):
        if variant is None:
            raise CheckpointError(
                f"--weights {weights}: expected a --variant beside it ({', '.join(VARIANTS)}), got none; add one"
            )
        return _published(weights, variant)
    path = Path(weights).expanduser()
    if path.is_dir():
        checkpoint = _from_directory(path, weights)
    elif path.is_file():
        checkpoint = _from_file(path, weights, beside={}, preprocessor={})
    elif path.suffix in WEIGHT_SUFFIXES or weights.count("/") != 1 or weights.startswith((".", "~", "/")):
        raise CheckpointError(
            f"weights {weights}: expected a file, a directory, a hub id (owner/name) or one of {AUTO}, {PRETRAINED}, "
            f"{UNTRAINED}, got nothing there; check the path"
        )
    else:
        checkpoint = _from_hub(weights)
    if variant is not None and checkpoint.variant != variant:
        raise CheckpointError(
            f"weights {weights}: expected variant {variant} (--variant), got {checkpoint.variant} (from their shapes); "
            "drop --variant or give other weights"
        )
    return checkpoint


def _published(weights: str, variant: str) -> Checkpoint:
    notice = None
    if weights != UNTRAINED:
        try:
            return _from_hub(PUBLISHED[variant])
        except HubUnreachableError as error:
            if weights == PRETRAINED:
                raise
            notice = str(error)
    config = VARIANTS[variant]
    return Checkpoint(
        config,
        untrained_state(config, SEED),
        classification_preprocessing(config.image_hw, HUGGING_FACE.channel_order),
        WeightsSource(UNTRAINED, "mobilevit_coreml", seed=SEED),
        notice,
    )


def _from_hub(hub_id: str) -> Checkpoint:
    directory = snapshot(hub_id)
    checkpoint = _from_directory(directory, hub_id)
    source = dataclasses.replace(checkpoint.source, revision=directory.name)
    return dataclasses.replace(checkpoint, source=source)


def _from_directory(directory: Path, name: str) -> Checkpoint:
    preferred = [directory / file for file in WEIGHT_FILES if (directory / file).is_file()]
    others = sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if not preferred and len(others) != 1:
        found = ", ".join(path.name for path in others[:6]) or "none"
        raise CheckpointError(
            f"weights {name}: expected {' or '.join(WEIGHT_FILES)}, or a single {'/'.join(WEIGHT_SUFFIXES)} file, "
            f"got {found}; name the file itself"
        )
    configs = [directory / "config.json", directory / "preprocessor_config.json"]
    beside, preprocessor = (read_json_object(path) if path.is_file() else {} for path in configs)
    return _from_file((preferred or others)[0], name, beside, preprocessor)


def _from_file(path: Path, name: str, beside: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Checkpoint:
    naming, tensors = recognize(read_tensors(path), NAMINGS, name)
    config = infer_config(tensors, naming)
    preprocessing = classification_preprocessing(config.image_hw, naming.channel_order)
    if naming is TIMM and beside:
        config = _with_timm_config(config, beside, name)
    elif beside:
        config = config_from_hugging_face(beside, f"{name}: config.json")
        preprocessing = preprocessing.with_crop(config.image_hw)
    if preprocessor:
        preprocessing = from_hugging_face(preprocessor, preprocessing, f"{name}: preprocessor_config.json")
        config = dataclasses.replace(config, image_size=preprocessing.crop)
    return Checkpoint(
        config,
        own_state(tensors, naming, config, name),
        preprocessing,
        WeightsSource(name, naming.name, sha256=sha256_of(path)),
    )


def _with_timm_config(config: MobileViTConfig, beside: Mapping[str, Any], name: str) -> MobileViTConfig:
    """Labels from timm's config.json; its evaluation settings must be MobileViT's own."""
    settings = {**beside, **beside.get("pretrained_cfg", {})}
    for key, expected in (("mean", 0), ("std", 1)):
        values = settings.get(key, [expected])
        if any(value != expected for value in values):
            raise CheckpointError(
                f"{name}: config.json: {key}: expected {expected} for every channel, got {values}; "
                "MobileViT is trained on pixels scaled to 0..1 only"
            )
    labels = settings.get("label_names")
    if isinstance(labels, list):
        return dataclasses.replace(
            config, id2label=labels_from_mapping(dict(enumerate(labels)), f"{name}: label_names")
        )
    return config
