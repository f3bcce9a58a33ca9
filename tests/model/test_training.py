import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilevit_coreml.config import VARIANTS, AttentionImplementation, MobileViTConfig, UnfoldImplementation
from mobilevit_coreml.model import ImageClassifier
from tests.peers import hugging_face_classifier, images, ours

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}


def small_config(**values: Any) -> MobileViTConfig:
    values = {"image_size": 64, "id2label": ("a", "b", "c"), **values}
    return dataclasses.replace(VARIANTS["xxs"], **values)


@pytest.mark.parametrize(("variant", "parameters"), [("xxs", 1_272_024), ("xs", 2_317_848), ("s", 5_578_632)])
def test_parameter_counts_are_the_papers(variant: str, parameters: int) -> None:
    model = ImageClassifier(VARIANTS[variant])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("unfold", UnfoldImplementation)
@pytest.mark.parametrize("attention", AttentionImplementation)
def test_gradients_are_the_references(attention: str, unfold: str) -> None:
    # at 160 the gradient passes through the bilinear step, too
    peer = hugging_face_classifier("xxs", classes=3)
    model = ours(peer, 160, attention, unfold)
    pixels, labels = images(2, 160, 160), torch.tensor([2, 0])
    peer(pixels, labels=labels).loss.backward()
    loss = model(pixels, labels).loss
    loss.backward()
    for mine, theirs in (
        (model.backbone.stem.conv.weight, "mobilevit.conv_stem.convolution.weight"),
        (model.backbone.stage5[1].project_in.weight, "mobilevit.encoder.layer.4.conv_1x1.convolution.weight"),
        (model.backbone.stage3[1].layer_norm.weight, "mobilevit.encoder.layer.2.layernorm.weight"),
    ):
        expected = dict(peer.named_parameters())[theirs].grad
        assert expected is not None
        # backward sums in another order than forward; 1e-4 of the largest entry is far below any mistake
        assert torch.allclose(mine.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("classes", "labels"),
    [(3, torch.tensor([0, 2])), (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])), (1, torch.tensor([0.3, -2.0]))],
    ids=["cross entropy", "several labels", "regression"],
)
@torch.no_grad()
def test_loss_is_the_references(classes: int, labels: Tensor) -> None:
    peer = hugging_face_classifier("xxs", classes=classes)
    pixels = images(2, 64, 64)
    expected = peer(pixels, labels=labels).loss
    assert float(ours(peer, 64)(pixels, labels).loss) == pytest.approx(float(expected), rel=1e-5)
    assert ours(peer, 64)(pixels).loss is None


def test_a_few_steps_learn_three_colours() -> None:
    torch.manual_seed(0)
    model = ImageClassifier(small_config(initializer_range=0.1), "packed").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = torch.tensor([0, 1, 2] * 2)
    pixels = images(6, 64, 64) * 0.3
    pixels[torch.arange(6), labels] += 0.7
    losses = []
    for _ in range(12):
        loss = model(pixels, labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("attention", AttentionImplementation)
@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_each_dropout_acts_in_training_only(name: str, attention: str) -> None:
    model = ImageClassifier(small_config(initializer_range=0.2, **{**WITHOUT_DROPOUT, name: 0.5}), attention)
    pixels = images(1, 64, 64)
    model.eval()
    assert torch.equal(model(pixels).logits, model(pixels).logits)
    for module in model.modules():
        module.training = isinstance(module, torch.nn.Dropout)  # batch norm stays as it is
    assert not torch.equal(model(pixels).logits, model(pixels).logits)


def test_a_new_model_has_the_references_spread() -> None:
    torch.manual_seed(0)
    model = ImageClassifier(dataclasses.replace(VARIANTS["s"], initializer_range=0.05))
    assert float(model.classifier.weight.detach().std()) == pytest.approx(0.05, rel=0.02)
    assert float(model.classifier.bias.detach().abs().max()) == 0
