"""The input and outputs of a package, as an app gets them: names, shapes and meanings, by task."""

import dataclasses
from collections.abc import Mapping

from mobilevit_coreml.config import CLASSIFICATION, SEGMENTATION
from mobilevit_coreml.errors import check_choice

IMAGE = "image"
CLASS_LABEL = "classLabel"
CLASS_PROBABILITIES = "classLabel_probs"  # coremltools' choice
SEMANTIC_PREDICTIONS = "semanticPredictions"  # as in Apple's own DeepLabV3
POOLED = "pooled"
FEATURE_MAP = "featureMap"

LABELS, LOGITS, PROBABILITIES, MASK = OUTPUT_TYPES = ("labels", "logits", "probabilities", "image")
SCORES, VALUES = "scores", "values"  # types of a classifier with independent labels, and of one that is a regression
WHOLE, NETWORK = OUTPUT_SIZES = ("image", "network")
DTYPES = ("float32", "float16")
MAX_MASK_CLASSES = 256  # values of a grayscale pixel


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Types and sizes of a package's outputs.

    `type` and `size` are a segmenter's: class indices as an array ("labels") or as a grayscale image
    ("image"), logits or probabilities, for each pixel of the crop ("image") or each cell of the
    network's own map ("network"). A classifier's `type` is "labels" (the class, and the probability of each),
    "scores" (the same of labels that are independent), "logits", or "values" of a regression.
    `hidden_states` is the number of stages' maps among a feature extractor's outputs;
    without the final expansion the fifth's is the feature map itself.
    `dtype` is what real numbers come as, float32 or float16.
    """

    type: str = LABELS
    size: str = WHOLE
    dtype: str = "float32"
    hidden_states: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("type", (*OUTPUT_TYPES, SCORES, VALUES)), ("size", OUTPUT_SIZES), ("dtype", DTYPES)):
            check_choice(f"output {name}", getattr(self, name), choices)


def names_classes(task: str, outputs: OutputOptions) -> bool:
    """True for a classifier that returns a class and a probability by each class name."""
    return task == CLASSIFICATION and outputs.type in (LABELS, SCORES)


def output_names(task: str, outputs: OutputOptions) -> tuple[str, ...]:
    """The outputs in the package's order."""
    return tuple(output_descriptions(task, outputs))


def output_descriptions(task: str, outputs: OutputOptions) -> Mapping[str, str]:
    """Description of each output, for Xcode."""
    if task == CLASSIFICATION:
        if outputs.type == LOGITS:
            return {LOGITS: "Logit of each class: 1, classes"}
        if outputs.type == VALUES:
            return {VALUES: "Predicted values: 1, values"}
        sums = "independent of each other" if outputs.type == SCORES else "summing to 1"
        return {CLASS_LABEL: "Most probable class", CLASS_PROBABILITIES: f"Probability of each class, 0 to 1, {sums}"}
    if task == SEGMENTATION:
        where = "pixel of the image" if outputs.size == WHOLE else "cell of the network's map"
        return {
            LABELS: {SEMANTIC_PREDICTIONS: f"Class index of each {where}: rows, columns"},
            MASK: {SEMANTIC_PREDICTIONS: f"Class index of each {where}, as its gray value"},
            LOGITS: {LOGITS: f"Logit of each class for each {where}: 1, classes, rows, columns"},
            PROBABILITIES: {PROBABILITIES: f"Probability of each class for each {where}: 1, classes, rows, columns"},
        }[outputs.type]
    stages = range(1, outputs.hidden_states + 1)
    return {
        POOLED: "The feature map pooled to one value a channel: 1, channels",
        FEATURE_MAP: "The last map: 1, channels, rows, columns",
        **{f"stage{number}": f"Map of stage {number}: 1, channels, rows, columns" for number in stages},
    }
