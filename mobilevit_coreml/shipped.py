"""Data files for users: top-level folders of a checkout, included in the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(installed: str, checkout: str) -> Path:
    """Path of a folder: `installed` in the package if it exists, otherwise `checkout` next to the package."""
    return folder if (folder := PACKAGE / installed).is_dir() else PACKAGE.parent / checkout
