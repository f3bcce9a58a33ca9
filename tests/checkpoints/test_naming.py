from collections.abc import Callable
from typing import Any

import pytest
import torch

from mobilevit_coreml.checkpoints.cvnets import CVNETS
from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE
from mobilevit_coreml.checkpoints.naming import (
    Naming,
    has_expansion,
    infer_config,
    infer_task,
    parameter_shapes,
    recognize,
    remap_state_dict,
)
from mobilevit_coreml.checkpoints.timm import TIMM
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION, TASKS, VARIANTS, variant_of
from mobilevit_coreml.errors import CheckpointError
from tests.peers import (
    NAMINGS,
    cvnets_state,
    hugging_face_backbone,
    hugging_face_classifier,
    hugging_face_segmenter,
    images,
    ours,
    snr,
    timm_classifier,
)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@torch.no_grad()
def test_cvnets_names_give_the_same_model(variant: str) -> None:
    peer = hugging_face_classifier(variant)
    naming, tensors = recognize(cvnets_state(peer), NAMINGS, "here")
    config = infer_config(tensors, naming)
    assert naming is CVNETS
    assert (infer_task(tensors, naming), has_expansion(tensors, naming)) == (CLASSIFICATION, True)
    assert config == VARIANTS[variant]
    expected = ours(peer).state_dict()
    state = remap_state_dict(tensors, naming, config, "here")
    assert state.keys() == parameter_shapes(config).keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module.", "a.b.c.", "backbone.net."])
@pytest.mark.parametrize(
    ("peer", "naming"), [(hugging_face_classifier, HUGGING_FACE), (timm_classifier, TIMM)], ids=["hf", "timm"]
)
def test_recognizes_source_and_variant(peer: Any, naming: Naming, prefix: str) -> None:
    for variant in VARIANTS:
        state = peer(variant, classes=11).state_dict()
        recognized, tensors = recognize({prefix + key: value for key, value in state.items()}, NAMINGS, "here")
        assert recognized is naming
        config = infer_config(tensors, recognized)
        assert (variant_of(config), config.num_labels) == (variant, 11)
        remap_state_dict(tensors, recognized, config, "here")


def test_infers_a_network_of_its_own() -> None:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    peer = MobileViTForImageClassification(
        MobileViTConfig(
            hidden_sizes=[32, 40, 48],
            neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 96],
            expand_ratio=2.0,
            mlp_ratio=3.0,
            conv_kernel_size=5,
            qkv_bias=False,
            num_channels=4,
            num_labels=5,
        )
    )
    naming, tensors = recognize(peer.state_dict(), NAMINGS, "here")
    config = infer_config(tensors, naming)
    assert variant_of(config) == "custom"
    assert (config.hidden_sizes, config.neck_hidden_sizes) == ((32, 40, 48), (8, 16, 24, 32, 40, 48, 96))
    assert (config.expand_ratio, config.mlp_ratio, config.conv_kernel_size) == (2, 3, 5)
    assert (config.qkv_bias, config.num_channels, config.num_labels) == (False, 4, 5)
    remap_state_dict(tensors, naming, config, "here")


def test_half_precision_is_widened() -> None:
    peer = hugging_face_classifier("xxs").half()
    model = ours(peer)
    assert model.classifier.weight.dtype == torch.float32
    assert snr(peer.float()(images(1, 256, 256)).logits, model(images(1, 256, 256)).logits) > 100


def test_lists_all_that_is_wrong_together() -> None:
    naming, tensors = recognize(hugging_face_classifier("xxs").state_dict(), NAMINGS, "here")
    del (
        tensors["encoder.layer.2.layernorm.bias"],
        tensors["encoder.layer.3.transformer.layer.1.attention.attention.key.weight"],
    )
    tensors["segmentation_head.classifier.weight"] = torch.zeros(1)
    tensors["conv_stem.normalization.weight"] = torch.zeros(17)
    tensors["classifier.bias"] = torch.zeros(1000, dtype=torch.int64)
    with pytest.raises(CheckpointError) as error:
        remap_state_dict(tensors, naming, VARIANTS["xxs"], "here")
    assert str(error.value) == (
        "here: expected exactly the Hugging Face keys of this MobileViT, got "
        "2 missing: encoder.layer.2.layernorm.bias, "
        "encoder.layer.3.transformer.layer.1.attention.attention.key.weight; "
        "1 unexpected: segmentation_head.classifier.weight; "
        "2 mis-shaped: conv_stem.normalization.weight (expected 16, got 17), "
        "classifier.bias (expected 1000, got 1000 of int64); "
        "check the variant, the task and the number of classes"
    )


def test_a_transposed_square_weight_has_the_same_shape_but_a_swapped_pair_has_not() -> None:
    naming, tensors = recognize(timm_classifier("xxs").state_dict(), NAMINGS, "here")
    mlp = "stages.2.1.transformer.0.mlp."
    tensors[f"{mlp}fc1.weight"], tensors[f"{mlp}fc2.weight"] = tensors[f"{mlp}fc2.weight"], tensors[f"{mlp}fc1.weight"]
    with pytest.raises(CheckpointError, match=r"2 mis-shaped: .*fc1.weight \(expected 128x64x1x1, got 64x128\)"):
        remap_state_dict(tensors, naming, VARIANTS["xxs"], "here")


def test_other_networks_are_not_taken_for_mobilevit() -> None:
    with pytest.raises(CheckpointError) as error:
        recognize(torch.nn.Linear(2, 3).state_dict(), NAMINGS, "here")
    assert str(error.value) == (
        "here: expected the keys of a MobileViT, such as encoder.layer.0.layer.0.expand_1x1.convolution.weight "
        "(Hugging Face), layer_1.0.block.exp_1x1.block.conv.weight (cvnets), stages.0.0.conv1_1x1.conv.weight (timm), "
        "got weight, bias; "
        "check that these are the weights of a MobileViT v1"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value: float) -> None:
    naming, tensors = recognize(hugging_face_classifier("xxs").state_dict(), NAMINGS, "here")
    tensors["encoder.layer.2.layernorm.bias"][3] = value
    with pytest.raises(CheckpointError) as error:
        remap_state_dict(tensors, naming, VARIANTS["xxs"], "here")
    assert str(error.value) == (
        "here: expected finite weights, got NaN or infinity in encoder.layer.2.layernorm.bias; "
        "use an earlier checkpoint of the training"
    )


def test_two_networks_in_one_file_are_not_chosen_from() -> None:
    state = hugging_face_classifier("xxs").state_dict()
    both = {f"{name}.{key}": value for name in ("teacher", "student") for key, value in state.items()}
    with pytest.raises(
        CheckpointError, match=r"here: expected one network, got 2, under 'student\.', 'teacher\.'; save the"
    ):
        recognize(both, NAMINGS, "here")


def test_keys_beside_the_network_are_unexpected() -> None:
    state = hugging_face_classifier("xxs").state_dict()
    naming, tensors = recognize(
        {f"model.{key}": value for key, value in state.items()} | {"aux.weight": state["classifier.bias"]},
        NAMINGS,
        "here",
    )
    with pytest.raises(CheckpointError, match=r"got 1 unexpected: aux\.weight; tensors that the network does not have"):
        remap_state_dict(tensors, naming, VARIANTS["xxs"], "here")


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda tensor: tensor.to_sparse(), "1000x320 of sparse_coo"),
        (lambda tensor: tensor.to("meta"), "1000x320 of no values"),
        (lambda tensor: tensor.to(torch.int8), "1000x320 of int8"),
    ],
    ids=["sparse", "meta", "int8"],
)
def test_tensors_that_are_no_plain_weights(change: Any, got: str) -> None:
    naming, tensors = recognize(hugging_face_classifier("xxs").state_dict(), NAMINGS, "here")
    tensors["classifier.weight"] = change(tensors["classifier.weight"])
    with pytest.raises(CheckpointError, match=rf"1 mis-shaped: classifier.weight \(expected 1000x320, got {got}\)"):
        remap_state_dict(tensors, naming, infer_config(tensors, naming), "here")


def test_a_tensor_that_claims_a_huge_shape_is_not_touched() -> None:
    naming, tensors = recognize(hugging_face_classifier("xxs").state_dict(), NAMINGS, "here")
    tensors["conv_stem.normalization.weight"] = torch.zeros(1).expand(2**40)
    with pytest.raises(CheckpointError, match="mis-shaped: conv_stem.normalization.weight"):
        remap_state_dict(tensors, naming, infer_config(tensors, naming), "here")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.name)
def test_no_two_parameters_share_a_source_key(naming: Naming, task: str) -> None:
    keys = [key for own in parameter_shapes(VARIANTS["s"], task) for key in naming.source_keys(own)]
    assert len(keys) == len(set(keys))
    assert not any("{" in key or "backbone" in key for key in keys)


@pytest.mark.parametrize(
    ("peer", "task", "expand"),
    [
        (lambda: hugging_face_classifier("xxs").state_dict(), CLASSIFICATION, True),
        (lambda: hugging_face_segmenter("xxs").state_dict(), SEGMENTATION, False),
        (lambda: hugging_face_backbone("xxs").state_dict(), FEATURES, True),
        (lambda: hugging_face_backbone("xxs", expand_output=False).state_dict(), FEATURES, False),
        (lambda: cvnets_state(hugging_face_backbone("xxs")), FEATURES, True),
        (lambda: cvnets_state(hugging_face_backbone("xxs", expand_output=False)), FEATURES, False),
        (lambda: timm_classifier("xxs").state_dict(), CLASSIFICATION, True),
        (lambda: timm_classifier("xxs", classes=0).state_dict(), FEATURES, True),
    ],
    ids=[
        "classifier",
        "segmenter",
        "backbone",
        "backbone without expansion",
        "cvnets backbone",
        "cvnets backbone without expansion",
        "timm classifier",
        "timm backbone",
    ],
)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_keys_tell_the_task_and_the_expansion(
    peer: Callable[[], dict[str, torch.Tensor]], task: str, expand: bool, wrapper: str
) -> None:
    naming, tensors = recognize({wrapper + key: value for key, value in peer().items()}, NAMINGS, "here")
    assert (infer_task(tensors, naming), has_expansion(tensors, naming)) == (task, expand)
    config = infer_config(tensors, naming, task)
    assert variant_of(config) == "xxs"
    state = remap_state_dict(tensors, naming, config, "here", task)
    assert state.keys() == parameter_shapes(config, task, expand).keys()


@pytest.mark.parametrize(
    ("peer", "expand"),
    [
        (lambda: hugging_face_classifier("xxs").state_dict(), True),
        (lambda: cvnets_state(hugging_face_classifier("xxs")), True),
        (lambda: timm_classifier("xxs").state_dict(), True),
        (lambda: hugging_face_segmenter("xxs").state_dict(), False),
        (lambda: cvnets_state(hugging_face_segmenter("xxs")), False),
    ],
    ids=["classifier", "cvnets classifier", "timm classifier", "segmenter", "cvnets segmenter"],
)
def test_features_pass_over_heads_and_over_nothing_else(
    peer: Callable[[], dict[str, torch.Tensor]], expand: bool
) -> None:
    naming, tensors = recognize(peer(), NAMINGS, "here")
    config = infer_config(tensors, naming, FEATURES)
    state = remap_state_dict(tensors, naming, config, "here", FEATURES)
    assert state.keys() == parameter_shapes(config, FEATURES, expand).keys()
    assert all(key.startswith("backbone.") for key in state)
    tensors |= {"neck.weight": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"got 1 unexpected: neck\.weight; tensors that the network does not have"
    ):
        remap_state_dict(tensors, naming, config, "here", FEATURES)
