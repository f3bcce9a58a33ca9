"""The errors a user can cause. One line each: what, expected, got, what to do."""

from collections.abc import Collection

MAX_CHARACTERS = 20_000  # all keys of a checkpoint that do not fit are fewer


class MobileViTError(Exception):
    """Base of every error this package raises on purpose; command lines print it and exit with 2."""

    def __init__(self, message: str) -> None:
        # one line, whatever was in the file that it quotes: line ends and what steers a terminal are shown as escapes
        shown = message[:MAX_CHARACTERS]
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in shown))


class ConfigError(MobileViTError):
    """A configuration that no MobileViT can be built from."""


class CheckpointError(MobileViTError):
    """Weights that cannot be found, read, or fitted to the model."""


class LabelsError(MobileViTError):
    """Class names that cannot be read or do not fit the classifier."""


class ConversionError(MobileViTError):
    """A request that no Core ML package can fulfil."""


class OutputError(MobileViTError):
    """A place where the result cannot be written."""


class PackageError(MobileViTError):
    """A package that cannot be read or executed."""


class UnsupportedError(PackageError):
    """An operation, or a value of one of its attributes, that the reference evaluator does not implement."""


class InputError(MobileViTError):
    """Inputs that do not fit what a package declares."""


def os_error_text(error: Exception) -> str:
    """Reason of an error from the system or a library, on one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:150]


def error_text(error: Exception) -> str:
    """Any error on one line, as commands print it."""
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
    """Raise an error for a value that is none of the choices."""
    if value not in choices:
        raise error(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r:.60}; choose one of these")
