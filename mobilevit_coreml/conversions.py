"""The command `python -m mobilevit_coreml.conversions`, which is cli/build.py."""

from mobilevit_coreml.cli.common import run_module

run_module(__name__, "mobilevit_coreml.cli.build")
