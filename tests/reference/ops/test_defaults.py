"""Parameters that are not given: coremltools writes all of them out, other writers may leave out what is optional."""

from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_coreml._coremltools import ct, mb
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.reader import MODEL_DIRECTORY
from tests.reference.one_op import Array, assert_outputs, save_op


def values(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# Small ones make the epsilons matter.
X, SMALL = values(1, 2, 4, 5), np.array([0, 1e-7, 1e-5, 1e-3], np.float32)


def build(x: Any, small: Any) -> dict[str, Any]:
    """Of each operation the shortest form; layer_norm's default is coremltools' to say and not to build."""
    tiny = np.full(2, 1e-6, np.float32)
    pool = {"x": x, "kernel_sizes": [2, 3], "pad_type": "valid"}
    reductions = (
        mb.reduce_l1_norm,
        mb.reduce_l2_norm,
        mb.reduce_log_sum,
        mb.reduce_log_sum_exp,
        mb.reduce_max,
        mb.reduce_mean,
        mb.reduce_min,
        mb.reduce_prod,
        mb.reduce_sum,
        mb.reduce_sum_square,
        mb.reduce_argmax,
        mb.reduce_argmin,
    )
    outputs = [
        mb.conv(x=x, weight=values(3, 2, 2, 3)),
        mb.conv_transpose(x=x, weight=values(2, 3, 2, 3)),
        mb.max_pool(**pool),
        mb.avg_pool(**pool),
        mb.l2_pool(**pool),
        mb.batch_norm(x=x, mean=tiny, variance=tiny),
        mb.instance_norm(x=mb.mul(x=x, y=np.float32(1e-3))),
        mb.layer_norm(x=mb.mul(x=x, y=np.float32(1e-3)), axes=[0, 1, 2, 3]),
        mb.l2_norm(x=mb.mul(x=x, y=np.float32(1e-3))),
        mb.local_response_norm(x=mb.mul(x=x, y=np.float32(100)), size=2),
        mb.gelu(x=x),
        mb.softmax(x=x),
        mb.inverse(x=small),
        mb.rsqrt(x=small),
        mb.log(x=small),
        *(reduction(x=mb.abs(x=x)) for reduction in reductions),
        mb.cumsum(x=x),
        mb.linear(x=small, weight=values(3, 4)),
        mb.matmul(x=x, y=values(5, 3)),
    ]
    return {output.op.op_type: output for output in outputs}


def test_what_is_left_out_is_what_coremltools_would_have_written(tmp_path: Path) -> None:
    optional: dict[str, set[str]] = {}

    def note_and_build(**variables: Any) -> tuple[Any, ...]:
        outputs = build(**variables)
        for name, output in outputs.items():
            types = output.op.input_spec.input_types
            optional[name] = {parameter for parameter, kind in types.items() if kind.optional}
        return tuple(outputs.values())

    inputs = {"x": X, "small": SMALL}
    package = save_op(note_and_build, inputs, tmp_path)
    expected = ReferenceEvaluator(package, precision="fp32").run(inputs).values()

    specification = ct.utils.load_spec(str(package))
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    for operation in block.operations:
        for parameter in optional.get(operation.type, set()) & set(operation.inputs):
            del operation.inputs[parameter]
    package.joinpath(*MODEL_DIRECTORY, "model.mlmodel").write_bytes(specification.SerializeToString())

    evaluator = ReferenceEvaluator(package, precision="fp32")
    left = {parameter for operation in evaluator.function.operations for parameter in operation.inputs}
    assert not left & {"axes", "axis", "bias", "epsilon", "keep_dims", "mode", "pad", "strides", "transpose_x"}
    outputs = list(evaluator.run(inputs).values())
    # an epsilon from the program is a float32, a default a float64
    assert_outputs(outputs, dict(zip(optional, expected, strict=True)), rtol=2e-6, atol=1e-7)
