"""Translations of the custom operators in model/ops.py to MIL."""

from typing import Any

import numpy as np

from mobilevit_coreml._coremltools import mb, register_torch_op
from mobilevit_coreml.model.ops import NAMESPACE

NO_PADDING = np.zeros((2, 2), dtype=np.int32)


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
    # with the exact target size; coremltools' translation of interpolate uses a rounded scale factor
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
