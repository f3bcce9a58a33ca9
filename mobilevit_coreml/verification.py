"""Whether a saved package computes what the PyTorch model does, by the reference evaluator, on any machine."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mobilevit_coreml.model import ImageClassifier
from mobilevit_coreml.package import CLASS_PROBABILITIES, IMAGE
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.comparison import snr
from mobilevit_coreml.reference.program import Ref

GATES = {"fp16": 30.0, "fp32": 70.0}  # dB SNR of the logits, by the package's precision
TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassifierFidelity:
    """A classifier package against its PyTorch model in fp32, over a number of pictures.

    `snr` (dB) and `cosine` are of the logits, all pictures together; `worst_snr` is of the worst
    picture alone. `max_abs_difference` is the largest of a probability. Agreements are shares of
    the pictures: the same class first, and the same set of first five. `margin` is the smallest
    distance, in probability, between PyTorch's first two classes: a first class that changes
    at a tiny margin is no fault.
    """

    images: int
    snr: float
    worst_snr: float
    cosine: float
    max_abs_difference: float
    top1_agreement: float
    top5_agreement: float
    margin: float
    gate: float

    @property
    def passed(self) -> bool:
        """Whether the SNR reaches the gate; what is not a number does not."""
        return self.snr >= self.gate


@torch.inference_mode()
def verify_classifier(
    package: Path, model: ImageClassifier, preprocessing: Preprocessing, precision: str, images: Iterable[Image.Image]
) -> ClassifierFidelity:
    """Run a saved package and its model on pictures of the crop's size, RGB."""
    evaluator = ReferenceEvaluator(package, precision)
    logits_name = _logits_name(evaluator)
    rows = [_one_picture(evaluator, logits_name, model, preprocessing, image) for image in images]
    reference, output = (torch.cat([row[i] for row in rows]) for i in (0, 1))
    probabilities, package_probabilities = (torch.stack([row[i] for row in rows]) for i in (2, 3))
    top = min(TOP, probabilities.shape[1])
    first, package_first = probabilities.topk(top).indices, package_probabilities.topk(top).indices
    same_five = [set(a.tolist()) == set(b.tolist()) for a, b in zip(first, package_first, strict=True)]
    top2 = probabilities.topk(2).values
    return ClassifierFidelity(
        images=len(rows),
        snr=snr(reference, output),
        worst_snr=min(snr(row[0], row[1]) for row in rows),
        cosine=float(torch.cosine_similarity(reference.flatten().double(), output.flatten().double(), dim=0)),
        max_abs_difference=float((probabilities - package_probabilities).abs().max()),
        top1_agreement=float((first[:, 0] == package_first[:, 0]).float().mean()),
        top5_agreement=sum(same_five) / len(same_five),
        margin=float((top2[:, 0] - top2[:, 1]).min()),
        gate=GATES[precision],
    )


def _one_picture(
    evaluator: ReferenceEvaluator,
    logits_name: str,
    model: ImageClassifier,
    preprocessing: Preprocessing,
    image: Image.Image,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (1, classes) of the model and of the package, probabilities (classes,) of both."""
    logits = model(torch.from_numpy(preprocessing.pixels(image))).logits
    outputs = evaluator.run({IMAGE: image}, capture=[logits_name])
    package_probabilities = torch.tensor(list(outputs[CLASS_PROBABILITIES].values()))
    return logits, torch.from_numpy(outputs[logits_name]), logits.softmax(1)[0], package_probabilities


def _logits_name(evaluator: ReferenceEvaluator) -> str:
    """What the program calls the logits: the value its last softmax reads."""
    (*_, softmax) = (operation for operation in evaluator.function.operations if operation.type == "softmax")
    logits = softmax.inputs["x"]
    assert isinstance(logits, Ref)
    return logits.name


def report(fidelity: ClassifierFidelity) -> list[str]:
    """A verification in short lines."""
    f = fidelity
    return [
        f"{'PASS' if f.passed else 'FAIL'}, logits {_db(f.snr)} SNR against PyTorch fp32 (gate {f.gate:g} dB)",
        f"worst picture {_db(f.worst_snr)}, cosine {f.cosine:.6f}",
        f"largest difference of a probability {f.max_abs_difference:.2g}",
        f"top-1 equal on {f.top1_agreement:.0%}, top-5 on {f.top5_agreement:.0%} of {f.images} pictures",
        f"smallest top-1 margin {f.margin:.2g}",
    ]


def _db(value: float) -> str:
    return "no finite" if math.isnan(value) else f"{value:.1f} dB"
