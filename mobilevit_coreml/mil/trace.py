"""Conversion of a traced model with coremltools."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilevit_coreml._coremltools import ct, quietly
from mobilevit_coreml.compression.quantize import Encoded
from mobilevit_coreml.config import AttentionImplementation, Task
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.mil import constexpr, passes, translations  # noqa: F401  # registers passes and translations
from mobilevit_coreml.mil.export import ExportModel
from mobilevit_coreml.model import Model
from mobilevit_coreml.model.ops import NAMESPACE
from mobilevit_coreml.package.interface import (
    CLASS_LABEL,
    IMAGE,
    LABELS,
    MASK,
    OutputOptions,
    names_classes,
    output_names,
)
from mobilevit_coreml.preprocessing import Preprocessing

PRECISIONS = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}
# Without weights, about; of features and classifiers, with the names of a budget's layers
PACKAGE_BYTES = {AttentionImplementation.SPLIT_EINSUM: 117_800, AttentionImplementation.PACKED: 83_000}
LABEL_BYTES = 17  # beside the label itself
COLOR_LAYOUTS = {"BGR": ct.colorlayout.BGR, "RGB": ct.colorlayout.RGB, "GRAY": ct.colorlayout.GRAYSCALE}


def build_mlprogram(
    model: Model,
    task: str,
    preprocessing: Preprocessing,
    options: OutputOptions,
    labels: Sequence[str],
    target: str,
    precision: str,
    encodings: Mapping[str, Encoded],
) -> Any:
    """Core ML model (ct.models.MLModel, not loaded) of a model that was folded for inference.

    Input `image`: an image of preprocessing.input_size; the program crops it if preprocessing has
    include_crop, scales and normalizes it and orders the channels. Outputs: `interface.output_names`. labels: unique
    class names of a classifier. target: iOS15 to iOS26. precision: fp16 or fp32. encodings: compressed
    weights by module path.

    Raises ConversionError for a model in training mode.
    """
    height, width = preprocessing.input_size
    shape = (1, model.config.num_channels, height, width)
    image = ct.ImageType(
        name=IMAGE,
        shape=shape,
        scale=preprocessing.scale,
        color_layout=COLOR_LAYOUTS[preprocessing.channel_order],
    )
    classifier = ct.ClassifierConfig(list(labels), CLASS_LABEL) if names_classes(task, options) else None
    with quietly():
        return ct.convert(
            _trace(ExportModel(model, task, options, preprocessing), shape),
            inputs=[image],
            outputs=_output_types(task, options),
            classifier_config=classifier,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=PRECISIONS[precision],
            pass_pipeline=_pipeline(encodings),
            skip_model_load=True,  # loading can abort the process on a Mac, and does nothing elsewhere
        )


def _output_types(task: str, options: OutputOptions) -> list[Any]:
    if names_classes(task, options):
        return [ct.TensorType(name="probabilities", dtype=np.float32)]
    names = output_names(task, options)
    if task == Task.SEGMENTATION and options.type == MASK:
        return [ct.ImageType(name=name, color_layout=ct.colorlayout.GRAYSCALE) for name in names]
    dtype = np.int32 if task == Task.SEGMENTATION and options.type == LABELS else getattr(np, options.dtype)
    return [ct.TensorType(name=name, dtype=dtype) for name in names]


def _trace(program: nn.Module, shape: tuple[int, ...]) -> torch.jit.ScriptModule:
    if any(module.training for module in program.modules()):
        raise ConversionError("model: expected eval mode, got training mode; pass it through fold_for_inference first")
    with warnings.catch_warnings(), torch.no_grad():
        # deprecated by torch, but coremltools supports custom operators only in TorchScript
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        traced = torch.jit.trace(program, torch.zeros(shape), check_trace=False)
    assert isinstance(traced, torch.jit.ScriptModule)
    return traced


def _pipeline(encodings: Mapping[str, Encoded]) -> Any:
    pipeline = ct.PassPipeline()
    pipeline.append_pass(f"{NAMESPACE}::name_by_module")
    pipeline.append_pass(f"{NAMESPACE}::store_encoded")
    pipeline.set_options(f"{NAMESPACE}::store_encoded", {"encodings": encodings})
    pipeline.append_pass(f"{NAMESPACE}::share_constants")
    return pipeline


def count_operations(program: Any) -> int:
    """Number of operations of a program's default function, without constants and constexpr operations."""
    specification = program.get_spec()
    function = specification.mlProgram.functions[specification.description.defaultFunctionName or "main"]
    (block,) = function.block_specializations.values()
    return sum(not operation.type.startswith("const") for operation in block.operations)


def guess_package_bytes(attention: str, labels: Sequence[str]) -> int:
    """Bytes of a package without its weights, before there is one: within a few hundred of a classifier's."""
    of_labels = sum(len(label.encode()) + LABEL_BYTES for label in labels)
    return PACKAGE_BYTES[AttentionImplementation(attention)] + of_labels
