"""MIL passes that run after those of coremltools."""

import itertools
from typing import Any

import numpy as np

from mobilevit_coreml._coremltools import AbstractGraphPass, ScopeSource, register_pass
from mobilevit_coreml.model.ops import NAMESPACE
from mobilevit_coreml.operation_names import without_backbone


@register_pass(namespace=NAMESPACE, override=True)
class name_by_module(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801  # coremltools uses the class name
    """Name operations after PyTorch modules, `stage3_1_local_conv` (see `operation_names`).

    If a module has several operations, the operation type is appended, and a number if still ambiguous.
    """

    def apply(self, program: Any) -> None:
        """Rename the operations in place."""
        function = program.functions["main"]
        taken = {var.name for var in (*function.inputs.values(), *function.outputs)}
        operations = [op for op in function.operations if not taken & {var.name for var in op.outputs}]
        paths = {op: _module_path(op) for op in operations if op.op_type != "const"}
        for op, path in paths.items():
            is_only = sum(other[: len(path)] == path for other in paths.values()) == 1
            stem = "_".join(path if path and is_only else (*path, op.op_type))
            numbered = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
            name = next(name for name in numbered if name not in taken)
            taken.add(name)
            op.name = name
            for index, var in enumerate(op.outputs):
                var.name = name if len(op.outputs) == 1 else f"{name}_{index}"


def _module_path(op: Any) -> tuple[str, ...]:
    """Path of the operation's module in the model, or () for operations outside the model and casts."""
    scopes = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME, [])
    # the last scope is the value's own name
    return without_backbone(tuple(scopes[1:-1])) if scopes[:1] == ["model"] and op.op_type != "cast" else ()


@register_pass(namespace=NAMESPACE, override=True)
class share_constants(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801
    """Merge equal constants and give constants short names.

    Otherwise half the bytes of a program are the strides, paddings and dilations of its convolutions.
    """

    def apply(self, program: Any) -> None:
        """Merge and rename in place."""
        function = program.functions["main"]
        with function:
            first: dict[Any, Any] = {}
            for op in [op for op in function.operations if op.op_type == "const"]:
                (var,) = op.outputs
                shared = first.setdefault(_constant_key(var), var)
                if shared is not var and var not in function.outputs:
                    function.replace_uses_of_var_after_op(anchor_op=op, old_var=var, new_var=shared, force_replace=True)
                    function.remove_ops([op])
        constants = [op for op in function.operations if op.op_type.startswith("const")]  # includes constexpr_…
        taken = {var.name for op in function.operations for var in op.outputs} | set(function.inputs)
        names = (name for number in itertools.count() if (name := f"c{number}") not in taken)
        for op, name in zip(constants, names, strict=False):
            op.name = op.outputs[0].name = name


def _constant_key(var: Any) -> Any:
    """A key that is the same for equal constants."""
    value = var.val
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, np.shape(value), value.tobytes()
    return type(value), value if isinstance(value, str | bool) else id(var)
