"""What a package says of its making: enough to build the PyTorch side again and to prepare pictures for it."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import TASKS
from mobilevit_coreml.interface import OutputForm
from mobilevit_coreml.preprocessing import Preprocessing

METADATA_PREFIX = "mobilevit_coreml."
FUNCTION = "main"  # of a package with one size


@dataclasses.dataclass(frozen=True)
class PackageRecord:
    """What stands under `mobilevit_coreml.*` in a package's user-defined metadata.

    `config` is the network's configuration without the labels, `expand` whether its backbone has the
    final expansion. `labels` and `colors` are a segmenter's; a classifier has its labels in the
    program, and `labels_renamed` maps the index of a class to the name it had before the names were
    made unique. `compression` says how weights are stored: the scheme, how many pictures it was
    calibrated with, the modules by format and, of those left alone, by reason, and for a budget the
    curve of all packages built, [bytes, dB, agreement]. `sizes` has (height, width) of the crop of each
    function in a package of several sizes; `preprocessing` and `config` are those of the first.
    """

    version: str
    variant: str
    task: str
    attention: str
    unfold: str
    precision: str
    weights: WeightsSource
    preprocessing: Preprocessing
    outputs: OutputForm
    config: Mapping[str, Any]
    expand: bool
    labels: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    labels_renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compression: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r}")
        if not all(isinstance(text, str) for text in self.labels) or len(self.colors) != len(self.labels):
            raise ValueError("labels and colours that do not belong together")
        if not all(re.fullmatch("#[0-9A-Fa-f]{6}", color) for color in self.colors):
            raise ValueError("colours that are not #RRGGBB")
        self.by_function()  # raises where a size cannot be

    def by_function(self) -> dict[str, Preprocessing]:
        """The pixel contract of each of the program's functions."""
        if not self.sizes:
            return {FUNCTION: self.preprocessing}
        return {name: self.preprocessing.with_crop(size) for name, size in self.sizes.items()}

    def to_metadata(self) -> dict[str, str]:
        """As user-defined metadata, whose values are texts: JSON where there is a structure."""
        texts = {name: getattr(self, name) for name in _TEXT_FIELDS}
        texts["channel_order"] = self.preprocessing.channel_order  # again, for people who read it in Xcode
        if self.weights.untrained:
            texts["untrained"] = "true"
        values = dataclasses.asdict(self)
        values["weights"] = {key: value for key, value in values["weights"].items() if value is not None}
        texts |= {name: json.dumps(values[name]) for name in _JSON_FIELDS}
        return {METADATA_PREFIX + name: text for name, text in texts.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "PackageRecord":
        """From a package's user-defined metadata; KeyError, ValueError or TypeError where that is no record.

        MobileViTError, OverflowError or RecursionError where a value in it cannot be.
        """
        values: dict[str, Any] = {name: metadata[METADATA_PREFIX + name] for name in _TEXT_FIELDS}
        values |= {name: json.loads(metadata[METADATA_PREFIX + name]) for name in _JSON_FIELDS}
        pixels = values.pop("preprocessing")
        return cls(
            weights=WeightsSource(**values.pop("weights")),
            preprocessing=Preprocessing(**{**pixels, "crop": tuple(pixels["crop"])}),
            outputs=OutputForm(**values.pop("outputs")),
            labels=tuple(values.pop("labels")),
            colors=tuple(values.pop("colors")),
            sizes={name: (int(height), int(width)) for name, (height, width) in values.pop("sizes").items()},
            **values,
        )


_TEXT_FIELDS = ("version", "variant", "task", "attention", "unfold", "precision")
_JSON_FIELDS = (
    "weights",
    "preprocessing",
    "outputs",
    "config",
    "expand",
    "labels",
    "colors",
    "labels_renamed",
    "compression",
    "sizes",
)
