"""Class names: of ImageNet-1k and PASCAL VOC, and from files."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from mobilevit_coreml.errors import LabelsError, os_error_text

MAX_LABELS = 100_000
MAX_LABEL_FILE_BYTES = 16 * 1024 * 1024


@cache
def imagenet_labels() -> tuple[str, ...]:
    """ImageNet-1k class names in index order; `crane` occurs twice (134 bird, 517 machine)."""
    return _shipped("imagenet_1k.json", "names")


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """WordNet ids of the ImageNet-1k classes in index order, the directory names of the data set."""
    return _shipped("imagenet_1k.json", "synsets")


@cache
def voc_labels() -> tuple[str, ...]:
    """PASCAL VOC class names in index order, background first."""
    return _shipped("pascal_voc_21.json", "names")


@cache
def voc_colors() -> tuple[str, ...]:
    """Colours of the PASCAL VOC classes, `#RRGGBB`."""
    return _shipped("pascal_voc_21.json", "colors")


def _shipped(file: str, key: str) -> tuple[str, ...]:
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    return tuple(json.loads(text)[key])


def placeholder_labels(count: int) -> tuple[str, ...]:
    """`LABEL_0`, `LABEL_1`, …, the defaults of transformers."""
    if not isinstance(count, int) or not 1 <= count <= MAX_LABELS:
        raise LabelsError(f"number of classes: expected 1 to {MAX_LABELS}, got {count!r}; check the classifier's shape")
    return tuple(f"LABEL_{index}" for index in range(count))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names in index order from a file.

    A text file has one name per line. A JSON file has a list of names, an object from index to name
    (Hugging Face `id2label`) or from name to index (torchvision `class_to_idx`), or an object with
    one of these under "id2label" or "names".

    Raises LabelsError if the file is unreadable or a class has no name.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LABEL_FILE_BYTES + 1)  # the size in the file system may be wrong
        if len(content) > MAX_LABEL_FILE_BYTES:
            raise LabelsError(
                f"labels {path}: expected at most {MAX_LABEL_FILE_BYTES} bytes, got more; "
                "give a file with one class name per line"
            )
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = os_error_text(error) if isinstance(error, OSError) else "other bytes"
        raise LabelsError(
            f"labels {path}: expected a UTF-8 text or JSON file, got {reason}; give one class name per line"
        ) from None
    if path.suffix.lower() != ".json":
        return _checked([line.strip() for line in text.rstrip().splitlines()], str(path))
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"labels {path}: expected JSON, got {error}; check the file") from None
    inside = next((key for key in ("id2label", "names") if isinstance(values, dict) and key in values), None)
    if isinstance(values, dict):
        values = _by_index(values, str(path)) if inside is None else values[inside]
    if isinstance(values, dict):
        return labels_from_mapping(values, str(path))
    if isinstance(values, list):
        return _checked(values, str(path))
    raise LabelsError(f"labels {path}: expected a list or an object of names, got {type(values).__name__}")


def _by_index(values: Mapping[object, object], source: str) -> Mapping[object, object]:
    """{index: name} of an object that is that, or {name: index} as torchvision's class_to_idx."""
    indices = set(map(str, range(len(values))))
    if not values or not all(isinstance(value, int) for value in values.values()):
        return values
    if len(set(values.values())) < len(values):
        raise LabelsError(
            f"labels {source}: expected the indices 0 to {len(values) - 1}, got one twice; name each once"
        )
    if set(values) == indices and any(str(value) != key for key, value in values.items()):
        raise LabelsError(
            f"labels {source}: expected names, got numbers for numbers, which may be read both ways; give a list of "
            "names in the order of the classes"
        )
    return {index: name for name, index in values.items()}


def labels_from_mapping(values: Mapping[object, object], source: str) -> tuple[str, ...]:
    """Class names in index order from {index: name}; a number is a name, too.

    Raises LabelsError unless the indices are 0 to n-1 and all names are printable.
    """
    by_index: dict[int, object] = {}
    for key, name in values.items():
        try:
            by_index[int(str(key))] = str(name) if isinstance(name, int) else name
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
    """Unique class names, which Core ML requires, and {index: original name} of the renamed ones.

    The first of equal names is kept; later ones become "NAME (INDEX)": ImageNet's second `crane` is
    "crane (517)".
    """
    taken, seen = set(labels), set[str]()
    unique: list[str] = []
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
        unique.append(name)
    return tuple(unique), renamed


def _checked(names: Sequence[object], source: str) -> tuple[str, ...]:
    if not 1 <= len(names) <= MAX_LABELS:
        raise LabelsError(f"{source}: expected 1 to {MAX_LABELS} class names, got {len(names)}; name every class")
    for index, name in enumerate(names):
        visible = name.strip().translate(_INVISIBLE) if isinstance(name, str) else ""
        if not visible.strip() or not visible.isprintable():
            raise LabelsError(f"{source}: expected a name for class {index}, got {name!r:.60}; name every class")
    return tuple(str(name).strip() for name in names)


# in ordinary names although not printable: joiners of Persian, Hindi and emoji, spaces that do not break, Japanese
# spaces, and the tags in flags of regions
_INVISIBLE = dict.fromkeys((0x200C, 0x200D, 0x00A0, 0x202F, 0x3000, *range(0xE0020, 0xE0080)))
