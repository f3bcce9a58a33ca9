"""The verdict over a device as text, 80 columns wide."""

from collections.abc import Iterator

from mobilevit_coreml.metrics import NOT_RUN
from mobilevit_coreml.report.collect import gate_of, gate_text
from mobilevit_coreml.report.formatting import table
from mobilevit_coreml.report.text import fidelity_lines
from mobilevit_coreml.validation.device import MAX_TEXT, DeviceResults, DeviceRun

SHORT = {"cpuOnly": "CPU only", "cpuAndGPU": "CPU, GPU", "cpuAndNeuralEngine": "CPU, Engine", "all": "all"}


def summary(found: DeviceResults) -> str:
    """The verdict of each compute unit and function, with its figures."""
    manifest, device = found.manifest, found.results.device
    images = sum(len(function.pictures) for function in manifest.functions)
    rows = [
        ("package", [manifest.package, f"sha256 {manifest.sha256:.12}…"]),
        ("device", [f"{device.model}, {device.chip}", f"{device.system}, {found.results.date}"]),
        ("images", [f"{images} of {found.golden}"]),
    ]
    for run in found.runs:
        several = f"{run.function}: " if len(manifest.functions) > 1 else ""
        first, *others = _run_lines(run)
        rows.append((SHORT[run.units], [several + first, *others]))
    return table(f"{found.path}: {found.verdict}", [(name, list(map(_printable, lines))) for name, lines in rows])


def _run_lines(run: DeviceRun) -> Iterator[str]:
    if run.fidelity is None:
        yield f"{run.verdict}, {run.reason}"
        return
    gates = {result.name: result.gate for result in run.results if result.figure is not None}
    first, *others = fidelity_lines(run.fidelity, gates)
    yield f"{run.verdict}, {first}"
    if run.reason:
        yield run.reason
    yield from others
    if run.latency is not None:
        yield (
            f"loaded in {run.latency.load_seconds:.1f} s; a prediction {run.latency.median_ms:.2f} ms in the "
            f"median, {run.latency.p95_ms:.2f} ms at the 95th percentile of {run.latency.predictions:.0f}"
        )
    yield from (gate_text(gate_of(result)) for result in run.results if result.passed is False)
    unmeasured = [result.name for result in run.results if result.passed is None]
    if unmeasured:
        yield f"{NOT_RUN} here: gate {', '.join(unmeasured)}"
    yield from run.notes


def _printable(text: str) -> str:
    """A text that does nothing to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:MAX_TEXT]
