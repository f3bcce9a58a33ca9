"""Checkpoints of transformers: names of tensors, config.json, preprocessor_config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mobilevit_coreml.checkpoints.fields import Fields, number_of, numbers_of, sides_of
from mobilevit_coreml.checkpoints.naming import Naming
from mobilevit_coreml.config import REGRESSION, SINGLE_LABEL, MobileViTConfig
from mobilevit_coreml.errors import CheckpointError, ConfigError, LabelsError
from mobilevit_coreml.labels import placeholder_labels
from mobilevit_coreml.preprocessing import GRAY, INTERPOLATIONS, MAX_SCALE, Preprocessing

# transformers: MobileViTForImageClassification, MobileViTForSemanticSegmentation, MobileViTModel
HUGGING_FACE = Naming(
    name="Hugging Face",
    marker="encoder.layer.0.layer.0.expand_1x1.convolution.weight",
    optional_prefix="mobilevit.",  # not in MobileViTModel
    heads=("classifier.", "segmentation_head."),
    last_layers=("classifier", "segmentation_head.classifier"),
    channel_order="BGR",
    renames=(
        (r"^head\.branches\.", "segmentation_head.aspp.convs."),
        (r"^head\.pool\.", "segmentation_head.aspp.convs.4.conv_1x1."),
        (r"^head\.project\.", "segmentation_head.aspp.project."),
        (r"^head\.classifier\.", "segmentation_head.classifier.convolution."),
        (r"^backbone\.stem\.", "conv_stem."),
        *((rf"^backbone\.stage{stage}\.", f"encoder.layer.{stage - 1}.") for stage in range(1, 6)),
        (r"^encoder\.layer\.([01])\.", r"encoder.layer.\1.layer."),
        (r"^encoder\.layer\.([234])\.0\.", r"encoder.layer.\1.downsampling_layer."),
        (r"^encoder\.layer\.([234])\.1\.", r"encoder.layer.\1."),
        (r"^backbone\.expand\.", "conv_1x1_exp."),
        (r"\.expand\.", ".expand_1x1."),
        (r"\.depthwise\.", ".conv_3x3."),
        (r"\.reduce\.", ".reduce_1x1."),
        (r"\.local\.", ".conv_kxk."),
        (r"\.project_in\.", ".conv_1x1.convolution."),
        (r"\.layers\.", ".transformer.layer."),
        (r"\.attention_norm\.", ".layernorm_before."),
        (r"\.attention\.qkv\.", ".attention.attention.{query,key,value}."),
        (r"\.attention\.out\.", ".attention.output.dense."),
        (r"\.mlp_norm\.", ".layernorm_after."),
        (r"\.mlp_in\.", ".intermediate.dense."),
        (r"\.mlp_out\.", ".output.dense."),
        (r"\.layer_norm\.", ".layernorm."),
        (r"\.project_out\.", ".conv_projection."),
        (r"\.conv\.", ".convolution."),
        (r"\.batch_norm\.", ".normalization."),
    ),
)

_TRAINING = "for training only"
_TEXT = "of text models"
_NETWORK = " ".join(field.name for field in dataclasses.fields(MobileViTConfig) if field.name != "global_pool")
CONFIG = Fields(
    read=f"{_NETWORK} model_type num_labels architectures",
    unused={
        "origin and versions": "_name_or_path name_or_path transformers_version transformers_weights _commit_hash "
        "model_revision license tags transformers.js_config _num_labels padding",
        "storage of the weights, and how they are run": "torch_dtype dtype tf_legacy_loss torchscript",
        "outputs of the Python object": "return_dict return_dict_in_generate output_hidden_states output_attentions "
        "output_scores use_cache _attn_implementation_autoset attn_implementation _attn_implementation",
        "the inverse of id2label": "label2id",
        "computes the same in parts": "chunk_size_feed_forward",
        _TRAINING: "finetuning_task gradient_checkpointing",
        _TEXT: "add_cross_attention bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size "
        "decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id "
        "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id is_decoder is_encoder_decoder "
        "length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
        "pad_token_id prefix remove_invalid_values repetition_penalty sep_token_id suppress_tokens "
        "task_specific_params temperature tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p "
        "typical_p vocab_size",
    },
    fixed={"pruned_heads": ({},), "use_bfloat16": (False,)},
)
ARCHITECTURES = ("MobileViTModel", "MobileViTForImageClassification", "MobileViTForSemanticSegmentation")


class Processor(NamedTuple):
    """An image processor of transformers: its defaults, and what it leaves undone whatever the file says."""

    flips: bool  # RGB to BGR by default
    normalizes: bool
    square: bool  # a size that is one number is both edges, not the shorter one
    crops: bool  # by default


_MOBILEVIT = Processor(flips=True, normalizes=False, square=False, crops=True)
_STRETCHED = Processor(flips=False, normalizes=True, square=True, crops=False)
_CROPPED = Processor(flips=False, normalizes=True, square=False, crops=True)
PROCESSORS: Mapping[str, Processor] = {
    "MobileViT": _MOBILEVIT,
    "ViT": _STRETCHED,
    "DeiT": _CROPPED._replace(square=True),
    "CLIP": _CROPPED,
    "Bit": _CROPPED,
    "MobileNetV1": _CROPPED,
    "MobileNetV2": _CROPPED,
}
_KINDS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
PREPROCESSOR = Fields(
    read="image_processor_type feature_extractor_type do_resize size resample do_center_crop crop_size do_rescale "
    "rescale_factor do_normalize image_mean image_std do_flip_channel_order do_reduce_labels default_to_square",
    unused={
        "Python objects": "processor_class return_tensors device disable_grouping _valid_processor_keys backend",
        "layout of arrays that are given in place of images": "data_format input_data_format",
        "colour images are given as RGB": "do_convert_rgb",
        "without do_pad": "pad_size size_divisor",
        "metadata": "name_or_path _name_or_path transformers_version _processor_class",
    },
    fixed={"do_pad": (False,), "reducing_gap": (), "crop_pct": (), "image_seq_length": ()},
)


def knows(values: Mapping[str, Any]) -> bool:
    """True for a config.json that may be transformers'."""
    return not {"architecture", "pretrained_cfg"} & values.keys() and any(map(CONFIG.knows, values))


def read_config(values: Mapping[str, Any], source: str, **given: Any) -> MobileViTConfig:
    """Configuration from a config.json, with `given` fields in place of its own.

    Raises CheckpointError or ConfigError, naming `source`, for fields and values that cannot be honoured.
    """
    model_type = values.get("model_type") or "mobilevit"
    if model_type != "mobilevit":
        raise ConfigError(
            f"{source}: expected model_type 'mobilevit', got {model_type!r}; only MobileViT v1 is handled"
        )
    parameters = CONFIG.select(values, source)
    parameters.pop("model_type", None)
    architectures = parameters.pop("architectures", [])
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if name not in ARCHITECTURES:
            raise CheckpointError(
                f"{source}: architectures: expected {', '.join(ARCHITECTURES)}, got {name!r:.60}; write one of "
                "these if your class computes the same"
            )
    count = parameters.pop("num_labels", 2)  # transformers leaves both out for its default of two classes
    try:
        if "id2label" not in given and "id2label" not in parameters:
            parameters["id2label"] = placeholder_labels(count)
        config = MobileViTConfig(**{**parameters, **given})
    except (ConfigError, LabelsError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from None
    if "problem_type" not in parameters:
        kind = REGRESSION if config.num_labels == 1 else SINGLE_LABEL  # as transformers takes it
        config = dataclasses.replace(config, problem_type=kind)
    return config


def read_preprocessor(
    values: Mapping[str, Any], default: Preprocessing, source: str
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Preprocessing from a preprocessor_config.json, with `default` for what it does not say, and assumptions.

    Raises CheckpointError for values that are invalid, or that no package of a fixed size can have.
    """
    switches = {name: value for name, value in values.items() if name.startswith("do_")}
    wrong = next((name for name, value in switches.items() if not isinstance(value, bool | None)), None)
    if wrong is not None:
        raise CheckpointError(f"{source}: {wrong}: expected true or false, got {switches[wrong]!r:.60}; correct it")
    # a step that is null is left out, as transformers does
    fields = PREPROCESSOR.select({**values, **{name: bool(value) for name, value in switches.items()}}, source)
    processor = _processor(fields, source)
    named = any(key in fields for key in ("image_processor_type", "feature_extractor_type"))
    if named and processor is not _MOBILEVIT:
        needs = ["resample"] * fields.get("do_resize", True)
        needs += ["image_mean", "image_std"] * fields.get("do_normalize", True)
        needs += ["crop_size"] * fields.get("do_center_crop", processor.crops)
        missing = [name for name in ("size", *needs) if name not in fields and fields.get("do_resize", True)]
        if missing:
            raise CheckpointError(
                f"{source}: expected {', '.join(missing)}, got none; save the processor with transformers"
            )
    crop, resize = _crop(fields, processor, default, source), _resize(fields, processor, source)
    if crop is None:
        if not isinstance(resize, tuple):
            raise CheckpointError(
                f"{source}: do_center_crop: expected a crop, or a size of height and width, got "
                f"{'images as large as they are' if resize is None else 'a shorter edge alone'}; "
                "a package has one size: save the processor with do_center_crop and crop_size"
            )
        crop = resize
    if resize == "default":
        resize = default.with_crop(crop).resize
    assumed = []
    mean, std = (
        numbers_of(fields[key], key, source) if key in fields else (0.5,) for key in ("image_mean", "image_std")
    )
    is_default = {*mean, *std} == {0.5}  # which transformers 5 writes into each file
    if not processor.normalizes and (fields.get("do_normalize") or not is_default):
        assumed.append(
            "pixels 0 to 1 (assumed: MobileViTImageProcessor does not normalize, whatever its file says; "
            f"if your training did: --mean {_numbers(mean)} --std {_numbers(std)})"
        )
    if not (processor.normalizes and fields.get("do_normalize", True)):
        mean, std = default.mean, default.std
    scale = 1.0
    if fields.get("do_rescale", True):
        usual = "1/255 is usual"
        scale = number_of(fields.get("rescale_factor", 1 / 255), "rescale_factor", source, 1e-9, MAX_SCALE, usual)
    resample = fields.get("resample", INTERPOLATIONS[default.interpolation])
    names = [name for name, number in INTERPOLATIONS.items() if number == resample]
    if not names:
        raise CheckpointError(f"{source}: resample: expected 0 to 5 as in Pillow, got {resample!r:.60}; 2 is bilinear")
    order = default.channel_order
    if order != GRAY:
        order = "BGR" if fields.get("do_flip_channel_order", processor.flips) else "RGB"
    try:
        preprocessing = dataclasses.replace(
            default,
            resize=resize,
            crop=crop,
            fill=default.fill and "size" not in fields,
            channel_order=order,
            interpolation=names[0],
            scale=float(scale),
            mean=mean,
            std=std,
            reduce_labels=bool(fields.get("do_reduce_labels", default.reduce_labels)),
        )
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None
    left = [name for name in ("size", "resample", "crop_size") if name not in fields and fields.get("do_resize", True)]
    if left and processor is _MOBILEVIT:
        assumed.append(
            f"resize to {preprocessing.resize}, {preprocessing.interpolation}, crop {preprocessing.crop[0]} "
            f"(assumed: no {', '.join(left)} in its file; --image-size)"
        )
    if fields.get("do_normalize") and not named:
        assumed.append(
            f"normalized, {order} (assumed: its file names no image_processor_type; MobileViTImageProcessor would not "
            "normalize: --mean 0 --std 1 --channel-order BGR)"
        )
    return preprocessing, tuple(assumed)


def _processor(fields: Mapping[str, Any], source: str) -> Processor:
    for key in ("image_processor_type", "feature_extractor_type"):
        name = fields.get(key)
        if name is None:
            continue
        family = next((str(name).removesuffix(kind) for kind in _KINDS if str(name).endswith(kind)), "")
        if family not in PROCESSORS:
            raise CheckpointError(
                f"{source}: {key}: expected the processor of {', '.join(PROCESSORS)}, got {name!r:.60}; "
                "save the preprocessing as one of these"
            )
        return PROCESSORS[family]
    return _CROPPED if fields.get("do_normalize") else _MOBILEVIT


def _crop(
    fields: Mapping[str, Any], processor: Processor, default: Preprocessing, source: str
) -> tuple[int, int] | None:
    if not fields.get("do_center_crop", processor.crops):
        return None
    size = fields.get("crop_size", list(default.crop))
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    return sides_of(size, "crop_size", source)


def _resize(fields: Mapping[str, Any], processor: Processor, source: str) -> Any:
    """The shorter edge, (height, width), None for no resizing, or "default" where nothing is said."""
    if not fields.get("do_resize", True):
        return None
    if "size" not in fields:
        return "default"
    size = fields["size"]
    if not isinstance(size, Mapping):
        edges = sides_of(size, "size", source)
        return edges if fields.get("default_to_square", processor.square) or isinstance(size, list) else edges[0]
    if set(size) == {"height", "width"}:
        return sides_of([size["height"], size["width"]], "size", source)
    if set(size) != {"shortest_edge"}:
        raise CheckpointError(
            f"{source}: size: expected shortest_edge, or height and width, got {', '.join(map(str, size)):.60}; "
            "a package has one size"
        )
    return sides_of(size["shortest_edge"], "size.shortest_edge", source)[0]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
