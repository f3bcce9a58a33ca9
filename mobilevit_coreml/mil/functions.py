"""Several programs as the functions of one package, their weights stored once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml._coremltools import ct, quietly


def merge_functions(programs: Mapping[str, Any], directory: Path) -> Any:
    """One ct.models.MLModel with a function for each program, the first the default; `directory` is for scratch.

    coremltools merges what is on disk. Such packages need iOS18.
    """
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, program in programs.items():
        path = directory / f"{name}.mlpackage"
        program.save(str(path))
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = next(iter(programs))
    merged = directory / "merged.mlpackage"
    with quietly():
        ct.utils.save_multifunction(descriptor, str(merged))
    return ct.models.MLModel(str(merged), skip_model_load=True)
