"""Proof on a device: what is written for it, and the verdict over what it writes, by a device made of Python."""

import base64
import hashlib
import json
import math
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_coreml.config import SEGMENTATION
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.errors import InputError, OutputError
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS, default_gates
from mobilevit_coreml.package.files import digest_of
from mobilevit_coreml.package.interface import CLASS_LABEL, CLASS_PROBABILITIES, POOLED, SEMANTIC_PREDICTIONS
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.report.device import summary
from mobilevit_coreml.shipped import shipped
from mobilevit_coreml.validation import golden
from mobilevit_coreml.validation.core_ml import UNITS
from mobilevit_coreml.validation.dataset import LabelledImage, load_images
from mobilevit_coreml.validation.device import DeviceResults, evaluate_device_results
from mobilevit_coreml.validation.golden import swift_test, write_golden
from mobilevit_coreml.validation.manifest import MANIFEST, RESULTS, SWIFT, read_manifest
from mobilevit_coreml.validation.original import Original, load_original
from tests.validation.fault_injection import FAULTS

TEMPLATE = shipped("validation/swift", "validate/swift") / SWIFT
COUNT = 3
Kind = tuple[Path, PackageRecord, Original, Mapping[str, list[LabelledImage]]]
Kinds = Callable[[str], Kind]


SEGMENTER = {"task": SEGMENTATION, "image_sizes": ((128, 128),), "attention": "packed"}
OTHERS: Mapping[str, Mapping[str, Any]] = {  # beside those of fault_injection.PACKAGES
    "gray": {**SEGMENTER, "output_type": "image"},
    "logits": {**SEGMENTER, "output_type": "logits"},
    "sizes": {"image_sizes": ((64, 64), (96, 64)), "attention": "packed"},
}
slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("cropped", "features", "gray", "logits", "sizes")]
NAMES = ["classifier", "segmenter", *slow]


@pytest.fixture(scope="module")
def kinds(good_package: Callable[[str], Path], converted: Callable[..., Conversion]) -> Kinds:
    """A package of a name with its record, its PyTorch side and images."""

    @cache
    def kind(name: str) -> Kind:
        package = converted("untrained", "xxs", **OTHERS[name]).path if name in OTHERS else good_package(name)
        record = read_record(package)
        original = load_original(record)
        images = {
            function: load_images(None, record.task, original.classes, preprocessing)
            for function, preprocessing in original.preprocessing.items()
        }
        return package, record, original, images

    return kind


@pytest.fixture(scope="module")
def directories(kinds: Kinds, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The golden directory of a name, made when first asked for, not to be changed."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = write(kinds(name), tmp_path_factory.mktemp("golden") / "golden")
        return made[name]

    return directory


def write(kind: Kind, directory: Path, **options: Any) -> Path:
    package, record, original, images = kind
    gates = options.pop("gates", default_gates(record))
    write_golden(directory, package, record, original, images, gates, digest_of(package), COUNT, **options)
    return directory


def answers(directory: Path, package: Path | None = None, places: Path | None = None) -> dict[str, Any]:
    """The Swift test's results on a device that computes as the evaluator does; it knows manifest.json alone.

    `package` is what it runs in place of the one in the directory.
    """
    places = places or directory
    manifest = json.loads((directory / MANIFEST).read_text())
    there = directory / "package" / manifest["package"]
    assert package_digest(there) == manifest["sha256"]
    runs = []
    for function in manifest["functions"]:
        evaluator = ReferenceEvaluator(package or there, "fp16", function["function_name"])
        taken = [one_image(directory, manifest, function, index, evaluator) for index in range(COUNT)]
        for units in manifest["compute_units"]:
            files = places / "outputs" / units / function["name"]
            for index, (_, _, large) in enumerate(taken):
                for name, data in large.items():
                    files.mkdir(parents=True, exist_ok=True)
                    (files / f"{index:03d}-{name}").write_bytes(data)
            images = [
                {"index": index, "label": label, "figures": {}, "outputs": outputs}
                for index, (label, outputs, _) in enumerate(taken)
            ]
            latency = {"load_seconds": 0.25, "median_ms": 4.5, "p95_ms": 6.0, "predictions": manifest["predictions"]}
            runs.append(
                {
                    "units": units,
                    "function": function["name"],
                    "error": None,
                    "not_run": None,
                    "latency": latency,
                    "figures": {},
                    "pictures": images,
                }
            )
    device = {
        "model": "Python1,1",
        "system": "no iOS",
        "chip": "no chip",
        "simulator": False,
        "compute_devices": ["cpu", "gpu", "neuralEngine"],
    }
    return {
        "schema": 1,
        "package": manifest["sha256"],
        "manifest": hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest(),
        "device": device,
        "date": "2025-01-01T00:00:00Z",
        "runs": runs,
    }


def one_image(
    directory: Path, manifest: dict[str, Any], function: dict[str, Any], index: int, evaluator: ReferenceEvaluator
) -> tuple[str | None, dict[str, str], dict[str, bytes]]:
    """The class, the outputs for results.json, and those for files."""
    picture = function["pictures"][index]
    with Image.open(directory / picture["file"]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (function["width"], function["height"]))
        assert hashlib.sha256(image.tobytes()).hexdigest() == picture["rgb"]
        found = evaluator.run({manifest["input"]: image})
    outputs, files = {}, {}
    for output in function["outputs"]:
        value = found[output["name"]]
        if output["kind"] == "probabilities":
            value = [value[name] for name in manifest["classes"]]
        array = np.asarray(value, {"float32": "<f4", "int32": "<i4"}[output["stored"]])
        assert list(array.shape) == output["shape"]
        if output["inline"]:
            outputs[output["name"]] = deflated(array.tobytes())
        else:
            files[f"{output['name']}.{'i32' if output['stored'] == 'int32' else 'f32'}"] = array.tobytes()
    return found.get(CLASS_LABEL), outputs, files


def deflated(data: bytes) -> str:
    stream = zlib.compressobj(5, zlib.DEFLATED, -15)
    return base64.b64encode(stream.compress(data) + stream.flush()).decode()


def package_digest(package: Path) -> str:
    """As the Swift test describes it."""
    files = [path for path in package.rglob("*") if path.is_file() and path.name != "Manifest.json"]
    text = b""
    for path in sorted(files, key=lambda path: path.relative_to(package).parts):
        data = path.read_bytes()
        text += f"{'/'.join(path.relative_to(package).parts)}\0{len(data)}\0".encode() + data
    return hashlib.sha256(text).hexdigest()


def judged(directory: Path, values: Any, place: Path, **options: Any) -> DeviceResults:
    results = place / RESULTS
    results.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return evaluate_device_results(results, directory, **options)


# What is written


@pytest.mark.parametrize("name", NAMES)
def test_images_are_what_the_package_is_given(name: str, kinds: Kinds, directories: Callable[[str], Path]) -> None:
    _, _, original, images = kinds(name)
    for function, there in images.items():
        paths = sorted((directories(name) / "pictures" / function).iterdir())
        assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
        for path, labelled in zip(paths, there[:COUNT], strict=True):
            with Image.open(path) as image:
                assert (image.height, image.width) == original.preprocessing[function].input_size
                assert np.array_equal(np.asarray(image), np.asarray(labelled.prepared()))
                assert "icc_profile" not in image.info


def read(directory: Path, file: str, shape: list[int]) -> Any:
    return np.fromfile(directory / file, {".f32": "<f4", ".i32": "<i4"}[Path(file).suffix]).reshape(shape)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_is_what_pytorch_computes(name: str, kinds: Kinds, directories: Callable[[str], Path]) -> None:
    _, _, original, images = kinds(name)
    manifest = json.loads((directories(name) / MANIFEST).read_text())
    assert [function["name"] for function in manifest["functions"]] == list(images)
    for function in manifest["functions"]:
        shapes = {output["name"]: output["shape"] for output in function["outputs"]}
        for picture, one in zip(function["pictures"], images[function["name"]], strict=False):
            pixels = np.asarray(one.prepared(), np.float32)[None].transpose(0, 3, 1, 2)[:, ::-1] / 255  # BGR
            height, width = original.preprocessing[function["name"]].crop
            top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
            pixels = pixels[:, :, top : top + height, left : left + width].copy()
            with torch.inference_mode():
                result: Any = original.models[function["name"]](torch.from_numpy(pixels))
            got = {key: read(directories(name), file, shapes[key]) for key, file in picture["expected"].items()}
            for key, array in by_hand(name, result, got, height, width).items():
                np.testing.assert_allclose(got[key], array, rtol=1e-4, atol=1e-4 * np.abs(array).max())
            if picture["logits"]:
                logits = read(directories(name), picture["logits"], function["logits"])
                np.testing.assert_allclose(logits, result.logits.numpy(), rtol=1e-4, atol=1e-4)
            if name == "classifier":
                assert picture["label"] == manifest["classes"][int(result.logits.argmax())]


def by_hand(name: str, result: Any, got: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    if name in ("classifier", "cropped", "sizes"):
        powers = np.exp(result.logits.numpy()[0].astype(np.float64))
        assert set(got) == {CLASS_PROBABILITIES}
        return {CLASS_PROBABILITIES: powers / powers.sum()}
    if name == "features":
        values = (result.pooled, result.feature_map, *result.hidden_states)
        names = (POOLED, "featureMap", "stage1", "stage2", "stage3", "stage4", "stage5")
        assert set(got) == set(names)
        return {key: value.numpy() for key, value in zip(names, values, strict=True)}
    logits = torch.nn.functional.interpolate(result.logits, (height, width), mode="bilinear", align_corners=False)
    if name == "logits":
        return {"logits": logits.numpy()}
    classes = got[SEMANTIC_PREDICTIONS]
    assert classes.dtype == np.int32
    assert classes.shape == (height, width)
    best = logits[0].max(0).values  # where two classes are equal but for rounding either will do
    chosen = logits[0].gather(0, torch.from_numpy(classes.astype(np.int64))[None])[0]
    assert float((best - chosen).max()) < 1e-4
    return {}


def test_a_manifest_says_what_is_there(kinds: Kinds, directories: Callable[[str], Path]) -> None:
    package, record, original, _ = kinds("classifier")
    manifest = json.loads((directories("classifier") / MANIFEST).read_text())
    assert manifest["schema"] == 1
    assert manifest["package"] == package.name
    assert manifest["sha256"] == digest_of(package) == digest_of(directories("classifier") / "package" / package.name)
    assert manifest["classes"] == list(original.classes)
    assert manifest["gates"][0] == {"name": "snr", "bound": 30.0, "at_least": True, "unit": "dB"}
    assert {gate["name"]: gate["bound"] for gate in manifest["gates"]} == manifest["tolerance"] == default_gates(record)
    assert manifest["compute_units"] == list(UNITS)
    assert PackageRecord.from_metadata(manifest["record"]) == record
    (function,) = manifest["functions"]
    assert function["function_name"] is None  # Core ML knows no name in a package with one
    files = [picture["file"] for picture in function["pictures"]]
    files += [file for picture in function["pictures"] for file in picture["expected"].values()]
    files += [picture["logits"] for picture in function["pictures"]]
    ours = {MANIFEST, SWIFT, *files}
    found = {path.relative_to(directories("classifier")).as_posix() for path in paths_in(directories("classifier"))}
    assert {path for path in found if not path.startswith("package/")} == ours


def paths_in(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


@pytest.mark.slow
def test_functions_by_name(directories: Callable[[str], Path]) -> None:
    manifest, _ = read_manifest(directories("sizes"))
    assert [(one.name, one.function_name, one.height, one.width) for one in manifest.functions] == [
        ("size_64", "size_64", 64, 64),
        ("size_96x64", "size_96x64", 96, 64),
    ]


def test_a_gate_without_end_is_json(kinds: Kinds, tmp_path: Path) -> None:
    directory = write(kinds("classifier"), tmp_path / "golden", gates={"snr": math.inf})
    json.loads((directory / MANIFEST).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read_manifest(directory)[0].gates[0].bound == math.inf
    assert judged(directory, answers(directory), tmp_path).verdict == FAIL


def test_only_an_older_golden_directory_is_replaced(kinds: Kinds, tmp_path: Path) -> None:
    place = tmp_path / "golden"
    write(kinds("classifier"), place)
    with pytest.raises(OutputError, match="golden .*: expected a free name, got an older one; add --force"):
        write(kinds("classifier"), place)
    (place / "pictures" / "main" / "000.png").write_bytes(b"")
    write(kinds("classifier"), place, force=True)
    assert (place / "pictures" / "main" / "000.png").stat().st_size > 0
    (place / RESULTS).write_text("{}")
    with pytest.raises(OutputError, match="expected only what --golden wrote, got 'results.json'; move it away"):
        write(kinds("classifier"), place, force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / MANIFEST).write_text('{"format": "another"}')
    with pytest.raises(OutputError, match="expected a free name, got another directory"):
        write(kinds("classifier"), other, force=True)
    with pytest.raises(OutputError, match="expected .* to be a directory, got none there"):
        write(kinds("classifier"), tmp_path / "none" / "golden")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden", "other"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(
    error: Any, kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write(kinds("classifier"), tmp_path / "golden")
    before = {path: path.read_bytes() for path in paths_in(older)}
    write_values, calls = golden._write_values, []

    def fails(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise error
        write_values(*arguments)

    monkeypatch.setattr(golden, "_write_values", fails)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OutputError):
        write(kinds("classifier"), older, force=True)
    calls.clear()
    with pytest.raises((KeyboardInterrupt, OutputError)):
        write(kinds("classifier"), tmp_path / "new")
    assert {path: path.read_bytes() for path in paths_in(tmp_path)} == before


def test_a_package_that_changes_meanwhile(kinds: Kinds, tmp_path: Path) -> None:
    package, record, original, images = kinds("classifier")
    with pytest.raises(InputError, match="expected it to stay as it is, got another meanwhile"):
        write_golden(tmp_path / "golden", package, record, original, images, {}, "0" * 64)
    assert not list(tmp_path.iterdir())


# A device


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_computes_the_same_passes(name: str, directories: Callable[[str], Path], tmp_path: Path) -> None:
    found = judged(directories(name), answers(directories(name), places=tmp_path), tmp_path)
    text = summary(found)
    assert found.verdict == PASS, text
    assert found.units == dict.fromkeys(UNITS, PASS)
    assert "a prediction 4.50 ms in the median" in text
    assert "Python1,1, no chip" in text
    for run in found.runs:
        assert run.fidelity is not None
        assert run.fidelity.images == COUNT
        assert any(result.passed for result in run.results)
    assert all(len(line) <= 80 for line in text.splitlines()[1:] if str(directories(name)) not in line)


def test_large_outputs_are_files(kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "MAX_INLINE_BYTES", {"float32": 2**20, "int32": 2**14})
    directory = write(kinds("segmenter"), tmp_path / "golden")
    values = answers(directory, places=tmp_path)
    file = tmp_path / "outputs" / "all" / "main" / "001-semanticPredictions.i32"
    assert file.stat().st_size == 4 * 128 * 128
    assert values["runs"][0]["pictures"][0]["outputs"] == {}
    assert judged(directory, values, tmp_path).verdict == PASS
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="expected 65536 bytes in .*001-semanticPredictions.i32, got 65532"):
        judged(directory, values, tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="001-semanticPredictions.i32, got no file"):
        judged(directory, values, tmp_path)


BUGS = {
    "weight zeroed": "classifier",
    "channels declared as RGB": "classifier",
    "labels one later": "classifier",
    "smallest for largest": "segmenter",
    "mask turned": "segmenter",
    "mean before the activation": "features",
}
DEFAULT = ("weight zeroed", "labels one later", "smallest for largest")


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=[pytest.mark.slow] * (bug not in DEFAULT)) for bug in BUGS])
def test_a_device_that_computes_something_else_fails(
    bug: str, kinds: Kinds, directories: Callable[[str], Path], tmp_path: Path
) -> None:
    (fault,) = [one for one in FAULTS if one.name == bug]
    assert fault.package == BUGS[bug]
    faulty = tmp_path / "faulty.mlpackage"
    shutil.copytree(kinds(BUGS[bug])[0], faulty)
    fault.apply(faulty)
    found = judged(directories(BUGS[bug]), answers(directories(BUGS[bug]), faulty, tmp_path), tmp_path)
    assert found.units == dict.fromkeys(UNITS, FAIL)
    assert found.verdict == FAIL
    assert "gate " in summary(found)


@pytest.fixture(scope="module")
def good_text(directories: Callable[[str], Path]) -> str:
    return json.dumps(answers(directories("classifier")))


@pytest.fixture
def good(good_text: str) -> dict[str, Any]:
    """The classifier's results, to be changed."""
    values: dict[str, Any] = json.loads(good_text)
    return values


def run_of(values: dict[str, Any], units: str) -> dict[str, Any]:
    (run,) = [run for run in values["runs"] if run["units"] == units]
    assert isinstance(run, dict)
    return run


def test_one_compute_unit_is_wrong(good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path) -> None:
    size = len(json.loads((directories("classifier") / MANIFEST).read_text())["classes"])
    even = np.full(size, 1 / size, "<f4")
    even[5] *= 1.01
    run_of(good, "all")["pictures"][1]["outputs"][CLASS_PROBABILITIES] = deflated(even.tobytes())
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units == {**dict.fromkeys(UNITS, PASS), "all": FAIL}
    assert found.verdict == FAIL
    assert judged(directories("classifier"), good, tmp_path, units=["cpuOnly", "cpuAndGPU"]).verdict == PASS


def test_a_missing_compute_unit_did_not_run(
    good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path
) -> None:
    good["runs"] = [run for run in good["runs"] if run["units"] != "cpuAndNeuralEngine"]
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units == {**dict.fromkeys(UNITS, PASS), "cpuAndNeuralEngine": NOT_RUN}
    assert found.verdict == NOT_RUN
    assert "CPU, Engine  NOT_RUN, not in the results" in summary(found)
    good["runs"] = []
    assert judged(directories("classifier"), good, tmp_path).verdict == NOT_RUN


def test_what_a_device_cannot_do_did_not_run(
    good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path
) -> None:
    good["device"]["compute_devices"] = ["cpu", "gpu"]
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units == {**dict.fromkeys(UNITS, PASS), "cpuAndNeuralEngine": NOT_RUN}
    assert "this device has no Neural Engine" in summary(found)
    good["device"] = {**good["device"], "compute_devices": None, "simulator": True}
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units == {**dict.fromkeys(UNITS, NOT_RUN), "cpuOnly": PASS}
    good["device"]["simulator"] = False
    run_of(good, "all")["not_run"] = "needs iOS 18"
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units == {**dict.fromkeys(UNITS, PASS), "all": NOT_RUN}
    assert "needs iOS 18" in summary(found)


def test_an_error_on_the_device_fails(good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path) -> None:
    run_of(good, "all").update(error="Failed to build\n the model \x1b[31mexecution plan", pictures=[])
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units == {**dict.fromkeys(UNITS, PASS), "all": FAIL}
    assert "FAIL, the device says: Failed to build the model ?[31mexecution plan" in " ".join(summary(found).split())
    assert "\x1b" not in summary(found)


def test_missing_images_do_not_pass(good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path) -> None:
    del run_of(good, "all")["pictures"][1]
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units["all"] == NOT_RUN
    assert "only 2 of 3 images in the results" in summary(found)
    run_of(good, "all")["pictures"] = []
    assert judged(directories("classifier"), good, tmp_path).units["all"] == NOT_RUN


def test_no_numbers_do_not_pass(good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path) -> None:
    outputs = run_of(good, "all")["pictures"][0]["outputs"]
    data = zlib.decompress(base64.b64decode(outputs[CLASS_PROBABILITIES]), -15)
    outputs[CLASS_PROBABILITIES] = deflated(np.float32(math.nan).tobytes() + data[4:])
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units["all"] == FAIL
    assert "gate snr: expected at least 30 dB, got NaN dB" in summary(found)


def test_another_class_than_the_probabilities_say(
    good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path
) -> None:
    run_of(good, "all")["pictures"][2]["label"] = "a class of my own"
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units["all"] == FAIL
    assert "image 2: classLabel is 'a class of my own'" in summary(found)


def test_the_devices_own_figures(good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path) -> None:
    found = judged(directories("classifier"), good, tmp_path)
    fidelity = found.runs[0].fidelity
    assert fidelity is not None
    run_of(good, "cpuOnly")["figures"] = dict(fidelity.figures)
    assert judged(directories("classifier"), good, tmp_path).runs[0].notes == ()
    run_of(good, "cpuOnly")["figures"] = {"snr": 12.0, "cosine": "nan", "of_my_own": 1}
    found = judged(directories("classifier"), good, tmp_path)
    assert found.units["cpuOnly"] == PASS  # they decide nothing
    assert [note.partition(",")[0] for note in found.runs[0].notes] == [
        "the device has snr 12",
        "the device has cosine nan",
    ]


def test_gates_of_time_and_of_what_no_device_says(kinds: Kinds, tmp_path: Path) -> None:
    gates = {"latency": 4.0, "neural-engine": 0.9}
    directory = write(kinds("classifier"), tmp_path / "golden", gates=gates)
    found = judged(directory, answers(directory), tmp_path)
    assert found.units == dict.fromkeys(UNITS, FAIL)
    assert "gate latency: expected at most 4 ms, got 4.5" in summary(found)
    assert "NOT_RUN here: gate neural-engine" in summary(found)


def test_results_beside_the_manifest_or_below(
    good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path
) -> None:
    place = tmp_path / "golden"
    shutil.copytree(directories("classifier"), place)
    for results in (place / RESULTS, place / "iPhone" / RESULTS):
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(good))
        assert evaluate_device_results(results).verdict == PASS
    with pytest.raises(InputError, match="expected manifest.json beside it or in the directory above, got none"):
        evaluate_device_results(tmp_path.parent / "away" / RESULTS)


# What is no result of a device


def changed(values: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    *path, last = place.split(".")
    inner: Any = values
    for part in path:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    inner[int(last) if isinstance(inner, list) else last] = value
    return values


HOSTILE: list[tuple[str, Any, str]] = [
    ("schema", 2, "expected schema 1, got 2"),
    ("package", "0" * 64, "expected results of the package in the golden directory, .*…, got those of another, 0000"),
    ("manifest", "f" * 64, "expected results of this golden directory"),
    ("package", 5, "results.package: expected a text, got 5"),
    ("device", [], "results.device: expected an object"),
    ("device.model", None, "device.model: expected a text, got None"),
    ("device.simulator", "no", "device.simulator: expected true or false, got 'no'"),
    ("device.compute_devices", [1], r"device.compute_devices\[0\]: expected a text, got 1"),
    ("runs", {}, "results.runs: expected a list"),
    ("runs.0", 1, r"runs\[0\]: expected an object, got 1"),
    ("runs.0.units", "../../etc/passwd", r"runs\[0\].units: expected one of cpuOnly, .*, got '../../etc/passwd'"),
    ("runs.0.units", ["cpuOnly"], r"runs\[0\].units: expected a text"),
    ("runs.0.units", "all", "expected one run of main on all, got two"),
    ("runs.0.function", "../../etc/passwd", r"runs\[0\].function: expected one of main, got '../../etc/passwd'"),
    ("runs.0.error", 5, "error: expected a text, got 5"),
    ("runs.0.pictures", "all", r"runs\[0\].pictures: expected a list"),
    ("runs.0.pictures.0.index", "../../etc/passwd", "index: expected a whole number, got '../../etc/passwd'"),
    ("runs.0.pictures.0.index", 1, "expected image 1 once, got it twice"),
    ("runs.0.pictures.0.index", 10**30, "expected index 0 to 2"),
    ("runs.0.pictures.0.index", True, "index: expected a whole number, got True"),
    ("runs.0.pictures.0.outputs", {}, "image 0, classLabel_probs: expected 4000 bytes, got 0"),
    ("runs.0.pictures.0.outputs.classLabel_probs", "%%%", "expected base64 of a DEFLATE stream"),
    ("runs.0.pictures.0.outputs.classLabel_probs", "AAAA", "expected 4000 bytes, got 0"),
    ("runs.0.pictures.0.outputs.classLabel_probs", "////", "expected base64 of a DEFLATE stream"),
    ("runs.0.pictures.0.outputs.classLabel_probs", deflated(bytes(10**8)), "expected 4000 bytes, got 4001 or more"),
    ("runs.0.pictures.0.outputs.classLabel_probs", deflated(bytes(40)), "expected 4000 bytes, got 40"),
    ("runs.0.latency", 4, "latency: expected an object"),
    ("runs.0.latency.median_ms", "fast", "latency.median_ms: expected a number, got 'fast'"),
    ("runs.0.latency.median_ms", -1, "expected times of 0 or more, got -1"),
    ("runs.0.latency.median_ms", "nan", "expected times of 0 or more"),
    ("runs.0.latency.median_ms", math.nan, "expected JSON, got NaN, which is no JSON"),
    ("runs.0.latency.median_ms", 10**400, "expected a number"),
    ("runs.0.figures", {"snr": [[]]}, r"figures.snr: expected a number, got \[\[\]\]"),
    ("runs.0.colour", "red", "expected only units, function, .*, got 'colour'"),
    ("runs.0.pictures.0.label", "x" * 3_000_000, "expected at most .* bytes, got"),
]


@pytest.mark.parametrize(("place", "value", "message"), HOSTILE, ids=[f"{one[0]}={one[1]!r:.20}" for one in HOSTILE])
def test_hostile_results_are_one_line(
    place: str,
    value: Any,
    message: str,
    good: dict[str, Any],
    directories: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        judged(directories("classifier"), changed(good, place, value), tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, got"),
        ("null", "results: expected an object, got None"),
        ("[" * 100_000, "expected JSON, got brackets nested too deep"),
        ("1" * 5000, "expected JSON, got"),
        ('{"schema": 1}', "results: expected package, got none"),
    ],
)
def test_garbage_is_one_line(text: str, message: str, directories: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        judged(directories("classifier"), text, tmp_path)
    assert "\n" not in str(caught.value)


def test_truncated_results_are_one_line(
    good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path
) -> None:
    text = json.dumps(good)
    for length in (1, len(text) // 3, len(text) - 1):
        with pytest.raises(InputError, match="expected JSON, got"):
            judged(directories("classifier"), text[:length], tmp_path)
    (tmp_path / RESULTS).write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(InputError, match="expected JSON, got"):
        evaluate_device_results(tmp_path / RESULTS, directories("classifier"))
    with pytest.raises(InputError, match="expected a file, got none"):
        evaluate_device_results(tmp_path / "none.json", directories("classifier"))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("schema", 2, "expected mobilevit_coreml.golden of schema 1"),
        ("functions", [], "functions: expected one or more, each once"),
        ("functions.0.name", "../..", r"functions\[0\]: expected a name of letters"),
        ("functions.0.pictures.0.file", "../../etc/passwd", "expected a file in pictures/main, got '../../etc/passwd'"),
        ("functions.0.pictures.0.logits", "reference/main/..", "expected a file in reference/main"),
        ("functions.0.pictures.0.expected", {CLASS_PROBABILITIES: "/etc/passwd"}, "expected a file in expected/main"),
        ("functions.0.outputs.0.shape", [2**20, 2**20], "shape: expected 1 to 268435456 values"),
        ("functions.0.outputs.0.shape", [10], "main: expected the outputs of classification, got others"),
        ("functions.0.outputs.0.name", "a/b", r"outputs\[0\]: expected a name of letters"),
        ("compute_units", ["abacus"], "compute_units: expected some of cpuOnly"),
        ("classes", ["one"], "main: expected the outputs of classification, got others"),
        ("gates.0.name", "speed", r"gates\[0\]: gate: expected one of snr, .*, got 'speed'"),
        ("gates.0.at_least", False, r"gates\[0\]: gate: expected one of snr, .* with its unit, got 'snr'"),
        ("warm_up", -1, "predictions: expected 0 to 1000000"),
    ],
)
def test_a_manifest_that_is_damaged(
    place: str, value: Any, message: str, directories: Callable[[str], Path], tmp_path: Path
) -> None:
    values = json.loads((directories("classifier") / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(changed(values, place, value)))
    with pytest.raises(InputError, match=f"golden .*{message}.*write it again with --golden"):
        read_manifest(tmp_path)


def test_a_golden_directory_that_is_damaged(
    good: dict[str, Any], directories: Callable[[str], Path], tmp_path: Path
) -> None:
    place = tmp_path / "golden"
    shutil.copytree(directories("classifier"), place)
    (place / "reference" / "main" / "001.f32").write_bytes(b"")
    with pytest.raises(InputError, match="expected 4000 bytes in .*001.f32, got 0; write it again with --golden"):
        judged(place, good, tmp_path)


# The test in Swift


def swift_structs() -> dict[str, dict[str, str]]:
    """The structs that are read from or written to JSON, with the key of each stored property."""
    found = {}
    text = TEMPLATE.read_text()
    for match in re.finditer(r"struct (\w+): (?:Decodable|Codable)[^{]*\{", text):
        end, depth = match.end(), 1
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        body = text[match.end() : end - 1]
        flat, depth = "", 0
        for character in body:
            depth += {"{": 1, "}": -1}.get(character, 0)
            flat += character if depth == 0 else ""
        properties = re.findall(r"^\s*(?:let|var) (\w+): [^{}\n]+$", flat.replace("}", ""), re.MULTILINE)
        keys = {name: name for name in properties if name != "count"}
        _, coded, coding = body.rpartition("enum CodingKeys")
        if coded:
            plain = re.findall(r"^\s*case ([\w, ]+)$", coding, re.MULTILINE)
            listed = {name: name for line in plain for name in line.split(", ")}
            listed |= dict(re.findall(r'case (\w+) = "(\w+)"', coding))
            assert set(listed) == set(keys), match[1]  # or it would not compile, or not decode
            keys = listed
        found[match[1]] = keys
    return found


def test_swift_reads_keys_that_are_there(directories: Callable[[str], Path]) -> None:
    manifest = json.loads((directories("classifier") / MANIFEST).read_text())
    (function,) = manifest["functions"]
    structs = swift_structs()
    for name, values in (
        ("Manifest", manifest),
        ("Gate", manifest["gates"][0]),
        ("Function", function),
        ("Output", function["outputs"][0]),
        ("Picture", function["pictures"][0]),
    ):
        assert structs[name], name
        assert set(structs[name].values()) <= set(values), name


def test_swift_writes_what_the_device_of_the_tests_does(good: dict[str, Any]) -> None:
    structs = swift_structs()
    for name, values in (
        ("Results", good),
        ("Device", good["device"]),
        ("Run", good["runs"][0]),
        ("Latency", good["runs"][0]["latency"]),
        ("PictureResult", good["runs"][0]["pictures"][0]),
    ):
        assert set(structs[name].values()) == set(values), name


def test_swift_covers_every_compute_unit() -> None:
    text = TEMPLATE.read_text()
    assert re.findall(r'prove\(on: \.(\w+), called: "(\w+)"\)', text) == [(name, name) for name in UNITS]


def test_swift_unwraps_nothing_by_force() -> None:
    code = re.sub(r'//.*|"(?:\\.|[^"\\])*"', "", TEMPLATE.read_text())
    assert re.findall(r".*[\w)\]>]!(?!=).*", code) == []
    assert not re.search(r"\b(?:try|as)!", code)


def test_placeholders_are_filled(directories: Callable[[str], Path]) -> None:
    manifest = json.loads((directories("classifier") / MANIFEST).read_text())
    text = (directories("classifier") / SWIFT).read_text()
    assert "{{" not in text
    assert f'Golden(directory: "golden", digest: "{manifest["sha256"]}")' in text
    assert f"// {manifest['package']} on a device" in text


NAME = 'gol"den \\(x)\n\u202eü'


def test_names_stay_texts_in_swift() -> None:
    text = swift_test(NAME, "a\n}.mlpackage", "0")
    assert r'directory: "gol\"den \\(x)\u{a}\u{202e}\u{fc}", digest: "0"' in text
    assert text.isascii()
    assert len(text.splitlines()) == len(TEMPLATE.read_text().splitlines())


@pytest.mark.parametrize("text", [TEMPLATE.read_text(), swift_test(NAME, "b", "c")], ids=["template", "filled"])
def test_swift_parses(text: str) -> None:
    parser = swift_parser()
    assert not parser.parse(text.encode()).root_node.has_error
    assert parser.parse(text.replace("guard let", "guard lte", 1).encode()).root_node.has_error
    assert parser.parse(text[:-2].encode()).root_node.has_error


def swift_parser() -> Any:
    tree_sitter = pytest.importorskip("tree_sitter")
    swift = pytest.importorskip("tree_sitter_swift")
    return tree_sitter.Parser(tree_sitter.Language(swift.language()))
