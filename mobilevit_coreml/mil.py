"""From a PyTorch model to an ML Program in memory: trace it, and let coremltools translate the trace."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit_coreml._coremltools import (
    AbstractGraphPass,
    ScopeSource,
    ct,
    mb,
    register_pass,
    register_torch_op,
    without_progress_bars,
)
from mobilevit_coreml.checkpoints.download import PUBLISHED
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.model.ops import NAMESPACE
from mobilevit_coreml.package import CLASS_LABEL, CLASS_PROBABILITIES, IMAGE, PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing

PRECISIONS = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}
NO_PADDING = np.zeros((2, 2), dtype=np.int32)


class _ClassifierProgram(nn.Module):
    """What the package computes: pixels (1, 3, H, W) -> class probabilities (1, classes)."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).logits.softmax(1)


def classifier_program(
    model: ImageClassifier,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    target: str,
    precision: str,
) -> Any:
    """A Core ML classifier (ct.models.MLModel, not loaded) from a model folded for inference.

    Input `image`: a picture of config.image_size; the program scales and orders its channels.
    Outputs: `classLabel`, and `classLabel_probs`, the softmax as a dictionary. `labels` are unique,
    `target` is iOS15 to iOS26, `precision` fp16 or fp32.
    """
    traced = _trace(_ClassifierProgram(model), model.config.num_channels, model.config.image_hw)
    image = ct.ImageType(
        name=IMAGE,
        shape=(1, model.config.num_channels, *model.config.image_hw),
        scale=preprocessing.scale,
        color_layout=ct.colorlayout.BGR if preprocessing.channel_order == "BGR" else ct.colorlayout.RGB,
    )
    with without_progress_bars():
        return ct.convert(
            traced,
            inputs=[image],
            outputs=[ct.TensorType(name="probabilities", dtype=np.float32)],
            classifier_config=ct.ClassifierConfig(list(labels), predicted_feature_name=CLASS_LABEL),
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=PRECISIONS[precision],
            pass_pipeline=_pipeline(),
            skip_model_load=True,  # loading can abort a Mac's process, and means nothing elsewhere
        )


def _trace(program: nn.Module, channels: int, size: tuple[int, int]) -> torch.jit.ScriptModule:
    if any(module.training for module in program.modules()):
        raise ConversionError("model: expected eval mode, got training mode; pass it through fold_for_inference first")
    with warnings.catch_warnings(), torch.no_grad():
        # coremltools has no other road for operators of one's own; torch has deprecated this one
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        traced = torch.jit.trace(program, torch.zeros(1, channels, *size), check_trace=False)
    assert isinstance(traced, torch.jit.ScriptModule)
    return traced


def describe(program: Any, record: PackageRecord) -> None:
    """Fill in what Xcode shows of a package, and the record of its making."""
    pixels = record.preprocessing
    height, width = pixels.crop
    name = record.variant.upper()
    program.author = "MobileViT by Sachin Mehta and Mohammad Rastegari (Apple)"
    program.license = _license(record)
    program.version = record.version
    program.short_description = (
        f"{'UNTRAINED, recognizes nothing. ' if record.weights.untrained else ''}"
        f"MobileViT-{name} image classifier, converted by mobilevit_coreml {record.version}."
    )
    program.input_description[IMAGE] = (
        f"The picture, {width}x{height} pixels. Resize the shorter edge to {pixels.resize} "
        f"({pixels.interpolation}) and cut {width}x{height} from the centre; scaling and channel order are done inside."
    )
    program.output_description[CLASS_LABEL] = "Most probable class"
    program.output_description[CLASS_PROBABILITIES] = "Probability of each class, 0 to 1, summing to 1"
    program.user_defined_metadata.update(record.to_metadata())


def _license(record: PackageRecord) -> str:
    if record.weights.untrained:
        return "None needed: the weights are random numbers"
    if record.weights.name.split("@")[0] in PUBLISHED.values():
        return "Weights: Apple sample code license, see the LICENSE of apple/ml-cvnets"
    return "Weights: as their source says, which this package does not know"


def count_operations(program: Any) -> int:
    """Operations of a package's main function, constants not counted."""
    function = program.get_spec().mlProgram.functions["main"]
    (block,) = function.block_specializations.values()
    return sum(operation.type != "const" for operation in block.operations)


def _pipeline() -> Any:
    pipeline = ct.PassPipeline()
    pipeline.append_pass(f"{NAMESPACE}::name_by_module")
    return pipeline


@register_pass(namespace=NAMESPACE, override=True)
class name_by_module(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801  # passes are called as they are named
    """Name every operation after the PyTorch module it comes from, `backbone_stage3_1_local_conv`.

    The name is the module's path, its dots as underscores; where a module has several operations,
    its kind is added, and a number if need be. Whatever lists a program by its operations then reads
    like the model.
    """

    def apply(self, program: Any) -> None:
        """Rename in place."""
        function = program.functions["main"]
        taken = {var.name for var in (*function.inputs.values(), *function.outputs)}
        operations = [op for op in function.operations if not taken & {var.name for var in op.outputs}]
        paths = {op: _module_path(op) for op in operations if op.op_type != "const"}
        for op, path in paths.items():
            alone = sum(other[: len(path)] == path for other in paths.values()) == 1
            stem = "_".join(path if path and alone else (*path, op.op_type))
            name = next(name for name in _numbered(stem) if name not in taken)
            taken.add(name)
            op.name = name
            for index, var in enumerate(op.outputs):
                var.name = name if len(op.outputs) == 1 else f"{name}_{index}"


def _module_path(op: Any) -> tuple[str, ...]:
    """Path of the module in the model, () for what belongs to none; coremltools adds the value's own name to it."""
    scopes = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME, [])
    return tuple(scopes[1:-1]) if scopes[:1] == ["model"] and op.op_type != "cast" else ()


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    for number in itertools.count(2):
        yield f"{stem}_{number}"


# The operators of model/ops.py, in MIL.


@register_torch_op(torch_alias=[f"{NAMESPACE}::space_to_batch"], override=True)  # type: ignore[untyped-decorator]
def mobilevit_space_to_batch(context: Any, node: Any) -> None:
    x, height, width = (context[name] for name in node.inputs)
    context.add(mb.space_to_batch(x=x, block_shape=[height.val, width.val], paddings=NO_PADDING, name=node.name))


@register_torch_op(torch_alias=[f"{NAMESPACE}::batch_to_space"], override=True)  # type: ignore[untyped-decorator]
def mobilevit_batch_to_space(context: Any, node: Any) -> None:
    x, height, width = (context[name] for name in node.inputs)
    context.add(mb.batch_to_space(x=x, block_shape=[height.val, width.val], crops=NO_PADDING, name=node.name))


@register_torch_op(torch_alias=[f"{NAMESPACE}::resize_bilinear"], override=True)  # type: ignore[untyped-decorator]
def mobilevit_resize_bilinear(context: Any, node: Any) -> None:
    # coremltools' own translation goes by a rounded scale factor; this names the size
    x, height, width = (context[name] for name in node.inputs)
    context.add(
        mb.resize_bilinear(
            x=x,
            target_size_height=height.val,
            target_size_width=width.val,
            sampling_mode="UNALIGN_CORNERS",  # half-pixel centres, torch's align_corners=False
            name=node.name,
        )
    )


@register_torch_op(torch_alias=[f"{NAMESPACE}::channel_layer_norm"], override=True)  # type: ignore[untyped-decorator]
def mobilevit_channel_layer_norm(context: Any, node: Any) -> None:
    x, weight, bias, eps = (context[name] for name in node.inputs)
    context.add(mb.layer_norm(x=x, axes=[1], gamma=weight, beta=bias, epsilon=eps.val, name=node.name))
