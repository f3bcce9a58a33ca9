"""The figures of a verification against the same figures computed here from the two sides' answers."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.images import drawn_images
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.verification import ClassifierFidelity, report, verify_classifier
from tests.peers import snr


@torch.no_grad()
def test_figures(untrained_package: Path, untrained_model: ImageClassifier) -> None:
    preprocessing = load_checkpoint("untrained", "xxs").preprocessing
    images = drawn_images(256, 256, 3)
    fidelity = verify_classifier(untrained_package, untrained_model, preprocessing, "fp16", images)
    evaluator = ReferenceEvaluator(untrained_package)
    pixels = torch.cat([torch.from_numpy(preprocessing.pixels(image)) for image in images])
    logits = untrained_model(pixels).logits
    probabilities = logits.softmax(1)
    outputs = [evaluator.run({"image": image}, capture=["classifier"]) for image in images]
    got = torch.cat([torch.from_numpy(output["classifier"]) for output in outputs])
    got_probabilities = torch.tensor([list(output["classLabel_probs"].values()) for output in outputs])
    assert fidelity.images == 3
    assert fidelity.snr == pytest.approx(snr(logits, got), abs=0.01)
    assert fidelity.worst_snr == pytest.approx(min(map(snr, logits, got)), abs=0.01)
    assert fidelity.cosine == pytest.approx(1, abs=1e-4)
    assert fidelity.max_abs_difference == pytest.approx(
        float((probabilities - got_probabilities).abs().max()), rel=1e-3
    )
    assert fidelity.top1_agreement == float((probabilities.argmax(1) == got_probabilities.argmax(1)).float().mean())
    first, second = probabilities.topk(2).values.T
    assert fidelity.margin == pytest.approx(float((first - second).min()), rel=1e-3)
    assert fidelity.passed


@torch.no_grad()
def test_another_model_fails(untrained_package: Path, untrained_model: ImageClassifier) -> None:
    preprocessing = load_checkpoint("untrained", "xxs").preprocessing
    swapped = dataclasses.replace(preprocessing, channel_order="RGB")
    fidelity = verify_classifier(untrained_package, untrained_model, swapped, "fp16", drawn_images(256, 256, 2))
    assert fidelity.snr < 25
    assert not fidelity.passed


GOOD = ClassifierFidelity(8, 45.12, 40.04, 0.99998765, 0.0012, 1.0, 0.875, 0.0312, 30.0)


def test_report() -> None:
    assert report(GOOD) == [
        "PASS, logits 45.1 dB SNR against PyTorch fp32 (gate 30 dB)",
        "worst picture 40.0 dB, cosine 0.999988",
        "largest difference of a probability 0.0012",
        "top-1 equal on 100%, top-5 on 88% of 8 pictures",
        "smallest top-1 margin 0.031",
    ]


@pytest.mark.parametrize("value", [29.9, -math.inf, math.nan])
def test_what_is_below_the_gate_or_no_number_fails(value: float) -> None:
    fidelity = dataclasses.replace(GOOD, snr=value)
    assert not fidelity.passed
    assert report(fidelity)[0].startswith("FAIL, logits ")
    assert dataclasses.replace(GOOD, snr=math.inf).passed
