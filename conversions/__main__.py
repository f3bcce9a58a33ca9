"""The command `python -m conversions` in a checkout, which is mobilevit_coreml/cli/build.py."""

import sys

from mobilevit_coreml.cli.build import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m conversions"))
