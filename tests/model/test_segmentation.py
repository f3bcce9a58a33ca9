"""DeepLabV3 on MobileViT against transformers' model, at both output strides."""

from typing import Any

import pytest
import torch

from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE
from mobilevit_coreml.config import ATTENTION_FORMS, VARIANTS, config_from_hugging_face
from mobilevit_coreml.model import SemanticSegmenter, fold_for_inference
from tests.peers import images, randomize, snr

ENOUGH = 100  # dB, as for the classifiers


def peer_segmenter(variant: str, output_stride: int) -> Any:
    """transformers' segmenter in eval mode, with random weights, statistics and affine terms."""
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    published = VARIANTS[variant]
    config = MobileViTConfig(
        hidden_sizes=list(published.hidden_sizes),
        neck_hidden_sizes=list(published.neck_hidden_sizes),
        expand_ratio=published.expand_ratio,
        output_stride=output_stride,
        image_size=128,
        num_labels=21,
    )
    return randomize(MobileViTForSemanticSegmentation(config))


def ours(peer: Any, attention: str = "split_einsum") -> SemanticSegmenter:
    model = SemanticSegmenter(config_from_hugging_face(peer.config.to_dict(), "peer"), attention)
    head = {"branches.": "convs.", "pool.": "convs.4.conv_1x1.", "project.": "project."}
    state = {}
    theirs = {key.removeprefix("mobilevit."): value for key, value in peer.state_dict().items()}
    for own, value in model.state_dict().items():
        key = own.replace("head.classifier.", "segmentation_head.classifier.convolution.")
        for mine, its in head.items():
            key = key.replace(f"head.{mine}", f"segmentation_head.aspp.{its}")
        tensors = [theirs[source] for source in HUGGING_FACE.source_keys(key)]
        state[own] = (torch.cat(tensors) if value.dim() else tensors[0]).reshape(value.shape)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@torch.no_grad()
def test_logits(variant: str, output_stride: int) -> None:
    peer = peer_segmenter(variant, output_stride)
    pixels = images(2, 128, 128)
    expected = peer(pixels).logits
    assert expected.shape == (2, 21, 128 // output_stride, 128 // output_stride)
    for attention in ATTENTION_FORMS:
        model = ours(peer, attention)
        assert snr(expected, model(pixels).logits) > ENOUGH
        assert snr(expected, fold_for_inference(model)(pixels).logits) > ENOUGH


@torch.no_grad()
def test_loss_leaves_out_what_does_not_count() -> None:
    peer = peer_segmenter("xxs", 16)
    labels = torch.randint(0, 21, (2, 100, 90), generator=torch.Generator().manual_seed(0))
    labels[:, :30] = 255
    expected = peer(images(2, 128, 128), labels=labels).loss
    assert float(ours(peer)(images(2, 128, 128), labels).loss) == pytest.approx(float(expected), rel=1e-5)


def test_it_trains() -> None:
    model = SemanticSegmenter(
        config_from_hugging_face({"image_size": 64, "output_stride": 16, "num_labels": 3}, "test")
    )
    loss = model.train()(images(2, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
