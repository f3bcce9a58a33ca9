"""Encoded weights in saved packages, as the evaluator and coremltools read them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilevit_coreml._coremltools import types
from mobilevit_coreml.compression.calibration import layers_of
from mobilevit_coreml.compression.encoded import Encoded
from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.plan import uniform_plan
from mobilevit_coreml.compression.rounding import encode
from mobilevit_coreml.interface import OutputForm
from mobilevit_coreml.mil import program_of
from mobilevit_coreml.mil.passes import operation_name
from mobilevit_coreml.package import save
from mobilevit_coreml.preprocessing import default_preprocessing
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.program import Ref, read_package
from tests.compression.packages import (
    FORMATS,
    FORMS,
    SHAPES,
    layer_weight,
    network,
    no_bar,
    two_layers,
    weights_of_coremltools,
)


def weights_of_the_evaluator(package: Path) -> dict[str, Any]:
    """The weight of each operation that has one."""
    function = read_package(package).function
    found = {}
    for operation in function.operations:
        if operation.type in ("conv", "linear"):
            reference = operation.inputs["weight"]
            assert isinstance(reference, Ref)
            found[operation.name.removesuffix("_cast_fp16")] = function.constants[reference.name].numpy()
    return found


def exact(encoded: Encoded, shape: tuple[int, ...]) -> Any:
    """What Core ML has of it: the product of an integer and its scale is rounded once more."""
    return encoded.decode().reshape(shape).astype(np.float16).astype(np.float32)


def check(source: Any, form: Format, target: str, channels: int) -> None:
    """The operation that decodes a weight: its type, and how its parts are stored."""
    modern = target == "iOS18"
    integers = "constexpr_blockwise_shift_scale" if modern else "constexpr_affine_dequantize"
    assert (
        source.op_type
        == {
            PALETTE: "constexpr_lut_to_dense",
            SPARSE: "constexpr_sparse_to_dense",
            INTEGER: integers,
        }[form.kind]
    )
    if form.kind == PALETTE:
        tables = channels // (form.group_size or channels)
        assert source.lut.val.size == tables * 2**form.bits
        if modern:
            assert source.lut.shape[:1] == (tables,)
            assert types.builtin_to_string(source.indices.dtype) == f"uint{form.bits}"
        else:
            assert source.indices.val.size == math.ceil(int(source.shape.val.prod()) * form.bits / 8)
    elif form.kind == INTEGER:
        assert source.scale.val.size == channels
        data = source.data if modern else source.quantized_data
        assert types.builtin_to_string(data.dtype) == f"int{form.bits}"
    else:
        whole = source.mask.val.size if modern else int(source.shape.val.prod())
        assert source.nonzero_data.val.size == whole - round(whole * form.zeros)


@pytest.mark.parametrize(("form", "target"), FORMS, ids=str)
def test_a_package_decodes_to_what_was_encoded(form: Format, target: str, tmp_path: Path) -> None:
    encodings = {name: encode(layer_weight(name), form, torch.ones(shape), None) for name, shape in SHAPES.items()}
    package = two_layers(encodings, target, tmp_path / "two.mlpackage")
    read, theirs = weights_of_the_evaluator(package), weights_of_coremltools(package)
    assert read.keys() == theirs.keys() == SHAPES.keys()
    for name, encoded in encodings.items():
        values, source = theirs[name]
        expected = exact(encoded, SHAPES[name])
        assert values.dtype == np.float16
        np.testing.assert_array_equal(read[name], expected)
        np.testing.assert_array_equal(values.astype(np.float32), expected)
        check(source, form, target, SHAPES[name][0])


def mixed(formats: tuple[Format, ...]) -> dict[str, Encoded]:
    """Encodings of the network, each layer's in the next format: one conversion meets them all."""
    model = network()
    plans = [uniform_plan(form, model, None, 0, no_bar) for form in formats]
    assert all(plan.encoded.keys() == layers_of(model)[0].keys() for plan in plans)
    return {path: plans[number % len(plans)].encoded[path] for number, path in enumerate(layers_of(model)[0])}


def saved(encodings: Mapping[str, Encoded], target: str, precision: str, package: Path) -> Path:
    contract = default_preprocessing("features", (64, 64), "BGR")
    save(program_of(network(), "features", contract, OutputForm(), (), target, precision, encodings), package)
    return package


@pytest.mark.parametrize(("target", "precision"), [("iOS16", "fp16"), ("iOS18", "fp16"), ("iOS18", "fp32")])
def test_every_layer_of_a_network_decodes_to_what_was_encoded(target: str, precision: str, tmp_path: Path) -> None:
    formats = tuple(form for form in FORMATS if form.target <= target)
    encodings = mixed(formats)
    package = saved(encodings, target, precision, tmp_path / "network.mlpackage")
    read, theirs = weights_of_the_evaluator(package), weights_of_coremltools(package)
    names = {operation_name(path): encoded for path, encoded in encodings.items()}
    assert len(names) == len(encodings)
    assert names.keys() <= read.keys() == theirs.keys()
    for name, encoded in names.items():
        values, source = theirs[name]
        expected = exact(encoded, read[name].shape) if precision == "fp16" else encoded.decode().reshape(values.shape)
        assert values.dtype == {"fp16": np.float16, "fp32": np.float32}[precision]
        np.testing.assert_array_equal(read[name], expected)
        np.testing.assert_array_equal(values.astype(np.float32), expected)
        check(source, encoded.format, target, len(values))
    left = [source.op_type for name, (_, source) in theirs.items() if name not in names]
    assert set(left) == {"const"}
    assert len(left) == len(layers_of(network())[1])


def test_a_network_runs_with_the_weights_it_was_given(tmp_path: Path) -> None:
    encodings = mixed((Format(PALETTE, 6), Format(INTEGER, 8), Format(PALETTE, 8)))
    package = saved(encodings, "iOS16", "fp32", tmp_path / "network.mlpackage")
    operations = ReferenceEvaluator(package).function.operations
    assert not any(operation.type.startswith("constexpr") for operation in operations)  # decoded when it is read
    whole = saved({}, "iOS16", "fp32", tmp_path / "whole.mlpackage")
    assert [operation.type for operation in operations] == [
        operation.type for operation in ReferenceEvaluator(whole).function.operations
    ]


def test_a_weight_without_an_operation_is_an_error(tmp_path: Path) -> None:
    encoded = encode(layer_weight("linear"), Format(PALETTE, 4), torch.ones(SHAPES["linear"]), None)
    with pytest.raises(ValueError, match=r"^no operation for the weights of absent_cast_fp16$"):
        two_layers({"linear": encoded, "absent": encoded}, "iOS16", tmp_path / "two.mlpackage")
