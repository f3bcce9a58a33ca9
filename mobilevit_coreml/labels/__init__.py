"""Class names: the ones shipped as data, and the ones users bring."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from mobilevit_coreml.errors import LabelsError

MAX_LABELS = 100_000
MAX_LABEL_FILE_BYTES = 16 * 1024 * 1024


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 ImageNet-1k class names in index order; `crane` is there twice (134 bird, 517 machine)."""
    return _shipped("imagenet_1k.json", "names")


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """The WordNet ids of the ImageNet-1k classes in index order, which are the names of its directories."""
    return _shipped("imagenet_1k.json", "synsets")


@cache
def voc_labels() -> tuple[str, ...]:
    """The 21 PASCAL VOC class names in index order, background first."""
    return _shipped("pascal_voc_21.json", "names")


@cache
def voc_colors() -> tuple[str, ...]:
    """The colours of the PASCAL VOC classes, `#RRGGBB`."""
    return _shipped("pascal_voc_21.json", "colors")


def _shipped(file: str, key: str) -> tuple[str, ...]:
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    return tuple(json.loads(text)[key])


def placeholder_labels(count: int) -> tuple[str, ...]:
    """`LABEL_0`, `LABEL_1`, …: what transformers calls classes nobody named."""
    if not isinstance(count, int) or not 1 <= count <= MAX_LABELS:
        raise LabelsError(f"number of classes: expected 1 to {MAX_LABELS}, got {count!r}; check the classifier's shape")
    return tuple(f"LABEL_{index}" for index in range(count))


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names in index order from a file.

    A text file has one name a line. A JSON file holds a list of names, an object from index to name
    (a Hugging Face `id2label`) or from name to index (a torchvision `class_to_idx`), or an object
    with one of these under "id2label" or "names".

    Raises LabelsError when the file cannot be read or leaves a class without a name.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LABEL_FILE_BYTES + 1)  # what the file claims of its size proves nothing
        if len(content) > MAX_LABEL_FILE_BYTES:
            raise LabelsError(
                f"labels {path}: expected at most {MAX_LABEL_FILE_BYTES} bytes, got more; "
                "give a file with one class name a line"
            )
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsError(
            f"labels {path}: expected a UTF-8 text or JSON file, got {_reason(error)}; give one class name a line"
        ) from None
    if path.suffix.lower() != ".json":
        return _checked([line.strip() for line in text.rstrip().splitlines()], str(path))
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"labels {path}: expected JSON, got {error}; check the file") from None
    if isinstance(values, dict):
        values = next((values[key] for key in ("id2label", "names") if key in values), values)
    if isinstance(values, dict):
        return labels_from_mapping(values, str(path))
    if isinstance(values, list):
        return _checked(values, str(path))
    raise LabelsError(f"labels {path}: expected a list or an object of names, got {type(values).__name__}")


def labels_from_mapping(values: Mapping[object, object], source: str) -> tuple[str, ...]:
    """Names in index order from {index: name} or {name: index}; indices must be 0 to n-1."""
    pairs: Iterable[tuple[object, object]] = values.items()
    if values and all(isinstance(value, int) for value in values.values()):
        pairs = ((index, name) for name, index in values.items())
    by_index: dict[int, object] = {}
    for key, name in pairs:
        try:
            by_index[int(str(key))] = name
        except ValueError:
            raise LabelsError(
                f"{source}: expected class indices as keys, got {str(key)!r:.60}; give index and name of every class"
            ) from None
    for index in range(len(values)):
        if index not in by_index:
            raise LabelsError(
                f"{source}: expected the indices 0 to {len(values) - 1}, got none for {index}; name every class once"
            )
    return _checked([by_index[index] for index in range(len(by_index))], source)


def unique_labels(labels: Sequence[str]) -> tuple[tuple[str, ...], dict[int, str]]:
    """Make names unique, as Core ML's class labels must be.

    The first of equal names stays; a later one becomes "NAME (INDEX)", so ImageNet's second `crane`
    is "crane (517)". Returns the names and {index: original name} of those that changed.
    """
    taken = set(labels)
    seen: set[str] = set()
    result = []
    renamed = {}
    for index, label in enumerate(labels):
        name = label
        if label in seen:
            name = f"{label} ({index})"
            while name in taken:
                name += "'"
            taken.add(name)
            renamed[index] = label
        seen.add(label)
        result.append(name)
    return tuple(result), renamed


def _checked(names: Sequence[object], source: str) -> tuple[str, ...]:
    if not 1 <= len(names) <= MAX_LABELS:
        raise LabelsError(f"{source}: expected 1 to {MAX_LABELS} class names, got {len(names)}; name every class")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise LabelsError(f"{source}: expected a name for class {index}, got {name!r:.60}; name every class")
    return tuple(str(name) for name in names)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "other bytes"
