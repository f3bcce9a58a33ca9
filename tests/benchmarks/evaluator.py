"""The reference evaluator's time beside PyTorch's eager time for the same network, in one run on one machine.

    python -m tests.benchmarks.evaluator

Untrained weights, one image of 256x256; medians. What counts are the ratios.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.config import AttentionImplementation
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.reference import ReferenceEvaluator

WARM_UP = 5
RUNS = 30


def median_ms(*runs: Callable[[], object]) -> list[float]:
    """Median milliseconds of each, run in turn so that a change of the machine's speed meets all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(WARM_UP + RUNS):
        for run, own in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= WARM_UP:
                own.append(1000 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def main() -> None:
    """Print a Markdown table."""
    image = synthetic_images(256, 256, 1)[0]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| network | attention | PyTorch eager fp32 | evaluator fp32 | evaluator fp16 | load and decode |")
    print("|---|---|---|---|---|---|")
    for variant in ("xxs", "xs", "s"):
        for attention in AttentionImplementation:
            print(row(variant, attention, image), flush=True)


def row(variant: str, attention: str, image: object) -> str:
    """One line of the table."""
    checkpoint = load_checkpoint("untrained", variant)
    model = ImageClassifier(checkpoint.config, attention).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    with tempfile.TemporaryDirectory() as directory:
        package = convert(
            "untrained", variant, ConversionOptions(attention=attention), output=Path(directory), verify=False
        ).path
        pixels = torch.rand(1, 3, 256, 256)
        fp32, fp16 = (ReferenceEvaluator(package, precision) for precision in ("fp32", "fp16"))
        with torch.inference_mode():
            eager, single, half = median_ms(
                lambda: model(pixels), lambda: fp32.run({"image": image}), lambda: fp16.run({"image": image})
            )
        (load,) = median_ms(lambda: ReferenceEvaluator(package))
    ratios = f"{single:.0f} ms ({single / eager:.2f}x) | {half:.0f} ms ({half / eager:.2f}x)"
    return f"| {variant} | {attention} | {eager:.0f} ms | {ratios} | {load:.0f} ms |"


if __name__ == "__main__":
    main()
