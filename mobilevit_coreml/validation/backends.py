"""Backends that run a package: the reference evaluator in this process, Core ML in a process of its own."""

import contextlib
import dataclasses
from pathlib import Path

from mobilevit_coreml.inference import core_ml_is_here
from mobilevit_coreml.package.interface import IMAGE
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.validation.core_ml import UNITS, open_core_ml
from mobilevit_coreml.validation.worker import Ask, Handlers, in_this_process, in_worker
from mobilevit_coreml.verification import network_outputs

REFERENCE, CORE_ML = "reference", "coreml"


@dataclasses.dataclass(frozen=True)
class Backend:
    """The reference evaluator, or Core ML on some compute units."""

    name: str
    units: str | None = None

    def __str__(self) -> str:
        return self.name if self.units is None else f"{self.name} {self.units}"

    @property
    def is_here(self) -> bool:
        """True if this machine has it."""
        return self.name == REFERENCE or core_ml_is_here()


def backends_for(backend: str, units: list[str]) -> list[Backend]:
    """The backends a user means by reference, coreml or auto, which is both."""
    core_ml = [Backend(CORE_ML, unit) for unit in units or UNITS]
    if backend == REFERENCE:
        return [Backend(REFERENCE)]
    return core_ml if backend == CORE_ML else [Backend(REFERENCE), *core_ml]


def open_reference(package: Path, record: PackageRecord, function: str) -> Handlers:
    """Requests to the reference evaluator: `run` returns the outputs for an image, with `network_outputs`."""
    evaluator = ReferenceEvaluator(package, record.precision, function)
    captured = network_outputs(record)
    return {"run": lambda image: evaluator.run({IMAGE: image}, capture=captured)}


def open_backend(
    backend: Backend, package: Path, record: PackageRecord, function: str, timeout: float
) -> contextlib.AbstractContextManager[Ask]:
    """A backend with a function of a package loaded, for a `with`; `timeout` is Core ML's, in seconds."""
    if backend.name == REFERENCE:
        return in_this_process(open_reference, package, record, function)
    named = function if record.sizes else None  # only a package of several functions has names for Core ML
    return in_worker(timeout, open_core_ml, str(package), backend.units, named)
