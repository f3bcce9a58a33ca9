"""The PyTorch side of a package, found by what the package records of its making."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mobilevit_coreml.checkpoints.load import AUTO, PRETRAINED, UNTRAINED, Checkpoint, load_checkpoint
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.model import Model
from mobilevit_coreml.options import adapted, notices_of, record_of, sized
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing

BY_VARIANT = (AUTO, PRETRAINED, UNTRAINED)  # weights that a name alone does not tell apart


@dataclasses.dataclass(frozen=True)
class Original:
    """What a package was made of.

    `models` are in eval mode, in fp32, one for each function. `record` is what a conversion of these
    weights would record today, `classes` the class names it would give, made unique.
    """

    models: Mapping[str, Model]
    record: PackageRecord
    classes: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def contracts(self) -> Mapping[str, Preprocessing]:
        """The pixel contract of each function."""
        return self.record.by_function()


def load_original(
    record: PackageRecord, weights: str | None = None, labels: Path | None = None, channel_order: str | None = None
) -> Original:
    """The checkpoint a package records, or `weights`, which must be the same.

    `labels` and `channel_order` are what the conversion was given in place of the checkpoint's own.
    Raises CheckpointError where the weights cannot be found, or are others.
    """
    checkpoint = _load(record, weights)
    names = None if labels is None else read_labels(labels)
    checkpoint = adapted(checkpoint, names, channel_order, record.preprocessing.include_crop)
    sizes = list(record.sizes.values()) or [record.preprocessing.crop]
    expected, classes = record_of(checkpoint, record.attention, record.unfold, record.precision, record.outputs, sizes)
    models = {
        name: sized(checkpoint, pixels.crop).model(record.attention, record.unfold)
        for name, pixels in expected.by_function().items()
    }
    return Original(models, expected, classes, notices_of(checkpoint))


def _load(record: PackageRecord, weights: str | None) -> Checkpoint:
    recorded = record.weights
    name = weights or recorded_name(recorded)
    try:
        checkpoint = load_checkpoint(name, record.variant if name in BY_VARIANT else None, record.task)
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
    """What `load_checkpoint` finds the same weights by."""
    if source.untrained:
        return UNTRAINED
    return source.name if source.revision is None else f"{source.name.partition('@')[0]}@{source.revision}"


def _identity(source: WeightsSource) -> str:
    return f"untrained weights of seed {source.seed}" if source.untrained else f"sha256 {source.sha256:.16}…"
