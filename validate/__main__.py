"""The command `python -m validate` in a checkout, which is mobilevit_coreml/cli/validate.py."""

import sys

from mobilevit_coreml.cli.validate import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m validate"))
