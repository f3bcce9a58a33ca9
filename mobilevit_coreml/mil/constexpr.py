"""Compressed weights as `constexpr_*` operations of MIL."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilevit_coreml._coremltools import AbstractGraphPass, ct, mb, register_pass, types
from mobilevit_coreml.compression.formats import PALETTE, SPARSE
from mobilevit_coreml.compression.quantize import Encoded
from mobilevit_coreml.model.ops import NAMESPACE
from mobilevit_coreml.operation_names import operation_name

WEIGHTED = ("conv", "linear")


@register_pass(namespace=NAMESPACE, override=True)
class store_encoded(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801  # coremltools uses the class name
    """Replace weights by `constexpr_*` operations.

    Option `encodings`: Encoded weights by module path. ValueError if one has no operation.
    """

    encodings: Mapping[str, Encoded] = {}  # set by coremltools for each conversion

    def apply(self, program: Any) -> None:
        """Replace the weights in place."""
        function = program.functions["main"]
        remaining = {operation_name(path): encoded for path, encoded in self.encodings.items()}
        is_ios18 = function.opset_version is not None and function.opset_version >= ct.target.iOS18
        with function:
            for op in [op for op in function.operations if op.op_type in WEIGHTED and op.name in remaining]:
                weight = op.weight
                dense = _decode(remaining.pop(op.name), weight, is_ios18)
                function.replace_uses_of_var_after_op(
                    anchor_op=weight.op, old_var=weight, new_var=dense, force_replace=True
                )
                function.remove_ops([weight.op])
        if remaining:
            raise ValueError(f"no operation for the weights of {', '.join(remaining)}")


def _decode(encoded: Encoded, weight: Any, is_ios18: bool) -> Any:
    """The operation that decodes a weight. Before iOS 18 it takes packed bits, and the shape as an argument."""
    kind, bits = encoded.format.kind, encoded.format.bits
    codes, values = encoded.codes.reshape(weight.shape), encoded.values.astype(weight.val.dtype)
    ones = [1] * (codes.ndim - 1)
    shape = {} if is_ios18 else {"shape": np.array(codes.shape, np.uint32)}
    if kind == SPARSE:
        mask = codes != 0
        return mb.constexpr_sparse_to_dense(
            nonzero_data=codes[mask].astype(weight.val.dtype),
            mask=mask.astype(_dtype("uint1")) if is_ios18 else np.packbits(mask, bitorder="little"),
            before_op=weight.op,
            **shape,
        )
    if kind == PALETTE:
        return mb.constexpr_lut_to_dense(
            indices=codes.astype(_dtype(f"uint{bits}")) if is_ios18 else _packed(codes, bits),
            lut=values.reshape(len(values), *ones, -1, 1) if is_ios18 else values[0],
            before_op=weight.op,
            **shape,
        )
    if is_ios18:
        return mb.constexpr_blockwise_shift_scale(
            data=codes.astype(_dtype(f"int{bits}")), scale=values.reshape(-1, *ones), before_op=weight.op
        )
    return mb.constexpr_affine_dequantize(
        quantized_data=codes, zero_point=np.int8(0), scale=values, axis=np.int32(0), before_op=weight.op
    )


def _dtype(name: str) -> Any:
    return types.nptype_from_builtin(types.string_to_builtin(name))


def _packed(codes: Any, bits: int) -> Any:
    """Indices packed to `bits` bits each, least significant bit first."""
    unpacked = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
    return np.packbits(unpacked.reshape(-1), bitorder="little")
