"""`convert --variant s` beside the same job done by hand with transformers and coremltools.

    $ python -m tests.benchmarks.conversion

Each side runs in a process of its own, in turn; wall time and peak memory of the whole process, imports and all.
Verification is left out, since the other side has none. transformers' model converts with numpy before 2.4 only.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mobilevit_coreml.mil import count_operations
from mobilevit_coreml.package.files import MEGABYTE, size_of

ROUNDS = 3
OURS = [sys.executable, "-m", "mobilevit_coreml.convert", "--variant", "s", "--weights", "untrained", "--no-verify"]
BY_HAND = """
import sys
import coremltools as ct
import numpy as np
import torch
for name in ("nms", "qnms"):  # which torchvision asks for on its way in, and its wheel without CUDA does not have
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers import MobileViTConfig, MobileViTForImageClassification

model = MobileViTForImageClassification(MobileViTConfig(num_labels=1000)).eval()


class Probabilities(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels, return_dict=False)[0].softmax(1)


shape = (1, 3, 256, 256)
with torch.no_grad():
    traced = torch.jit.trace(Probabilities().eval(), torch.zeros(shape))
ct.convert(
    traced,
    inputs=[ct.ImageType(name="image", shape=shape, scale=1 / 255, color_layout=ct.colorlayout.BGR)],
    outputs=[ct.TensorType(name="probabilities", dtype=np.float32)],
    classifier_config=ct.ClassifierConfig([f"class {index}" for index in range(1000)]),
    convert_to="mlprogram",
    minimum_deployment_target=ct.target.iOS16,
    skip_model_load=True,
).save(sys.argv[1])
"""


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode()[-2000:])
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Print a table."""
    from mobilevit_coreml._coremltools import ct

    times: dict[str, list[float]] = {"convert": [], "by hand": []}
    peaks: dict[str, float] = {}
    packages: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for _ in range(ROUNDS):
            for side in times:
                package = directory / f"{side.replace(' ', '_')}.mlpackage"
                command = [*OURS, "--output", str(package)]
                if side == "by hand":
                    command = [sys.executable, "-W", "ignore", "-c", BY_HAND, str(package)]
                shutil.rmtree(packages.get(side, package), ignore_errors=True)
                seconds, peak = measured(command)
                (packages[side],) = directory.glob(f"{package.stem}*.mlpackage")
                times[side].append(seconds)
                peaks[side] = max(peak, peaks.get(side, 0))
        print("| | time | peak memory | package | operations |\n|---|---|---|---|---|")
        for side, seconds_of in times.items():
            model = ct.models.MLModel(str(packages[side]), skip_model_load=True)
            print(
                f"| {side} | {statistics.median(seconds_of):.1f} s | {peaks[side]:.0f} MB "
                f"| {size_of(packages[side]) / MEGABYTE:.2f} MB | {count_operations(model)} |"
            )
        ours, hand = (statistics.median(times[side]) for side in times)
        sizes = [size_of(packages[side]) for side in times]
        print(
            f"| ratio | {ours / hand:.2f} | {peaks['convert'] / peaks['by hand']:.2f} | {sizes[0] / sizes[1]:.2f} | |"
        )


if __name__ == "__main__":
    main()
