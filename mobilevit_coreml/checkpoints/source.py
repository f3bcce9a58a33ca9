"""Where weights came from."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class WeightsSource:
    """Enough to find weights and to check that they are the same."""

    name: str  # a hub id, the path as it was given, or "untrained"
    naming: str  # whose names the keys had
    revision: str | None = None  # commit on the hub
    sha256: str | None = None  # of the weights file
    seed: int | None = None  # of untrained weights

    @property
    def untrained(self) -> bool:
        """Whether the weights were drawn, not learned."""
        return self.seed is not None
