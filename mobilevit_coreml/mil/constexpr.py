"""Compressed weights as `constexpr_*` operations of MIL."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilevit_coreml._coremltools import AbstractGraphPass, ct, mb, register_pass, types
from mobilevit_coreml.compression.formats import INTEGER, SPARSE
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
                dense = (_decode_ios18 if is_ios18 else _decode_ios16)(remaining.pop(op.name), weight)
                function.replace_uses_of_var_after_op(
                    anchor_op=weight.op, old_var=weight, new_var=dense, force_replace=True
                )
                function.remove_ops([weight.op])
        if remaining:
            raise ValueError(f"no operation for the weights of {', '.join(remaining)}")


def _decode_ios16(encoded: Encoded, weight: Any) -> Any:
    values = encoded.values.astype(weight.val.dtype)
    if encoded.format.kind == SPARSE:
        nonzero = encoded.codes.reshape(-1) != 0
        return mb.constexpr_sparse_to_dense(
            nonzero_data=encoded.codes.reshape(-1)[nonzero].astype(weight.val.dtype),
            mask=np.packbits(nonzero, bitorder="little"),
            shape=np.array(weight.shape, np.uint32),
            before_op=weight.op,
        )
    if encoded.format.kind == INTEGER:
        return mb.constexpr_affine_dequantize(
            quantized_data=encoded.codes.reshape(weight.shape),
            zero_point=np.int8(0),
            scale=values,
            axis=np.int32(0),
            before_op=weight.op,
        )
    return mb.constexpr_lut_to_dense(
        indices=_packed(encoded.codes, encoded.format.bits),
        lut=values[0],
        shape=np.array(weight.shape, np.uint32),
        before_op=weight.op,
    )


def _decode_ios18(encoded: Encoded, weight: Any) -> Any:
    ones = [1] * (len(weight.shape) - 1)
    values = encoded.values.astype(weight.val.dtype)
    codes = encoded.codes.reshape(weight.shape)
    if encoded.format.kind == SPARSE:
        return mb.constexpr_sparse_to_dense(
            nonzero_data=codes[codes != 0].astype(weight.val.dtype),
            mask=(codes != 0).astype(_dtype("uint1")),
            before_op=weight.op,
        )
    if encoded.format.kind == INTEGER:
        return mb.constexpr_blockwise_shift_scale(
            data=codes.astype(_dtype(f"int{encoded.format.bits}")), scale=values.reshape(-1, *ones), before_op=weight.op
        )
    return mb.constexpr_lut_to_dense(
        indices=codes.astype(_dtype(f"uint{encoded.format.bits}")),
        lut=values.reshape(len(values), *ones, -1, 1),
        before_op=weight.op,
    )


def _dtype(name: str) -> Any:
    return types.nptype_from_builtin(types.string_to_builtin(name))


def _packed(codes: Any, bits: int) -> Any:
    """Indices packed to `bits` bits each, least significant bit first."""
    unpacked = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
    return np.packbits(unpacked.reshape(-1), bitorder="little")
