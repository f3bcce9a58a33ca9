"""Validation of classifiers with independent labels, of regressions and of logits: figures, gates and reports."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_coreml.cli.validate import main
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.inference import predict
from mobilevit_coreml.metrics import LabelsMeter, default_gates
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.report.schema import schema_of
from mobilevit_coreml.report.values import ValidationReport
from mobilevit_coreml.validation.manifest import read_manifest
from tests.peers import hugging_face_classifier

SMALL = ConversionOptions(image_sizes=((64, 64),), attention="packed")


def package_of(directory: Path, classes: int, **config: Any) -> Path:
    hugging_face_classifier("xxs", classes, image_size=64, **config).save_pretrained(directory)
    return convert(directory, options=SMALL, output=directory / "x.mlpackage", verify=False).path


def validated(package: Path, directory: Path) -> dict[str, Any]:
    """The report of a package that passes, which has also written a page and a golden directory."""
    arguments = ["--json", str(directory / "r.json"), "--html", str(directory / "r.html")]
    assert main([str(package), *arguments, "--golden", str(directory / "golden"), "--backend", "reference"]) == 0
    report: dict[str, Any] = json.loads((directory / "r.json").read_bytes())
    jsonschema.validate(report, schema_of(ValidationReport))
    return report


def test_several_labels(tmp_path: Path) -> None:
    package = package_of(tmp_path, 5, problem_type="multi_label_classification")
    report = validated(package, tmp_path)
    (run,) = [run for run in report["runs"] if run["figures"]]
    labels = run["figures"]["labels"]
    assert run["figures"]["ranking"] is None
    assert [one["class"] for one in labels["by_label"]] == [f"LABEL_{index}" for index in range(5)]
    assert labels["agreement"] == 1
    assert labels["max_abs_difference"] == max(one["max_abs_difference"] for one in labels["by_label"]) < 0.01
    assert "5 labels" in (tmp_path / "r.html").read_text(encoding="utf-8")
    (function,) = read_manifest(tmp_path / "golden")[0].functions
    assert [output.kind for output in function.outputs] == ["probabilities"]


@pytest.mark.slow
def test_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = package_of(tmp_path, 1)
    report = validated(package, tmp_path)
    assert "largest difference" in capsys.readouterr().out
    (run,) = [run for run in report["runs"] if run["figures"]]
    assert list(run["figures"]["signals"]) == ["values"]
    assert (run["figures"]["ranking"], run["figures"]["labels"]) == (None, None)
    (function,) = read_manifest(tmp_path / "golden")[0].functions
    assert [(output.name, output.kind, output.shape) for output in function.outputs] == [("values", "array", (1, 1))]
    Image.fromarray(np.full((80, 70, 3), 99, np.uint8)).save(tmp_path / "x.png")
    (values,) = predict(package, [tmp_path / "x.png"])
    assert list(values) == ["LABEL_0"]


def test_figures_of_labels() -> None:
    """Against numpy: which are on the same side, and the largest difference."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(size=(7, 4)).astype(np.float32)
    output = (reference + rng.normal(0, 0.2, reference.shape)).astype(np.float32)
    output[3, 2] = np.nan
    meter = LabelsMeter()
    for one, other in zip(reference, output, strict=True):
        meter.add(torch.from_numpy(one), torch.from_numpy(other))
    figures = meter.result()
    same = (reference > 0.5) == (output > 0.5)
    same[3, 2] = False
    assert [agreement for agreement, _ in figures.by_label] == pytest.approx(same.mean(0))
    assert figures.agreement == pytest.approx(same.mean())
    differences = np.abs(reference - output).max(0)
    assert np.array([largest for _, largest in figures.by_label]) == pytest.approx(differences, nan_ok=True)
    assert np.isnan(figures.max_abs_difference)


def test_gates_follow_what_the_outputs_mean(tmp_path: Path) -> None:
    from mobilevit_coreml.inference import read_record

    package = package_of(tmp_path, 3, problem_type="multi_label_classification")
    assert default_gates(read_record(package)) == {"snr": 30.0}
