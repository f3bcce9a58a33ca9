"""Checkpoints of this package's own models, saved after training: names of tensors."""

from mobilevit_coreml.checkpoints.naming import Naming

OWN = Naming(
    name="mobilevit_coreml",
    marker="backbone.stage1.0.expand.conv.weight",
    heads=("classifier.", "head."),
    channel_order="BGR",
    renames=(),
)
