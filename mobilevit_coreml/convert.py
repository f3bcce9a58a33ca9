"""The command `python -m mobilevit_coreml.convert`, which is cli/convert.py."""

from mobilevit_coreml.cli.common import run_module

run_module(__name__, "mobilevit_coreml.cli.convert")
