"""What inference does not need apart: batch norm goes into the convolutions, the attention scale into the queries."""

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilevit_coreml.model.attention import Attention, packed, projection_over_heads
from mobilevit_coreml.model.deeplab import DeepLabV3Head, Projection, SplitProjection
from mobilevit_coreml.model.layers import ConvLayer

Model = TypeVar("Model", bound=nn.Module)


def fold_for_inference(model: Model) -> Model:
    """A copy in eval mode that computes the same with fewer operations, and cannot be trained further.

    Every weight of it is that of a convolution or a linear layer which is called as it stands.
    """
    folded = copy.deepcopy(model).requires_grad_(False).eval()
    for module in list(folded.modules()):
        if isinstance(module, ConvLayer):
            _fold_batch_norm(module)
        elif isinstance(module, Attention):
            _fold_attention(module)
    for module in list(folded.modules()):
        if isinstance(module, DeepLabV3Head) and isinstance(module.project, Projection):
            maps = module.project.conv.in_channels - module.pool.conv.out_channels
            module.project = SplitProjection(module.project, maps)
    return folded.requires_grad_(False).eval()  # the modules that came in, too


def _fold_batch_norm(layer: ConvLayer) -> None:
    if isinstance(layer.batch_norm, nn.BatchNorm2d):
        # in double precision, since a quotient of variances is rounded only once that way
        layer.conv = fuse_conv_bn_eval(layer.conv.double(), layer.batch_norm.double()).float()
        layer.batch_norm = nn.Identity()


def _fold_attention(attention: Attention) -> None:
    if attention.scale is not None:
        width = attention.heads * attention.head_width
        for parameter in attention.qkv.parameters():
            parameter[:width] *= attention.scale
        attention.scale = None
    if attention.attend is packed and attention.out.in_channels != attention.heads:
        attention.out = projection_over_heads(attention.out, attention.heads)
