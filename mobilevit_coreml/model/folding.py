"""What inference does not need apart: batch norm goes into the convolutions, the attention scale into the queries."""

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilevit_coreml.model.attention import Attention
from mobilevit_coreml.model.layers import ConvLayer

Model = TypeVar("Model", bound=nn.Module)


def fold_for_inference(model: Model) -> Model:
    """A copy in eval mode that computes the same with fewer operations, and cannot be trained further."""
    folded = copy.deepcopy(model).requires_grad_(False).eval()
    for module in folded.modules():
        if isinstance(module, ConvLayer):
            _fold_batch_norm(module)
        elif isinstance(module, Attention):
            _fold_scale(module)
    return folded.eval()  # the modules that came in, too


def _fold_batch_norm(layer: ConvLayer) -> None:
    if isinstance(layer.batch_norm, nn.BatchNorm2d):
        # in double precision, since a quotient of variances is rounded only once that way
        layer.conv = fuse_conv_bn_eval(layer.conv.double(), layer.batch_norm.double()).float()
        layer.batch_norm = nn.Identity()


def _fold_scale(attention: Attention) -> None:
    if attention.scale is not None:
        width = attention.heads * attention.head_width
        for parameter in attention.qkv.parameters():
            parameter[:width] *= attention.scale
        attention.scale = None
