"""Files that users take away: in the top folders of a checkout, inside the package once it is installed."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(installed: str, checkout: str) -> Path:
    """A folder's path: `installed` within the package if it is there, or else `checkout` beside the package."""
    return folder if (folder := PACKAGE / installed).is_dir() else PACKAGE.parent / checkout
