"""The package on disk: its name, what it says about itself, and how it gets there whole or not at all."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import CUSTOM
from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.preprocessing import Preprocessing

SUFFIX = ".mlpackage"
UNTRAINED_SUFFIX = "_untrained"
FAILED_SUFFIX = "_failed"
METADATA_PREFIX = "mobilevit_coreml."
MEGABYTE = 10**6

# What a classifier's input and outputs are called; the last is coremltools' choice.
IMAGE = "image"
CLASS_LABEL = "classLabel"
CLASS_PROBABILITIES = "classLabel_probs"


@dataclasses.dataclass(frozen=True)
class PackageRecord:
    """What a package says of its making, under `mobilevit_coreml.*` in its user-defined metadata.

    Enough to build the PyTorch side again and to prepare pictures for it. `config` is the network's
    configuration without the labels, which the package carries itself; `labels_renamed` maps the
    index of a class to the name it had before the names were made unique.
    """

    version: str
    variant: str
    task: str
    attention: str
    precision: str
    weights: WeightsSource
    preprocessing: Preprocessing
    config: Mapping[str, Any]
    labels_renamed: Mapping[str, str]

    def to_metadata(self) -> dict[str, str]:
        """As user-defined metadata, whose values are texts: JSON where there is a structure."""
        texts = {name: getattr(self, name) for name in _TEXT_FIELDS}
        texts["channel_order"] = self.preprocessing.channel_order  # again, for people who read it in Xcode
        if self.weights.untrained:
            texts["untrained"] = "true"
        texts["weights"] = json.dumps({k: v for k, v in dataclasses.asdict(self.weights).items() if v is not None})
        texts["preprocessing"] = json.dumps(dataclasses.asdict(self.preprocessing))
        texts["config"] = json.dumps(self.config)
        texts["labels_renamed"] = json.dumps(self.labels_renamed)
        return {METADATA_PREFIX + name: text for name, text in texts.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "PackageRecord":
        """From a package's user-defined metadata; KeyError, ValueError or TypeError where that is no record."""
        values: dict[str, Any] = {name: metadata[METADATA_PREFIX + name] for name in _TEXT_FIELDS}
        values |= {name: json.loads(metadata[METADATA_PREFIX + name]) for name in _JSON_FIELDS}
        pixels = values.pop("preprocessing")
        return cls(
            weights=WeightsSource(**values.pop("weights")),
            preprocessing=Preprocessing(**{**pixels, "crop": tuple(pixels["crop"])}),
            **values,
        )


_TEXT_FIELDS = ("version", "variant", "task", "attention", "precision")
_JSON_FIELDS = ("weights", "preprocessing", "config", "labels_renamed")


def package_name(variant: str, precision: str) -> str:
    """`MobileViT_XS_fp16`: Xcode makes a Swift class of this name."""
    return f"MobileViT_{variant.upper() if variant != CUSTOM else 'Custom'}_{precision}"


def package_path(output: Path | None, name: str, untrained: bool) -> Path:
    """Where the package goes: `output` itself, or `name` inside it, or here.

    Untrained weights show in the file's name whatever was asked for, so that nobody ships them by mistake.
    """
    if output is None or output.suffix != SUFFIX:
        output = (output or Path()) / (name + SUFFIX)
    if untrained and not output.stem.endswith(UNTRAINED_SUFFIX):
        output = output.with_name(output.stem + UNTRAINED_SUFFIX + SUFFIX)
    return output


def failed_path(path: Path) -> Path:
    """Where a package goes that did not pass its verification: beside its place, under a name that says so."""
    return path.with_name(path.stem + FAILED_SUFFIX + SUFFIX)


def check_output(output: Path | None) -> None:
    """Raise OutputError where no package can go, before anybody waits for one."""
    if output is None or output.is_dir():
        return
    if output.suffix != SUFFIX:
        raise OutputError(
            f"output {output}: expected a name ending in {SUFFIX} or an existing directory, got neither; add the ending"
        )
    if not output.parent.is_dir():
        raise OutputError(
            f"output {output}: expected {output.parent} to be a directory, got none there; create it first"
        )


def check_free(path: Path, force: bool) -> None:
    """Raise OutputError where something has the package's name already; only a package is ever replaced."""
    if not os.path.lexists(path):
        return
    if not (path / "Manifest.json").is_file():
        raise OutputError(f"output {path}: expected a free name or a package, got something else; move it away")
    if not force:
        raise OutputError(f"output {path}: expected a free name, got an existing package; add --force to replace it")


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A place beside `path` to save the package to; nothing of it stays when the block fails.

    Beside it, so that the last step can be a rename within one file system.
    """
    try:
        directory = tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent)
    except OSError as error:
        raise OutputError(
            f"output {path}: expected a directory to write to, got {error.strerror}; choose another --output"
        ) from None
    try:
        yield Path(directory) / path.name
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def save(program: Any, path: Path) -> None:
    """Write a ct.models.MLModel as a package whose weights and program are the same bytes each time."""
    try:
        program.save(str(path))
        # coremltools leaves the order of the metadata to chance
        specification = program.get_spec().SerializeToString(deterministic=True)
        (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(specification)
    except (OSError, RuntimeError) as error:  # the latter from coremltools' C++ parts
        reason = " ".join(str(error).split())[:120]
        raise OutputError(
            f"output {path.parent.parent}: expected room for the package, got {reason}; free some"
        ) from None


def put_in_place(staged: Path, path: Path, force: bool) -> None:
    """Rename a whole package to its final name; the one it replaces goes only when the new one is there."""
    replaced = staged.with_name("replaced" + SUFFIX)
    try:
        if force and os.path.lexists(path):
            path.rename(replaced)  # goes with the staging directory
        staged.rename(path)
    except OSError as error:
        if replaced.exists() and not os.path.lexists(path):
            replaced.rename(path)
        raise OutputError(
            f"output {path}: expected to rename the finished package to it, got {error.strerror}"
        ) from None


def size_of(path: Path) -> int:
    """Bytes of a package: the sum of its files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
