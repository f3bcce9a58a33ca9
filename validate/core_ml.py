"""A package in Core ML itself: the only part that needs a Mac. In a process of its own, which loading may abort."""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from mobilevit_coreml.interface import IMAGE

UNITS = {  # Core ML's names of what may run a model, and coremltools'
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
    "all": "ALL",
}
DEVICES = {"MLNeuralEngineComputeDevice": "neuralEngine", "MLGPUComputeDevice": "gpu", "MLCPUComputeDevice": "cpu"}
WARM_UP, TIMED = 10, 100  # predictions of one picture


def open_core_ml(package: str, units: str, function: str | None) -> Mapping[str, Callable[[Any], Any]]:
    """What can be asked of a package that Core ML has compiled and loaded.

    `run` gives the outputs for a picture, `latency` times predictions of one, `plan` says which device
    each operation is meant for. Raises what coremltools makes of a package that does not load.
    """
    from mobilevit_coreml._coremltools import ct

    compute_units = getattr(ct.ComputeUnit, UNITS[units])
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # that is how coremltools says that a package did not load
        model = ct.models.MLModel(package, compute_units=compute_units, function_name=function)
    seconds = time.perf_counter() - start
    return {
        "run": lambda image: model.predict({IMAGE: image}),
        "latency": lambda image: latency(model, image, seconds),
        "plan": lambda _: compute_plan(model, compute_units, function),
    }


def latency(model: Any, image: Image.Image, load_seconds: float) -> dict[str, float]:
    """Seconds to compile and load, and the milliseconds of TIMED predictions after WARM_UP: median and 95th percentile.

    A prediction is coremltools' `predict`, with all that Python adds to Core ML's own time.
    """
    times = []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        model.predict({IMAGE: image})
        times.append(1000 * (time.perf_counter() - start))
    timed = times[WARM_UP:]
    return {
        "load_seconds": load_seconds,
        "median_ms": statistics.median(timed),
        "p95_ms": statistics.quantiles(timed, n=20)[-1],
        "predictions": len(timed),
    }


def compute_plan(model: Any, compute_units: Any, function: str | None) -> list[tuple[str, str, str | None, float]]:
    """Each operation's name, type, preferred device and share of the estimated cost; macOS 14.4 and later.

    The device is None where Core ML names none, as for constants, and the cost then 0.
    """
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), compute_units)
    program = plan.model_structure.program
    rows = []
    for operation in program.functions[function or "main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        device = None if usage is None else DEVICES.get(type(usage.preferred_compute_device).__name__)
        name = operation.outputs[0].name if operation.outputs else ""
        rows.append((name, operation.operator_name, device, 0.0 if cost is None else cost.weight))
    return rows
