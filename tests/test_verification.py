"""The figures of a verification against the same figures computed here from the two sides' answers."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.metrics import Fidelity, MaskFidelity, SignalFidelity, computation_gates
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.verification import verify
from tests.peers import snr
from tests.untrained import untrained_model

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def classifier(shallow: None, converted: Callable[..., Conversion]) -> Path:
    return converted("untrained", "xxs", attention="packed", image_sizes=[(128, 128)]).path


@torch.no_grad()
def test_figures_of_a_classifier(classifier: Path) -> None:
    record, model = read_record(classifier), untrained_model("classification", (128, 128))
    images = synthetic_images(128, 128, 3)
    fidelity = verify(classifier, model, record, record.preprocessing, images, None, computation_gates(record))
    evaluator = ReferenceEvaluator(classifier)
    # one image at a time, as `verify` does: in a batch torch may add in another order
    logits = torch.cat([model(torch.from_numpy(record.preprocessing.pixels(image))).logits for image in images])
    probabilities = logits.softmax(1)
    outputs = [evaluator.run({"image": image}, capture=["classifier"]) for image in images]
    got = torch.cat([torch.from_numpy(output["classifier"]) for output in outputs])
    got_probabilities = torch.tensor([list(output["classLabel_probs"].values()) for output in outputs])
    signal, ranking = fidelity.signals["logits"], fidelity.ranking
    assert (fidelity.images, list(fidelity.signals), fidelity.masks) == (3, ["logits"], None)
    assert ranking is not None
    assert signal.snr == pytest.approx(snr(logits, got), abs=0.01)
    assert signal.worst_snr == pytest.approx(min(map(snr, logits, got)), abs=0.01)
    assert signal.cosine == pytest.approx(1, abs=1e-4)
    assert ranking.max_abs_difference == pytest.approx(float((probabilities - got_probabilities).abs().max()), rel=1e-3)
    assert ranking.top1_agreement == float((probabilities.argmax(1) == got_probabilities.argmax(1)).float().mean())
    first, second = probabilities.topk(2).values.T
    assert ranking.margin == pytest.approx(float((first - second).min()), rel=1e-3)
    assert fidelity.passed


@torch.no_grad()
def test_another_model_fails(classifier: Path) -> None:
    record, model = read_record(classifier), untrained_model("classification", (128, 128))
    swapped = dataclasses.replace(record.preprocessing, channel_order="RGB")
    images, gates = synthetic_images(128, 128, 2), computation_gates(record)
    fidelity = verify(classifier, model, record, swapped, images, None, gates)
    assert fidelity.signals["logits"].snr < 25
    assert not fidelity.passed


@pytest.mark.parametrize(
    ("output", "signals"),
    [
        ("labels image", ["logits"]),
        ("probabilities image", ["logits", "output"]),
        ("logits network float16", ["logits"]),
        ("image network", ["logits"]),
    ],
)
@torch.no_grad()
def test_figures_of_a_segmenter(output: str, signals: list[str], converted: Callable[..., Conversion]) -> None:
    form = dict(zip(("output_type", "output_size", "output_dtype"), output.split(), strict=False))
    options = {"task": "segmentation", "attention": "packed", "image_sizes": [(96, 128)], **form}
    package = converted("untrained", "xxs", **options).path
    record, model = read_record(package), untrained_model("segmentation", (96, 128))
    images = synthetic_images(96, 128, 2)
    fidelity = verify(package, model, record, record.preprocessing, images, None, computation_gates(record))
    logits = [model(torch.from_numpy(record.preprocessing.pixels(image))).logits for image in images]
    size = (96, 128) if form["output_size"] == "image" else (6, 8)
    scores = [torch.nn.functional.interpolate(entry, size=size, mode="bilinear") for entry in logits]
    evaluator = ReferenceEvaluator(package)
    outputs = [next(iter(evaluator.run({"image": image}).values())) for image in images]
    masks = [torch.from_numpy(np.array(output)) for output in outputs]
    if form["output_type"] in ("logits", "probabilities"):
        masks = [mask.argmax(1) for mask in masks]
    expected = torch.cat([entry.argmax(1).flatten() for entry in scores])
    got = torch.cat([mask.flatten() for mask in masks]).long()
    assert list(fidelity.signals) == signals
    assert fidelity.masks is not None
    assert fidelity.masks.pixel_agreement == pytest.approx(float((expected == got).float().mean()))
    assert fidelity.masks.classes == len(set(expected.tolist()) | set(got.tolist()))
    assert fidelity.signals["logits"].snr > 35
    assert fidelity.passed
    # a mask of classes that are off by one is no better for its logits being right
    shifted = dataclasses.replace(fidelity.masks, pixel_agreement=0.96)
    assert not dataclasses.replace(fidelity, masks=shifted).passed


GOOD = Fidelity(8, {"snr": 30.0}, {"logits": SignalFidelity(45.12, 40.04, 0.99998765, 0.1)})
MASKS = MaskFidelity(0.99734, 0.9281, 13)


@pytest.mark.parametrize("value", [29.9, -math.inf, math.nan])
def test_what_is_below_the_gate_or_no_number_fails(value: float) -> None:
    signal = dataclasses.replace(GOOD.signals["logits"], snr=value)
    fidelity = dataclasses.replace(GOOD, signals={"good": GOOD.signals["logits"], "bad": signal})
    assert not fidelity.passed
    assert dataclasses.replace(GOOD, signals={"bad": dataclasses.replace(signal, snr=math.inf)}).passed
    masks = dataclasses.replace(MASKS, pixel_agreement=math.nan)
    assert not dataclasses.replace(GOOD, masks=masks, gates={"pixels": 0.97}).passed
