"""A package in Core ML itself: the only part that needs a Mac, in a worker process, since loading may abort."""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from mobilevit_coreml.package.interface import IMAGE
from mobilevit_coreml.package.metadata import FUNCTION

UNITS = {  # Core ML's names of compute units, and coremltools'
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
    "all": "ALL",
}
NEURAL_ENGINE, GPU, CPU = "neuralEngine", "gpu", "cpu"
WITH_NEURAL_ENGINE = ("cpuAndNeuralEngine", "all")  # units that include it
WARM_UP, TIMED = 10, 100  # predictions of one image
NOT_LOADED = "You will not be able to run predict"  # how coremltools' warning starts


def open_core_ml(package: str, units: str, function: str | None) -> Mapping[str, Callable[[Any], Any]]:
    """Requests to a package that Core ML has compiled and loaded.

    `function` is one of a package of several sizes, None of others. `run` returns the outputs for an image,
    `latency` times predictions of one, `plan` lists the device planned for each operation.
    Raises coremltools' exceptions for a package that does not load.
    """
    from mobilevit_coreml._coremltools import ct

    compute_units = getattr(ct.ComputeUnit, UNITS[units])
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", NOT_LOADED, RuntimeWarning)
        model = ct.models.MLModel(package, compute_units=compute_units, function_name=function)
    seconds = time.perf_counter() - start
    return {
        "run": lambda image: model.predict({IMAGE: image}),
        "latency": lambda image: latency(model, image, seconds),
        "plan": lambda _: compute_plan(model, compute_units, function),
    }


def latency(model: Any, image: Image.Image, seconds: float) -> dict[str, float]:
    """Times of compiling and loading, `seconds` together, and of TIMED predictions of an image after WARM_UP.

    Loading and predicting are Core ML's own times: a prediction's median and 95th percentile exclude Python's
    conversion of images and outputs; `with_python_ms` is the median with it.
    """
    times, with_python = [], []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        model.predict({IMAGE: image})
        with_python.append(1000 * (time.perf_counter() - start))
        times.append(model.last_predict_duration_in_nano_seconds / 1e6)
    load_seconds = model.load_duration_in_nano_seconds / 1e9
    return {
        "compile_seconds": max(seconds - load_seconds, 0.0),
        "load_seconds": load_seconds,
        "median_ms": statistics.median(times[WARM_UP:]),
        "p95_ms": statistics.quantiles(times[WARM_UP:], n=20)[-1],
        "with_python_ms": statistics.median(with_python[WARM_UP:]),
        "predictions": TIMED,
    }


def compute_plan(model: Any, compute_units: Any, function: str | None) -> list[tuple[str, str, str | None, float]]:
    """Each operation's name, type, preferred device and share of the estimated cost; macOS 14.4 and later.

    The device is None where Core ML names none, as for constants, and the cost then 0. A plan is of a
    package's default function: coremltools hands no other's name on.
    """
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), compute_units)
    program = plan.model_structure.program
    rows = []
    for operation in program.functions[function or FUNCTION].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        device = None if usage is None else _device(usage.preferred_compute_device)
        name = operation.outputs[0].name if operation.outputs else ""
        kind = operation.operator_name.rpartition(".")[2]  # ios16.conv, but const
        rows.append((name, kind, device, 0.0 if cost is None else float(cost.weight)))
    return rows


def _device(device: Any) -> str | None:
    """Our name of one of coremltools' devices; None where it is of a kind coremltools does not know."""
    from coremltools.models import compute_device

    names = {
        compute_device.MLNeuralEngineComputeDevice: NEURAL_ENGINE,
        compute_device.MLGPUComputeDevice: GPU,
        compute_device.MLCPUComputeDevice: CPU,
    }
    return next((name for kind, name in names.items() if isinstance(device, kind)), None)
