"""The command, from a package to its verdict: where the original comes from, and what stands in the way."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mobilevit_coreml.cli.validate import main
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.errors import CheckpointError, InputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.validation.original import load_original
from mobilevit_coreml.validation.run import validate
from tests.peers import hugging_face_classifier
from tests.validation.edits import edit

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory as transformers saves it, of three named classes, and its package for two sizes."""
    directory = tmp_path_factory.mktemp("tuned")
    hugging_face_classifier("xxs", id2label={0: "cat", 1: "dog", 2: "fish"}).save_pretrained(directory / "run")
    made = convert(
        str(directory / "run"),
        options=ConversionOptions(image_sizes=((64, 64), (64, 96)), attention="packed"),
        output=directory,
        verify=False,
    )
    return directory / "run", made.path


def test_prints_what_the_verdict_rests_on(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(classifier)]) == 0
    printed = capsys.readouterr().out
    expected = rf"""{re.escape(str(classifier))}: PASS
  size         \d\.\d\d MB
  checkpoint   untrained
               seed 0
  images       8 synthetic
  framework    NOT_RUN, the weights are of no other framework
  record       PASS, as the checkpoint has it
  input        PASS, as the checkpoint has it
  outputs      PASS, as the checkpoint has it
  labels       PASS, as the checkpoint has it
  weights      PASS, \d+ tensors as the checkpoint has them, in their formats
  operations   PASS, \d+ of \d+ compared on their own inputs, the weakest
               \w+ with \d\d\.\d dB \(gate 55 dB\)
  fp16 range   up to [\d.]+ in \w+, of 65504
  reference    PASS, logits \d\d\.\d dB SNR against PyTorch fp32 \(gate 30 dB\)
               worst image \d\d\.\d dB, cosine 0\.99\d+
               largest difference of a probability [\d.e-]+, KL [\d.e-]+ nats
               top-1 equal on [\d.]+%, top-5 on [\d.]+% of 8 images
               smallest top-1 margin [\d.e-]+
  coreml       NOT_RUN, Core ML is on a Mac only
  forecast     of what may leave or slow the Neural Engine by documented rules;
               nothing was run there
               operations by rule: (?:.|\n)*
  seconds      [\d.]+
"""
    assert re.fullmatch(expected, printed), printed
    assert all(len(line) <= 80 for line in printed.splitlines()[1:])


def test_all_functions_of_a_package(tuned: tuple[Path, Path], photographs: Path) -> None:
    _, package = tuned
    images = next(path for path in photographs.iterdir() if path.is_dir())  # has two
    stages: list[tuple[str, int, int]] = []
    validation = validate(
        str(package),
        images=str(images),
        backend="reference",
        progress=lambda stage, done=0, total=0: stages.append((stage, done, total)),
    )
    assert [(run.backend.name, run.function, run.verdict) for run in validation.runs] == [
        ("reference", "size_64", PASS),
        ("reference", "size_64x96", PASS),
        ("coreml", "size_64", NOT_RUN),
        ("coreml", "size_64x96", NOT_RUN),
    ]
    assert stages[:3] == [("read", 0, 0), ("weights", 0, 0), ("program", 0, 0)]
    assert stages[4:] == [(f"reference {name}", n, 2) for name in ("size_64", "size_64x96") for n in range(3)]


def test_one_function_of_a_package(tuned: tuple[Path, Path], one_image: Path) -> None:
    _, package = tuned
    assert main([str(package), "--function", "size_64x96", "--images", str(one_image)]) == 0
    assert list(validate(package, images=one_image, function="size_64x96").programs) == ["size_64x96"]
    with pytest.raises(InputError, match="function: expected one of size_64, size_64x96, got 'main'"):
        validate(package, function="main")


def test_core_ml_is_not_run_here(classifier: Path, one_image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What did not run has not passed, and does not hide in an exit code of 0."""
    assert main([str(classifier), "--backend", "coreml", "--images", str(one_image)]) == 3
    printed = capsys.readouterr().out
    assert f"{classifier}: NOT_RUN\n" in printed
    for unit in ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine", "all"):
        assert f"coreml       {unit}: NOT_RUN, Core ML is on a Mac only" in printed


@pytest.mark.parametrize(
    ("gate", "code", "line"),
    [
        ("snr=20", 0, "reference    PASS"),
        ("snr=90", 1, "gate snr: expected at least 90 dB, got "),
        ("kl=0", 1, "gate kl: expected at most 0 nats, got "),
        ("pixels=0.9", 3, "NOT_RUN here: gate pixels"),
    ],
)
def test_gates(
    classifier: Path, one_image: Path, gate: str, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(classifier), "--gate", gate, "--images", str(one_image)]) == code
    assert line in capsys.readouterr().out


def test_weights_that_moved(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    weights, package = tuned
    record = read_record(package)
    moved = shutil.copytree(weights, tmp_path / "moved")
    assert load_original(record, str(moved)).classes == ("cat", "dog", "fish")
    nowhere = dataclasses.replace(record, weights=dataclasses.replace(record.weights, name=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match=r"\(the package records these weights; --weights names their place"):
        load_original(nowhere)


def test_other_weights_are_an_error(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    weights, package = tuned
    record = read_record(package)
    other = shutil.copytree(weights, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["classifier.bias"] += 1e-3
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"other: expected sha256 \w{16}…, as the package records, got sha256"):
        load_original(record, str(other))
    with pytest.raises(CheckpointError, match="got untrained weights of seed 0; give the weights it was made of"):
        load_original(record, "untrained")


def test_what_the_conversion_was_given(tuned: tuple[Path, Path], one_image: Path, tmp_path: Path) -> None:
    """Class names that are not the checkpoint's are wrong unless they are given again; other options are recorded."""
    weights, _ = tuned
    names = tmp_path / "names.txt"
    names.write_text("Katze\nHund\nFisch\n")
    options = ConversionOptions(image_sizes=((64, 64),), attention="packed", labels=names, channel_order="RGB")
    package = convert(str(weights), options=options, output=tmp_path, verify=False).path
    checks = validate(package, images=one_image).checks
    failed = {check.name: check.detail for _, check in checks if check.passed is False}
    assert failed.keys() == {"record", "labels"}
    assert failed["labels"] == "0: expected 'cat', got 'Katze' (2 more)"
    assert failed["record"] == "given.labels: expected None, got True"
    assert validate(package, images=one_image, labels=names).verdict == PASS
    assert validate(package, images=one_image, labels=names, channel_order="BGR").verdict == FAIL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mlpackage"], "package nowhere.mlpackage: expected a .mlpackage directory, got nothing there"),
        (["PACKAGE", "--gate", "psnr=3"], "gate: expected one of snr,"),
        (["PACKAGE", "--images", "nowhere"], "images nowhere: expected a directory of images"),
        (["PACKAGE", "--weights", "nowhere.pth"], "weights nowhere.pth: expected a file, a directory, a hub id"),
        (["PACKAGE", "--labels", "nowhere.txt"], "labels nowhere.txt: expected a UTF-8 text or JSON file"),
        (["PACKAGE", "--timeout", "0"], "timeout: expected seconds above 0, got 0"),
        (["PACKAGE", "--journal", "no/where"], "cannot write no/where: No such file"),
        (["PACKAGE", "--compute-units", "gpu"], "argument --compute-units: expected some of cpuOnly,cpuAndGPU"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main([str(classifier) if argument == "PACKAGE" else argument for argument in arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_package_that_somebody_else_made(tmp_path: Path, classifier: Path) -> None:
    copy = shutil.copytree(classifier, tmp_path / "other.mlpackage")
    edit(copy, lambda program: program.record.clear())
    with pytest.raises(Exception, match="expected the record of a conversion by mobilevit_coreml"):
        validate(copy)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_an_interruption_leaves_no_process(untrained_package: Path, tmp_path: Path) -> None:
    for index, image in enumerate(synthetic_images(80, 80, 8)):
        for copy in range(40):
            image.save(tmp_path / f"{index}-{copy}.png")
    command = [sys.executable, "-m", "validate", str(untrained_package), "--images", str(tmp_path), "--journal"]
    journal = tmp_path / "journal.jsonl"
    process = subprocess.Popen(
        [*command, str(journal)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err == b"interrupted: nothing half-made is left\n"
    while alive(process.pid):  # what multiprocessing starts for itself ends a moment later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 3 < len(journal.read_bytes().splitlines()) < 321
