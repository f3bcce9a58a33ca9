"""Predicted fidelity against that of packages: of all tasks, and of every kind of a segmenter's output."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.metrics import Fidelity
from mobilevit_coreml.model import Model, fold_for_inference
from mobilevit_coreml.scoring import RoundingToHalf, scorer
from mobilevit_coreml.verification import verify

OUTPUTS = {
    "classification": [""],
    "features": ["", "hidden states"],
    "segmentation": ["labels image", "image network", "logits network", "logits image", "probabilities network"],
}


def model_of(weights: Path, task: str) -> Model:
    checkpoint = load_checkpoint(str(weights), None, task)
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, image_size=(64, 64))).model(
        "packed"
    )


def scored_and_measured(package: Path, model: Model, precision: str | None = None) -> tuple[Fidelity, Fidelity]:
    record, images = read_record(package), synthetic_images(64, 64, 4)
    measured = verify(package, model, record, record.preprocessing, images, None, {})
    if precision is not None:
        record = dataclasses.replace(record, precision=precision)
    return scorer(model, record, record.preprocessing, images)(fold_for_inference(model)), measured


@pytest.mark.parametrize(
    ("task", "output"), [(task, output) for task, outputs in OUTPUTS.items() for output in outputs]
)
def test_a_score_is_the_fidelity_of_the_package(
    task: str, output: str, small_weights: dict[str, Path], converted: Callable[..., Conversion]
) -> None:
    options = {"hidden_states": True} if output == "hidden states" else {}
    if task == "segmentation":
        kind, size = output.split()
        options |= {"output_type": kind, "output_size": size}  # type: ignore[dict-item]  # strings beside a bool
    package = converted(str(small_weights[task]), image_sizes=[(64, 64)], attention="packed", **options).path
    score, measured = scored_and_measured(package, model_of(small_weights[task], task))
    assert score.images == measured.images == 4
    assert score.signals.keys() == measured.signals.keys()
    for name, signal in measured.signals.items():
        assert 30 < signal.snr < 80, name
        # The power of n equal rounding errors has a standard deviation of sqrt(2 / n), 1 dB of the 32 pooled features;
        # of two runs whose errors differ where operations are fused, 3 dB are twice that. Unrounded it is over 100 dB.
        assert score.signals[name].snr == pytest.approx(signal.snr, abs=3.0), name
    if measured.agreement is None:
        assert score.agreement is None
    else:
        assert score.agreement == pytest.approx(measured.agreement, abs=0.01)


def test_nothing_is_rounded_in_fp32(small_weights: dict[str, Path], small_packages: dict[str, Path]) -> None:
    score, measured = scored_and_measured(
        small_packages["features"], model_of(small_weights["features"], "features"), "fp32"
    )
    assert score.worst.snr > 100  # but for what folding changes
    assert score.worst.snr > measured.worst.snr + 30


def test_errors_of_the_weights_are_in_the_score(
    small_weights: dict[str, Path], small_packages: dict[str, Path]
) -> None:
    model, record = model_of(small_weights["features"], "features"), read_record(small_packages["features"])
    score = scorer(model, record, record.preprocessing, synthetic_images(64, 64, 2))
    folded = fold_for_inference(model)
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    changed = copy.deepcopy(folded)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator), alpha=0.05 * float(parameter.abs().mean())
            )
    assert score(changed).worst.snr < score(folded).worst.snr - 10
    assert all(torch.equal(value, before[name]) for name, value in folded.state_dict().items())  # a copy is rounded


def test_rounding_is_to_half_and_of_float32_alone() -> None:
    x = torch.tensor([1.0, 1.0])
    with RoundingToHalf():
        assert float((x * (1 + 2**-12)).sum()) == 2.0
        assert float(x.double().mul(1 + 2**-12)[0]) == 1 + 2**-12
        assert math.isinf(float(x[0] * 65520))  # as in fp16
        assert (x.to(torch.int32) + 2049).tolist() == [2050, 2050]
    assert float((x * (1 + 2**-12))[0]) == 1 + 2**-12
