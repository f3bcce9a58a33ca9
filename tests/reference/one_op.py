"""The road of a test of one operation: coremltools' builder -> .mlpackage on disk -> the reference evaluator."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilevit_coreml._coremltools import ct, mb, quietly
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.features import from_program, to_program

Array = npt.NDArray[Any]
mil = ct.converters.mil.mil


def run_op(build: Callable[..., Any], inputs: dict[str, Array], tmp_path: Path, target: str = "iOS15") -> list[Array]:
    """What `build` makes of the inputs, without rounding: its outputs in order.

    `build` is called with the inputs as MIL variables by name, and returns one or a tuple of them. Arrays of
    integers go in as int32, those of bool as int32 cast to bool first, all others as float32 unless float16.
    Booleans and small integers come out as float32 or int32, which is all that Core ML hands over. Every value on
    the way has to be of the kind the program types it as, every output of the shape coremltools inferred.
    """
    evaluator = ReferenceEvaluator(save_op(build, inputs, tmp_path, target), precision="fp32")
    values = evaluator.values(to_program(evaluator.inputs, inputs), capture=True)
    for operation in evaluator.function.operations:
        for name, dtype in zip(operation.outputs, operation.output_dtypes, strict=True):
            kind = {"fp16": "f", "fp32": "f", "bool": "b"}.get(dtype, "i")
            assert values[name].numpy().dtype.kind == kind, f"{name}: typed {dtype}, computed as {values[name].dtype}"
    outputs = [  # a scalar as a scalar, though Core ML returns shape (1,)
        from_program(feature, values[name]).reshape(values[name].shape) for name, feature in evaluator.outputs.items()
    ]
    for output, feature in zip(outputs, evaluator.outputs.values(), strict=True):
        inferred = feature.shape or output.shape  # none is declared where it is left open
        assert output.shape == inferred, f"{feature.name}: inferred {inferred}, computed {output.shape}"
    return outputs


def assert_outputs(actual: list[Array], expected: Mapping[str, Any], rtol: float = 0.0, atol: float = 0.0) -> None:
    """Each output against the array or tensor of the combination it is labelled with; exact unless told."""
    for output, (label, value) in zip(actual, expected.items(), strict=True):
        wanted = np.asarray(value)
        assert output.shape == wanted.shape, f"{label}: expected shape {wanted.shape}, got {output.shape}"
        assert wanted.dtype.kind not in "iu" or output.dtype.kind == "i", f"{label}: expected integers"
        np.testing.assert_allclose(output, wanted, rtol=rtol, atol=atol, err_msg=label)


def save_op(build: Callable[..., Any], inputs: dict[str, Array], tmp_path: Path, target: str = "iOS15") -> Path:
    """The package `run_op` evaluates, exactly the operations of `build`: none of coremltools' passes has run."""
    opset = getattr(ct.target, target)
    placeholders = {name: mb.placeholder(array.shape, _input_type(array)) for name, array in inputs.items()}
    program = mil.Program()
    with mil.Function(placeholders, opset_version=opset) as function:
        variables = {
            name: mb.cast(x=variable, dtype="bool") if inputs[name].dtype == bool else variable
            for name, variable in function.inputs.items()
        }
        result = build(**variables)
        function.set_outputs(list(result) if isinstance(result, tuple | list) else [result])
    program.add_function("main", function)
    with quietly():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=opset,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    package = tmp_path / "one_op.mlpackage"
    model.save(str(package))
    return package


def _input_type(array: Array) -> Any:
    if array.dtype == np.float16:
        return mil.types.fp16
    return mil.types.fp32 if array.dtype.kind == "f" else mil.types.int32
