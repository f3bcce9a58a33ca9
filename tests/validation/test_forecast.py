"""Each documented rule broken alone by a small program, and what is listed of this project's own packages."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobilevit_coreml._coremltools import ct, mb, quietly
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.errors import PackageError
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.operation_names import module_of
from mobilevit_coreml.reference.reader import read_package
from mobilevit_coreml.validation import forecast as rules
from mobilevit_coreml.validation.forecast import RULES, Finding, forecast
from mobilevit_coreml.validation.original import load_original
from tests.reference.one_op import save_op

Array = npt.NDArray[Any]


def half(*shape: int) -> Array:
    return np.ones(shape, np.float16)


def findings(
    build: Callable[..., Any], path: Path, target: str = "iOS16", **inputs: Array
) -> list[tuple[str, str, str]]:
    """Rule, MIL type and detail of what is found in a program of these inputs."""
    found = forecast(save_op(build, inputs, path, target), ())
    return [(finding.rule, finding.type, finding.detail) for finding in found]


def palettized(x: Any, strides: int) -> Any:
    """A convolution of 4 x 4 x 1 x 1 weights, 1 bit each."""
    weight = mb.constexpr_lut_to_dense(
        indices=np.full(2, 0b0110, np.uint8), lut=half(2), shape=np.array([4, 4, 1, 1], np.uint32)
    )
    return mb.conv(x=x, weight=weight, strides=[strides, strides])


def kept(x: Any) -> Any:
    """A bit of everything, in the form that is documented to suit the Neural Engine."""
    x = mb.conv(x=x, weight=half(4, 4, 3, 3), strides=[2, 2], pad_type="same", dilations=[1, 1])
    x = mb.conv(x=x, weight=half(4, 4, 3, 3), pad_type="same", dilations=[3, 3])
    x = palettized(mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"), 2)
    x = mb.softmax(x=x, axis=1)
    x = mb.expand_dims(x=mb.add(x=x, y=np.float16(-1e4)), axes=[0])
    return mb.squeeze(x=x, axes=[0])


def test_a_program_that_keeps_all_rules(tmp_path: Path) -> None:
    assert findings(kept, tmp_path, x=half(1, 4, 256, 256)) == []


BROKEN: dict[str, tuple[Callable[..., Any], tuple[int, ...], str, str]] = {
    "dtype": (
        lambda x: mb.relu(x=mb.cast(x=mb.cast(x=mb.relu(x=x), dtype="fp32"), dtype="fp16")),
        (1, 4, 32),
        "cast",
        "float32 output 1x4x32",
    ),
    "dtype: int32": (
        lambda x: mb.reduce_argmax(x=x, axis=1),
        (1, 4, 32, 32),
        "reduce_argmax",
        "int32 output 1x32x32",
    ),
    "infinity": (
        lambda x: mb.add(x=x, y=np.array([0, -np.inf] * 16, np.float16)),
        (1, 4, 1, 32),
        "add",
        "-inf, 16 times among its constants",
    ),
    "infinity: in a list": (
        lambda x: mb.concat(values=(x, np.full((1, 4, 1, 32), -np.inf, np.float16)), axis=1),
        (1, 4, 1, 32),
        "concat",
        "-inf, 128 times among its constants",
    ),
    "linear": (lambda x: mb.linear(x=x, weight=half(8, 32)), (1, 32), "linear", "a matrix of 8x32, no convolution"),
    "linear: matmul": (
        lambda x: mb.matmul(x=x, y=half(32, 64)),
        (1, 4, 32),
        "matmul",
        "a matrix of 32x64, no convolution",
    ),
    "heads": (lambda x: mb.matmul(x=x, y=x, transpose_y=True), (1, 4, 32, 8), "matmul", "4 heads at once, 1x4x32x32"),
    "stride": (
        lambda x: mb.conv(x=x, weight=half(4, 4, 5, 5), strides=[5, 5]),
        (1, 4, 160, 160),
        "conv",
        "stride 5x5, not of 2s and 3s",
    ),
    "stride: unequal": (
        lambda x: mb.conv(x=x, weight=half(4, 4, 9, 9), strides=[3, 4]),
        (1, 4, 160, 160),
        "conv",
        "stride 3x4, unequal",
    ),
    "stride: palettized": (
        lambda x: palettized(x, 4),
        (1, 4, 160, 160),
        "conv",
        "stride 4x4 with palettized weights",
    ),
    "stride: pooling": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[3, 3], pad_type="valid"),
        (1, 4, 96, 96),
        "avg_pool",
        "pooling stride 3x3",
    ),
    "dilation": (
        lambda x: mb.conv(x=x, weight=half(4, 4, 3, 3), pad_type="same", dilations=[12, 12]),
        (1, 4, 64, 64),
        "conv",
        "dilation 12x12",
    ),
    "layout: transpose": (
        lambda x: mb.transpose(x=x, perm=[0, 1, 3, 2]),
        (1, 4, 64, 32),
        "transpose",
        "axes in order (0, 1, 3, 2): the innermost changes",
    ),
    "layout: outer axes": (
        lambda x: mb.transpose(x=x, perm=[0, 2, 1, -1]),
        (1, 4, 64, 32),
        "transpose",
        "axes in order (0, 2, 1, -1): the innermost stays",
    ),
    "layout: reshape": (
        lambda x: mb.reshape(x=x, shape=[1, 4, 1, 1024]),
        (1, 4, 32, 32),
        "reshape",
        "1x4x32x32 to 1x4x1x1024: the innermost axis changes",
    ),
    "layout: squeeze": (
        lambda x: mb.squeeze(x=x, axes=[2, 3]),
        (1, 64, 1, 1),
        "squeeze",
        "1x64x1x1 to 1x64: the innermost axis changes",
    ),
    "softmax axis": (lambda x: mb.softmax(x=x, axis=-1), (1, 4, 32, 64), "softmax", "axis 3 of 1x4x32x64"),
    "softmax axis: rows": (lambda x: mb.softmax(x=x, axis=2), (1, 4, 32, 64), "softmax", "axis 2 of 1x4x32x64"),
    "last axis": (
        lambda x: mb.relu(x=x),
        (1, 320, 8, 8),
        "relu",
        "innermost axis of 8 may be padded to 32: 4x the memory, 160 KiB",
    ),
    "last axis: 1": (
        lambda x: mb.relu(x=x),
        (1, 4096, 1, 1),
        "relu",
        "innermost axis of 1 may be padded to 32: 32x the memory, 256 KiB",
    ),
    "last axis: split": (  # no part is that large alone
        lambda x: mb.split(x=x, num_splits=4, axis=3),
        (1, 1024, 1, 64),
        "split",
        "innermost axis of 16 may be padded to 32: 2x the memory, 256 KiB",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_broken_alone(case: str, tmp_path: Path) -> None:
    build, shape, kind, detail = BROKEN[case]
    assert findings(build, tmp_path, x=half(*shape)) == [(case.partition(":")[0], kind, detail)]


def test_just_what_may_be(tmp_path: Path) -> None:
    """The nearest neighbours of some of the cases above."""

    def build(x: Any, classes: Any, narrow: Any) -> Any:
        x = mb.conv(x=x, weight=half(4, 4, 5, 5), strides=[6, 6])
        x = mb.max_pool(x=x, kernel_sizes=[4, 4], strides=[4, 4], pad_type="valid")
        return x, mb.softmax(x=classes, axis=1), mb.relu(x=narrow)

    narrow = half(1, 160, 8, 8)  # 60 KiB of padding
    assert findings(build, tmp_path, x=half(1, 4, 768, 768), classes=half(1, 64), narrow=narrow) == []


def test_a_fused_attention(tmp_path: Path) -> None:
    found = findings(
        lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x), tmp_path, "iOS18", x=half(1, 4, 32, 32)
    )
    assert found == [("heads", "scaled_dot_product_attention", "attention as one operation, 1x4x32x32")]


def test_too_many_dimensions(tmp_path: Path) -> None:
    """Of an input: results of more than 5 are refused by coremltools' own conversion."""
    six = {"x": half(1, 1, 1, 1, 4, 32)}
    found = forecast(save_op(lambda x: mb.squeeze(x=x, axes=[0]), six, tmp_path, "iOS16"), ())
    assert found == (Finding("rank", "", "input", "", "input x: 6 dimensions, 1x1x1x1x4x32"),)
    assert rules.rank([(1, 2), (1, 2, 3, 4, 5, 6)]) == "6 dimensions, 1x2x3x4x5x6"
    assert rules.rank([(1, 2, 3, 4, 5)]) == ""


def test_the_ends_of_a_program_are_no_middle(tmp_path: Path) -> None:
    """Scaling and casts at the ends of a program, and the same arithmetic in between."""

    def build(x: Any) -> Any:
        x = mb.cast(x=mb.mul(x=x, y=np.float32(1 / 255), name="scaled"), dtype="fp16")
        x = mb.mul(x=mb.cast(x=mb.relu(x=x), dtype="fp32", name="up"), y=np.float32(2), name="middle")
        return mb.cast(x=mb.relu(x=mb.cast(x=x, dtype="fp16")), dtype="fp32", name="out")

    found = forecast(save_op(build, {"x": np.ones((1, 3, 32, 32), np.float32)}, tmp_path, "iOS16"), ())
    assert [(one.rule, one.operation) for one in found] == [
        ("dtype", "up"),
        ("dtype", "middle"),
        ("boundary", "scaled"),
        ("boundary", "out"),
    ]


def test_what_may_not_be_there_costs_nothing_there(tmp_path: Path) -> None:
    inputs = np.ones((1, 4, 32, 64), np.float32)
    assert [rule for rule, _, _ in findings(lambda x: mb.softmax(x=x, axis=3), tmp_path, x=inputs)] == ["dtype"]


@pytest.mark.parametrize(
    ("shape", "detail"),
    [
        (
            ct.Shape((1, 4, ct.RangeDim(64, 128, default=96), 64)),
            "input x: sizes in a range, 1..1 by 4..4 by 64..128 by 64..64; 1x4x96x64 by default",
        ),
        (ct.EnumeratedShapes([(1, 4, 64, 64), (1, 4, 96, 64)]), "input x: 2 sizes, 1x4x64x64, 1x4x96x64"),
    ],
)
def test_flexible_inputs_are_said_once(shape: Any, detail: str, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, dilation=6), torch.nn.ReLU()).eval()
    path = tmp_path / "flexible.mlpackage"
    with quietly():
        ct.convert(
            torch.jit.trace(layers, torch.zeros(1, 4, 64, 64)),
            inputs=[ct.TensorType("x", shape, dtype=np.float16)],
            outputs=[ct.TensorType("y", dtype=np.float16)],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        ).save(str(path))
    first, second = forecast(path, ())
    assert first == Finding("dynamic shape", "", "input", "", detail)
    assert (second.rule, second.detail) == ("dilation", "dilation 6x6")


def test_a_shape_that_depends_on_values(tmp_path: Path) -> None:
    found = findings(lambda x: mb.non_zero(x=x), tmp_path, x=half(4, 32))
    assert [entry[0] for entry in found] == ["dtype", "dynamic shape"]
    assert found[1] == ("dynamic shape", "non_zero", "output ?x2")


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("stage1_1", "backbone.stage1.1"),
        ("stage1_1_conv", "backbone.stage1.1.conv"),
        ("stage1_1_conv_2", "backbone.stage1.1.conv"),
        ("stage1_1_add_2", "backbone.stage1.1"),
        ("stage1_10", "backbone.stage1.10"),
        ("stage1_10_add", "backbone.stage1.10"),
        ("stage1_100_add", "backbone.stage1"),
        ("stage10", ""),
        ("classifier", "classifier"),
        ("classifier_cast_fp16", "classifier"),
        ("reclassifier", ""),
        ("softmax", ""),
    ],
)
def test_the_module_of_an_operation(operation: str, path: str) -> None:
    modules = ["", "backbone", "backbone.stage1", "backbone.stage1.1", "backbone.stage1.1.conv", "backbone.stage1.10"]
    assert module_of(operation, [*modules, "classifier"]) == path
    assert module_of(operation, ["classifier", *reversed(modules)]) == path


def test_a_real_package(untrained_package: Path, untrained_model: ImageClassifier) -> None:
    modules = dict(untrained_model.named_modules())
    found = forecast(untrained_package, modules)
    by_operation = {finding.operation: finding for finding in found}
    assert by_operation["classifier"] == Finding(
        "linear", "classifier", "linear", "classifier", "a matrix of 1000x320, no convolution"
    )
    key = by_operation["stage3_1_layers_0_attention_transpose"]
    assert (key.rule, key.module) == ("layout", "backbone.stage3.1.layers.0.attention")
    assert by_operation["expand_conv"].detail == "innermost axis of 8 may be padded to 32: 4x the memory, 160 KiB"
    assert by_operation["probabilities"].rule == "boundary"
    assert Counter(finding.rule for finding in found) == {"linear": 1, "layout": 15, "last axis": 13, "boundary": 2}
    assert [finding for finding in found if not finding.module] == list(found[-2:])
    assert all(finding.module in modules for finding in found[:-2])
    with pytest.raises(PackageError, match="expected a function called none, got main"):
        forecast(untrained_package, modules, "none")


@pytest.mark.usefixtures("shallow")
def test_a_package_in_single_precision(converted: Callable[..., Conversion]) -> None:
    path = converted("untrained", "xxs", precision="fp32", image_sizes=((64, 64),), attention="packed").path
    operations = read_package(path).function.operations
    found = forecast(path, ())
    assert [finding.operation for finding in found if finding.rule == "boundary"] == ["image__scaled__"]
    assert Counter(finding.rule for finding in found) == {"dtype": len(operations) - 2, "boundary": 1}  # and classify


def test_packed_attention_keeps_fewer_rules(classifier: Path) -> None:
    (model,) = load_original(read_record(classifier)).models.values()
    modules = dict(model.named_modules())
    layers = {name for name in modules if name.endswith(".attention")}
    assert len(layers) == 3
    found = forecast(classifier, modules)
    assert {
        rule: {finding.module for finding in found if finding.rule == rule} for rule in ("heads", "softmax axis")
    } == {
        "heads": layers,
        "softmax axis": layers,
    }


def test_rules_are_one_sentence_with_a_source() -> None:
    sources = {"article", "ml-ane-transformers", "coreai-models", "coremltools guide", "forum"}
    assert rules.__doc__ is not None
    assert all(f"- {source}: " in rules.__doc__ for source in sources)
    assert {case.partition(":")[0] for case in BROKEN} | {"rank", "dynamic shape", "boundary"} == set(RULES)
    for rule, text in RULES.items():
        assert "documented" in text or "may " in text, rule
        assert rule == "boundary" or any(source in text for source in sources), rule


def test_what_decodes_a_constant(tmp_path: Path) -> None:
    package = read_package(save_op(lambda x: palettized(x, 1), {"x": half(1, 4, 32, 32)}, tmp_path, "iOS16"))
    assert list(package.function.encodings.values()) == [("constexpr_lut_to_dense",)]
    assert package.function.input_shapes == {"x": (1, 4, 32, 32)}
    assert package.function.operations[0].output_shapes == ((1, 4, 32, 32),)


def test_a_table_that_is_compressed_itself(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        table = mb.constexpr_blockwise_shift_scale(data=np.zeros((1, 1, 1, 1, 256, 1), np.int8), scale=half(*[1] * 6))
        weight = mb.constexpr_lut_to_dense(indices=np.zeros((4, 4, 1, 1), np.uint8), lut=table)
        return mb.conv(x=x, weight=weight, strides=[4, 4])

    package = save_op(build, {"x": half(1, 4, 160, 160)}, tmp_path, "iOS18")
    decoders = ("constexpr_blockwise_shift_scale", "constexpr_lut_to_dense")
    assert list(read_package(package).function.encodings.values()) == [decoders]
    assert [finding.detail for finding in forecast(package, ())] == ["stride 4x4 with palettized weights"]
