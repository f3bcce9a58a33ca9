"""Reading what others wrote: tensors and JSON from files that may be anything. Nothing in them is ever run."""

import argparse
import hashlib
import json
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

from mobilevit_coreml.errors import CheckpointError

MAX_CHECKPOINT_BYTES = 2 * 1024**3  # the largest MobileViT is 0.03 GB; optimizer state may triple that
MAX_JSON_BYTES = 16 * 1024**2
MAX_WRAPPERS = 4  # {"state_dict": {"model": …}} and the like
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net")
LFS_MAGIC = b"version https://git-lfs"
ZIP_MAGIC = b"PK\x03\x04"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All named tensors of a .safetensors file or a torch checkpoint, on the CPU, wrappers taken off.

    Raises CheckpointError, one line a cause: not readable, too large, a git-LFS pointer, truncated
    or damaged, a pickle that wants to run code, no state dict inside.
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
    """The object in a JSON file; raises CheckpointError when there is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)  # what the file claims of its size proves nothing
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        values = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {_one_line(error)}; check the file") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}; check the file")
    return values


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _head(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable weights file, got {_one_line(error)}; check the path"
        ) from None
    if not size:
        raise CheckpointError(f"{path}: expected weights, got an empty file; download it again")
    if size > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes, got {size}; "
            "save the model's state dict alone, without the optimizer's"
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
        # plain data, which timm's training script adds; and torch's warnings of a file it then reads or raises for
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise _damaged(path, "a torch checkpoint", ValueError("no pickle that torch can read")) from None
        raise CheckpointError(
            f"{path}: expected tensors only, got a pickle that would run code to load ({wanted[1]}); "
            "save model.state_dict() and convert that"
        ) from None
    except Exception as error:  # a damaged pickle may raise whatever its bytes happen to ask for
        raise _damaged(path, "a torch checkpoint", error) from None


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes unpacked, got {size}; this is no MobileViT"
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
                _check_claimed_size(tensors, path)
                return tensors
            break
        content = inner
    raise CheckpointError(
        f"{path}: expected a state dict, alone or under one of {', '.join(WRAPPER_KEYS)}, "
        f"got {_content_text(values)}; save model.state_dict()"
    )


def _check_claimed_size(tensors: Mapping[str, Tensor], path: Path) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_CHECKPOINT_BYTES:  # larger than the file: with strides of 0 a number is a tensor of any size
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes of weights, got {size}; this is no MobileViT"
        )


def _content_text(values: object) -> str:
    if isinstance(values, Mapping):
        return f"the keys {', '.join(map(str, list(values)[:6]))}" if values else "an empty dictionary"
    return f"a {type(values).__name__}"


def _damaged(path: Path, kind: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected {kind}, got a truncated or damaged file ({_one_line(error)}); download or save it again"
    )


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:120].rstrip(" .;:") or type(error).__name__
