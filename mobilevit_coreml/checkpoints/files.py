"""Safe reading of weights and JSON files; no code from them is run."""

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mobilevit_coreml.errors import CheckpointError, os_error_text
from mobilevit_coreml.strict_json import JsonError, read_json

MAX_CHECKPOINT_BYTES = 2 * 1024**3  # the largest MobileViT has 0.03 GB, with optimizer state about three times that
MAX_JSON_BYTES = 16 * 1024**2
MAX_WRAPPERS = 4  # nesting, such as {"state_dict": {"model": …}}
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net")
LFS_MAGIC = b"version https://git-lfs"
ZIP_MAGIC = b"PK\x03\x04"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by key of a .safetensors file or a torch checkpoint, on the CPU, without wrapping dictionaries.

    Raises CheckpointError for files that are unreadable, too large, git-LFS pointers, truncated or
    damaged, pickles that would run code, and files without a state dict.
    """
    head = _head(path)
    if head.startswith(LFS_MAGIC):
        raise CheckpointError(
            f"{path}: expected weights, got a git-LFS pointer to them; fetch the file itself with `git lfs pull`"
        )
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    return _state_dict(_read_pickle(path, is_zip=head.startswith(ZIP_MAGIC)), path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError if there is none."""
    try:
        values = read_json(path, MAX_JSON_BYTES)
    except JsonError as error:
        raise CheckpointError(f"{path}: {error}; check the file") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}; check the file")
    return values


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _head(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable weights file, got {os_error_text(error)}; check the path"
        ) from None
    if not size:
        raise CheckpointError(f"{path}: expected weights, got an empty file; download it again")
    if size > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes, got {size}; "
            "save the model's state dict without the optimizer's"
        )
    return head


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise _damaged(path, "a safetensors file", error) from None


def _read_pickle(path: Path, is_zip: bool) -> object:
    try:
        if is_zip:
            _check_unpacked_size(path)
        # timm's training script saves its argparse.Namespace, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise _damaged(path, "a torch checkpoint", ValueError("not a pickle that torch can read")) from None
        raise CheckpointError(
            f"{path}: expected tensors only, got a pickle that would run code to load ({wanted[1]}); "
            "save model.state_dict() and convert that"
        ) from None
    except Exception as error:  # damaged pickles raise all kinds of exceptions
        raise _damaged(path, "a torch checkpoint", error) from None


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes unpacked, got {size}; this is not a MobileViT"
        )


def _state_dict(values: object, path: Path) -> dict[str, Tensor]:
    content = values
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
            if tensors:
                _check_size(tensors, path)
                return tensors
            break
        content = inner
    raise CheckpointError(
        f"{path}: expected a state dict, alone or under one of {', '.join(WRAPPER_KEYS)}, "
        f"got {_describe(values)}; save model.state_dict()"
    )


def _check_size(tensors: Mapping[str, Tensor], path: Path) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_CHECKPOINT_BYTES:  # larger than the file if tensors have strides of 0
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes of weights, got {size}; this is not a MobileViT"
        )


def _describe(values: object) -> str:
    if isinstance(values, Mapping):
        return f"the keys {', '.join(map(str, list(values)[:6]))}" if values else "an empty dictionary"
    return f"a {type(values).__name__}"


def _damaged(path: Path, kind: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected {kind}, got a truncated or damaged file ({os_error_text(error)}); download or save it again"
    )
