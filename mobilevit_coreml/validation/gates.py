"""What a package has to reach, by default and as the user asks."""

from collections.abc import Mapping, Sequence

from mobilevit_coreml.conversion import POOR
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.verification import BOUNDS, Bound, GateResult, default_gates

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"

# What a conversion measures, and what only a validation does
ALL_BOUNDS: Mapping[str, Bound] = {
    **BOUNDS,
    "accuracy-loss": Bound(False, "share", "top-1 accuracy, or mean IoU, that the package has less than the original"),
    "neural-engine": Bound(True, "share", "operations that Core ML means to run on the Neural Engine"),
    "latency": Bound(False, "ms", "median time of a prediction"),
}


def gates_for(record: PackageRecord, asked: Mapping[str, float]) -> dict[str, float]:
    """The gates of a package: what its precision allows, or of compressed weights what leaves them of use."""
    return {**({"snr": POOR} if record.compression else default_gates(record)), **asked}


def parse_gate(text: str) -> tuple[str, float]:
    """A gate as NAME=NUMBER; raises InputError for another."""
    name, _, number = text.partition("=")
    if name not in ALL_BOUNDS:
        raise InputError(f"gate: expected one of {', '.join(ALL_BOUNDS)}, got {name!r}; choose one of these")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if value != value:
        raise InputError(f"gate {name}: expected a number, as in {name}=30, got {number!r}; give one")
    return name, value


def gate_results(gates: Mapping[str, float], figures: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Each gate with its figure, where that was measured."""
    return tuple(GateResult(name, gate, figures.get(name), ALL_BOUNDS[name]) for name, gate in gates.items())


def verdict_of(results: Sequence[GateResult]) -> str:
    """FAIL if a gate was not reached, PASS if one was and all that were measured were; NOT_RUN if none was measured."""
    passed = [result.passed for result in results]
    if False in passed:
        return FAIL
    return PASS if True in passed else NOT_RUN


def overall(verdicts: Sequence[str]) -> str:
    """FAIL before NOT_RUN before PASS: what was asked for and did not run has not passed."""
    for verdict in (FAIL, NOT_RUN):
        if verdict in verdicts:
            return verdict
    return PASS if verdicts else NOT_RUN
