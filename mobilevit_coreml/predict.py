"""The command `python -m mobilevit_coreml.predict`, which is cli/predict.py."""

from mobilevit_coreml.cli.common import run_module

run_module(__name__, "mobilevit_coreml.cli.predict")
