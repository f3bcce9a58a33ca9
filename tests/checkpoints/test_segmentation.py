"""Segmenters' checkpoints: two code bases' names for them, in two spellings, and what their shapes tell."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mobilevit_coreml.checkpoints.cvnets import CVNETS
from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE
from mobilevit_coreml.checkpoints.naming import (
    has_expansion,
    infer_config,
    infer_task,
    parameter_shapes,
    recognize,
    remap_state_dict,
)
from mobilevit_coreml.config import SEGMENTATION, VARIANTS, published_config, variant_of
from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.labels import voc_labels
from tests.peers import NAMINGS, cvnets_state, hugging_face_classifier, hugging_face_segmenter, ours

# What ml-cvnets trains beside the head where it is told to, of no use afterwards
AUXILIARY = {
    "seg_head.aux_head.aux_head.0.block.conv.weight": torch.ones(64, 64, 3, 3),
    "seg_head.aux_head.aux_head.0.block.norm.running_var": torch.ones(64),
    "seg_head.aux_head.aux_head.0.block.norm.num_batches_tracked": torch.tensor(7),
    "seg_head.aux_head.aux_head.2.block.conv.weight": torch.ones(21, 64, 1, 1),
    "seg_head.aux_head.aux_head.2.block.conv.bias": torch.ones(21),
}
SPELLINGS = ("seg_head.classifier.classifier.block.conv.", "seg_head.classifier.block.conv.")


def spelled(state: dict[str, Tensor], spelling: str) -> dict[str, Tensor]:
    """A cvnets segmenter's state dict with another spelling of its classifier's keys."""
    return {key.replace(SPELLINGS[0], spelling): tensor for key, tensor in state.items()}


def test_the_two_spellings_are_two() -> None:
    state = cvnets_state(hugging_face_segmenter("xxs"))
    assert f"{SPELLINGS[0]}weight" in state
    assert spelled(state, SPELLINGS[1]).keys() - state.keys() == {f"{SPELLINGS[1]}weight", f"{SPELLINGS[1]}bias"}


@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
@pytest.mark.parametrize("auxiliary", [{}, AUXILIARY], ids=["alone", "auxiliary head"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_cvnets_names_give_the_same_segmenter(spelling: str, auxiliary: dict[str, Tensor], wrapper: str) -> None:
    peer = hugging_face_segmenter("xxs")
    saved = {**spelled(cvnets_state(peer), spelling), **auxiliary}
    naming, tensors = recognize({wrapper + key: value for key, value in saved.items()}, NAMINGS, "here")
    assert naming is CVNETS
    assert (infer_task(tensors, naming), has_expansion(tensors, naming)) == (SEGMENTATION, False)
    config = infer_config(tensors, naming, SEGMENTATION)
    assert config == published_config("xxs", SEGMENTATION)
    expected = ours(peer).state_dict()
    state = remap_state_dict(tensors, naming, config, "here", SEGMENTATION)
    assert state.keys() == parameter_shapes(config, SEGMENTATION).keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "_orig_mod.module."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_recognizes_hugging_faces(variant: str, wrapper: str) -> None:
    state = hugging_face_segmenter(variant).state_dict()
    naming, tensors = recognize({wrapper + key: value for key, value in state.items()}, NAMINGS, "here")
    assert naming is HUGGING_FACE
    assert (infer_task(tensors, naming), has_expansion(tensors, naming)) == (SEGMENTATION, False)
    config = infer_config(tensors, naming, SEGMENTATION)
    assert config == published_config(variant, SEGMENTATION)
    remap_state_dict(tensors, naming, config, "here", SEGMENTATION)


def test_shapes_tell_the_classes_and_the_width_of_the_head() -> None:
    peer = hugging_face_segmenter("xs", classes=5, aspp_out_channels=48)
    naming, tensors = recognize(peer.state_dict(), NAMINGS, "here")
    config = infer_config(tensors, naming, SEGMENTATION)
    assert (variant_of(config), config.aspp_out_channels) == ("xs", 48)
    assert config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4")
    assert (config.image_hw, config.output_stride) == ((512, 512), 16)
    remap_state_dict(tensors, naming, config, "here", SEGMENTATION)


def test_twenty_one_classes_are_vocs_in_a_segmenter_only() -> None:
    naming, tensors = recognize(hugging_face_segmenter("xxs").state_dict(), NAMINGS, "here")
    assert infer_config(tensors, naming, SEGMENTATION).id2label == voc_labels()
    naming, tensors = recognize(hugging_face_classifier("xxs", classes=21).state_dict(), NAMINGS, "here")
    assert infer_config(tensors, naming).id2label == tuple(f"LABEL_{index}" for index in range(21))
    naming, tensors = recognize(hugging_face_segmenter("xxs", classes=1000).state_dict(), NAMINGS, "here")
    assert infer_config(tensors, naming, SEGMENTATION).id2label == tuple(f"LABEL_{index}" for index in range(1000))


def test_lists_all_that_is_wrong_together() -> None:
    naming, tensors = recognize(cvnets_state(hugging_face_segmenter("xxs")), NAMINGS, "here")
    branches = "seg_head.aspp.aspp_layer.convs"
    del tensors["layer_3.1.global_rep.2.bias"], tensors[f"{branches}.2.block.norm.running_mean"]
    del tensors[f"{branches}.4.aspp_pool.conv_1x1.block.conv.weight"]
    tensors["conv_1x1_exp.block.norm.bias"] = torch.zeros(320)
    tensors[f"{branches}.5.block.conv.weight"] = torch.zeros(1)
    tensors["seg_head.aspp.aspp_layer.project.block.conv.weight"] = torch.zeros(256, 1279, 1, 1)
    tensors["seg_head.classifier.block.conv.bias"] = torch.zeros(20)
    with pytest.raises(CheckpointError) as error:
        remap_state_dict(tensors, naming, published_config("xxs", SEGMENTATION), "here", SEGMENTATION)
    assert str(error.value) == (
        "here: expected exactly the cvnets keys of this MobileViT, got "
        "3 missing: layer_3.1.global_rep.2.bias, seg_head.aspp.aspp_layer.convs.2.block.norm.running_mean, "
        "seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block.conv.weight; "
        "2 unexpected: conv_1x1_exp.block.norm.bias, seg_head.aspp.aspp_layer.convs.5.block.conv.weight; "
        "2 mis-shaped: seg_head.aspp.aspp_layer.project.block.conv.weight (expected 256x1280x1x1, got 256x1279x1x1), "
        "seg_head.classifier.block.conv.bias (expected 21, got 20); "
        "check the variant, the task and the number of classes"
    )


def test_a_classifiers_head_on_a_segmenter_is_unexpected() -> None:
    state = hugging_face_segmenter("xxs").state_dict()
    state |= {"classifier.bias": torch.zeros(1000)}
    naming, tensors = recognize(state, NAMINGS, "here")
    assert infer_task(tensors, naming) == SEGMENTATION
    with pytest.raises(
        CheckpointError, match=r"got 1 unexpected: classifier\.bias; this is no head of a MobileViT: --task"
    ):
        remap_state_dict(tensors, naming, published_config("xxs", SEGMENTATION), "here", SEGMENTATION)


@pytest.mark.parametrize(
    "key", ["seg_head.aspp.aspp_layer.convs.3.block.conv.weight", "seg_head.classifier.block.conv.weight"]
)
def test_weights_of_the_head_must_be_finite(key: str) -> None:
    naming, tensors = recognize(cvnets_state(hugging_face_segmenter("xxs")), NAMINGS, "here")
    tensors[key][1] = float("nan")
    with pytest.raises(CheckpointError) as error:
        remap_state_dict(tensors, naming, infer_config(tensors, naming, SEGMENTATION), "here", SEGMENTATION)
    assert str(error.value) == (
        f"here: expected finite weights, got NaN or infinity in {key}; use an earlier checkpoint of the training"
    )


def test_a_configuration_that_contradicts_the_head() -> None:
    naming, tensors = recognize(hugging_face_segmenter("xxs").state_dict(), NAMINGS, "here")
    config = dataclasses.replace(infer_config(tensors, naming, SEGMENTATION), aspp_out_channels=128)
    with pytest.raises(CheckpointError, match=r"aspp\.convs\.0\.convolution\.weight \(expected 128x80x1x1, got 256x80"):
        remap_state_dict(tensors, naming, config, "here", SEGMENTATION)
