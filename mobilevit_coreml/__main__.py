"""The commands under one name: `mobilevit-coreml convert`, `predict`, `validate`, `conversions`."""

import importlib
import sys
from collections.abc import Sequence

from mobilevit_coreml import __version__
from mobilevit_coreml.cli.common import BAD_INPUT, DONE

NAME = "mobilevit-coreml"
COMMANDS = {
    "convert": ("mobilevit_coreml.cli.convert", "convert a checkpoint to a Core ML package"),
    "predict": ("mobilevit_coreml.cli.predict", "run a package on images"),
    "validate": ("mobilevit_coreml.cli.validate", "compare a package with the PyTorch model it was made from"),
    "conversions": ("mobilevit_coreml.cli.build", "build the packages of recipes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns its exit code."""
    command, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command == "--version":
        print(__version__)
        return DONE
    if command in ("-h", "--help"):
        print(f"usage: {NAME} COMMAND …\n")
        print("\n".join(f"  {name:<13}{text}" for name, (_, text) in COMMANDS.items()))
        print(f"\n{NAME} COMMAND --help says more.")
        return DONE
    if command not in COMMANDS:
        print(f"error: expected one of {', '.join(COMMANDS)}, got {command!r}; see --help", file=sys.stderr)
        return BAD_INPUT
    module = importlib.import_module(COMMANDS[command][0])
    return int(module.main(rest, f"{NAME} {command}"))


if __name__ == "__main__":
    sys.exit(main())
