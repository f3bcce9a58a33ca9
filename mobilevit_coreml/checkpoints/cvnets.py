"""Checkpoints of Apple's ml-cvnets: names of tensors, config.yaml."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mobilevit_coreml.checkpoints.fields import Fields, sides_of
from mobilevit_coreml.checkpoints.naming import Naming
from mobilevit_coreml.config import MobileViTConfig, Task
from mobilevit_coreml.errors import CheckpointError, ConfigError, check_choice, os_error_text
from mobilevit_coreml.model.backbone import DEPTHS
from mobilevit_coreml.preprocessing import INTERPOLATIONS, Preprocessing

MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_FIELDS = 5000

# Apple's ml-cvnets v0.1, the code of the paper
CVNETS = Naming(
    name="cvnets",
    marker="layer_1.0.block.exp_1x1.block.conv.weight",
    optional_prefix="encoder.",  # of the backbone in segmenters
    heads=("classifier.", "seg_head."),
    last_layers=("classifier", "seg_head.classifier"),
    unused=("seg_head.aux_head.",),  # for training only
    aliases=((r"^seg_head\.classifier\.classifier\.", "seg_head.classifier."),),  # both in v0.1
    channel_order="BGR",
    renames=(
        (r"^head\.branches\.(\d)\.", r"seg_head.aspp.aspp_layer.convs.\1.block."),
        (r"^head\.pool\.", "seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block."),
        (r"^head\.project\.", "seg_head.aspp.aspp_layer.project.block."),
        (r"^head\.classifier\.", "seg_head.classifier.block.conv."),
        (r"^backbone\.stem\.", "conv_1.block."),
        (r"^backbone\.expand\.", "conv_1x1_exp.block."),
        (r"^backbone\.stage", "layer_"),
        (r"\.expand\.", ".block.exp_1x1.block."),
        (r"\.depthwise\.", ".block.conv_3x3.block."),
        (r"\.reduce\.", ".block.red_1x1.block."),
        (r"\.local\.", ".local_rep.conv_3x3.block."),
        (r"\.project_in\.", ".local_rep.conv_1x1.block.conv."),
        (r"\.layers\.", ".global_rep."),
        (r"\.attention_norm\.", ".pre_norm_mha.0."),
        (r"\.attention\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
        (r"\.attention\.out\.", ".pre_norm_mha.1.out_proj."),
        (r"\.mlp_norm\.", ".pre_norm_ffn.0."),
        (r"\.mlp_in\.", ".pre_norm_ffn.1."),
        (r"\.mlp_out\.", ".pre_norm_ffn.4."),
        # the norm after the transformer is the last entry of global_rep
        *((rf"^layer_{stage}\.1\.layer_norm\.", f"layer_{stage}.1.global_rep.{n}.") for stage, n in DEPTHS.items()),
        (r"\.project_out\.", ".conv_proj.block."),
        (r"\.fusion\.", ".fusion.block."),
        (r"\.batch_norm\.", ".norm."),
        (r"^classifier\.", "classifier.fc."),
    ),
)

_BATCH_NORMS = ("batch_norm", "batch_norm_2d", "batch_norm_fp32", "sync_batch_norm", "sync_batch_norm_fp32")
# The options of a training, as its config.yaml nests them, with dots between the levels
CONFIG = Fields(
    read="model.classification.mit.number_heads model.classification.activation.name model.activation.name "
    "model.segmentation.output_stride model.segmentation.activation.name model.segmentation.deeplabv3.aspp_rates "
    "image_augmentation.resize.enable image_augmentation.resize.size image_augmentation.resize.interpolation "
    "image_augmentation.center_crop.enable image_augmentation.center_crop.size stats.val",
    unused={
        "of training": "common.* ddp.* ema.* loss.* optim.* optimizer.* scheduler.* sampler.* stats.* teacher.* "
        "taskname dataset.* image_augmentation.random_* image_augmentation.auto_augment.* "
        "image_augmentation.rand_augment.* image_augmentation.trivial_augment_wide.* image_augmentation.mixup.* "
        "image_augmentation.cutmix.* image_augmentation.photo_metric_distort.* model.*.dropout model.*_dropout "
        "image_augmentation.to_tensor.* model.*.pretrained model.*.finetune_* model.*.freeze_* model.*.lr_multiplier "
        "model.*.gradient_checkpointing model.*.layer_wise_lr_decay* model.*.enable_layer_wise_lr_decay "
        "model.normalization.momentum model.normalization.adjust_bn_momentum.* model.normalization.groups "
        "model.layer.*_init* model.resume_exclude_scopes model.ignore_missing_scopes model.freeze_modules",
        "auxiliary head, for training only": "model.segmentation.use_aux_head model.segmentation.aux_dropout",
        "computed in place, or not": "model.*activation.inplace",
        "of activations that are refused": "model.*activation.neg_slope",
        "told by the weights": "model.*.n_classes model.*.n_pretrained_classes model.*.mit.mode "
        "model.*.mit.conv_kernel_size model.*.deeplabv3.aspp_out_channels",
        "of evaluations at other sizes": "evaluation.*",
    },
    fixed={
        "model.classification.name": ("mobilevit",),
        "model.classification.mit.no_fuse_local_global_features": (False,),
        "model.classification.mit.transformer_norm_layer": ("layer_norm", "layer_norm_fp32"),
        "model.layer.global_pool": ("mean",),
        "model.normalization.name": _BATCH_NORMS,
        "model.segmentation.norm_layer": _BATCH_NORMS,
        "model.segmentation.name": ("encoder_decoder",),
        "model.segmentation.seg_head": ("deeplabv3",),
        "model.segmentation.use_level5_exp": (False,),
        "model.segmentation.deeplabv3.aspp_sep_conv": (False,),
    },
)
ACTIVATIONS = {"swish": "silu", "relu": "relu", "relu6": "relu6", "gelu": "gelu", "hard_swish": "hardswish"}
DEFAULT_ACTIVATION, HEAD_ACTIVATION = "relu", "relu"


def read_config(
    path: Path, config: MobileViTConfig, preprocessing: Preprocessing, task: str, source: str
) -> tuple[MobileViTConfig, Preprocessing]:
    """A configuration and preprocessing with what a config.yaml of a training says of them.

    Raises CheckpointError, naming `source`, for fields and values that cannot be honoured.
    """
    fields = CONFIG.select(dict(_flat(_read_yaml(path, source), "", source)), source)
    network: dict[str, Any] = {}
    general = fields.get("model.activation.name", DEFAULT_ACTIVATION)
    activation = fields.get("model.classification.activation.name", general)
    check_choice(f"{source}: activation", activation, ACTIVATIONS, CheckpointError)
    network["hidden_act"] = ACTIVATIONS[activation]
    if "model.classification.mit.number_heads" in fields:
        network["num_attention_heads"] = fields["model.classification.mit.number_heads"]
    if task == Task.SEGMENTATION:
        head = fields.get("model.segmentation.activation.name", general)
        if head != HEAD_ACTIVATION:
            raise CheckpointError(
                f"{source}: model.segmentation.activation.name: expected {HEAD_ACTIVATION}, got {head!r:.60}; "
                "other heads cannot be converted"
            )
        network["output_stride"] = fields.get("model.segmentation.output_stride", 32)
        if "model.segmentation.deeplabv3.aspp_rates" in fields:
            network["atrous_rates"] = fields["model.segmentation.deeplabv3.aspp_rates"]
    try:
        config = dataclasses.replace(config, **network)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from None
    if "stats.val" in fields and preprocessing.channel_order == "BGR":
        preprocessing = dataclasses.replace(preprocessing, channel_order="RGB")  # v0.1, with OpenCV, had stats.name
    return config, _preprocessing(fields, preprocessing, source)


def _preprocessing(fields: Mapping[str, Any], default: Preprocessing, source: str) -> Preprocessing:
    """The transforms of validation: resize, where there is one, and cut from the centre."""

    def field(name: str) -> Any:
        stage = name.partition(".")[0]
        return fields.get(f"image_augmentation.{name}") if fields.get(f"image_augmentation.{stage}.enable") else None

    size, crop, filter_name = field("resize.size"), field("center_crop.size"), field("resize.interpolation")
    interpolation = filter_name or default.interpolation
    check_choice(f"{source}: image_augmentation.resize.interpolation", interpolation, INTERPOLATIONS, CheckpointError)
    preprocessing = dataclasses.replace(default, interpolation=interpolation)
    if crop is not None:
        sides = crop[0] if isinstance(crop, list) and len(crop) == 1 else crop
        preprocessing = preprocessing.with_crop(sides_of(sides, "image_augmentation.center_crop.size", source))
    if size is None:
        return preprocessing
    sides = size[0] if isinstance(size, list) and len(size) == 1 else size
    edges = sides_of(sides, "image_augmentation.resize.size", source)
    if not isinstance(sides, list):
        return dataclasses.replace(preprocessing, resize=edges[0])
    return dataclasses.replace(preprocessing, resize=edges, crop=preprocessing.crop if crop is not None else edges)


def _read_yaml(path: Path, source: str) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{source}: expected at most {MAX_CONFIG_BYTES} bytes, got more; check the file")
        values = yaml.safe_load(content)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: expected YAML, got {os_error_text(error)}; check the file") from None
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{source}: expected sections of options, got {type(values).__name__}; check the file")
    return values


def _flat(values: Mapping[str, Any], prefix: str, source: str, depth: int = 12) -> Iterator[tuple[str, Any]]:
    """Each option with the dotted name it has on cvnets' command line."""
    for count, (name, value) in enumerate(values.items()):
        if count > MAX_CONFIG_FIELDS or not depth:
            raise CheckpointError(f"{source}: expected the options of a training, got far more; check the file")
        full = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{full}.", source, depth - 1)
        else:
            yield full, value
