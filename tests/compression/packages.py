"""Small things to compress: the untrained network, and a program of two layers, each made once."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilevit_coreml._coremltools import ct, mb, quietly
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.compression.formats import INTEGER, PALETTE, PALETTE_BITS, SPARSE, Format
from mobilevit_coreml.compression.quantize import Encoded
from mobilevit_coreml.compression.search import Candidate
from mobilevit_coreml.mil import constexpr, passes  # noqa: F401  # registers what is in them
from mobilevit_coreml.model import Model, fold_for_inference
from mobilevit_coreml.model.ops import NAMESPACE
from mobilevit_coreml.reference.reader import MODEL_DIRECTORY

FORMATS = (
    *(Format(PALETTE, bits) for bits in PALETTE_BITS),
    Format(PALETTE, 4, group_size=8),
    Format(PALETTE, 1, group_size=4),
    Format(INTEGER, 8),
    Format(INTEGER, 4),
    Format(SPARSE, zeros=0.4),
)
FORMATS_BY_TARGET = [(format, target) for target in ("iOS16", "iOS18") for format in FORMATS if format.target <= target]
SHAPES = {"convolution": (32, 24, 3, 1), "linear": (48, 32)}  # of `two_layers`


@cache
def network(task: str = "features", attention: str = "packed") -> Model:
    """The untrained xxs network for images of 64 x 64, folded."""
    checkpoint = load_checkpoint("untrained", "xxs", task)
    config = dataclasses.replace(checkpoint.config, image_size=(64, 64))
    return fold_for_inference(dataclasses.replace(checkpoint, config=config).model(attention))


@cache
def layer_weight(name: str) -> Tensor:
    """Of `two_layers`, no value of it exact in few bits."""
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(len(name)))


def two_layers(encodings: Mapping[str, Encoded], target: str, package: Path) -> Path:
    """A saved package of a convolution and a linear layer, with `encodings` by their names."""
    opset = getattr(ct.target, target)

    def program(x: Any) -> Any:
        x = mb.conv(x=x, weight=layer_weight("convolution").numpy(), name="convolution")
        return mb.linear(x=mb.reduce_mean(x=x, axes=[2, 3]), weight=layer_weight("linear").numpy(), name="linear")

    pipeline = ct.PassPipeline()
    pipeline.append_pass(f"{NAMESPACE}::store_encoded")
    named = {f"{name}_cast_fp16": one for name, one in encodings.items()}  # as coremltools names them in half precision
    pipeline.set_options(f"{NAMESPACE}::store_encoded", {"encodings": named})
    with quietly():
        model = ct.convert(
            mb.program(input_specs=[mb.TensorSpec((1, 24, 5, 3))], opset_version=opset)(program),
            convert_to="mlprogram",
            minimum_deployment_target=opset,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    model.save(str(package))
    return package


def weights_of_coremltools(package: Path) -> dict[str, Any]:
    """The weight of each operation that has one as coremltools decodes it, and the operation it comes from."""
    specification = ct.utils.load_spec(str(package))
    program = ct.converters.mil.frontend.milproto.load.load(
        specification, specification.specificationVersion, str(package.joinpath(*MODEL_DIRECTORY, "weights"))
    )
    found = {}
    for operation in program.functions["main"].operations:
        if operation.op_type in ("conv", "linear"):
            source = operation.weight.op
            value = source.val.val if source.op_type == "const" else source.materialized_val_inference()
            found[operation.name.removesuffix("_cast_fp16")] = (np.asarray(value), source)
    return found


def total_noise(choice: Mapping[str, Candidate]) -> float:
    """Power of the output's noise, relative to its own: that of different layers adds up."""
    return sum(one.noise for one in choice.values())
