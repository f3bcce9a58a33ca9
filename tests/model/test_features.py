"""MobileViT without a head against transformers' MobileViTModel and timm, through the checkpoint code."""

import pytest
import torch

from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.model import ATTENTION_IMPLEMENTATIONS, FeatureExtractor, fold_for_inference
from tests.peers import hugging_face_backbone, images, ours, snr, timm_classifier

ENOUGH = 100  # dB, as for the classifiers


@pytest.mark.parametrize("attention", ATTENTION_IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [(160, 160), (200, 140)])  # the first fits the patch until stage 4, the second never
@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("variant", ["xxs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("xs", "s"))])
@torch.no_grad()
def test_every_map_and_the_pooled_features(variant: str, expand: bool, size: tuple[int, int], attention: str) -> None:
    peer = hugging_face_backbone(variant, expand)
    pixels = images(2, *size)
    reference = peer(pixels, output_hidden_states=True)
    model = ours(peer, size, attention)
    assert isinstance(model, FeatureExtractor)
    assert {module.attend for module in model.modules() if hasattr(module, "attend")} == {
        ATTENTION_IMPLEMENTATIONS[attention]
    }
    for output in (model(pixels), fold_for_inference(model)(pixels)):
        for stage, (expected, got) in enumerate(zip(reference.hidden_states, output.hidden_states, strict=True), 1):
            assert snr(expected, got) > ENOUGH, f"stage {stage}"
        assert snr(reference.last_hidden_state, output.feature_map) > ENOUGH
        # without the expansion transformers pools nothing
        assert (reference.pooler_output is not None) == expand
        pooled = reference.pooler_output if expand else reference.last_hidden_state.double().mean((2, 3))
        assert output.pooled.shape == (2, VARIANTS[variant].neck_hidden_sizes[6 if expand else 5])
        assert snr(pooled, output.pooled) > ENOUGH


@pytest.mark.parametrize("output_stride", [16, 8])
@torch.no_grad()
def test_output_strides(output_stride: int) -> None:
    peer = hugging_face_backbone("xxs", output_stride=output_stride)
    pixels = images(1, 144, 176)
    output = ours(peer, (144, 176), output_stride=output_stride)(pixels)
    assert output.feature_map.shape[2:] == (144 // output_stride, 176 // output_stride)
    assert snr(peer(pixels).last_hidden_state, output.feature_map) > ENOUGH


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@torch.no_grad()
def test_agrees_with_timm(variant: str) -> None:
    peer = timm_classifier(variant, classes=0)
    pixels = images(2, 160, 160)
    output = ours(peer, 160)(pixels)
    assert snr(peer(pixels), output.pooled) > ENOUGH
    assert snr(peer.forward_features(pixels), output.feature_map) > ENOUGH
