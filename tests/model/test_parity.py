"""The ladder: unfold, layer, block, stages, pooled features, logits, each against transformers' model.

100 dB SNR is an error of 1e-5 of the signal. fp32 itself allows some 140 dB for one operation; over
the depth of the network 120 to 140 are measured, so 100 leaves room for another machine's kernels
and none for a mistake.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.config import VARIANTS, AttentionImplementation, UnfoldImplementation
from mobilevit_coreml.errors import ConfigError
from mobilevit_coreml.model import ImageClassifier, fold_for_inference
from mobilevit_coreml.model.block import UNFOLD_IMPLEMENTATIONS as UNFOLDING
from mobilevit_coreml.model.block import MobileViTBlock, TransformerLayer
from tests.peers import hugging_face_classifier, images, ours, randomize, snr, timm_classifier

ENOUGH = 100  # dB
SIZES = (256, 288, 160)  # at 288 and 160 a map is no multiple of the patch, and is resized


def peer_stage(peer: Any, index: int) -> Any:
    return peer.mobilevit.encoder.layer[index]


def block_of(model: Any, index: int) -> Any:
    """The MobileViT block of the reference's layer `index`."""
    return getattr(model.backbone, f"stage{index + 1}")[1]


def sequences(tokens: Tensor, batch: int) -> Tensor:
    """(P*B, D, 1, N) -> the reference's (B*P, N, D)."""
    places = tokens.shape[0] // batch
    return tokens.squeeze(2).unflatten(0, (places, batch)).transpose(0, 1).flatten(0, 1).transpose(1, 2)


@pytest.mark.parametrize("unfold", UnfoldImplementation)
@pytest.mark.parametrize(("patch", "batch"), [(2, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("size", SIZES)
def test_unfold_and_fold(size: int, patch: int, batch: int, unfold: str) -> None:
    peer = hugging_face_classifier("xxs", patch_size=patch)
    model = ours(peer, size, unfold=unfold, patch_size=patch)
    for index in (2, 3, 4):
        block = block_of(model, index)
        assert isinstance(block, MobileViTBlock)
        x = torch.randn(batch, block.width, *block.map_size, generator=torch.Generator().manual_seed(index))
        reference, info = peer_stage(peer, index).unfolding(x)
        tokens = block.unfold(x)
        assert torch.equal(sequences(tokens, batch), reference)
        assert torch.equal(block.fold(tokens), peer_stage(peer, index).folding(reference, info))
        assert block.unfold_implementation is UNFOLDING[unfold][0]


def test_patches_that_are_no_square_are_cut_by_space_to_batch_only() -> None:
    config = dataclasses.replace(VARIANTS["xxs"], image_size=64, patch_size=(2, 1))
    assert ImageClassifier(config)(images(1, 64, 64)).logits.shape == (1, 1000)
    with pytest.raises(ConfigError) as error:
        ImageClassifier(config, unfold="pixel_shuffle")
    assert str(error.value) == (
        "patch_size: expected a square patch for the unfold implementation pixel_shuffle, got 2x1; use space_to_batch"
    )


def test_some_of_the_sizes_are_resized() -> None:
    resized = [
        [
            block.needs_resize
            for block in ours(hugging_face_classifier("xxs"), size).modules()
            if hasattr(block, "patch")
        ]
        for size in SIZES
    ]
    assert resized == [[False, False, False], [False, False, True], [False, False, True]]


@pytest.mark.parametrize("attention", AttentionImplementation)
def test_transformer_layer(attention: str) -> None:
    peer = hugging_face_classifier("xs")
    model = ours(peer, 256, attention)
    for index in (2, 3, 4):
        block = block_of(model, index)
        layer = block.layers[0]
        assert isinstance(layer, TransformerLayer)
        tokens = torch.randn(4, block.width, 1, block.grid[0] * block.grid[1])
        reference = peer_stage(peer, index).transformer.layer[0](tokens.squeeze(2).transpose(1, 2))
        assert snr(reference, layer(tokens).squeeze(2).transpose(1, 2)) > ENOUGH


@pytest.mark.parametrize("attention", AttentionImplementation)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_block(size: int, attention: str) -> None:
    peer = hugging_face_classifier("xxs")
    model = ours(peer, size, attention)
    for index in (2, 3, 4):
        down, block = getattr(model.backbone, f"stage{index + 1}")
        x = torch.randn(2, block.local.conv.in_channels, *block.map_size)
        reference = peer_stage(peer, index)
        reference.downsampling_layer = nn.Identity()
        assert snr(reference(x), block(x)) > ENOUGH
        assert down.reduce.conv.out_channels == x.shape[1]


BY_DEFAULT = {("xxs", 256, 1), ("xxs", 160, 3), ("xs", 288, 1), ("s", 160, 1)}  # each variant, size and batch once


@pytest.mark.parametrize(
    ("variant", "size", "batch"),
    [
        pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow)
        for case in itertools.product(("xxs", "xs", "s"), SIZES, (1, 3))
    ],
)
@torch.no_grad()
def test_stages_pooled_features_and_logits(variant: str, size: int, batch: int) -> None:
    peer = hugging_face_classifier(variant)
    pixels = images(batch, size, size)
    reference = peer(pixels, output_hidden_states=True)
    pooled = peer.mobilevit(pixels).pooler_output
    for forms in itertools.product(AttentionImplementation, UnfoldImplementation):
        output = ours(peer, size, *forms)(pixels)
        for stage, (expected, got) in enumerate(zip(reference.hidden_states, output.hidden_states, strict=True), 1):
            assert snr(expected, got) > ENOUGH, f"stage {stage}"
        assert snr(pooled, output.pooled) > ENOUGH
        assert snr(reference.logits, output.logits) > ENOUGH


@torch.no_grad()
def test_sizes_need_not_be_square() -> None:
    peer = hugging_face_classifier("xxs")
    pixels = images(2, 200, 333)
    assert snr(peer(pixels).logits, ours(peer, (200, 333))(pixels).logits) > ENOUGH


@pytest.mark.parametrize(
    "overrides",
    [
        {"patch_size": 4},
        {"num_attention_heads": 2, "mlp_ratio": 3.0},
        {"qkv_bias": False},
        {"hidden_act": "gelu"},
        {"hidden_act": "relu6", "layer_norm_eps": 1e-3},
        {"conv_kernel_size": 5},
        {"output_stride": 16},
        {"output_stride": 8},
    ],
)
@torch.no_grad()
def test_every_parameter_means_what_it_means_in_the_reference(overrides: dict[str, Any]) -> None:
    from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE, read_config
    from mobilevit_coreml.checkpoints.naming import recognize, remap_state_dict

    peer = hugging_face_classifier("xxs", classes=7, **overrides)
    config = read_config(peer.config.to_dict(), "peer")
    model = ImageClassifier(config).eval()
    tensors = recognize(peer.state_dict(), [HUGGING_FACE], "peer")[1]
    model.load_state_dict(remap_state_dict(tensors, HUGGING_FACE, config, "peer"), strict=False)
    pixels = images(2, 256, 256)
    assert snr(peer(pixels).logits, model(pixels).logits) > ENOUGH


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@torch.no_grad()
def test_agrees_with_timm(variant: str) -> None:
    peer = timm_classifier(variant)
    pixels = images(2, 256, 256)
    assert snr(peer(pixels), ours(peer)(pixels).logits) > ENOUGH


@pytest.mark.parametrize(
    "options",
    [
        {"act_layer": "relu"},
        {"act_layer": "gelu"},
        {"act_layer": "hard_swish"},
        {"act_layer": "leaky_relu"},
        {"act_layer": "swish"},
        {"global_pool": "max"},
        {"in_chans": 1},
        {"act_layer": "relu6", "global_pool": "max", "in_chans": 1},
    ],
    ids=str,
)
@torch.no_grad()
def test_timms_options_mean_what_they_mean_there(options: dict[str, Any], tmp_path: Path) -> None:
    from timm.models import save_for_hf

    peer = timm_classifier("xxs", classes=7, **options)
    save_for_hf(peer, tmp_path)
    model = load_checkpoint(tmp_path).model()
    pixels = images(2, 256, 256, channels=options.get("in_chans", 3))
    expected = peer(pixels)
    assert snr(expected, model(pixels).logits) > ENOUGH
    assert snr(expected, fold_for_inference(model)(pixels).logits) > ENOUGH
    if "in_chans" not in options:  # the option is seen in the outputs
        plain = ours(peer)
        assert snr(expected, plain(pixels).logits) < 60 or options == {"act_layer": "swish"}


SMALL = (28, 32, (28, 45), 8)  # at these the last maps have one cell, or few, and are enlarged to a patch


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize(
    ("attention", "unfold"), list(itertools.product(AttentionImplementation, UnfoldImplementation))
)
@torch.no_grad()
def test_small_images_are_the_references(size: int | tuple[int, int], attention: str, unfold: str) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    pixels = images(2, height, width)
    peer = hugging_face_classifier("xxs")
    assert snr(peer(pixels).logits, ours(peer, (height, width), attention, unfold)(pixels).logits) > ENOUGH
    other = timm_classifier("xxs")
    assert snr(other(pixels), ours(other, (height, width), attention, unfold)(pixels).logits) > ENOUGH


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_other_channels_than_three_are_the_references(channels: int) -> None:
    peer, pixels = hugging_face_classifier("xxs", num_channels=channels), images(2, 64, 64, channels=channels)
    assert snr(peer(pixels).logits, ours(peer, 64)(pixels).logits) > ENOUGH


@pytest.mark.parametrize("attention", AttentionImplementation)
@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@torch.no_grad()
def test_folding_changes_nothing_but_the_operations(variant: str, attention: str) -> None:
    peer = hugging_face_classifier(variant)
    model = ours(peer, 256, attention)
    folded = fold_for_inference(model)
    pixels = images(2, 256, 256)
    assert snr(peer(pixels).logits, folded(pixels).logits) > ENOUGH
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the original is as it was
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@torch.no_grad()
def test_folding_twice_is_folding_once() -> None:
    model = ours(hugging_face_classifier("xxs"))
    once, pixels = fold_for_inference(model), images(1, 256, 256)
    assert torch.equal(once(pixels).logits, fold_for_inference(once)(pixels).logits)


def test_the_randomized_peer_hides_no_mistake() -> None:
    """Each of these mistakes must show in the logits, or the ladder above proves nothing."""
    peer, pixels = hugging_face_classifier("xxs"), images(2, 256, 256)
    model = ours(peer)
    reference = peer(pixels).logits
    with torch.no_grad():
        for break_it in (
            lambda m: m.backbone.stem.batch_norm.bias.zero_(),
            lambda m: m.backbone.stage2[2].depthwise.batch_norm.running_mean.zero_(),
            lambda m: m.backbone.stage3[1].layers[0].attention.qkv.bias[:64].zero_(),
            lambda m: m.backbone.stage4[1].layer_norm.weight.fill_(1),
            lambda m: m.backbone.stage5[1].layers[2].mlp_out.bias.zero_(),
            lambda m: m.backbone.stage3[1].fusion.conv.weight.copy_(m.backbone.stage3[1].fusion.conv.weight.roll(1, 1)),
        ):
            broken = ours(peer)
            break_it(broken)
            assert snr(reference, broken(pixels).logits) < 60
        assert snr(reference, model(pixels).logits) > ENOUGH
        assert snr(reference, randomize(ours(peer), seed=1)(pixels).logits) < 10
