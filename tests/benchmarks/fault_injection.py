"""The validator's result for every faulty package, as a table: `python -m tests.benchmarks.fault_injection`.

The fourth column is what a comparison of outputs alone, with the gates of fp16, would say. Of misread checkpoints the
third is what their library says.
"""

import math
import shutil
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from mobilevit_coreml.conversion import convert
from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.validation.run import Validation, validate
from tests.validation.fault_injection import (
    CHECKPOINTS,
    FAULTS,
    MISREADINGS,
    PACKAGES,
    UNSEEN,
    Fault,
    Misreading,
    misread,
)


def row(fault: Fault, good: Path, photographs: Path, directory: Path) -> tuple[str, ...]:
    """Fault, failed checks, first mismatch, and fidelity of the outputs."""
    copy = shutil.copytree(good, directory / good.name)
    try:
        fault.apply(copy)
        validation = validate(copy, images=photographs, backend="reference")
    except MobileViTError as error:
        return fault.name, "refused", str(error).rpartition("expected ")[2].split(",")[0][:40], ""
    finally:
        shutil.rmtree(copy)
    failed = [check.name for _, check in validation.checks if check.passed is False]
    (program,) = validation.programs.values()
    where = "" if program.mismatch is None else f"`{program.mismatch.operation}`"
    return fault.name, ", ".join(failed), where, outputs(validation)


def misread_row(misreading: Misreading, photographs: Path, directory: Path) -> tuple[str, ...]:
    """Misreading, failed checks, what the library says, and fidelity of the outputs."""
    directory.mkdir()
    saved = CHECKPOINTS[misreading.checkpoint](directory)
    package = directory / "misread.mlpackage"
    options = ConversionOptions(attention="packed", **saved.options)
    with misread(misreading):
        made = convert(saved.weights, None, options, output=package, verify=False)
        validation = validate(made.path, images=photographs, backend="reference")
    shutil.rmtree(directory)
    failed = [check.name for _, check in validation.checks if check.passed is False]
    said = "" if validation.framework is None else validation.framework.detail
    return misreading.name, ", ".join(failed), said, outputs(validation)


def outputs(validation: Validation) -> str:
    (run,) = (run for run in validation.runs if run.backend in validation.asked)
    if run.fidelity is None:
        return "no outputs"
    figures = run.fidelity.figures
    texts = [f"{figures['snr']:.1f} dB" if math.isfinite(figures["snr"]) else str(figures["snr"])]
    texts += [f"{figures[name]:.1%} {name}" for name in ("pixels",) if name in figures]
    return ", ".join(texts) + ("" if run.verdict == "FAIL" else ", passed")


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        photographs = directory / "photographs"
        photographs.mkdir()
        for index, image in enumerate(synthetic_images(160, 160, 2)):
            image.save(photographs / f"{index}.png")
        good = {key: make(directory) for key, make in PACKAGES.items()}
        copies = directory / "copies"
        for title, kinds in (("detected", FAULTS), ("not detected", UNSEEN)):
            print(f"| {title} | what fails | first mismatch | outputs alone |\n|---|---|---|---|")
            for fault in tqdm(kinds, disable=None, file=sys.stderr):
                print("|", " | ".join(row(fault, good[fault.package], photographs, copies)), "|")
            print()
        print("| misread checkpoint | what fails | its library | outputs alone |\n|---|---|---|---|")
        for misreading in tqdm(MISREADINGS, disable=None, file=sys.stderr):
            print("|", " | ".join(misread_row(misreading, photographs, directory / "misread")), "|")


if __name__ == "__main__":
    main()
