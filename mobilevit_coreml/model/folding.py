"""Folding for inference: batch norm into the convolutions, attention scale into the query weights."""

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilevit_coreml.model.attention import SelfAttention, packed, projection_over_heads
from mobilevit_coreml.model.deeplab import DeepLabV3Head, Projection, SplitProjection
from mobilevit_coreml.model.layers import ConvLayer

Model = TypeVar("Model", bound=nn.Module)


def fold_for_inference(model: Model) -> Model:
    """An equivalent copy in eval mode with fewer operations, without gradients.

    All its weights belong to convolutions or linear layers, which are called as modules.
    """
    folded = copy.deepcopy(model).requires_grad_(False).eval()
    for module in list(folded.modules()):
        if isinstance(module, ConvLayer | Projection):
            _fold_batch_norm(module)
        elif isinstance(module, SelfAttention):
            _fold_attention(module)
    for module in list(folded.modules()):
        if isinstance(module, DeepLabV3Head) and isinstance(module.project, Projection):
            maps = module.project.conv.in_channels - module.pool.conv.out_channels
            module.project = SplitProjection(module.project, maps)
    return folded.requires_grad_(False).eval()  # including the new modules


def _fold_batch_norm(layer: ConvLayer | Projection) -> None:
    if isinstance(layer.batch_norm, nn.BatchNorm2d):
        # in double precision, so that the weights are rounded only once
        layer.conv = fuse_conv_bn_eval(layer.conv.double(), layer.batch_norm.double()).float()
        layer.batch_norm = nn.Identity()


def _fold_attention(attention: SelfAttention) -> None:
    if attention.scale is not None:
        width = attention.heads * attention.head_width
        for parameter in attention.qkv.parameters():
            parameter[:width] *= attention.scale
        attention.scale = None
    if attention.attend is packed and attention.out.in_channels != attention.heads:
        attention.out = projection_over_heads(attention.out, attention.heads)
