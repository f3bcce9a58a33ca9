"""Checkpoints of timm: names of tensors, config.json, arguments of its training script."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mobilevit_coreml.checkpoints.fields import Fields, mapping_of, number_of, numbers_of, sides_of
from mobilevit_coreml.checkpoints.naming import Naming
from mobilevit_coreml.config import REGRESSION, SINGLE_LABEL, MobileViTConfig
from mobilevit_coreml.errors import CheckpointError, ConfigError, check_choice
from mobilevit_coreml.labels import labels_from_mapping
from mobilevit_coreml.preprocessing import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, Preprocessing

# timm's mobilevit_xxs, mobilevit_xs and mobilevit_s
TIMM = Naming(
    name="timm",
    marker="stages.0.0.conv1_1x1.conv.weight",
    heads=("head.",),
    last_layers=("head.fc",),
    channel_order="RGB",  # timm flipped the input channels of Apple's stem weights
    renames=(
        (r"^backbone\.stem\.", "stem."),
        (r"^backbone\.expand\.", "final_conv."),
        *((rf"^backbone\.stage{stage}\.", f"stages.{stage - 1}.") for stage in range(1, 6)),
        (r"\.expand\.", ".conv1_1x1."),
        (r"\.depthwise\.", ".conv2_kxk."),
        (r"\.reduce\.", ".conv3_1x1."),
        (r"\.local\.", ".conv_kxk."),
        (r"\.project_in\.", ".conv_1x1."),
        (r"\.layers\.", ".transformer."),
        (r"\.attention_norm\.", ".norm1."),
        (r"\.attention\.qkv\.", ".attn.qkv."),
        (r"\.attention\.out\.", ".attn.proj."),
        (r"\.mlp_norm\.", ".norm2."),
        (r"\.mlp_in\.", ".mlp.fc1."),
        (r"\.mlp_out\.", ".mlp.fc2."),
        (r"\.layer_norm\.", ".norm."),
        (r"\.project_out\.", ".conv_proj."),
        (r"\.fusion\.", ".conv_fusion."),
        (r"\.batch_norm\.", ".bn."),
        (r"^classifier\.", "head.fc."),
    ),
)

_ORIGIN = "origin of the weights"
_DESCRIPTION = "description"
CONFIG = Fields(
    read="architecture num_classes global_pool model_args label_names problem_type",
    unused={
        "follows from the weights": "num_features",
        _DESCRIPTION: "label_descriptions license description origin_url paper_name paper_ids notes",
        _ORIGIN: "url file hf_hub_id hf_hub_filename source tag tags library_name pipeline_tag",
        "transformers' description of the file": "model_type architectures transformers_version torch_dtype dtype",
        "for training only": "initializer_range",
    },
    fixed={"do_pooling": (True,)},
)
PRETRAINED_CFG = Fields(
    read="input_size interpolation crop_pct crop_mode mean std num_classes label_names architecture",
    unused={
        _ORIGIN: CONFIG.unused[_ORIGIN],
        _DESCRIPTION: CONFIG.unused[_DESCRIPTION],
        "timm evaluates with input_size and crop_pct unless told otherwise": "test_input_size test_crop_pct",
        "follows from the weights": "pool_size test_pool_size min_input_size fixed_input_size num_features",
    },
    fixed={
        "first_conv": ("stem.conv",),
        "classifier": ("head.fc",),
        "custom_load": (False,),
        "label_offset": (0,),
        "state_dict": (),
    },
)
MODEL_ARGS = Fields(
    read="act_layer global_pool in_chans num_classes",
    unused={
        "for training only": "drop_rate drop_path_rate drop_block_rate drop_block_size zero_init_last",
        _ORIGIN: "pretrained checkpoint_path",
        "the size of images, which pretrained_cfg tells": "img_size",
    },
    fixed={
        "output_stride": (32,),
        "norm_layer": ("batchnorm", "batchnorm2d", "bn"),
        "scriptable": (False,),
        "features_only": (False,),
    },
)
# of train.py: what decides on the network and on pixels; the rest is about training
TRAINING_ARGS = Fields(
    read="model num_classes gp act_layer global_pool "
    "img_size input_size in_chans crop_pct crop_mode mean std interpolation model_kwargs",
    fixed={"tta": (0, 1), "split_bn": (False,), "bn_eps": (1e-5,), "fp8": (False,)},
    unused={"of training": "*"},
)
# PretrainedCfg's defaults, which timm takes for what a config.json does not say
DEFAULTS: Mapping[str, Any] = {
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
}
# of its MobileViTs, for weights without a config.json
MOBILEVIT: Mapping[str, Any] = {
    **DEFAULTS,
    "crop_pct": 0.9,
    "mean": [0.0],
    "std": [1.0],
}
POOLS = {"avg": "avg", "fast": "avg", "fastavg": "avg", "max": "max", "fastmax": "max"}
ACTIVATIONS = {"hard_swish": "hardswish"}  # of another name here


def knows(values: Mapping[str, Any]) -> bool:
    """True for a config.json that may be timm's."""
    own = ("architecture", "pretrained_cfg", "model_args", "num_classes", "label_names")
    return any(name in own or PRETRAINED_CFG.reads(name) for name in values)


def is_training(arguments: Mapping[str, Any]) -> bool:
    """True for the options of timm's train.py, which say all of its pixels."""
    return {"mean", "std", "crop_pct", "interpolation"} <= arguments.keys()


def read(
    values: Mapping[str, Any], training: Mapping[str, Any], inferred: MobileViTConfig, source: str, **given: Any
) -> tuple[MobileViTConfig, Preprocessing]:
    """Configuration and preprocessing from a config.json and the arguments of train.py.

    Either is {} where there is none. `given` are fields of the configuration in place of the files'. Raises
    CheckpointError, naming `source`, for fields and values that cannot be honoured.
    """
    config, settings = dict(values), values.get("pretrained_cfg")
    if not isinstance(settings, Mapping):  # before timm 0.9 there was one level
        settings = {name: value for name, value in values.items() if PRETRAINED_CFG.knows(name)}
        config = {name: value for name, value in values.items() if name not in settings or CONFIG.reads(name)}
    config.pop("pretrained_cfg", None)
    fields = CONFIG.select(config, f"{source}: config.json")
    settings = PRETRAINED_CFG.select(settings, f"{source}: config.json")
    arguments = TRAINING_ARGS.select(training, f"{source}: args")
    _check_architecture(fields.get("architecture") or settings.get("architecture") or arguments.get("model"), source)
    model_args = mapping_of(fields.get("model_args") or {}, "model_args", source)
    network = _network(model_args, fields.get("global_pool"), arguments, source)
    names = fields.get("label_names") or settings.get("label_names")
    if names is not None and "id2label" not in given:
        by_index = dict(enumerate(names)) if isinstance(names, list) else names
        network["id2label"] = labels_from_mapping(mapping_of(by_index, "label_names", source), f"{source}: label_names")
    try:
        pixels, size = {**(DEFAULTS if values else MOBILEVIT), **settings}, 224 if values else 256
        preprocessing = _preprocessing(
            pixels, (size, size), arguments, given.get("image_size"), inferred.num_channels, source
        )
        kind = fields.get("problem_type", REGRESSION if inferred.num_labels == 1 else SINGLE_LABEL)
        network = {"image_size": preprocessing.crop, "problem_type": kind, **network, **given}
        made = dataclasses.replace(inferred, **network)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from None
    return made, preprocessing


def _network(model_args: Mapping[str, Any], pool: object, arguments: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of the configuration from model_args, or train.py's arguments in place of these."""
    kwargs = mapping_of(arguments.get("model_kwargs") or {}, "model_kwargs", source)
    others = {name: arguments[name] for name in ("act_layer", "global_pool") if name in arguments}  # of other scripts
    args = MODEL_ARGS.select({**model_args, **others, **kwargs}, f"{source}: model_args")
    if arguments.get("gp"):
        args["global_pool"] = arguments["gp"]
    network: dict[str, Any] = {}
    if "act_layer" in args:
        network["hidden_act"] = ACTIVATIONS.get(str(args["act_layer"]), args["act_layer"])
    used = args.get("global_pool", "avg")
    for name, value in (("model_args: global_pool", used), ("config.json: global_pool", pool)):
        if value is not None and str(value) not in POOLS:
            raise CheckpointError(
                f"{source}: {name}: expected {' or '.join(POOLS)}, got {value!r:.60}; no other can be converted"
            )
    if pool is not None and POOLS[str(pool)] != POOLS[used] and not arguments:
        raise CheckpointError(
            f"{source}: config.json: global_pool: expected {used!r} as in model_args, by which timm builds the model, "
            f"got {pool!r}; write what was trained in both"
        )
    return {**network, "global_pool": POOLS[used]}


def _check_architecture(name: object, source: str) -> None:
    source_name, _, architecture = str(name or "mobilevit_").rpartition("/")
    if source_name.partition(":")[0] in ("hf-hub", "hf_hub", "local-dir"):
        return  # the name of a directory or of a model on the hub, which may be any
    if not architecture.startswith("mobilevit_"):
        raise CheckpointError(
            f"{source}: architecture: expected mobilevit_xxs, mobilevit_xs or mobilevit_s, "
            f"got {architecture:.60}; only MobileViT v1 is supported"
        )


def _preprocessing(
    settings: dict[str, Any],
    default_size: tuple[int, int],
    arguments: Mapping[str, Any],
    given: tuple[int, int] | None,
    channels: int,
    source: str,
) -> Preprocessing:
    """timm's evaluation, by resolve_data_config and transforms_imagenet_eval; of the `given` size, if there is one."""
    for name in ("interpolation", "crop_pct", "crop_mode", "mean", "std", "input_size"):
        if arguments.get(name):
            settings[name] = arguments[name]
    if arguments.get("img_size") and not arguments.get("input_size"):
        settings["input_size"] = [channels, arguments["img_size"], arguments["img_size"]]
    if "input_size" not in settings:
        settings["input_size"] = [channels, *default_size]
    if given is not None:
        settings["input_size"] = [channels, *given]
    size = settings["input_size"]
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise CheckpointError(f"{source}: input_size: expected channels, height and width, got {size!r:.60}")
    if size[0] != channels:
        raise CheckpointError(
            f"{source}: input_size: expected {channels} channels, as the first convolution has, got {size[0]!r:.20}"
        )
    crop = sides_of(list(size[1:]), "input_size", source)
    share = number_of(settings["crop_pct"], "crop_pct", source, 0.1, 1, "0.9 is usual")
    check_choice(f"{source}: interpolation", settings["interpolation"], tuple(INTERPOLATIONS), CheckpointError)
    mode = settings["crop_mode"]
    if mode not in ("center", "squash"):
        raise CheckpointError(
            f"{source}: crop_mode: expected center or squash, got {mode!r:.60}; an app cannot be relied on to add "
            "borders of the mean's colour: evaluate with one of these"
        )
    height, width = (math.floor(side / share) for side in crop)
    stretched = mode == "squash"
    return Preprocessing(
        resize=height if height == width and not stretched else (height, width),
        crop=crop,
        channel_order="RGB" if channels == 3 else "GRAY",
        interpolation=settings["interpolation"],
        mean=numbers_of(settings["mean"], "mean", source),
        std=numbers_of(settings["std"], "std", source),
        fill=height != width and not stretched,
        rounding="even",
    )
