"""Names of this package's own models, as they are after training with them."""

from mobilevit_coreml.checkpoints.naming import Naming

OWN = Naming(
    name="mobilevit_coreml",
    marker="backbone.stem.conv.weight",
    heads=("classifier.", "head."),
    channel_order="BGR",
    renames=(),
)
