"""Options of a conversion, checked before anything is loaded."""

import dataclasses
import enum
from collections.abc import Collection
from typing import Any

from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.compression.schemes import Budget, Compression
from mobilevit_coreml.config import MULTI_LABEL, REGRESSION, AttentionImplementation, Task, UnfoldImplementation
from mobilevit_coreml.errors import ConversionError, check_choice
from mobilevit_coreml.package.interface import (
    DTYPES,
    LABELS,
    LOGITS,
    MASK,
    OUTPUT_SIZES,
    OUTPUT_TYPES,
    PROBABILITIES,
    SCORES,
    VALUES,
    OutputOptions,
)
from mobilevit_coreml.preprocessing import CHANNEL_ORDERS

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
DEFAULT_TARGET = "iOS16"
FIRST_WITH_FLOAT16_OUTPUTS = "iOS16"
FIRST_WITH_COMPRESSION = "iOS16"
FIRST_WITH_PIXEL_UNSHUFFLE = "iOS16"
FIRST_WITH_FUNCTIONS = "iOS18"


class Precision(enum.StrEnum):
    """The type the program computes in, and stores uncompressed weights in."""

    FP16 = "fp16"
    FP32 = "fp32"


# The options of a package's outputs that each task has
OUTPUT_OPTIONS: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFICATION: ("output_type", "output_dtype"),
    Task.SEGMENTATION: ("output_type", "output_size", "output_dtype"),
    Task.FEATURES: ("output_dtype", "hidden_states"),
}
_OUTPUTS_OF = {
    "output_type": "classes",
    "output_size": "segmentation",
    "output_dtype": "features, logits or probabilities",
    "hidden_states": "features",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionOptions(CheckpointOverrides):
    """All options of a conversion; what is None is as the checkpoint has it, or the default.

    `task`, by default the one the weights were trained for. `attention` and `unfold` are implementations of the
    same computation, `precision` is fp16 or fp32. `target` is iOS15 to iOS26, by default the least one that has
    what is asked for, from iOS16 on. `image_sizes` are (height, width) in pixels; several become functions of one
    package. With `include_crop` the package crops the centre from a larger image itself. `output_type`,
    `output_size` and `output_dtype` are as in `OutputOptions`; `hidden_states` adds the maps of the stages to
    features. The rest is as in `CheckpointOverrides`.

    `compression` is one format for all weights that bear it, or a Budget, which chooses a format for each layer.

    Raises ConversionError for values that cannot be, alone or together.
    """

    task: str | None = None
    precision: str = Precision.FP16
    attention: str = AttentionImplementation.SPLIT_EINSUM
    unfold: str = UnfoldImplementation.SPACE_TO_BATCH
    target: str | None = None
    include_crop: bool = False
    output_type: str | None = None
    output_size: str | None = None
    output_dtype: str | None = None
    hidden_states: bool = False
    compression: Compression | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        object.__setattr__(self, "image_sizes", tuple((height, width) for height, width in self.image_sizes))
        if len(set(self.image_sizes)) < len(self.image_sizes):
            raise ConversionError("image_sizes: expected each size once, got one twice; leave the second out")
        if isinstance(self.compression, Budget) and len(self.image_sizes) > 1:
            raise ConversionError(
                f"budget: expected one image size, got {len(self.image_sizes)}; make a package for each"
            )
        if self.task is not None:
            self.check_task(Task(self.task))
        self.resolved_target()

    def resolved_target(self) -> str:
        """The deployment target: the one asked for, or the least that has what else is."""
        first = {"several image sizes in one package": FIRST_WITH_FUNCTIONS} if len(self.image_sizes) > 1 else {}
        if self.output_dtype == "float16":
            first["float16 outputs"] = FIRST_WITH_FLOAT16_OUTPUTS
        if self.unfold == UnfoldImplementation.PIXEL_SHUFFLE:
            first["unfold pixel_shuffle"] = FIRST_WITH_PIXEL_UNSHUFFLE
        if isinstance(self.compression, Budget):
            first["a budget"] = FIRST_WITH_COMPRESSION
        elif self.compression is not None:
            first[f"weights in {self.compression.format}"] = self.compression.format.target
        what, least = max(first.items(), key=lambda entry: TARGETS.index(entry[1]), default=("", TARGETS[0]))
        target = self.target or max(least, DEFAULT_TARGET, key=TARGETS.index)
        if TARGETS.index(target) < TARGETS.index(least):
            raise ConversionError(f"target: expected {least} or later for {what}, got {target}; raise it")
        return target

    def check_task(self, task: Task) -> None:
        """Raise ConversionError for options that a task does not have."""
        for name in _OUTPUTS_OF:
            if getattr(self, name) and name not in OUTPUT_OPTIONS[task]:
                raise ConversionError(f"{name}: expected {_OUTPUTS_OF[name]}, got {task}; leave it out")
        if task == Task.CLASSIFICATION and self.output_type not in (None, LOGITS, PROBABILITIES):
            raise ConversionError(
                f"output_type: expected {LOGITS} or {PROBABILITIES} of a classifier, got {self.output_type}; drop it"
            )
        if task == Task.CLASSIFICATION and self.output_type == PROBABILITIES and self.output_dtype:
            raise ConversionError("output_dtype: expected logits, got probabilities by class name; leave it out")
        if self.output_dtype and task == Task.SEGMENTATION and (self.output_type or LABELS) in (LABELS, MASK):
            raise ConversionError(
                f"output_dtype: expected {_OUTPUTS_OF['output_dtype']}, got class indices; leave it out"
            )
        if task == Task.FEATURES and self.labels is not None:
            raise ConversionError("labels: expected none, since features have no classes; leave them out")
        if task == Task.FEATURES and isinstance(self.compression, Budget) and self.compression.min_agreement:
            raise ConversionError("min_agreement: expected classes, got features, which have none; use min_snr")

    def outputs(self, task: str, problem_type: str, expand: bool) -> OutputOptions:
        """The outputs of the package; `expand` is whether the backbone has its final expansion."""
        given = {"type": self.output_type, "size": self.output_size, "dtype": self.output_dtype}
        asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        stages = (5 if expand else 4) if self.hidden_states else 0  # without it the feature map is the fifth stage's
        if task == Task.CLASSIFICATION and self.output_type != LOGITS:
            asked["type"] = {MULTI_LABEL: SCORES, REGRESSION: VALUES}.get(problem_type, LABELS)
        return OutputOptions(**asked, hidden_states=stages)


_CHOICES: dict[str, Collection[str]] = {
    "task": tuple(Task),
    "precision": tuple(Precision),
    "attention": tuple(AttentionImplementation),
    "unfold": tuple(UnfoldImplementation),
    "target": TARGETS,
    "output_type": OUTPUT_TYPES,
    "output_size": OUTPUT_SIZES,
    "output_dtype": DTYPES,
    "channel_order": CHANNEL_ORDERS,
}
