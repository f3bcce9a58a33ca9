"""Check the weights and operations of a package's program, one by one, against the model it was made of."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.metrics import least, nan_lowest
from mobilevit_coreml.mil.export import ExportModel
from mobilevit_coreml.model import Model, fold_for_inference
from mobilevit_coreml.package.interface import IMAGE
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.comparison import OperationRange, ranges
from mobilevit_coreml.reference.features import to_program
from mobilevit_coreml.reference.reader import Function, Operation, references
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.forecast import Finding, forecast
from mobilevit_coreml.validation.steps import Step, compare_steps
from mobilevit_coreml.validation.weights import PLAIN, StoredTensor, stored_tensors, with_stored

MAX_PROGRAM_IMAGES = 4  # to compare every operation on
# dB of each operation on the inputs it had. One rounding to fp16 leaves about 73, the first convolution's 66.
MIN_OWN_SNR_DB = {"fp16": 55.0, "fp32": 100.0}


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """The first operation of a program that differs from the model; `detail` is the difference."""

    operation: str
    type: str
    module: str
    detail: str


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """The program of one function of a package.

    `operations` is their number, `steps` are those that have a counterpart in PyTorch; `steps` and `ranges` have
    the worst of all images for each operation.
    """

    function: str
    operations: int
    tensors: tuple[StoredTensor, ...]
    steps: tuple[Step, ...]
    ranges: tuple[OperationRange, ...]
    findings: tuple[Finding, ...]
    gate: float
    mismatch: Mismatch | None
    failure: str | None = None

    @property
    def checks(self) -> tuple[Check, Check]:
        """The check of the stored weights, and that of the operations."""
        wrong = [one for one in self.tensors if not one.passed]
        weights = f"{len(self.tensors)} tensors as the checkpoint has them, in their formats"
        if wrong:
            weights = f"{len(wrong)} of {len(self.tensors)} tensors are others, the first {_tensor_text(wrong[0])}"
        return Check("weights", not wrong and bool(self.tensors), weights), self._operations()

    def _operations(self) -> Check:
        if self.failure is not None or not self.steps:
            return Check("operations", False, self.failure or "no operation has a step in PyTorch to compare it with")
        weakest = min(self.steps, key=lambda step: nan_lowest(step.own))
        detail = (
            f"{len(self.steps)} of {self.operations} compared on their own inputs, "
            f"the weakest {weakest.operation} with {weakest.own:.1f} dB (gate {self.gate:g} dB)"
        )
        return Check("operations", weakest.own >= self.gate, detail)


def check_program(
    package: Path,
    record: PackageRecord,
    model: Model,
    preprocessing: Preprocessing,
    function: str,
    images: Iterable[Image.Image],
) -> ProgramReport:
    """Compare a function with `model`, the original, on a few images of its input's size."""
    folded = fold_for_inference(model)
    evaluator = ReferenceEvaluator(package, record.precision, function)
    tensors = tuple(stored_tensors(evaluator.function, folded, record))
    own = with_stored(folded, tensors)  # a wrong weight is not the operation's fault
    steps: list[Step] = []
    largest: list[OperationRange] = []
    failure = None
    try:
        for image in itertools.islice(images, MAX_PROGRAM_IMAGES):
            seen, ranged = _observe(evaluator, own, record, preprocessing, image)
            steps = _worst_steps(steps, seen)
            largest = _largest_ranges(largest, ranged)
    except (MobileViTError, RuntimeError) as error:
        failure = " ".join(str(error).split())[:200]
    gate = MIN_OWN_SNR_DB[record.precision]
    findings = forecast(package, dict(model.named_modules()), function)
    names = [operation.name for operation in evaluator.function.operations]
    mismatch = _first_mismatch(evaluator.function, tensors, steps, gate)
    return ProgramReport(function, len(names), tensors, tuple(steps), tuple(largest), findings, gate, mismatch, failure)


def _observe(
    evaluator: ReferenceEvaluator, model: Model, record: PackageRecord, preprocessing: Preprocessing, image: Image.Image
) -> tuple[list[Step], tuple[OperationRange, ...]]:
    values = evaluator.values(to_program(evaluator.inputs, {IMAGE: image}), capture=True)
    whole = dataclasses.replace(
        preprocessing, include_crop=False, crop=preprocessing.input_size, scale=1.0, mean=(0.0,), std=(1.0,)
    )
    pixels = torch.from_numpy(whole.pixels(image))  # 0 to 255, as the program takes it
    deployed = ExportModel(model, record.task, record.outputs, preprocessing).eval()
    steps = compare_steps(evaluator.function, values, model, lambda: deployed(pixels * preprocessing.scale))
    types = {operation.name: operation.type for operation in evaluator.function.operations}
    return steps, ranges(types, values)


def _worst_steps(steps: Sequence[Step], others: Sequence[Step]) -> list[Step]:
    """The worse figures of each operation on two images."""
    if not steps:
        return list(others)
    return [
        dataclasses.replace(one, own=least(one.own, other.own), accumulated=least(one.accumulated, other.accumulated))
        for one, other in zip(steps, others, strict=True)
    ]


def _largest_ranges(ranged: Sequence[OperationRange], others: Sequence[OperationRange]) -> list[OperationRange]:
    if not ranged:
        return list(others)
    return [
        one if one.max_abs >= other.max_abs or math.isnan(one.max_abs) else other
        for one, other in zip(ranged, others, strict=True)
    ]


def _first_mismatch(
    function: Function, tensors: Iterable[StoredTensor], steps: Sequence[Step], gate: float
) -> Mismatch | None:
    """The operation earliest in the program that stores other weights, or computes something else."""
    wrong = [Mismatch(one.operation, one.type, one.module, _tensor_text(one)) for one in tensors if not one.passed]
    compared = {step.operation for step in steps}
    for step in steps:
        if not step.own >= gate:
            detail = f"{step.own:.1f} dB on the inputs it has (gate {gate:g} dB)"
            added = _added(step.operation, function, compared)
            if added is None:
                wrong.append(Mismatch(step.operation, step.type, step.module, detail))
            else:
                wrong.append(Mismatch(added.name, added.type, "", f"PyTorch has no such step; after it {detail}"))
    order = {operation.name: index for index, operation in enumerate(function.operations)}
    return min(wrong, key=lambda one: order.get(one.operation, -1), default=None)


def _added(name: str, function: Function, compared: Collection[str]) -> Operation | None:
    """The earliest operation without a step in PyTorch that nothing but such operations lie between and `name`."""
    makers = {output: operation for operation in function.operations for output in operation.outputs}
    for read in (ref.name for ref in references(makers[name])):
        maker = makers.get(read)
        if maker is not None and maker.name not in compared:
            return _added(maker.name, function, compared) or (None if maker.type == "cast" else maker)
    return None


def _tensor_text(one: StoredTensor) -> str:
    if one.stored is None:
        lacks = f"no {one.parameter} of the checkpoint's shape" if one.type else "the program has no such operation"
        return f"{one.operation}: {lacks}"
    if one.format in PLAIN:
        return f"{one.operation}: {one.parameter} is off by {one.units:.3g} ULP, {one.snr:.1f} dB"
    return f"{one.operation}: {one.parameter} in {one.format} keeps {one.snr:.1f} dB"
