"""Safe reading of weights and JSON files; no code from them is run."""

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
# keys beside these, of exponential moving averages of the weights: timm, torchvision's references, cvnets, others
AVERAGE_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_model_state_dict",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema",
    "ema_model",
    "swa_state_dict",
)
AVERAGE_NAME = re.compile(r"(^|[._])ema[._]")  # in keys of these where both are in one dictionary
SHARD_INDEX = ".index.json"  # ends the name of a file that says which tensors are in which other files
LFS_MAGIC = b"version https://git-lfs"
ZIP_MAGIC = b"PK\x03\x04"

_FROM_TENSORFLOW = "transformers 4 converts it: from_pretrained(…, from_tf=True).save_pretrained(…)"
# Files of other formats by their first bytes, or the ends of their names: what each is, and what to do
FOREIGN_STARTS = {b"\x89HDF": ("a Keras or TensorFlow file (HDF5)", _FROM_TENSORFLOW)}
FOREIGN_SUFFIXES = {
    ".onnx": ("an ONNX file", "give the PyTorch weights it was exported from"),
    ".tflite": ("a TensorFlow Lite file", "give the PyTorch weights"),
    ".pb": ("a TensorFlow file", "give the PyTorch weights"),
    ".keras": ("a Keras file", "give the PyTorch weights"),
    ".h5": ("a Keras or TensorFlow file", _FROM_TENSORFLOW),
    ".msgpack": ("a Flax file", "give the PyTorch weights"),
    ".npz": ("a NumPy archive", "give the PyTorch weights"),
    ".pt2": ("an exported program", "give the weights: torch.export.load(FILE).state_dict"),
    ".mlpackage": ("a Core ML package", "give the PyTorch weights it was converted from"),
    ".mlmodel": ("a Core ML model", "give the PyTorch weights it was converted from"),
    ".pte": ("an ExecuTorch file", "give the PyTorch weights"),
}


class _Ignored:
    """Stands in for values beside the weights: the best accuracy, a number of numpy, or the path of a data set."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# by which names pickles call them, old and new
_NUMPY = (("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"))
_PATHS = tuple((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath"))
_IGNORED = [type(name, (_Ignored,), {"__module__": module}) for module, name in (*_NUMPY, *_PATHS)]


class Saved(NamedTuple):
    """Content of a weights file: tensors by key, on the CPU, without wrapping dictionaries.

    `averaged` is the exponential moving average of the weights that some training scripts save beside them, {} if
    there is none; `arguments` are the options of a training script, by name.
    """

    tensors: dict[str, Tensor]
    averaged: dict[str, Tensor]
    arguments: Mapping[str, Any]


def read_weights(path: Path) -> Saved:
    """Read a .safetensors file, a torch checkpoint, or an index of several such files beside it.

    Raises CheckpointError for files that are unreadable, too large, git-LFS pointers, truncated, damaged or of another
    format, pickles that would run code, and files without a state dict.
    """
    saved = _read(path)
    if saved.averaged:
        return saved
    averaged = {key: tensor for key, tensor in saved.tensors.items() if AVERAGE_NAME.search(key)}
    plain = {key: tensor for key, tensor in saved.tensors.items() if key not in averaged}
    return saved._replace(tensors=plain, averaged=averaged)


def _read(path: Path) -> Saved:
    if path.name.endswith(SHARD_INDEX):
        parts = [_read(part) for part in shards(path)]
        return Saved({key: tensor for part in parts for key, tensor in part.tensors.items()}, {}, {})
    head = _head(path)
    refuse_foreign(path, head)
    if head.startswith(LFS_MAGIC):
        raise CheckpointError(
            f"{path}: expected weights, got a git-LFS pointer to them; fetch the file itself with `git lfs pull`"
        )
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return Saved(_read_safetensors(path), {}, {})
    content = _read_pickle(path, is_zip=head.startswith(ZIP_MAGIC))
    return Saved(*_state_dicts(content, path), _arguments(content))


def refuse_foreign(path: Path, head: bytes = b"") -> None:
    """Raise CheckpointError for a file or directory of another format, by its name or first bytes."""
    foreign = FOREIGN_SUFFIXES.get(path.suffix.lower()) or next(
        (entry for start, entry in FOREIGN_STARTS.items() if head.startswith(start)), None
    )
    if foreign is not None:
        raise CheckpointError(f"{path}: expected PyTorch weights, got {foreign[0]}; {foreign[1]}")


def shards(index: Path) -> list[Path]:
    """The files that an index names, which are beside it; raises CheckpointError for one that is not."""
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(
            f"{index}: expected a weight_map, the file of each tensor, got none; save the model again"
        )
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: expected {name:.100} beside it, got no such file; fetch all parts")
    size = sum((index.parent / name).stat().st_size for name in files)
    if size > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(f"{index}: expected at most {MAX_CHECKPOINT_BYTES} bytes, got {size}")
    return [index.parent / name for name in files]


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
    """SHA-256 of a file, hexadecimal; of an index of several, over the digests of these."""
    if path.name.endswith(SHARD_INDEX):
        return hashlib.sha256("".join(map(sha256_of, shards(path))).encode()).hexdigest()
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
            _check_archive(path)
        # timm's training script saves its argparse.Namespace, which is plain data
        plain: list[Any] = [argparse.Namespace, *_IGNORED]
        with torch.serialization.safe_globals(plain), warnings.catch_warnings(action="ignore"):
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


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith(("/constants.pkl", ".weights.h5")) for name in archive.namelist()):
            raise CheckpointError(
                f"{path}: expected a state dict, got a TorchScript or Keras archive; for TorchScript save "
                "torch.jit.load(FILE).state_dict()"
            )
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path}: expected at most {MAX_CHECKPOINT_BYTES} bytes unpacked, got {size}; this is not a MobileViT"
        )


def _state_dicts(values: object, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a checkpoint, or failing these of its moving average, and these."""
    tensors, averaged = _unwrap(values)
    if not tensors and not averaged:
        raise CheckpointError(
            f"{path}: expected a state dict, alone or under one of {', '.join(WRAPPER_KEYS)}, "
            f"got {_describe(values)}; save model.state_dict()"
        )
    _check_size({**tensors, **{f"average {key}": tensor for key, tensor in averaged.items()}}, path)
    return tensors, averaged


def _unwrap(values: object, depth: int = MAX_WRAPPERS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors in nested dictionaries, and their moving average where it is under a key beside them."""
    if not isinstance(values, Mapping) or not depth:
        return {}, {}
    inner = next((values[key] for key in WRAPPER_KEYS if isinstance(values.get(key), Mapping)), None)
    average = next((values[key] for key in AVERAGE_KEYS if isinstance(values.get(key), Mapping)), None)
    averaged = {} if average is None else _unwrap(average, depth - 1)[0]
    if inner is not None:
        tensors, within = _unwrap(inner, depth - 1)
        return tensors, averaged or within
    return {str(key): value for key, value in values.items() if isinstance(value, Tensor)}, averaged


def _arguments(values: object) -> Mapping[str, Any]:
    """Options of a training script in a checkpoint, {} if there are none: of timm, of another, or Lightning's."""
    for key in ("args", "hyper_parameters"):
        arguments = values.get(key) if isinstance(values, Mapping) else None
        arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
        if isinstance(arguments, Mapping):
            return {str(name): value for name, value in arguments.items()}
    return {}


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
