"""The programs coremltools makes of the model, read from the packages they are saved in."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.mil import build_mlprogram, count_operations
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.preprocessing import default_preprocessing

ARRAY_TYPES = {65568: "float32", 65552: "float16", 131104: "int32"}


@pytest.fixture
def package(shallow: None, converted: Callable[..., Conversion]) -> Callable[..., Path]:
    """Of a shallow network, packed attention and 128x128 pixels unless told otherwise."""

    def convert(**options: Any) -> Path:
        return converted("untrained", "xxs", **{"attention": "packed", "image_sizes": [(128, 128)], **options}).path

    return convert


def block_of(package: Path) -> Any:
    (block,) = ct.utils.load_spec(str(package)).mlProgram.functions["main"].block_specializations.values()
    return block


def operations(package: Path) -> list[Any]:
    return [operation for operation in block_of(package).operations if operation.type != "const"]


def types_in(package: Path) -> Counter[str]:
    return Counter(operation.type for operation in operations(package))


def test_packed_attention_has_the_fewest_operations_and_no_transpose(converted: Callable[..., Conversion]) -> None:
    made = converted("untrained", "xxs", attention="packed")
    counts = types_in(made.path)
    assert counts.total() == made.operations <= 215
    assert made.operations == count_operations(ct.models.MLModel(str(made.path), skip_model_load=True))
    assert counts["transpose"] == 0
    assert counts["layer_norm"] == 2 * 9 + 3
    assert counts["reduce_mean"] == 1  # the pooling: no norm is left in parts
    assert counts["space_to_batch"] == counts["batch_to_space"] == 3
    assert counts["batch_norm"] == 0


def test_split_einsum_attention_transposes_the_keys_only(untrained_package: Path) -> None:
    counts = types_in(untrained_package)
    assert counts["transpose"] <= 9
    assert counts["einsum"] == 9 * 4 * 2
    assert counts["layer_norm"] == 2 * 9 + 3
    assert counts["reduce_mean"] == 1
    assert counts["reshape"] == 2 * 3


@pytest.mark.parametrize("target", ["iOS16", pytest.param("iOS26", marks=pytest.mark.slow)])
def test_pixel_shuffle_takes_one_transpose_each_way(target: str, package: Callable[..., Path]) -> None:
    made = operations(package(target=target, unfold="pixel_shuffle"))
    counts, expected = Counter(operation.type for operation in made), types_in(package(target=target))
    assert counts - expected == {"pixel_unshuffle": 3, "pixel_shuffle": 3, "transpose": 6}
    assert expected - counts == {"space_to_batch": 3, "batch_to_space": 3}
    names = [operation.outputs[0].name for operation in made]
    unfold = names.index("stage3_1_project_in") + 1
    assert names[unfold : unfold + 3] == ["stage3_1_pixel_unshuffle", "stage3_1_reshape", "stage3_1_transpose"]
    fold = names.index("stage3_1_project_out_conv") - 3
    assert names[fold : fold + 3] == ["stage3_1_transpose_2", "stage3_1_reshape_2", "stage3_1_pixel_shuffle"]
    assert max(len(operation.outputs[0].type.tensorType.dimensions) for operation in made) == 4


@pytest.mark.parametrize("attention", ["packed", "split_einsum"])
def test_operations_are_named_after_their_modules(attention: str, converted: Callable[..., Conversion]) -> None:
    options = {"attention": "packed"} if attention == "packed" else {}  # the packages of the first two tests
    names = [operation.outputs[0].name for operation in operations(converted("untrained", "xxs", **options).path)]
    assert len(set(names)) == len(names)
    others = [name for name in names if not name.startswith(("stem_", "stage", "expand_"))]
    assert others[:2] == ["image__scaled__", "cast"]
    assert others[2:] == ["reduce_mean", "classifier", "softmax", "probabilities", "classLabel"]
    for name in ("stem_conv", "stage1_0_depthwise_activation", "stage4_1_layers_3_mlp_norm", "stage5_1_fusion_conv"):
        assert name in names
    qkv = names.index("stage3_1_layers_1_attention_qkv")
    assert names[qkv - 1] == "stage3_1_layers_1_attention_norm"


def test_equal_constants_are_one_and_have_short_names(untrained_package: Path) -> None:
    block = block_of(untrained_package)
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


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("iOS15", 6),
        pytest.param("iOS17", 8, marks=pytest.mark.slow),
        pytest.param("iOS18", 9, marks=pytest.mark.slow),
        ("iOS26", 10),
    ],
)
def test_every_target_has_the_same_operations(target: str, version: int, package: Callable[..., Path]) -> None:
    made = package(target=target)
    assert types_in(made) == types_in(package(target="iOS16"))
    assert ct.utils.load_spec(str(made)).specificationVersion == version


def test_single_precision_has_no_half(package: Callable[..., Path]) -> None:
    assert types_in(package(precision="fp32"))["cast"] == 0
    assert types_in(package(target="iOS16"))["cast"] == 2


def attribute(package: Path, operation: Any, name: str) -> Any:
    """Value of a constant input."""
    source = operation.inputs[name].arguments[0].name
    (constant,) = (op for op in block_of(package).operations if op.outputs[0].name == source)
    return constant.attributes["val"].immediateValue


def test_a_map_that_does_not_divide_is_resized_to_exact_sizes_with_half_pixel_centres(
    package: Callable[..., Path],
) -> None:
    made = package(image_sizes=[(288, 288)])  # 9x9 in stage 5
    up, down = (op for op in operations(made) if "resize" in op.type or "upsample" in op.type)
    for operation, side in ((up, 10), (down, 9)):
        assert operation.type == "resize_bilinear"
        assert attribute(made, operation, "sampling_mode").tensor.strings.values[:] == ["UNALIGN_CORNERS"]
        for name in ("target_size_height", "target_size_width"):
            assert attribute(made, operation, name).tensor.ints.values[:] == [side]


def test_training_mode_is_refused() -> None:
    model = ImageClassifier(dataclasses.replace(VARIANTS["xxs"], image_size=64)).train()
    preprocessing = default_preprocessing("classification", (64, 64), "BGR")
    labels = tuple(f"class {index}" for index in range(1000))
    with pytest.raises(ConversionError, match="expected eval mode, got training mode"):
        build_mlprogram(model, "classification", preprocessing, OutputOptions(), labels, "iOS16", "fp16", {})


def output_types(package: Path) -> dict[str, tuple[Any, ...]]:
    """Name, shape or size, and type of each output as the package declares it."""
    types: dict[str, tuple[Any, ...]] = {}
    for feature in ct.utils.load_spec(str(package)).description.output:
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            types[feature.name] = ("image", image.height, image.width, image.ColorSpace.Name(image.colorSpace))
        else:
            array = feature.type.multiArrayType
            types[feature.name] = (ARRAY_TYPES[array.dataType], *array.shape)
    return types


@pytest.mark.parametrize(
    ("output", "expected", "last"),
    [
        ("labels image", ("int32", 96, 128), ["resize_bilinear", "reduce_argmax", "squeeze"]),
        ("labels network", ("int32", 6, 8), ["conv", "reduce_argmax", "squeeze"]),
        ("logits image", ("float32", 1, 21, 96, 128), ["conv", "resize_bilinear", "cast"]),
        ("logits network float16", ("float16", 1, 21, 6, 8), ["relu", "conv"]),
        ("probabilities image", ("float32", 1, 21, 96, 128), ["resize_bilinear", "softmax", "cast"]),
        ("image network", ("image", 6, 8, "GRAYSCALE"), ["conv", "reduce_argmax", "cast"]),
    ],
)
def test_outputs_of_a_segmenter(
    output: str, expected: tuple[Any, ...], last: list[str], package: Callable[..., Path]
) -> None:
    names = {"labels": "semanticPredictions", "image": "semanticPredictions"}
    form = dict(zip(("output_type", "output_size", "output_dtype"), output.split(), strict=False))
    made = package(task="segmentation", image_sizes=[(96, 128)], **form)
    assert output_types(made) == {names.get(form["output_type"], form["output_type"]): expected}
    assert [operation.type for operation in operations(made)][-len(last) :] == last


def test_a_segmenters_head_has_no_resize_of_a_single_value_and_joins_no_more_than_four_branches(
    package: Callable[..., Path],
) -> None:
    made = package(task="segmentation", image_sizes=[(96, 128)], output_type="labels", output_size="network")
    head = [operation for operation in operations(made) if operation.outputs[0].name.startswith("head_")]
    counts = Counter(operation.type for operation in head)
    assert counts == {"conv": 4 + 1 + 2 + 1, "relu": 4 + 1 + 1, "concat": 1, "reduce_mean": 1, "add": 1}
    (concat,) = (operation for operation in head if operation.type == "concat")
    assert [d.constant.size for d in concat.outputs[0].type.tensorType.dimensions] == [1, 4 * 256, 6, 8]


@pytest.mark.parametrize(("dtype", "stages"), [("float32", 0), ("float32", 5), ("float16", 5)])
def test_outputs_of_features(dtype: str, stages: int, package: Callable[..., Path]) -> None:
    made = package(task="features", image_sizes=[(96, 128)], output_dtype=dtype, hidden_states=stages > 0)
    types = output_types(made)
    assert list(types) == ["pooled", "featureMap", *(f"stage{number + 1}" for number in range(stages))]
    assert (types["pooled"], types["featureMap"]) == ((dtype, 1, 320), (dtype, 1, 320, 3, 4))
    assert types.get("stage2") in (None, (dtype, 1, 24, 24, 32))
    casts = 1 if dtype == "float16" else 3 + stages  # of the image, and of each float32 output
    assert types_in(made)["cast"] == casts


def test_the_crop_is_cut_inside(package: Callable[..., Path]) -> None:
    made = package(task="features", image_sizes=[(128, 160)], include_crop=True)
    picture = ct.utils.load_spec(str(made)).description.input[0].type.imageType
    assert (picture.height, picture.width) == (144, 176)
    rows, columns = (operation for operation in operations(made) if operation.type == "slice_by_index")
    assert list(attribute(made, rows, "begin").tensor.ints.values) == [0, 0, 8, 0]
    assert list(attribute(made, columns, "begin").tensor.ints.values) == [0, 0, 0, 8]
    assert [d.constant.size for d in columns.outputs[0].type.tensorType.dimensions] == [1, 3, 128, 160]
