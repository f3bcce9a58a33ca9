"""The implementations of a package against each other, on a Mac that is not there."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.cli.convert import parser
from mobilevit_coreml.compression.schemes import Palettize
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.reference.reader import read_specification
from mobilevit_coreml.report.tuning import command, tuning_table
from mobilevit_coreml.validation import tune as tuning_module
from mobilevit_coreml.validation.tune import IMPLEMENTATIONS, Trial, Tuning, tune
from tests.validation.native import Mac

TIMES = {
    "split_einsum space_to_batch": 2.5,
    "split_einsum pixel_shuffle": 1.5,
    "packed space_to_batch": 0.5,
    "packed pixel_shuffle": 3.0,
}
ENGINE = "cpuAndNeuralEngine"
Tune = Callable[..., Tuning]


@pytest.fixture
def tuned(shallow: None, no_worker: None, monkeypatch: pytest.MonkeyPatch) -> Tune:
    """`tune` on some Mac, in this process."""

    def run(mac: Mac, package: Path, units: tuple[str, ...] = (ENGINE,), weights: str | None = None) -> Tuning:
        mac.install(monkeypatch.setattr)
        monkeypatch.setattr("mobilevit_coreml.validation.dataset.synthetic_images", partial(synthetic_images, count=1))
        monkeypatch.setattr("mobilevit_coreml.validation.backends.core_ml_is_here", lambda: True)
        monkeypatch.setattr(tuning_module, "core_ml_is_here", lambda: True)
        return tune(package, weights, units)

    return run


@pytest.fixture
def converted_once(converted: Callable[..., Conversion], monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages that are tried, shared by tests."""

    def convert(weights: str, variant: str | None, options: ConversionOptions, **_: Any) -> Conversion:
        return converted(weights, variant, **{name: value for name, value in vars(options).items() if value})

    monkeypatch.setattr(tuning_module, "convert", convert)


def parsed(tuning: Tuning) -> dict[str, Any]:
    """The values of the command that is printed, less defaults."""
    text = tuning_table(tuning)
    words = shlex.split(text[text.index("python -m") :].replace("\\\n", ""))
    assert words == command(tuning, next(one for one in tuning.trials if one == tuning.fastest(tuning.units[0])))
    assert words[:3] == ["python", "-m", "mobilevit_coreml.convert"]
    values, defaults = vars(parser().parse_args(words[3:])), vars(parser().parse_args([]))
    return {name: value for name, value in values.items() if value != defaults[name]}


@pytest.mark.usefixtures("converted_once")
def test_the_fastest_is_named_with_its_command(tuned: Tune, classifier: Path) -> None:
    tuning = tuned(Mac(milliseconds=TIMES), classifier)
    assert tuning.verdict == PASS
    assert [(one.attention, one.unfold, one.reason) for one in tuning.trials] == [(*one, "") for one in IMPLEMENTATIONS]
    text = tuning_table(tuning)
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert "fastest      CPU, Engine: packed, space_to_batch\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("  CPU, Engine") and " 0.50 " in line]
    assert row.split()[2:5] == ["0.00", "0.50", "0.50"]
    assert 80 < float(row.split()[5].rstrip("%")) < 100
    assert parsed(tuning) == {
        "weights": "untrained",
        "variant": "xxs",
        "task": "classification",
        "attention": "packed",
        "target": "iOS16",
        "image_sizes": ((64, 64),),
    }
    none = dataclasses.replace(tuning, trials=(Trial("packed", "space_to_batch", "cannot be converted"),))
    assert (none.verdict, none.fastest(ENGINE)) == (FAIL, None)
    assert "CPU, Engine: none passes" in tuning_table(none)
    assert "python -m" not in tuning_table(none)


@pytest.mark.usefixtures("converted_once")
def test_a_fast_one_that_is_wrong_does_not_win(tuned: Tune, classifier: Path) -> None:
    """Nor does one that does not load; and the units are apart."""
    mac = Mac(milliseconds=TIMES, wrong=("packed space_to_batch",), refused=("split_einsum pixel_shuffle",))
    tuning = tuned(mac, classifier, (ENGINE, "cpuOnly"))
    assert [len(one.runs) for one in tuning.trials] == [2] * len(IMPLEMENTATIONS)
    assert tuning.verdict == PASS
    assert [str(tuning.fastest(units)) for units in tuning.units] == ["split_einsum, space_to_batch"] * 2
    wrong = tuning.trials[IMPLEMENTATIONS.index(("packed", "space_to_batch"))]
    assert [(run.verdict, run.latency["median_ms"]) for run in wrong.runs] == [(FAIL, 0.5)] * 2
    text = tuning_table(tuning)
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert sum(line.endswith(" FAIL") for line in text.splitlines()) == 2
    assert " ".join(text.split()).count("FAIL, RuntimeWarning: You will not be able to run predict()") == 2


@pytest.mark.slow
def test_the_package_is_made_again_as_it_was(tuned: Tune, tmp_path: Path) -> None:
    """Its own labels, order of channels, target, precision and compression; for iOS15 not each implementation."""
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([f"label {index}" for index in range(1000)]))
    options = ConversionOptions(
        precision="fp32",
        target="iOS15",
        image_sizes=((64, 96),),
        include_crop=True,
        labels=labels,
        channel_order="RGB",
    )
    package = convert("untrained", "xxs", options, output=tmp_path, verify=False).path
    tuning = tuned(Mac(), package)
    reasons = {(one.attention, one.unfold): one.reason for one in tuning.trials}
    assert [bool(reason) for reason in reasons.values()] == [False, True, False, True]
    assert "cannot be converted: target: expected iOS16 or later" in reasons["packed", "pixel_shuffle"]
    assert [run.verdict for one in tuning.trials for run in one.runs] == [PASS, PASS]
    assert "FILE stands for the class names" in tuning_table(tuning)
    values = {**parsed(tuning), "labels": labels}
    weights, variant = values.pop("weights"), values.pop("variant")
    again = convert(weights, variant, ConversionOptions(**values), output=tmp_path / "again.mlpackage", verify=False)
    assert read_record(again.path) == read_record(package)
    versions = [read_specification(path).specificationVersion for path in (package, again.path)]
    assert versions == [6, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        # 64 cells of a mask: of 16 a single tie that rounding decides is more than the gate allows
        {"task": "segmentation", "image_sizes": ((128, 128),), "output_type": "image", "output_size": "network"},
        {"task": "features", "image_sizes": ((64, 64), (64, 96)), "hidden_states": True},
        {"image_sizes": ((64, 64),), "compression": Palettize(6)},
    ],
)
def test_other_packages_are_made_again(
    tuned: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(tuning_module, "IMPLEMENTATIONS", IMPLEMENTATIONS[:1])
    package = convert("untrained", "xxs", ConversionOptions(**options), output=tmp_path, verify=False).path
    tuning = tuned(Mac(), package)
    assert tuning.verdict == PASS
    asked = {"weights": "untrained", "variant": "xxs", "task": "classification", **options}
    target = "iOS18" if len(options["image_sizes"]) > 1 else "iOS16"
    asked = {name: value for name, value in asked.items() if name != "compression"} | {"target": target}
    assert parsed(tuning) == asked
    text = " ".join(tuning_table(tuning).split())
    assert ("ask for the package's compression again" in text) == ("compression" in options)
    assert ("at the first of 2 sizes" in text) == (len(options["image_sizes"]) > 1)


def test_off_a_mac_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, "core_ml_is_here", lambda: False)
    tuning = tune(tmp_path / "none.mlpackage")
    assert (tuning.verdict, tuning.trials) == (NOT_RUN, ())
    assert "Core ML is on a Mac only" in tuning_table(tuning)
    assert list(tmp_path.iterdir()) == []
