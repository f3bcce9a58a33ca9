"""A Mac that is not there: stand-ins for what coremltools has in its native library, below all its own Python.

So everything of coremltools that a Mac would run is run: MLModel, MLComputePlan and its dataclasses, the
compute devices. A model computes with the reference evaluator.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml.validation.core_ml import UNITS, open_core_ml

NAMES = {name: unit for unit, name in UNITS.items()}
KINDS = ("CPU", "GPU", "NeuralEngine")
DEVICES = {"CPU_ONLY": "CPU", "CPU_AND_GPU": "GPU", "CPU_AND_NE": "NeuralEngine", "ALL": "NeuralEngine"}


@dataclasses.dataclass(frozen=True)
class Mac:
    """In place of open_core_ml: the same on a machine that has a Core ML of some sort.

    Loading aborts, never ends or is refused on the compute units that are named so, and `refused` forms on
    all; `wrong` forms put out nonsense. `on_cpu` are types of operations that the Neural Engine does not
    take, `milliseconds` what a prediction takes, by form. `newest` is the specification version that it
    knows, `planned` whether macOS is 14.4 or later.
    """

    aborts: tuple[str, ...] = ()
    hangs: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    on_cpu: tuple[str, ...] = ("softmax",)
    milliseconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    newest: int = 10
    planned: bool = True

    def __call__(self, package: str, units: str, function: str | None) -> Mapping[str, Callable[[Any], Any]]:
        self.install(setattr)  # in the worker's process, which ends with it
        return open_core_ml(package, units, function)

    def install(self, set_attribute: Callable[[Any, str, Any], None]) -> None:
        """Put the stand-ins in their places."""
        from coremltools.models import compute_device, compute_plan, model

        class Proxy(_Model):
            mac = self

        for module in (model, compute_plan, compute_device):
            set_attribute(module, "_MLModelProxy", Proxy)
        set_attribute(compute_plan, "_MLComputePlanProxy", _Plan)
        set_attribute(model, "_macos_version", lambda: (15, 0))
        for name in KINDS:
            set_attribute(compute_device, f"_ML{name}ComputeDeviceProxy", _Device)


class _Model:
    """libcoremlpython's _MLModelProxy."""

    mac: Mac

    def __init__(self, path: str, units: str, function: str, hints: Mapping[str, str], asset: None) -> None:
        from mobilevit_coreml.inference import read_record
        from mobilevit_coreml.reference import ReferenceEvaluator

        assert not hints
        unit = NAMES[units]
        if unit in self.mac.aborts:
            os.abort()
        while unit in self.mac.hangs:
            time.sleep(1)
        record = read_record(Path(path))
        form = f"{record.attention} {record.unfold}"
        if unit in self.mac.refuses or form in self.mac.refused:
            raise RuntimeError('{\n    NSLocalizedDescription = "Failed to build the model execution plan.";\n}')
        self._evaluator = ReferenceEvaluator(path, record.precision, function or None)
        self._wrong = form in self.mac.wrong
        self._nanoseconds = round(1e6 * self.mac.milliseconds.get(form, 2.0))
        self._known: dict[bytes, dict[str, Any]] = {}
        self._last: int | None = None
        self._compiled = tempfile.TemporaryDirectory(suffix=".mlmodelc")
        (Path(self._compiled.name) / "package").write_text(path)

    @classmethod
    def maximum_supported_specification_version(cls) -> int:
        return cls.mac.newest

    def predict(self, data: Mapping[str, Any], state: None) -> dict[str, Any]:
        pixels = data["image"].tobytes()
        if pixels not in self._known:
            self._known[pixels] = {name: self._native(value) for name, value in self._evaluator.run(data).items()}
        self._last = self._nanoseconds
        return dict(self._known[pixels])

    def _native(self, value: Any) -> Any:
        """As the bindings convert it: arrays of float32 or int32, images, and dictionaries in any order."""
        import numpy as np

        if isinstance(value, dict):
            values = reversed(list(value.values())) if self._wrong else value.values()
            return dict(sorted(zip(value, values, strict=True), key=lambda entry: hash(entry[0])))
        if isinstance(value, np.ndarray) and value.dtype == np.float16:
            return value.astype(np.float32)
        return value

    def get_compiled_model_path(self) -> str:
        return self._compiled.name

    def get_load_duration_in_nano_seconds(self) -> int:
        return 1_000_000

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        return self._last

    @classmethod
    def get_compute_plan(cls, path: str, units: str) -> Any:
        from coremltools.models.compute_plan import MLComputePlan

        if not cls.mac.planned:
            raise RuntimeError("MLComputePlan is only available on macOS >= 14.4")
        return MLComputePlan(_Plan(Path(path), units, cls.mac))


class _Device:
    """libcoremlpython's proxies of compute devices."""


class _Plan:
    """libcoremlpython's _MLComputePlanProxy, of a program's default function."""

    def __init__(self, compiled: Path, units: str, mac: Mac) -> None:
        from coremltools.models import compute_device

        from mobilevit_coreml.inference import read_record
        from mobilevit_coreml.reference.reader import read_package

        package = Path((compiled / "package").read_text())
        names = list(read_record(package).by_function())
        functions = {name: read_package(package, name).function for name in names}
        self.model_structure = _structure(functions)
        self._default = {id(one) for one in self.model_structure.program.functions[names[0]].block.operations}
        self._units, self._mac = units, mac
        self._device = {
            name: getattr(compute_device, f"ML{name}ComputeDevice")(_Device())
            for name in ("CPU", "GPU", "NeuralEngine")
        }

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        if operation.operator_name == "const" or id(operation) not in self._default:
            return None
        on_cpu = self._units != "CPU_AND_GPU" and operation.operator_name.partition(".")[2] in self._mac.on_cpu
        device = self._device["CPU" if on_cpu else DEVICES[self._units]]
        return MLComputePlanDeviceUsage(device, [device])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models.compute_plan import MLComputePlanCost

        return None if operation.operator_name == "const" else MLComputePlanCost(1 / 1024)


def _structure(functions: Mapping[str, Any]) -> Any:
    """coremltools' own dataclasses of a program, constants and all."""
    from coremltools.models import compute_plan as plan

    def operation(kind: str, name: str) -> Any:
        output = plan.MLModelStructureProgramNamedValueType(name, plan.MLModelStructureProgramValueType())
        return plan.MLModelStructureProgramOperation({}, kind, [output], [], object())

    def function(read: Any) -> Any:
        constants = [operation("const", name) for name in read.constants]
        computed = [operation(f"ios16.{one.type}", one.outputs[0]) for one in read.operations]
        block = plan.MLModelStructureProgramBlock([], constants + computed, list(read.outputs))
        return plan.MLModelStructureProgramFunction([], block)

    program = plan.MLModelStructureProgram({name: function(read) for name, read in functions.items()})
    return plan.MLModelStructure(None, program, None)
