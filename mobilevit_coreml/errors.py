"""Errors for users. Each message is one line: what, expected, got, what to do."""

from collections.abc import Collection

MAX_CHARACTERS = 20_000  # longer than a list of all keys of a checkpoint


class MobileViTError(Exception):
    """Base of all errors of this package; commands print it and exit with code 2."""

    def __init__(self, message: str) -> None:
        # text quoted from files may have line ends and terminal control characters: escape them
        text = message[:MAX_CHARACTERS]
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


class ConfigError(MobileViTError):
    """Invalid MobileViT configuration."""


class CheckpointError(MobileViTError):
    """Weights that are missing, unreadable, or do not fit the model."""


class LabelsError(MobileViTError):
    """Class names that are unreadable or do not fit the model."""


class ConversionError(MobileViTError):
    """Conversion options that are invalid or that Core ML does not support."""


class OutputError(MobileViTError):
    """Output path that cannot be written."""


class PackageError(MobileViTError):
    """Package that cannot be read or executed."""


class UnsupportedError(PackageError):
    """Operation or attribute value that the reference evaluator does not implement."""


class InputError(MobileViTError):
    """Images or other inputs that are unreadable or do not fit the package."""


def os_error_text(error: Exception) -> str:
    """Reason of an error from the system or a library, on one line of at most 150 characters."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:150].rstrip(" .;:") or type(error).__name__


def error_text(error: Exception) -> str:
    """Any error as one line, for commands to print."""
    if isinstance(error, MobileViTError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the system refused: out of memory; choose a smaller image size"
    if isinstance(error, OSError):
        where = f" ({error.filename!s:.80})" if error.filename else ""
        return f"the system refused: {os_error_text(error)}{where}; check the path"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def check_choice(
    name: str, value: object, choices: Collection[object], error: type[MobileViTError] = ConversionError
) -> None:
    """Raise `error` unless `value` is one of `choices`."""
    if value not in tuple(choices):  # which takes values without a hash, too
        raise error(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r:.60}; choose one of these")
