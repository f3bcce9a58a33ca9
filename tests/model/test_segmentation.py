"""DeepLabV3 on MobileViT against transformers' model, at both output strides, through the checkpoint code."""

import pytest
import torch

from mobilevit_coreml.checkpoints.hugging_face import read_config
from mobilevit_coreml.model import ATTENTION_IMPLEMENTATIONS, SemanticSegmenter, fold_for_inference
from tests.peers import hugging_face_segmenter, images, ours, randomize, snr

ENOUGH = 100  # dB, as for the classifiers
# On a map of 18 cells a side or fewer a 3x3 kernel dilated by 18 meets nothing but its centre.
SIZES = {16: 128, 8: 160}  # of the image, by output stride: maps of 8x8 and of 20x20


@pytest.mark.parametrize("attention", ATTENTION_IMPLEMENTATIONS)
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("variant", ["xxs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("xs", "s"))])
@torch.no_grad()
def test_stages_and_logits(variant: str, output_stride: int, attention: str) -> None:
    peer = hugging_face_segmenter(variant, output_stride=output_stride)
    size = SIZES[output_stride]
    pixels = images(1, size, size)
    reference = peer(pixels, output_hidden_states=True)
    assert reference.logits.shape == (1, 21, size // output_stride, size // output_stride)
    model = ours(peer, size, attention, output_stride=output_stride)
    assert {module.attend for module in model.modules() if hasattr(module, "attend")} == {
        ATTENTION_IMPLEMENTATIONS[attention]
    }
    output = model(pixels)
    for stage, (expected, got) in enumerate(zip(reference.hidden_states, output.hidden_states, strict=True), 1):
        assert snr(expected, got) > ENOUGH, f"stage {stage}"
    assert snr(reference.logits, output.logits) > ENOUGH
    assert snr(reference.logits, fold_for_inference(model)(pixels).logits) > ENOUGH


# The maps the blocks of stages 3, 4 and 5 see; an odd side is no multiple of the patch, and is resized.
UNEVEN = {
    ((160, 224), 16): [(20, 28), (10, 14), (10, 14)],
    ((160, 224), 8): [(20, 28), (20, 28), (20, 28)],
    ((144, 176), 16): [(18, 22), (9, 11), (9, 11)],
    ((144, 176), 8): [(18, 22), (18, 22), (18, 22)],
    ((136, 150), 16): [(17, 19), (9, 10), (9, 10)],
    ((136, 150), 8): [(17, 19), (17, 19), (17, 19)],
}


@pytest.mark.parametrize("attention", ATTENTION_IMPLEMENTATIONS)
@pytest.mark.parametrize(("size", "output_stride"), UNEVEN)
@torch.no_grad()
def test_sizes_need_neither_be_square_nor_fit_the_patch(
    size: tuple[int, int], output_stride: int, attention: str
) -> None:
    peer = hugging_face_segmenter("xxs", output_stride=output_stride)
    model = ours(peer, size, attention, output_stride=output_stride)
    blocks = [block for block in model.modules() if hasattr(block, "needs_resize")]
    assert [block.map_size for block in blocks] == UNEVEN[size, output_stride]
    pixels = images(1, *size)
    assert snr(peer(pixels).logits, model(pixels).logits) > ENOUGH


@pytest.mark.parametrize("attention", ATTENTION_IMPLEMENTATIONS)
@pytest.mark.parametrize("ignored", [255, 7])
@torch.no_grad()
def test_loss_leaves_out_what_does_not_count(ignored: int, attention: str) -> None:
    peer = hugging_face_segmenter("xxs", semantic_loss_ignore_index=ignored)
    labels = torch.randint(0, 21, (2, 100, 90), generator=torch.Generator().manual_seed(0))
    labels[:, :30] = ignored
    pixels = images(2, 128, 128)
    expected = peer(pixels, labels=labels).loss
    model = ours(peer, 128, attention, semantic_loss_ignore_index=ignored)
    assert float(model(pixels, labels).loss) == pytest.approx(float(expected), rel=1e-5)
    assert model(pixels).loss is None


@torch.no_grad()
def test_a_head_of_another_width_and_other_distances() -> None:
    peer = hugging_face_segmenter("xxs", classes=3, aspp_out_channels=48, atrous_rates=[2, 3, 5])
    pixels = images(1, 96, 96)
    model = ours(peer, 96, atrous_rates=(2, 3, 5))
    assert snr(peer(pixels).logits, model(pixels).logits) > ENOUGH


@torch.no_grad()
def test_the_randomized_peer_hides_no_mistake_in_the_head() -> None:
    """Each of these mistakes must show in the logits, or the comparisons above prove nothing."""
    size = SIZES[8]
    peer, pixels = hugging_face_segmenter("xxs", output_stride=8), images(2, size, size)
    reference = peer(pixels).logits
    for break_it in (
        lambda head: head.branches[0].batch_norm.bias.zero_(),
        lambda head: head.branches[1].conv.weight.copy_(head.branches[2].conv.weight),
        lambda head: head.branches[3].conv.weight.copy_(head.branches[3].conv.weight.flip(3)),
        lambda head: head.branches[2].conv.__dict__.update(dilation=(13, 13), padding=(13, 13)),
        lambda head: head.pool.batch_norm.running_mean.zero_(),
        lambda head: head.project.conv.weight.copy_(head.project.conv.weight.roll(256, 1)),
        lambda head: head.classifier.bias.zero_(),
    ):
        broken = ours(peer, size, output_stride=8)
        break_it(broken.head)
        assert snr(reference, broken(pixels).logits) < 60
    assert snr(reference, ours(peer, size, output_stride=8)(pixels).logits) > ENOUGH
    assert snr(reference, randomize(ours(peer, size, output_stride=8), seed=1)(pixels).logits) < 10


@pytest.mark.parametrize("attention", ATTENTION_IMPLEMENTATIONS)
def test_gradients_are_the_references(attention: str) -> None:
    peer = hugging_face_segmenter("xxs", classes=3)
    model = ours(peer, (136, 150), attention)
    pixels, labels = images(2, 136, 150), torch.randint(0, 3, (2, 34, 40), generator=torch.Generator().manual_seed(0))
    peer(pixels, labels=labels).loss.backward()
    model(pixels, labels).loss.backward()
    theirs = dict(peer.named_parameters())
    for mine, key in (
        (model.backbone.stem.conv.weight, "mobilevit.conv_stem.convolution.weight"),
        (model.head.branches[2].conv.weight, "segmentation_head.aspp.convs.2.convolution.weight"),
        (model.head.pool.batch_norm.bias, "segmentation_head.aspp.convs.4.conv_1x1.normalization.bias"),
        (model.head.project.conv.weight, "segmentation_head.aspp.project.convolution.weight"),
    ):
        expected = theirs[key].grad
        assert expected is not None
        # as for the classifier: backward sums in another order than forward
        assert torch.allclose(mine.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_it_trains() -> None:
    model = SemanticSegmenter(read_config({"image_size": 64, "output_stride": 16, "num_labels": 3}, "test"))
    loss = model.train()(images(2, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
