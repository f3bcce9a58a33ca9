"""A package on disk: its name and place, saving it, its size and digest."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml.config import CLASSIFICATION, CUSTOM, FEATURES, SEGMENTATION
from mobilevit_coreml.errors import OutputError, os_error_text
from mobilevit_coreml.publish import check_parent, destination, remove_stale

SUFFIX = ".mlpackage"
UNTRAINED_SUFFIX = "_untrained"
FAILED_SUFFIX = "_failed"
MEGABYTE = 10**6


_STEMS: Mapping[str, str] = {
    CLASSIFICATION: "MobileViT_{variant}",
    SEGMENTATION: "DeepLabV3_MobileViT_{variant}",
    FEATURES: "MobileViT_{variant}_features",
}


def package_name(task: str, variant: str, precision: str, scheme: str = "") -> str:
    """`MobileViT_XS_fp16`, or with the name of a compression scheme `MobileViT_XS_6bit`: Xcode's Swift class."""
    stem = _STEMS[task].format(variant=variant.upper() if variant != CUSTOM else "Custom")
    if not scheme:
        return f"{stem}_{precision}"
    name = f"{stem}_{scheme}" if precision == "fp16" else f"{stem}_{scheme}_{precision}"
    return name.replace(".", "_")


def package_path(output: Path | None, name: str, untrained: bool) -> Path:
    """Path of a package: `output` itself, or `name` in that directory, by default the current one.

    Untrained weights are in the file's name whatever was asked for, so that nobody ships them by mistake.
    """
    if output is None or output.suffix != SUFFIX:
        output = (output or Path()) / (name + SUFFIX)
    if untrained and not output.stem.endswith(UNTRAINED_SUFFIX):
        output = output.with_name(output.stem + UNTRAINED_SUFFIX + SUFFIX)
    return output


def failed_path(path: Path) -> Path:
    """Path of a package that failed its verification: the same with `_failed`."""
    return path.with_name(path.stem + FAILED_SUFFIX + SUFFIX)


def check_output(output: Path | None) -> None:
    """Raise OutputError for an output that is neither a directory nor a package's path in one."""
    if output is None or output.is_dir():
        return
    if output.suffix != SUFFIX:
        raise OutputError(
            f"output {output}: expected a name ending in {SUFFIX} or an existing directory, got neither; add the ending"
        )
    check_parent(output)


def check_free(path: Path, force: bool) -> None:
    """Raise OutputError if something has the package's name, unless that is a package and `force` is set."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # coremltools saves a package there, and then cannot read it
        raise OutputError(f"output {path}: expected a name that is text, got bytes that are none; rename it") from None
    remove_stale(path)  # first: a package that a killed process was replacing comes back
    if not os.path.lexists(path):
        return
    if not (path / "Manifest.json").is_file():
        raise OutputError(f"output {path}: expected a free name or a package, got something else; move it away")
    if not force:
        raise OutputError(f"output {path}: expected a free name, got an existing package; add --force to replace it")


def save(program: Any, path: Path) -> None:
    """Write a ct.models.MLModel to a staging path, with the same bytes of program and weights each time."""
    try:
        program.save(str(path))
        # coremltools leaves the order of the metadata to chance
        specification = program.get_spec().SerializeToString(deterministic=True)
        (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(specification)
    except (OSError, RuntimeError) as error:  # the latter from coremltools' C++ parts
        reason = os_error_text(error)
        raise OutputError(f"cannot write {destination(path)}: {reason}; make room or choose another place") from None


def size_of(path: Path) -> int:
    """Size of a package in bytes: the sum of its files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def digest_of(package: Path) -> str:
    """sha256 of a package's program and weights; the rest differs from one saving to the next."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.name != "Manifest.json":
            digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()
