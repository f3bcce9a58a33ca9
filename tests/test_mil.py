"""The programs coremltools makes of the model, read from the MLModel before it is saved."""

import dataclasses
from collections import Counter
from functools import cache
from typing import Any

import pytest

from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.mil import classifier_program, count_operations
from mobilevit_coreml.model import ImageClassifier, fold_for_inference
from mobilevit_coreml.preprocessing import default_preprocessing
from tests.peers import hugging_face_classifier, ours

LABELS = tuple(f"class {index}" for index in range(1000))


@cache
def program(variant: str, attention: str, size: int = 256, precision: str = "fp16", target: str = "iOS16") -> Any:
    model = fold_for_inference(ours(hugging_face_classifier(variant), size, attention))
    return classifier_program(
        model, LABELS, default_preprocessing("classification", (size, size), "BGR"), target, precision
    )


def operations(program: Any) -> list[Any]:
    (block,) = program.get_spec().mlProgram.functions["main"].block_specializations.values()
    return [operation for operation in block.operations if operation.type != "const"]


def test_packed_attention_has_the_fewest_operations_and_no_transpose() -> None:
    counts = Counter(operation.type for operation in operations(program("xs", "packed")))
    assert counts.total() == count_operations(program("xs", "packed")) <= 215
    assert counts["transpose"] == 0
    assert counts["layer_norm"] == 2 * 9 + 3
    assert counts["reduce_mean"] == 1  # the pooling: no norm is left in parts
    assert counts["space_to_batch"] == counts["batch_to_space"] == 3
    assert counts["batch_norm"] == 0


def test_split_einsum_attention_transposes_the_keys_only() -> None:
    counts = Counter(operation.type for operation in operations(program("xs", "split_einsum")))
    assert counts["transpose"] <= 9
    assert counts["einsum"] == 9 * 4 * 2
    assert counts["layer_norm"] == 2 * 9 + 3
    assert counts["reduce_mean"] == 1
    assert counts["reshape"] == 2 * 3


@pytest.mark.parametrize("attention", ["packed", "split_einsum"])
def test_operations_are_named_after_their_modules(attention: str) -> None:
    names = [operation.outputs[0].name for operation in operations(program("xs", attention))]
    assert len(set(names)) == len(names)
    others = [name for name in names if not name.startswith("backbone_")]
    assert others[:2] == ["image__scaled__", "cast"]
    assert others[2:] == ["reduce_mean", "classifier", "softmax", "probabilities", "classLabel"]
    for module in ("stem_conv", "stage1_0_depthwise_activation", "stage4_1_layers_3_mlp_norm", "stage5_1_fusion_conv"):
        assert f"backbone_{module}" in names
    qkv = names.index("backbone_stage3_1_layers_1_attention_qkv")
    assert names[qkv - 1] == "backbone_stage3_1_layers_1_attention_norm"


@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS18", "iOS26"])
def test_every_target_has_the_same_operations(target: str) -> None:
    reference = Counter(operation.type for operation in operations(program("xxs", "packed")))
    made = program("xxs", "packed", target=target)
    assert Counter(operation.type for operation in operations(made)) == reference
    assert made.get_spec().specificationVersion == {"iOS15": 6, "iOS17": 8, "iOS18": 9, "iOS26": 10}[target]


def test_single_precision_has_no_half() -> None:
    counts = Counter(operation.type for operation in operations(program("xxs", "packed", precision="fp32")))
    assert counts["cast"] == 0
    assert Counter(operation.type for operation in operations(program("xxs", "packed")))["cast"] == 2


def attribute(made: Any, operation: Any, name: str) -> Any:
    """Value of a constant input."""
    (block,) = made.get_spec().mlProgram.functions["main"].block_specializations.values()
    source = operation.inputs[name].arguments[0].name
    (constant,) = (op for op in block.operations if op.outputs[0].name == source)
    return constant.attributes["val"].immediateValue


def test_a_map_that_does_not_divide_is_resized_to_exact_sizes_with_half_pixel_centres() -> None:
    made = program("xxs", "packed", 288)  # 9x9 in stage 5
    up, down = (
        operation for operation in operations(made) if "resize" in operation.type or "upsample" in operation.type
    )
    for operation, side in ((up, 10), (down, 9)):
        assert operation.type == "resize_bilinear"
        assert attribute(made, operation, "sampling_mode").tensor.strings.values[:] == ["UNALIGN_CORNERS"]
        for name in ("target_size_height", "target_size_width"):
            assert attribute(made, operation, name).tensor.ints.values[:] == [side]


def test_training_mode_is_refused() -> None:
    model = ImageClassifier(dataclasses.replace(VARIANTS["xxs"], image_size=64)).train()
    with pytest.raises(ConversionError, match="expected eval mode, got training mode"):
        classifier_program(model, LABELS, default_preprocessing("classification", (64, 64), "BGR"), "iOS16", "fp16")
