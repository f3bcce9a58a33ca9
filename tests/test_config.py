import dataclasses
from typing import Any

import pytest

from mobilevit_coreml.checkpoints.hugging_face import read_config
from mobilevit_coreml.config import (
    ACTIVATIONS,
    CLASSIFICATION,
    FEATURES,
    SEGMENTATION,
    VARIANTS,
    AttentionImplementation,
    MobileViTConfig,
    UnfoldImplementation,
    published_config,
    variant_of,
)
from mobilevit_coreml.errors import ConfigError
from mobilevit_coreml.labels import imagenet_labels, voc_labels
from mobilevit_coreml.model import attention, block, layers

# Names of the classes here, placeholders there; None there, which read_config resolves; timm's
NOT_THE_REFERENCES = ("id2label", "problem_type", "global_pool")


def test_has_every_parameter_of_the_reference() -> None:
    from transformers import MobileViTConfig as ReferenceConfig

    common = set(ReferenceConfig.__mro__[1]().to_dict())
    parameters = set(ReferenceConfig().to_dict()) - common - {"model_type"}
    assert parameters
    assert parameters - {field.name for field in dataclasses.fields(MobileViTConfig)} == set()


def test_defaults_are_the_references() -> None:
    from transformers import MobileViTConfig as ReferenceConfig

    reference = ReferenceConfig().to_dict()
    for field in dataclasses.fields(MobileViTConfig):
        if field.name not in NOT_THE_REFERENCES:
            value = getattr(MobileViTConfig(), field.name)
            assert reference[field.name] in (value, list(value) if isinstance(value, tuple) else value), field.name


def test_reads_what_transformers_writes() -> None:
    from transformers import MobileViTConfig as ReferenceConfig

    written = ReferenceConfig(
        hidden_sizes=[96, 120, 144],
        neck_hidden_sizes=[16, 32, 48, 64, 80, 96, 384],
        image_size=320,
        id2label={0: "no", 1: "yes", 2: "maybe"},
        qkv_bias=False,
    ).to_dict()
    config = read_config(written, "config.json")
    assert (config.image_hw, config.qkv_bias) == ((320, 320), False)
    assert config.id2label == ("no", "yes", "maybe")
    assert variant_of(config) == "xs"


def test_label_indices_may_be_out_of_order_and_texts() -> None:
    config = read_config({"id2label": {"2": "c", "0": "a", "1": "b"}}, "config.json")
    assert config.id2label == ("a", "b", "c")


def test_variants_know_their_names() -> None:
    assert [variant_of(config) for config in VARIANTS.values()] == ["xxs", "xs", "s"]
    assert variant_of(dataclasses.replace(VARIANTS["xs"], hidden_sizes=(96, 120, 160))) == "custom"
    assert variant_of(dataclasses.replace(VARIANTS["xs"], image_size=320, id2label=("a", "b"))) == "xs"


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_segmenters_are_the_classifiers_at_twice_the_size_and_half_the_stride(variant: str) -> None:
    config = published_config(variant, SEGMENTATION)
    assert (config.image_hw, config.output_stride, config.id2label) == ((512, 512), 16, voc_labels())
    assert variant_of(config) == variant
    as_classifier = dataclasses.replace(config, image_size=256, output_stride=32, id2label=imagenet_labels())
    assert as_classifier == VARIANTS[variant] == published_config(variant, CLASSIFICATION)
    assert published_config(variant, FEATURES) == VARIANTS[variant]


def test_published_segmenters_have_the_parameters_of_the_references() -> None:
    # transformers' conversion of Apple's DeepLabV3 weights sets these and leaves the rest as it is
    from transformers import MobileViTConfig as ReferenceConfig

    reference = ReferenceConfig(image_size=512, output_stride=16, num_labels=21).to_dict()
    config = published_config("s", SEGMENTATION)
    for field in dataclasses.fields(MobileViTConfig):
        if field.name not in NOT_THE_REFERENCES:
            value = getattr(config, field.name)
            assert reference[field.name] in (value, list(value) if isinstance(value, tuple) else value), field.name
    assert config.num_labels == len(reference["id2label"])


def test_is_hashable_and_frozen() -> None:
    config = MobileViTConfig(hidden_sizes=[144, 192, 240])  # type: ignore[arg-type]  # as JSON has it
    assert hash(config) == hash(MobileViTConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.image_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("output_stride", "sizes"),
    [
        (32, [(125, 65), (63, 33), (32, 17), (16, 9), (8, 5)]),
        (16, [(125, 65), (63, 33), (32, 17), (16, 9), (16, 9)]),
        (8, [(125, 65), (63, 33), (32, 17), (32, 17), (32, 17)]),
    ],
)
def test_stage_sizes_round_up(output_stride: int, sizes: list[tuple[int, int]]) -> None:
    assert list(MobileViTConfig(image_size=(250, 129), output_stride=output_stride).stage_sizes()) == sizes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size: expected an int or (height, width), each 8 to 4096, got 0"),
        ({"image_size": 7}, "image_size: expected an int"),
        ({"image_size": 256.0}, "got 256.0"),
        ({"image_size": "256"}, "got '256'"),
        ({"image_size": (256,)}, "got (256,)"),
        ({"image_size": True}, "got True"),
        ({"image_size": 10**9}, "image_size: expected an int"),
        ({"patch_size": 0}, "patch_size: expected an int or (height, width), each 1 to 4096, got 0"),
        ({"patch_size": -2}, "patch_size: expected an int"),
        ({"output_stride": 4}, "output_stride: expected 8, 16 or 32, got 4"),
        ({"hidden_sizes": (144, 192)}, "hidden_sizes: expected 3 ints"),
        ({"hidden_sizes": (144, 192, 242)}, "expected multiples of num_attention_heads (4), got 242"),
        ({"neck_hidden_sizes": (16,) * 6}, "neck_hidden_sizes: expected 7 ints"),
        ({"neck_hidden_sizes": (16, 32, 64, 96, 128, 160, 0)}, "neck_hidden_sizes: expected 7 ints"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected an int, 1 to 16384, got 0"),
        ({"num_channels": -3}, "num_channels: expected an int"),
        ({"conv_kernel_size": 4}, "conv_kernel_size: expected an odd int, got 4"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio: expected a number above 0"),
        ({"mlp_ratio": 0.001}, "mlp_ratio: 0.001 leaves no hidden unit"),
        ({"expand_ratio": 0}, "expand_ratio: expected a number above 0"),
        ({"hidden_act": "silly"}, "hidden_act: expected one of silu, swish, relu"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob: expected a probability, 0 to 1, got 1.5"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: expected a number above 0"),
        ({"qkv_bias": 1}, "qkv_bias: expected true or false, got 1"),
        ({"atrous_rates": (6, 12)}, "atrous_rates: expected 3 ints"),
        ({"semantic_loss_ignore_index": "x"}, "semantic_loss_ignore_index: expected an int"),
        ({"problem_type": "ranking"}, "problem_type: expected one of single_label_classification, multi_label_"),
        ({"global_pool": "avgmax"}, "global_pool: expected one of avg, max, got 'avgmax'"),
        ({"id2label": ()}, "id2label: expected at least one class"),
    ],
)
def test_says_what_cannot_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MobileViTConfig(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mobilevitv2"}, "here: expected model_type 'mobilevit', got 'mobilevitv2'"),
        ({"patch_size": "two"}, "here: patch_size: expected"),
        ({"id2label": {"0": "a", "2": "c"}}, "here: id2label: expected the indices 0 to 1, got none for 1"),
        ({"id2label": 5}, "here: id2label: expected the name of each class by its index, got 5"),
        ({"id2label": "abc"}, "here: id2label: expected the name of each class by its index, got 'abc'"),
        ({"num_labels": 10**12}, "here: number of classes: expected 1 to"),
    ],
)
def test_names_the_file_at_fault(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(values, "here")
    assert str(error.value).startswith(message)


def test_names_here_are_the_ones_the_model_knows() -> None:
    assert tuple(attention.ATTENTION_IMPLEMENTATIONS) == tuple(AttentionImplementation)
    assert tuple(block.UNFOLD_IMPLEMENTATIONS) == tuple(UnfoldImplementation)
    assert tuple(layers.ACTIVATION_LAYERS) == ACTIVATIONS
