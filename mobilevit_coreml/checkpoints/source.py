"""Origin of weights."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class WeightsSource:
    """Origin of weights, with a checksum to identify them."""

    name: str  # hub id, path as given by the user, or "untrained"
    naming: str  # code base whose parameter names the file has
    revision: str | None = None  # commit on the hub
    sha256: str | None = None  # of the weights file
    seed: int | None = None  # of untrained weights

    @property
    def untrained(self) -> bool:
        """True for random weights."""
        return self.seed is not None
