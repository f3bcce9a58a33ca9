"""Where two runs part, and how near values come to fp16's limit."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_coreml._coremltools import ct, mb
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.model import ImageClassifier, fold_for_inference
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.comparison import compare_values, snr


def test_snr_of_known_values() -> None:
    one = torch.ones(100)
    assert snr(one, one * 1.1) == pytest.approx(20, abs=1e-4)
    assert snr(one, one) == math.inf
    assert snr(torch.zeros(3), torch.ones(3)) == -math.inf
    assert math.isnan(snr(one, one * math.inf))
    assert math.isnan(snr(one * math.nan, one))


def test_values_of_another_shape_part() -> None:
    comparison = compare_values({"a": "conv"}, {"a": torch.zeros(3)}, {"a": torch.zeros(4)})
    assert math.isnan(comparison.operations[0].snr)
    assert comparison.first_below(0) is comparison.operations[0]


@pytest.fixture(scope="module")
def model(untrained_model: ImageClassifier) -> ImageClassifier:
    """Folded, so that a convolution's result has the batch norm's part in it, as in the package."""
    return fold_for_inference(untrained_model)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return synthetic_images(256, 256, 1)[0]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(load_checkpoint("untrained", "xxs").preprocessing.pixels(image))


def test_a_package_equals_itself(untrained_package: Path, image: Image.Image) -> None:
    evaluator = ReferenceEvaluator(untrained_package)
    comparison = evaluator.compare(evaluator, {"image": image})
    assert all(operation.snr == math.inf for operation in comparison.operations)
    assert comparison.first_below(1000) is None


def test_rounding_shows_from_the_first_operation_on(untrained_package: Path, image: Image.Image) -> None:
    comparison = ReferenceEvaluator(untrained_package).compare(
        ReferenceEvaluator(untrained_package, "fp32"), {"image": image}
    )
    # one rounding to fp16's 11 bits is some 70 dB; a few dozen of them stay above 30
    assert all(operation.snr > 30 for operation in comparison.operations)
    first = comparison.first_below(100)
    assert first is not None
    assert first.name == comparison.operations[1].name  # the scale is fp32, then comes the cast


def test_modules_are_found_by_name(untrained_package: Path, model: ImageClassifier, image: Image.Image) -> None:
    evaluator = ReferenceEvaluator(untrained_package, "fp32")
    comparison = evaluator.compare_modules(model, pixels(image), {"image": image})
    names = [operation.name for operation in comparison.operations]
    assert "stage4_1_layers_3_attention_norm" in names
    assert names[-1] == "classifier"
    assert len(names) > 100
    # only the stored weights are rounded in fp32 evaluation
    assert all(operation.snr > 35 for operation in comparison.operations)


@pytest.mark.parametrize(
    "path",
    ["backbone.stem.conv", "backbone.stage2.1.depthwise.conv", "backbone.stage4.1.layers.2.mlp_in", "classifier"],
)
def test_the_first_mismatch_is_where_the_model_was_changed(
    untrained_package: Path, model: ImageClassifier, image: Image.Image, path: str
) -> None:
    changed = fold_for_inference(model)
    weight = changed.get_parameter(f"{path}.weight")
    weight.copy_(weight.flip(0))
    comparison = ReferenceEvaluator(untrained_package, "fp32").compare_modules(changed, pixels(image), {"image": image})
    first = comparison.first_below(30)
    assert first is not None
    assert first.name == path.removeprefix("backbone.").replace(".", "_")


def program_with(tmp_path: Path, scale: float) -> Path:
    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS16)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return mb.mul(x=mb.mul(x=x, y=scale, name="large"), y=1 / scale, name="small")

    path = tmp_path / "x.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(str(path))
    return path


@pytest.mark.parametrize(("scale", "flagged"), [(5000.0, False), (6000.0, True), (60000.0, True)])
def test_values_near_the_limit_are_flagged(tmp_path: Path, scale: float, flagged: bool) -> None:
    evaluator = ReferenceEvaluator(program_with(tmp_path, scale))
    ranges = {entry.name: entry for entry in evaluator.ranges({"x": np.array([1.0, -3.0, 0.5])})}
    large = next(entry for name, entry in ranges.items() if name.startswith("large"))
    assert large.near_limit is flagged
    assert large.max_abs == (math.inf if scale > 20000 else 3 * scale)
    assert ranges[next(iter(evaluator.outputs))].near_limit is (scale > 20000)  # infinite, or small again
