"""The PyTorch side of a package, found by what the package records of its making."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml.checkpoints.load import AUTO, PRETRAINED, UNTRAINED, Checkpoint, load_checkpoint
from mobilevit_coreml.checkpoints.overrides import CheckpointOverrides
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.model import Model
from mobilevit_coreml.options import OUTPUT_OPTIONS, ConversionOptions
from mobilevit_coreml.package.interface import LABELS, MASK, SCORES, VALUES, OutputOptions
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.prepare import make_record, notices_of, with_crop_inside, with_image_size
from mobilevit_coreml.preprocessing import Preprocessing

BY_VARIANT = (AUTO, PRETRAINED, UNTRAINED)  # names that stand for other weights with each variant


@dataclasses.dataclass(frozen=True)
class Original:
    """The PyTorch models that a package was converted from.

    `models` are in eval mode, in fp32, one for each function. `record` is what a conversion of these
    weights would record today, `classes` the class names it would give, made unique.
    """

    models: Mapping[str, Model]
    record: PackageRecord
    classes: tuple[str, ...]
    notices: tuple[str, ...]
    weights: Path | None = None  # the file; None of untrained ones

    @property
    def preprocessing(self) -> Mapping[str, Preprocessing]:
        """The preprocessing of each function."""
        return self.record.by_function()


def load_original(
    record: PackageRecord,
    weights: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    channel_order: str | None = None,
) -> Original:
    """The checkpoint a package records, or `weights`, which must be the same.

    `labels` and `channel_order` are what the conversion was given in place of the checkpoint's own.
    Raises CheckpointError where the weights cannot be found, or are others.
    """
    options = dataclasses.replace(recorded_options(record), labels=labels)
    if channel_order is not None:
        options = dataclasses.replace(options, channel_order=channel_order)
    checkpoint = with_crop_inside(_load(record, weights, options), record.preprocessing.include_crop)
    expected, classes = make_record(checkpoint, options)
    models = {
        name: with_image_size(checkpoint, preprocessing.crop).model(record.attention, record.unfold)
        for name, preprocessing in expected.by_function().items()
    }
    return Original(models, expected, classes, notices_of(checkpoint), checkpoint.path)


def recorded_options(record: PackageRecord) -> ConversionOptions:
    """Options of a conversion that would record the same, as far as there are such."""
    recorded, default = dataclasses.asdict(record.outputs), dataclasses.asdict(OutputOptions())
    if record.task == Task.SEGMENTATION and record.outputs.type in (LABELS, MASK):
        del recorded["dtype"]  # class indices have no choice
    if record.outputs.type in (SCORES, VALUES):
        del recorded["type"]  # follows from the configuration
    given: dict[str, Any] = {  # lists of JSON
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.given.items()
        if name != "labels"
    }
    outputs = {f"output_{name}": value for name, value in recorded.items() if value != default[name]}
    return ConversionOptions(
        task=record.task,
        precision=record.precision,
        attention=record.attention,
        unfold=record.unfold,
        image_sizes=tuple(record.sizes.values()) or (record.preprocessing.crop,),
        include_crop=record.preprocessing.include_crop,
        hidden_states=record.task == Task.FEATURES and record.outputs.hidden_states > 0,
        **{name: value for name, value in outputs.items() if name in OUTPUT_OPTIONS[Task(record.task)]},
        **given,
    )


def _load(record: PackageRecord, weights: str | None, overrides: CheckpointOverrides) -> Checkpoint:
    recorded = record.weights
    name = weights or recorded_name(recorded)
    try:
        checkpoint = load_checkpoint(name, record.variant if name in BY_VARIANT else None, record.task, overrides)
    except CheckpointError as error:
        if weights is not None:
            raise
        raise CheckpointError(f"{error} (the package records these weights; --weights names their place)") from None
    found = checkpoint.source
    if (found.sha256, found.seed) != (recorded.sha256, recorded.seed):
        raise CheckpointError(
            f"weights {name}: expected {_identity(recorded)}, as the package records, "
            f"got {_identity(found)}; give the weights it was made of (--weights)"
        )
    return checkpoint


def recorded_name(source: WeightsSource) -> str:
    """The name by which `load_checkpoint` finds the same weights."""
    if source.untrained:
        return UNTRAINED
    return source.name if source.revision is None else f"{source.name.partition('@')[0]}@{source.revision}"


def _identity(source: WeightsSource) -> str:
    return f"untrained weights of seed {source.seed}" if source.untrained else f"sha256 {source.sha256:.16}…"
