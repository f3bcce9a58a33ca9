"""The programs coremltools makes of the model, read from the MLModel before it is saved."""

import dataclasses
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.mil import build_mlprogram, count_operations, merge_functions
from mobilevit_coreml.model import ImageClassifier, fold_for_inference
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.preprocessing import default_preprocessing
from tests.peers import hugging_face_classifier, ours

LABELS = tuple(f"class {index}" for index in range(1000))
ARRAY_TYPES = {65568: "float32", 65552: "float16", 131104: "int32"}


@cache
def program(
    variant: str,
    attention: str,
    size: int = 256,
    precision: str = "fp16",
    target: str = "iOS16",
    unfold: str = "space_to_batch",
) -> Any:
    """Of a classifier."""
    model = fold_for_inference(ours(hugging_face_classifier(variant), size, attention, unfold))
    contract = default_preprocessing("classification", (size, size), "BGR")
    return build_mlprogram(model, "classification", contract, OutputOptions(), LABELS, target, precision, {})


@cache
def untrained_program(
    task: str,
    form: OutputOptions,
    size: tuple[int, int] = (128, 160),
    include_crop: bool = False,
    precision: str = "fp16",
) -> Any:
    """Of the untrained xxs model for a task, packed attention."""
    checkpoint = load_checkpoint("untrained", "xxs", task)
    config = dataclasses.replace(checkpoint.config, image_size=size)
    model = fold_for_inference(dataclasses.replace(checkpoint, config=config).model("packed"))
    contract = dataclasses.replace(checkpoint.preprocessing.with_crop(size), include_crop=include_crop)
    return build_mlprogram(model, task, contract, form, LABELS, "iOS16", precision, {})


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


@pytest.mark.parametrize("target", ["iOS16", "iOS26"])
def test_pixel_shuffle_takes_one_transpose_each_way(target: str) -> None:
    made = operations(program("xs", "packed", target=target, unfold="pixel_shuffle"))
    usual = operations(program("xs", "packed", target=target))
    counts, expected = (Counter(operation.type for operation in program) for program in (made, usual))
    assert counts - expected == {"pixel_unshuffle": 3, "pixel_shuffle": 3, "transpose": 6}
    assert expected - counts == {"space_to_batch": 3, "batch_to_space": 3}
    names = [operation.outputs[0].name for operation in made]
    unfold = names.index("stage3_1_project_in") + 1
    assert names[unfold : unfold + 3] == ["stage3_1_pixel_unshuffle", "stage3_1_reshape", "stage3_1_transpose"]
    fold = names.index("stage3_1_project_out_conv") - 3
    assert names[fold : fold + 3] == ["stage3_1_transpose_2", "stage3_1_reshape_2", "stage3_1_pixel_shuffle"]
    assert max(len(operation.outputs[0].type.tensorType.dimensions) for operation in made) == 4


@pytest.mark.parametrize("attention", ["packed", "split_einsum"])
def test_operations_are_named_after_their_modules(attention: str) -> None:
    names = [operation.outputs[0].name for operation in operations(program("xs", attention))]
    assert len(set(names)) == len(names)
    others = [name for name in names if not name.startswith(("stem_", "stage", "expand_"))]
    assert others[:2] == ["image__scaled__", "cast"]
    assert others[2:] == ["reduce_mean", "classifier", "softmax", "probabilities", "classLabel"]
    for name in ("stem_conv", "stage1_0_depthwise_activation", "stage4_1_layers_3_mlp_norm", "stage5_1_fusion_conv"):
        assert name in names
    qkv = names.index("stage3_1_layers_1_attention_qkv")
    assert names[qkv - 1] == "stage3_1_layers_1_attention_norm"


def test_equal_constants_are_one_and_have_short_names() -> None:
    (block,) = program("xxs", "split_einsum").get_spec().mlProgram.functions["main"].block_specializations.values()
    constants = [operation for operation in block.operations if operation.type == "const"]
    values = Counter(
        operation.attributes["val"].immediateValue.SerializeToString()
        + operation.attributes["val"].type.SerializeToString()
        for operation in constants
        if operation.attributes["val"].WhichOneof("value") == "immediateValue"
    )
    assert values.total() > 20
    # the image's scale keeps the constant coremltools gives it after all passes
    assert [value for value, count in values.items() if count > 1] == []
    names = [operation.outputs[0].name for operation in constants]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 4 for name in names if not name.startswith("image__scaled__"))
    read = {argument.name for op in block.operations for value in op.inputs.values() for argument in value.arguments}
    assert set(names) <= read  # none is left over


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
    contract = default_preprocessing("classification", (64, 64), "BGR")
    with pytest.raises(ConversionError, match="expected eval mode, got training mode"):
        build_mlprogram(model, "classification", contract, OutputOptions(), LABELS, "iOS16", "fp16", {})


def output_types(made: Any) -> dict[str, tuple[Any, ...]]:
    """Name, shape or size, and type of each output as the package declares it."""
    types: dict[str, tuple[Any, ...]] = {}
    for feature in made.get_spec().description.output:
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            types[feature.name] = ("image", image.height, image.width, image.ColorSpace.Name(image.colorSpace))
        else:
            array = feature.type.multiArrayType
            types[feature.name] = (ARRAY_TYPES[array.dataType], *array.shape)
    return types


@pytest.mark.parametrize(
    ("form", "expected", "last"),
    [
        (
            OutputOptions(),
            {"semanticPredictions": ("int32", 128, 160)},
            ["resize_bilinear", "reduce_argmax", "squeeze"],
        ),
        (
            OutputOptions(size="network"),
            {"semanticPredictions": ("int32", 8, 10)},
            ["conv", "reduce_argmax", "squeeze"],
        ),
        (OutputOptions("logits"), {"logits": ("float32", 1, 21, 128, 160)}, ["conv", "resize_bilinear", "cast"]),
        (OutputOptions("logits", "network", "float16"), {"logits": ("float16", 1, 21, 8, 10)}, ["relu", "conv"]),
        (OutputOptions("probabilities", "network"), {"probabilities": ("float32", 1, 21, 8, 10)}, ["softmax", "cast"]),
        (
            OutputOptions("image"),
            {"semanticPredictions": ("image", 128, 160, "GRAYSCALE")},
            ["resize_bilinear", "reduce_argmax", "cast"],
        ),
    ],
    ids=lambda value: f"{value.type} {value.size}" if isinstance(value, OutputOptions) else None,
)
def test_outputs_of_a_segmenter(form: OutputOptions, expected: dict[str, Any], last: list[str]) -> None:
    made = untrained_program("segmentation", form)
    assert output_types(made) == expected
    assert [operation.type for operation in operations(made)][-len(last) :] == last


def test_a_segmenters_head_has_no_resize_of_a_single_value_and_joins_no_more_than_four_branches() -> None:
    made = untrained_program("segmentation", OutputOptions(size="network"))
    head = [operation for operation in operations(made) if operation.outputs[0].name.startswith("head_")]
    counts = Counter(operation.type for operation in head)
    assert counts == {"conv": 4 + 1 + 2 + 1, "relu": 4 + 1 + 1, "concat": 1, "reduce_mean": 1, "add": 1}
    (concat,) = (operation for operation in head if operation.type == "concat")
    assert [d.constant.size for d in concat.outputs[0].type.tensorType.dimensions] == [1, 4 * 256, 8, 10]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_outputs_of_features(dtype: str) -> None:
    plain = untrained_program("features", OutputOptions(dtype=dtype))
    assert output_types(plain) == {"pooled": (dtype, 1, 320), "featureMap": (dtype, 1, 320, 4, 5)}
    made = untrained_program("features", OutputOptions(dtype=dtype, hidden_states=5))
    assert list(output_types(made)) == ["pooled", "featureMap", *(f"stage{number}" for number in range(1, 6))]
    assert output_types(made)["stage2"] == (dtype, 1, 24, 32, 40)
    casts = Counter(operation.type for operation in operations(made))["cast"]
    assert casts == (1 if dtype == "float16" else 8)  # of the image, and of each float32 output


def test_the_crop_is_cut_inside() -> None:
    made = untrained_program("features", OutputOptions(), include_crop=True)
    picture = made.get_spec().description.input[0].type.imageType
    assert (picture.height, picture.width) == (144, 176)
    rows, columns = (operation for operation in operations(made) if operation.type == "slice_by_index")
    assert list(attribute(made, rows, "begin").tensor.ints.values) == [0, 0, 8, 0]
    assert list(attribute(made, columns, "begin").tensor.ints.values) == [0, 0, 0, 8]
    assert [d.constant.size for d in columns.outputs[0].type.tensorType.dimensions] == [1, 3, 128, 160]


def test_functions_share_their_weights(tmp_path: Path) -> None:
    programs = {f"size_{size}": program("xs", "split_einsum", size, target="iOS18") for size in (256, 192, 288)}
    merged = merge_functions(programs, tmp_path)
    specification = merged.get_spec()
    assert specification.specificationVersion == 9
    assert specification.description.defaultFunctionName == "size_256"
    assert [function.name for function in specification.description.functions] == list(programs)
    for name, alone in programs.items():
        theirs, own = merged.get_spec().mlProgram.functions[name], alone.get_spec().mlProgram.functions["main"]
        (block,), (expected,) = theirs.block_specializations.values(), own.block_specializations.values()
        assert [op.outputs[0].name for op in block.operations if op.type != "const"] == [
            op.outputs[0].name for op in expected.operations if op.type != "const"
        ]
    sizes = [sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in sorted(tmp_path.iterdir())]
    assert sizes[0] < sizes[1] * 1.06  # merged.mlpackage before size_192.mlpackage: 3 % for each of two further sizes
