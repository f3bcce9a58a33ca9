"""Packages with several functions that share their weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml._coremltools import ct, quietly


def merge_functions(programs: Mapping[str, Any], directory: Path) -> Any:
    """One ct.models.MLModel with a function for each program, the first as default (iOS18 or later).

    `directory` is for temporary files: coremltools merges saved packages only.
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
