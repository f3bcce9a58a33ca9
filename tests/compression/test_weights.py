"""Encoded weights in saved packages, as the evaluator and coremltools read them."""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_coreml._coremltools import types
from mobilevit_coreml.compression.calibrate import layers_of
from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.plan import Plan, apply_plan, uniform_plan
from mobilevit_coreml.compression.quantize import Encoded, encode
from mobilevit_coreml.mil import build_mlprogram
from mobilevit_coreml.operation_names import operation_name
from mobilevit_coreml.package.files import save
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.preprocessing import default_preprocessing
from mobilevit_coreml.progress import silent
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.reader import Ref, read_package
from tests.compression.packages import (
    FORMATS,
    FORMATS_BY_TARGET,
    SHAPES,
    layer_weight,
    network,
    two_layers,
    weights_of_coremltools,
)
from tests.peers import snr


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


def check(source: Any, format: Format, target: str, channels: int) -> None:
    """The operation that decodes a weight: its type, and how its parts are stored."""
    modern = target == "iOS18"
    integers = "constexpr_blockwise_shift_scale" if modern else "constexpr_affine_dequantize"
    assert (
        source.op_type
        == {PALETTE: "constexpr_lut_to_dense", SPARSE: "constexpr_sparse_to_dense", INTEGER: integers}[format.kind]
    )
    if format.kind == PALETTE:
        tables = channels // (format.group_size or channels)
        assert source.lut.val.size == tables * 2**format.bits
        if modern:
            assert source.lut.shape[:1] == (tables,)
            assert types.builtin_to_string(source.indices.dtype) == f"uint{format.bits}"
        else:
            assert source.indices.val.size == math.ceil(int(source.shape.val.prod()) * format.bits / 8)
    elif format.kind == INTEGER:
        assert source.scale.val.size == channels
        data = source.data if modern else source.quantized_data
        assert types.builtin_to_string(data.dtype) == f"int{format.bits}"
    else:
        whole = source.mask.val.size if modern else int(source.shape.val.prod())
        assert source.nonzero_data.val.size == whole - round(whole * format.zeros)


@pytest.mark.parametrize(("format", "target"), FORMATS_BY_TARGET, ids=str)
def test_a_package_decodes_to_what_was_encoded(format: Format, target: str, tmp_path: Path) -> None:
    encodings = {name: encode(layer_weight(name), format, torch.ones(shape), None) for name, shape in SHAPES.items()}
    package = two_layers(encodings, target, tmp_path / "two.mlpackage")
    read, theirs = weights_of_the_evaluator(package), weights_of_coremltools(package)
    assert read.keys() == theirs.keys() == SHAPES.keys()
    for name, encoded in encodings.items():
        values, source = theirs[name]
        expected = exact(encoded, SHAPES[name])
        assert values.dtype == np.float16
        np.testing.assert_array_equal(read[name], expected)
        np.testing.assert_array_equal(values.astype(np.float32), expected)
        check(source, format, target, SHAPES[name][0])


@cache
def mixed(target: str) -> Plan:
    """Of the network, each layer in the next of a target's formats: one conversion meets them all."""
    model = network()
    plans = [uniform_plan(format, model, "fp16", None, 0, silent) for format in FORMATS if format.target <= target]
    paths = list(layers_of(model)[0])
    assert all(list(plan.encoded) == paths for plan in plans)
    encoded = {path: plans[number % len(plans)].encoded[path] for number, path in enumerate(paths)}
    return dataclasses.replace(plans[0], encoded=encoded)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@cache
def network_package(target: str, precision: str, directory: Path) -> Path:
    """With the weights of `mixed`."""
    package = directory / f"{target}_{precision}.mlpackage"
    preprocessing = default_preprocessing("features", (64, 64), "BGR")
    encodings = mixed(target).encoded
    save(
        build_mlprogram(network(), "features", preprocessing, OutputOptions(), (), target, precision, encodings),
        package,
    )
    return package


@pytest.mark.parametrize(("target", "precision"), [("iOS16", "fp16"), ("iOS18", "fp16"), ("iOS18", "fp32")])
def test_every_layer_of_a_network_decodes_to_what_was_encoded(target: str, precision: str, directory: Path) -> None:
    package = network_package(target, precision, directory)
    read, theirs = weights_of_the_evaluator(package), weights_of_coremltools(package)
    names = {operation_name(path): encoded for path, encoded in mixed(target).encoded.items()}
    assert len(names) == len(layers_of(network())[0])
    assert names.keys() <= read.keys() == theirs.keys()
    for name, encoded in names.items():
        values, source = theirs[name]
        expected = exact(encoded, values.shape) if precision == "fp16" else encoded.decode().reshape(values.shape)
        assert values.dtype == {"fp16": np.float16, "fp32": np.float32}[precision]
        np.testing.assert_array_equal(read[name], expected)
        np.testing.assert_array_equal(values.astype(np.float32), expected)
        check(source, encoded.format, target, len(values))
    left = [source.op_type for name, (_, source) in theirs.items() if name not in names]
    assert set(left) == {"const"}
    assert len(left) == len(layers_of(network())[1])


def test_a_network_computes_with_the_weights_it_was_given(directory: Path) -> None:
    evaluator = ReferenceEvaluator(network_package("iOS18", "fp32", directory), precision="fp32")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    outputs = evaluator.run({"image": Image.fromarray(picture)})
    pixels = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255  # BGR
    with torch.no_grad():
        expected = apply_plan(mixed("iOS18"), network())(pixels)
        whole = network()(pixels)
    assert snr(expected.feature_map, torch.from_numpy(outputs["featureMap"])) > 80
    assert snr(whole.feature_map, expected.feature_map) < 40  # the difference is there to be seen


@pytest.mark.parametrize(("task", "attention"), [("classification", "split_einsum"), ("segmentation", "packed")])
def test_every_layer_of_the_other_tasks_finds_its_operation(task: str, attention: str, tmp_path: Path) -> None:
    model = network(task, attention)
    encodings = uniform_plan(Format(INTEGER, 8), model, "fp16", None, 0, silent).encoded
    preprocessing = default_preprocessing(task, (64, 64), "BGR")
    labels = [f"class {index}" for index in range(model.config.num_labels)]
    package = tmp_path / "network.mlpackage"
    save(build_mlprogram(model, task, preprocessing, OutputOptions(), labels, "iOS16", "fp16", encodings), package)
    theirs = weights_of_coremltools(package)
    encoded = {name for name, (_, source) in theirs.items() if source.op_type == "constexpr_affine_dequantize"}
    assert encoded == {operation_name(path) for path in layers_of(model)[0]}
    assert len(theirs) == len(encoded) + len(layers_of(model)[1])


def test_a_weight_without_an_operation_is_an_error(tmp_path: Path) -> None:
    encoded = encode(layer_weight("linear"), Format(PALETTE, 4), torch.ones(SHAPES["linear"]), None)
    with pytest.raises(ValueError, match=r"^no operation for the weights of absent_cast_fp16$"):
        two_layers({"linear": encoded, "absent": encoded}, "iOS16", tmp_path / "two.mlpackage")
