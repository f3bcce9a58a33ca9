"""Files that are spoilt, by chance or on purpose: one line each or an answer, no code run, no memory without end.

Each case is drawn from a seed, so it is the same each time; a longer run is `range(100_000)` in place of `SEEDS`.
"""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.checkpoints import cvnets, timm
from mobilevit_coreml.checkpoints.files import read_json_object, read_weights
from mobilevit_coreml.checkpoints.hugging_face import read_config, read_preprocessor
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.cli.convert import main as convert
from mobilevit_coreml.cli.predict import main as predict
from mobilevit_coreml.config import CLASSIFICATION, SEGMENTATION, MobileViTConfig
from mobilevit_coreml.errors import MAX_CHARACTERS, CheckpointError, MobileViTError, PackageError
from mobilevit_coreml.images import read_image, synthetic_images
from mobilevit_coreml.inference import check_images, read_record
from mobilevit_coreml.inference import predict as answers
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.package.metadata import METADATA_PREFIX, PackageRecord
from mobilevit_coreml.preprocessing import default_preprocessing
from mobilevit_coreml.reference.constants import evaluate_constexpr
from mobilevit_coreml.reference.reader import MODEL_DIRECTORY

SEEDS = range(100)
FIXED = settings(derandomize=True, max_examples=100, deadline=None, database=None)
PROGRAM = Path(*MODEL_DIRECTORY, "model.mlmodel")
WEIGHTS = Path(*MODEL_DIRECTORY, "weights", "weight.bin")
NUMBERS = [0, 1, 2, 7, 127, 128, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def survives(ask: Callable[[], object]) -> str | None:
    """The line an error consists of, or None where there was an answer; any other exception is the test's."""
    message = None
    try:
        ask()
    except MobileViTError as error:
        message = str(error)
    assert message is None or (message.isprintable() and 0 < len(message) < 2 * MAX_CHARACTERS)
    return message


def spoilt(content: bytes, seed: int) -> bytes:
    """A few bits, bytes and numbers changed, spans cut out, doubled or moved, or the end lost."""
    draw, spoilt = random.Random(seed), bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        place, span = draw.randrange(len(spoilt) or 1), draw.choice((1, 2, 8, 100))
        width, other = draw.choice((1, 2, 4, 8)), draw.randrange(len(spoilt) or 1)
        number = draw.choice(NUMBERS) % 256**width
        start, end, new = draw.choice(
            (
                (place, place + 1, bytes([draw.randrange(256)])),
                (place, place + width, number.to_bytes(width, draw.choice(("little", "big")))),
                (place, place + span, b""),
                (place, place, bytes(spoilt[place : place + span])),
                (place, len(spoilt), b""),
                (other, other + span, bytes(spoilt[place : place + span])),
            )
        )
        spoilt[start:end] = new
    return bytes(spoilt)


# Any JSON, the awkward kinds of it first: huge, endless, deep, not to be encoded, not to be hashed.
LEAVES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 8, 64, 256, 2**31, 2**63, 10**400, 0.5, 1e-300, 1e300),
        *(float("nan"), float("inf"), -float("inf"), "", "silu", "bicubic", "9" * 5000, "a\nb", "\x1b[31m", "\ud800"),
    ]
)
KEYS = st.sampled_from(["0", "1", "2", "height", "width", "shortest_edge", "-1", " 0", "٣", "", "main", "names"])
ANY = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=7) | st.dictionaries(KEYS, inner, max_size=3))
DEEP = [depth * "[" + depth * "]" for depth in (300, 900, 960, 980, 990, 995, 2000, 100_000)]


# Checkpoints.


class Trap:
    """Its pickle would leave a directory behind, if anything ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(values: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def spoilt_inside(archive: bytes, seed: int) -> bytes:
    """A zip file whose checksums are right and whose pickle is spoilt."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, spoilt(content, seed) if name.endswith("data.pkl") else content)
    return file.getvalue()


def checkpoints(trap: Path) -> dict[str, bytes]:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16), "c": torch.tensor(3)}
    trapped = {"state_dict": state, "extra": Trap(trap)}
    return {
        "x.safetensors": save(state),
        "zip.pth": saved({"state_dict": state, "args": {"x": [1, (2, 3)]}}, zipped=True),
        "old.pth": saved(state, zipped=False),
        "trapped.pth": saved(trapped, zipped=True),
        "trapped.bin": saved(trapped, zipped=False),
        **{f"pickle{version}.bin": pickle.dumps(trapped["extra"], version) for version in range(6)},
    }


def test_spoilt_checkpoints(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    files = checkpoints(trap)
    for seed in SEEDS:
        for name, content in files.items():
            inside = content.startswith(b"PK") and seed % 2
            (tmp_path / name).write_bytes(spoilt_inside(content, seed) if inside else spoilt(content, seed))
            survives(lambda name=name: read_weights(tmp_path / name))  # type: ignore[misc]
            assert not trap.exists(), (name, seed)


SIZES = st.sampled_from([0, 1, 2, 3, 8, 2**31, 2**40, 2**62, 2**64, -1, 0.5, None])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X9", 3]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(SIZES, min_size=1, max_size=3),
    },
)


@FIXED
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "a\nb"]), ENTRIES), st.binary(max_size=24))
def test_safetensors_headers(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes) -> None:
    """Terabytes, offsets that are past the end, overlap, run backwards or are none, types there are not."""
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    survives(lambda: read_weights(path))


ENTRY = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = f"{{{ENTRY}, {ENTRY}}}"


@pytest.mark.parametrize("header", [TWICE, f"{{{ENTRY}", f"{{{ENTRY}}}}}", '{"a": 1}', "{}", *DEEP])
@pytest.mark.parametrize("claimed", [None, 2**63, 2**64 - 1])
def test_safetensors_headers_that_are_none(tmp_path: Path, header: str, claimed: int | None) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", claimed or len(header)) + header.encode() + bytes(4))
    message = survives(lambda: read_weights(path))
    assert message or (header, claimed) == (TWICE, None)  # of two equal keys one may be taken


def test_tensors_that_are_larger_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1).expand(2**20, 2**12)}, path)
    with pytest.raises(CheckpointError, match="bytes of weights, got 17179869184; this is not a MobileViT"):
        read_weights(path)
    assert path.stat().st_size < 10_000


ODD: dict[str, Callable[[torch.Tensor], object]] = {
    "doubles": lambda x: x.double(),
    "whole numbers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "eighths": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "nowhere": lambda x: x.to("meta"),
    "empty": lambda x: x[:0],
    "scalar": lambda x: x.sum(),
    "longer": lambda x: torch.cat([x, x]),
    "deeper": lambda x: x[None],
    "wide": lambda x: x.reshape(-1)[:1].expand(10**6, 3),
    "not a number": lambda x: x * torch.nan,
    "no tensor": lambda x: x.tolist(),
}


def test_weights_of_other_types_and_shapes(small_weights: dict[str, Path], tmp_path: Path) -> None:
    """One weight of each in turn, and a key that is lost, doubled or called otherwise."""
    path = tmp_path / "x.pth"
    for task in (CLASSIFICATION, SEGMENTATION):
        state = torch.load(small_weights[task])
        weights, draw = sorted(key for key, tensor in state.items() if tensor.ndim), random.Random(0)
        for number, (name, change) in enumerate(ODD.items()):
            for key in draw.sample(weights, 3):
                torch.save({**state, key: change(state[key])}, path)
                message = survives(lambda: load_checkpoint(str(path)))
                assert message or name in ("doubles", "eighths"), (name, key)
            key = draw.choice(weights)
            torch.save({old if old != key else f"{key}\n{number}": value for old, value in state.items()}, path)
            survives(lambda: load_checkpoint(str(path)))


# Settings.


FIELDS = [field.name for field in dataclasses.fields(MobileViTConfig)] + ["num_labels", "model_type"]
PIXELS = ["do_normalize", "do_center_crop", "crop_size", "do_resize", "size", "do_rescale", "rescale_factor"]
PIXELS += ["resample", "do_flip_channel_order", "do_reduce_labels", "image_mean", "image_std", "image_processor_type"]
TIMM = ["mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation", "label_names", "pretrained_cfg"]
TIMM += ["model_args", "global_pool", "architecture", "label_offset"]
TRAINING = [*timm.TRAINING_ARGS.read.split(), "tta", "bn_eps"]
SMALL = MobileViTConfig(image_size=64, id2label=("no", "yes"))
DEFAULT = default_preprocessing(CLASSIFICATION, (64, 64), "BGR")


def read_yaml(values: dict[str, Any]) -> object:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)  # JSON is YAML
        file.flush()
        return cvnets.read_config(Path(file.name), SMALL, DEFAULT, CLASSIFICATION, "config.yaml")


READERS: dict[str, tuple[list[str], Callable[[dict[str, Any]], object]]] = {
    "config.json": (FIELDS, lambda values: read_config(values, "config.json")),
    "preprocessor_config.json": (PIXELS, lambda values: read_preprocessor(values, DEFAULT, "x")),
    "timm": (TIMM, lambda values: timm.read(values, {}, SMALL, "config.json")),
    "timm's arguments": (TRAINING, lambda values: timm.read({}, values, SMALL, "x.pth")),
    "config.yaml": (["model", "common", "image_augmentation"], read_yaml),
}


@pytest.mark.parametrize("name", READERS)
@FIXED
@given(st.data())
def test_settings(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    keys, read = READERS[name]
    values = data.draw(st.dictionaries(st.sampled_from(keys), ANY, min_size=1, max_size=3))
    path = tmp_path_factory.getbasetemp() / "settings.json"
    path.write_text(json.dumps(values))
    survives(lambda: read(read_json_object(path)))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("deep", DEEP)
def test_settings_that_are_deep(tmp_path: Path, name: str, deep: str) -> None:
    keys, read = READERS[name]
    for key in keys:
        (tmp_path / "x.json").write_text(f'{{"{key}": {deep}}}')
        survives(lambda: read(read_json_object(tmp_path / "x.json")))


@FIXED
@given(ANY)
def test_labels_in_json(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.json"
    path.write_text(json.dumps(values))
    if survives(lambda: read_labels(path)) is None:
        assert all(name.isprintable() and name.encode() for name in read_labels(path))


def test_class_names_of_a_configuration_are_checked_as_any_others() -> None:
    assert read_config({"id2label": ["a", "b"]}, "x").id2label == ("a", "b")
    assert read_config({"id2label": ["a", 1]}, "x").id2label == ("a", "1")
    for names in (["a", "b\nc"], ["a", "\ud800"], ["a", None], ["a", []], []):
        assert survives(lambda names=names: read_config({"id2label": names}, "x"))  # type: ignore[misc]


def test_spoilt_label_files(tmp_path: Path) -> None:
    for seed in SEEDS:
        (tmp_path / "x.txt").write_bytes(spoilt("süß\nnicht süß\n模型\n".encode(), seed))
        survives(lambda: read_labels(tmp_path / "x.txt"))


# Pictures.


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    image = synthetic_images(20, 24, 1)[0]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    deep = Image.fromarray((np.arange(400).reshape(20, 20) * 100).astype(np.uint16))
    return {
        "png": encoded(image, "PNG", exif=exif),
        "png, palette": encoded(image.convert("P"), "PNG", transparency=b"\0\1\2"),
        "png, one transparent": encoded(image, "PNG", transparency=(1, 2, 3)),
        "png, 16 bits": encoded(deep, "PNG", transparency=5),
        "jpeg": encoded(image, "JPEG", exif=exif),
        "jpeg, progressive": encoded(image.convert("CMYK"), "JPEG", progressive=True),
        "gif": encoded(image.convert("P"), "GIF", save_all=True, append_images=[image.rotate(90).convert("P")]),
        "tiff": encoded(image, "TIFF"),
        "tiff, 16 bits": encoded(deep, "TIFF", compression="tiff_lzw"),
        "tiff, deflated": encoded(image.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        "tiff, whole numbers": encoded(image.convert("L").convert("I"), "TIFF"),
        "webp": encoded(image, "WEBP", exif=exif),
        "webp, lossless": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "bmp": encoded(image, "BMP"),
        "ppm": encoded(image, "PPM"),
    }


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them, so that a decoder goes on to read it."""
    fixed, place = content[:8], 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        body = content[place + 4 : place + 8 + length]
        fixed += content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return fixed


def test_spoilt_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor do decoders say anything on stderr, as libtiff would."""
    path = tmp_path / "x"
    for seed in SEEDS:
        for name, content in PICTURES.items():
            damaged = spoilt(content, seed)
            path.write_bytes(with_checksums(damaged) if name.startswith("png") and seed % 3 else damaged)
            survives(lambda: DEFAULT.prepare(read_image(path)))
    assert capfd.readouterr() == ("", "")


PICTURES = pictures()


def png_of(width: int, height: int, data: bytes) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


# Packages.


@pytest.fixture
def copies(small_packages: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A copy of the package of each task, to be spoilt, beside a photograph."""
    synthetic_images(70, 80, 1)[0].save(tmp_path / "photo.png")
    return {task: Path(shutil.copytree(path, tmp_path / f"{task}.mlpackage")) for task, path in small_packages.items()}


def ask(path: Path) -> None:
    """All that the command does with a package."""
    photo = path.parent / "photo.png"
    check_images(read_record(path), [photo])
    list(answers(path, [photo], "reference"))


@pytest.mark.parametrize("file", [PROGRAM, WEIGHTS, Path("Manifest.json")], ids=lambda file: file.name)
def test_spoilt_packages(copies: dict[str, Path], file: Path) -> None:
    whole = {path: (path / file).read_bytes() for path in copies.values()}
    for seed in SEEDS:
        for path, content in whole.items():
            (path / file).write_bytes(spoilt(content, seed))
            survives(lambda path=path: ask(path))  # type: ignore[misc]


MANIFESTS = ["", "null", "[]", "{}", '{"fileFormatVersion": "1.0.0"}', *DEEP]


@pytest.mark.parametrize("text", MANIFESTS, ids=range(len(MANIFESTS)))
def test_manifests(copies: dict[str, Path], text: str) -> None:
    path = copies[CLASSIFICATION]
    (path / "Manifest.json").write_text(text)
    assert survives(lambda: ask(path))


def test_a_manifest_that_leads_outside(copies: dict[str, Path]) -> None:
    path = copies[CLASSIFICATION]
    manifest = json.loads((path / "Manifest.json").read_text())
    up = "../" * 40
    places: list[Any] = ["../../etc/passwd", "/etc/passwd", f"{up}etc/passwd", "", "x" * 5000, "a\0b", 3, None, []]
    for place in places:
        for item in manifest["itemInfoEntries"].values():
            item["path"] = place
        (path / "Manifest.json").write_text(json.dumps(manifest))
        message = survives(lambda: ask(path))
        assert message
        assert "root:" not in message


Edit = Callable[[Any, random.Random], object]


def constants(specification: Any) -> list[Any]:
    """Values of the program that are in it or in its weights."""
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    return [operation.attributes["val"] for operation in block.operations if operation.type == "const"]


def operations(specification: Any) -> Any:
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    return block.operations


def stored(specification: Any, draw: random.Random) -> Any:
    return draw.choice([value for value in constants(specification) if value.WhichOneof("value") == "blobFileValue"])


def tensor_type(specification: Any, draw: random.Random) -> Any:
    return draw.choice(
        [value for value in constants(specification) if value.type.tensorType.dimensions]
    ).type.tensorType


def chosen(numbers: Sequence[int]) -> Callable[[random.Random], int]:
    return lambda draw: draw.choice(numbers)


LENGTHS = chosen([0, 1, 3, 8, 2**20, 2**31, 2**40, 2**62, 2**64 - 1])
EDITS: dict[str, Edit] = {
    "an offset past the end": lambda spec, draw: setattr(stored(spec, draw).blobFileValue, "offset", LENGTHS(draw)),
    "a file elsewhere": lambda spec, draw: setattr(
        stored(spec, draw).blobFileValue,
        "fileName",
        draw.choice(["@model_path/../../../../etc/passwd", "/etc/passwd", "", "@model_path", "@model_path/weights"]),
    ),
    "a shape that claims terabytes": lambda spec, draw: setattr(
        draw.choice(tensor_type(spec, draw).dimensions).constant, "size", LENGTHS(draw)
    ),
    "a type there is not": lambda spec, draw: setattr(tensor_type(spec, draw), "dataType", draw.choice([0, 8, -1, 99])),
    "another type": lambda spec, draw: setattr(
        tensor_type(spec, draw), "dataType", draw.choice([1, 2, 10, 11, 22, 35])
    ),
    "an operation less": lambda spec, draw: operations(spec).pop(draw.randrange(len(operations(spec)))),
    "an operation without outputs": lambda spec, draw: draw.choice(operations(spec)).ClearField("outputs"),
    "an operation without inputs": lambda spec, draw: draw.choice(operations(spec)).ClearField("inputs"),
    "another operation": lambda spec, draw: setattr(
        draw.choice(operations(spec)), "type", draw.choice(["fill", "tile", "classify", "\x1b[31m\n", "", "const"])
    ),
    "no function": lambda spec, draw: spec.mlProgram.functions.clear(),
    "no inputs": lambda spec, draw: spec.description.ClearField("input"),
    "no outputs": lambda spec, draw: spec.description.ClearField("output"),
    "an output of another name": lambda spec, draw: setattr(spec.description.output[0], "name", "x\ny"),
    "an output of another kind": lambda spec, draw: spec.description.output[-1].type.CopyFrom(
        draw.choice(
            [spec.description.input[0].type, spec.description.output[0].type, type(spec.description)().input.add().type]
        )
    ),
    "a colour space there is not": lambda spec, draw: setattr(
        spec.description.input[0].type.imageType, "colorSpace", draw.choice([0, 1, 77])
    ),
    "another size of the picture": lambda spec, draw: setattr(
        spec.description.input[0].type.imageType, "width", draw.choice([0, -1, 1, 2**40])
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_programs_that_contradict_themselves(copies: dict[str, Path], name: str) -> None:
    for path in copies.values():
        whole = ct.utils.load_spec(str(path))
        for seed in range(8):
            specification = type(whole)()
            specification.CopyFrom(whole)
            with contextlib.suppress(ValueError):  # what the protobuf itself has no room for
                EDITS[name](specification, random.Random(seed))
            (path / PROGRAM).write_bytes(specification.SerializeToString())
            survives(lambda path=path: ask(path))  # type: ignore[misc]


def test_weights_that_claim_terabytes(copies: dict[str, Path]) -> None:
    path = copies[CLASSIFICATION]
    whole = (path / WEIGHTS).read_bytes()
    for place in range(0, 256, 8):  # the file's header and its first entries
        for number in (2**31, 2**40, 2**64 - 1):
            content = bytearray(whole)
            content[place : place + 8] = struct.pack("<Q", number)
            (path / WEIGHTS).write_bytes(content)
            survives(lambda: ask(path))
    for length in (0, 1, 63, 64, 65, 127, 128, 200, len(whole) - 1):
        (path / WEIGHTS).write_bytes(whole[:length])
        assert survives(lambda: ask(path))


ARGUMENTS: dict[str, dict[str, Any]] = {
    "constexpr_lut_to_dense": {"indices": np.zeros(9, np.uint8), "lut": np.zeros(4, np.float16), "shape": [2**40]},
    "constexpr_sparse_to_dense": {"nonzero_data": np.ones(3), "mask": np.ones(1, np.uint8), "shape": [2**20, 2**20]},
    "constexpr_blockwise_shift_scale": {"data": np.zeros(10**6, np.int8), "scale": np.zeros((1, 10**6), np.float16)},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_compressed_weights_that_claim_terabytes(name: str) -> None:
    with pytest.raises(PackageError, match="expected arguments that fit each other, got "):
        evaluate_constexpr(name, {key: np.asarray(value) for key, value in ARGUMENTS[name].items()})


RECORD = [*("weights", "preprocessing", "outputs", "config", "expand", "labels", "colors", "labels_renamed")]
RECORD += ["compression", "sizes", "task", "precision", "attention"]


@pytest.mark.parametrize("task", [CLASSIFICATION, SEGMENTATION])
@FIXED
@given(st.sampled_from(RECORD), ANY, st.booleans())
def test_records(small_packages: dict[str, Path], task: str, key: str, value: Any, inner: bool) -> None:
    """What a package says of itself, with one thing in it replaced."""
    record = read_record(small_packages[task]).to_metadata()
    before = record[METADATA_PREFIX + key]
    with contextlib.suppress(ValueError):
        values = json.loads(before)
        if inner and isinstance(values, dict) and values:
            value = {**values, random.Random(repr(value)).choice(sorted(values)): value}
    record[METADATA_PREFIX + key] = json.dumps(value)
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError, OverflowError, MobileViTError):
        changed = PackageRecord.from_metadata(record)  # if it can be read, it can be worked with
        for preprocessing in changed.by_function().values():
            survives(lambda preprocessing=preprocessing: preprocessing.prepare(Image.new("RGB", (90, 80))))  # type: ignore[misc]


def test_records_in_packages(copies: dict[str, Path]) -> None:
    for path in copies.values():
        whole = ct.utils.load_spec(str(path))
        texts = [
            "",
            "null",
            "[]",
            "{}",
            "1e999",
            "NaN",
            '"x"',
            '{"main": [64, 64]}',
            '{"a": null}',
            "9" * 5000,
            DEEP[3],
        ]
        for key in RECORD:
            for text in texts:
                specification = type(whole)()
                specification.CopyFrom(whole)
                specification.description.metadata.userDefined[METADATA_PREFIX + key] = text
                (path / PROGRAM).write_bytes(specification.SerializeToString())
                survives(lambda path=path: read_record(path))  # type: ignore[misc]
        survives(lambda path=path: ask(path))  # type: ignore[misc]


CONTRADICTIONS = [
    {"task": "features"},
    {"task": "segmentation"},
    {"task": "classification"},
    {"task": "detection"},
    {"labels": ["no"], "colors": ["#000000"]},
    {"labels": [], "colors": []},
    {"labels": ["no", "yes"], "colors": ["#000000"]},
    {"labels": ["no", 1], "colors": ["#000000", "#FFFFFF"]},
    {"labels": ["no", "yes"], "colors": ["#000000", "no colour"]},
    {"outputs": {"type": "logits"}},
    {"outputs": {"hidden_states": 5}},
    {"sizes": {"main": [96, 96]}},
    {"sizes": {"main": [64]}},
    {"precision": "fp8"},
]


@pytest.mark.parametrize("changes", CONTRADICTIONS, ids=str)
def test_records_that_contradict_the_program(copies: dict[str, Path], changes: dict[str, Any]) -> None:
    heard = []
    for path in copies.values():
        specification = ct.utils.load_spec(str(path))
        for key, value in changes.items():
            text = value if isinstance(value, str) else json.dumps(value)
            specification.description.metadata.userDefined[METADATA_PREFIX + key] = text
        (path / PROGRAM).write_bytes(specification.SerializeToString())
        heard.append(survives(lambda path=path: ask(path)))  # type: ignore[misc]
    assert any(heard)


# Memory, and the commands.


BOMBS = """
import resource, sys
from pathlib import Path
from mobilevit_coreml.checkpoints.hugging_face import read_config, read_preprocessor
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.images import read_image
from mobilevit_coreml.labels import read_labels
from mobilevit_coreml.reference import ReferenceEvaluator

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

for name, ask in (("x", read_image), ("txt", read_labels), ("mlpackage", ReferenceEvaluator), ("", load_checkpoint)):
    for path in sorted(Path(sys.argv[1]).glob(f"*.{name}" if name else "*.[sp]*t[h]*")):
        before = peak()
        try:
            ask(str(path) if ask is load_checkpoint else path)
            print(path.name, "was read")
        except MobileViTError as error:
            print(path.name, peak() - before, error)
"""


def test_bombs_do_not_fill_the_memory(small_weights: dict[str, Path], copies: dict[str, Path], tmp_path: Path) -> None:
    """Files of up to some kB that claim gigabytes are refused for less than 200 MB."""
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    black = zlib.compress(bytes(10**7), 9)
    (bombs / "picture.x").write_bytes(png_of(50_000, 50_000, black))
    (bombs / "claims.x").write_bytes(png_of(2**31 - 1, 2**31 - 1, b""))
    webp = encoded(Image.new("RGB", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    place = webp.index(b"VP8X") + 12
    (bombs / "webp.x").write_bytes(webp[:place] + b"\xff\x3f\0" * 2 + webp[place + 6 :])  # 16384 pixels a side
    with (bombs / "labels.txt").open("wb") as file:
        file.truncate(2**40)  # a hole
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    (bombs / "a.safetensors.pth").write_bytes(struct.pack("<Q", len(header)) + header)
    state = torch.load(small_weights[CLASSIFICATION])
    wide = {key: value.reshape(-1)[:1].expand(16384, 16384) for key, value in state.items() if value.ndim}
    torch.save(wide, bombs / "wide.pth")
    tiff = encoded(Image.new("RGB", (8, 8)), "TIFF")
    place = tiff.index(struct.pack("<HHI", 277, 3, 1)) + 8
    (bombs / "samples.x").write_bytes(tiff[:place] + struct.pack("<H", 30_000) + tiff[place + 2 :])
    (bombs / "protocol.pth").write_bytes(b"\x80\x4d" + pickle.dumps({"a": 1}, 2)[2:])  # nor does anything warn
    package = Path(shutil.copytree(copies[CLASSIFICATION], bombs / "shape.mlpackage"))
    specification = ct.utils.load_spec(str(package))
    tensor = next(value for value in constants(specification) if value.type.tensorType.dimensions)
    tensor.type.tensorType.dataType = 35  # of 1 bit
    tensor.immediateValue.tensor.bytes.values = b"1234"
    tensor.type.tensorType.dimensions[0].constant.size = 2**31
    (package / PROGRAM).write_bytes(specification.SerializeToString())
    finished = subprocess.run([sys.executable, "-c", BOMBS, str(bombs)], capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    peaks = {line.split()[0]: int(line.split()[1]) for line in finished.stdout.splitlines()}
    assert peaks.keys() == {path.name for path in bombs.iterdir()}
    assert max(peaks.values()) < 200e6, peaks


def one_line(main: Callable[[Sequence[str]], int], arguments: Sequence[object], errors: Callable[[], str]) -> None:
    errors()
    assert main(list(map(str, arguments))) == 2
    line = errors()
    assert line.startswith("error: ")
    assert line.endswith("\n")
    assert line.strip("\n").isprintable()


def test_the_commands_say_it_in_a_line(
    small_weights: dict[str, Path], copies: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def errors() -> str:
        return capfd.readouterr().err

    for name, content in checkpoints(tmp_path / "sprung").items():
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        one_line(convert, ["--weights", tmp_path / name, "--output", tmp_path], errors)
    shutil.copy(small_weights[CLASSIFICATION], tmp_path / "good.pth")
    good = ["--weights", tmp_path / "good.pth", "--output", tmp_path]
    (tmp_path / "labels.json").write_text('["a\\u001b[31m", "\\ud800"]')
    one_line(convert, [*good, "--labels", tmp_path / "labels.json"], errors)
    directory = tmp_path / "snapshot"
    directory.mkdir()
    shutil.copy(tmp_path / "good.pth", directory)
    for name, text in (("config.json", '{"hidden_act": "a\\nb"}'), ("preprocessor_config.json", DEEP[-1])):
        (directory / name).write_text(text)
        one_line(convert, ["--weights", directory, "--output", tmp_path], errors)
        (directory / name).unlink()
    for name, content in PICTURES.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2] if name not in ("ppm", "bmp") else content[:9])
        if survives(lambda name=name: read_image(tmp_path / name)):  # type: ignore[misc]
            one_line(predict, [copies[CLASSIFICATION], tmp_path / name], errors)
    for task, file in zip(copies, (PROGRAM, WEIGHTS, Path("Manifest.json")), strict=True):
        (copies[task] / file).write_bytes((copies[task] / file).read_bytes()[:-50])
        one_line(predict, [copies[task], tmp_path / "photo.png"], errors)
    assert not (tmp_path / "sprung").exists()
