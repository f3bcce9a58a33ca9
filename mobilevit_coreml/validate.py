"""The command `python -m mobilevit_coreml.validate`, which is cli/validate.py."""

from mobilevit_coreml.cli.common import run_module

run_module(__name__, "mobilevit_coreml.cli.validate")
