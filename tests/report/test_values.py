"""The values of a validation: what the dataclasses have, in strict JSON, by the schema that documents it."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.metrics import FAIL, NOT_RUN, PASS, MaskMeter
from mobilevit_coreml.report.collect import device_shares, overlaps, report_values, write_json
from mobilevit_coreml.report.schema import schema_of
from mobilevit_coreml.report.values import CompressionReport, ValidationReport
from mobilevit_coreml.validation.backends import CORE_ML, Backend
from mobilevit_coreml.validation.forecast import RULES
from mobilevit_coreml.validation.measure import Measured
from mobilevit_coreml.validation.run import Run, Validation
from tests.validation.examples import FUNCTION, faulty, good, plan, reference_run, with_core_ml, with_curve

SCHEMA = schema_of(ValidationReport)

Values = dict[str, Any]


def fits(values: Any) -> None:
    """Raise jsonschema.ValidationError for values that are not by the schema."""
    jsonschema.Draft202012Validator(SCHEMA).validate(values)


def not_run(validation: Validation) -> Validation:
    """As if Core ML had been asked for on another machine than a Mac."""
    run = Run(Backend(CORE_ML, "all"), FUNCTION, NOT_RUN, "Core ML is on a Mac only")
    return dataclasses.replace(validation, runs=(run,), asked=(run.backend,))


EXAMPLES: dict[str, Callable[[], Validation]] = {
    "classifier": lambda: good("classifier"),
    "segmenter": lambda: good("segmenter"),
    "features": lambda: good("features"),
    "palettized": lambda: good("palettized"),
    "faulty": faulty,
    "core ml, and crashed": lambda: with_core_ml(good("classifier")),
    "not run": lambda: not_run(good("classifier")),
    "curve": lambda: with_curve(good("features"), [[700_000, 15.1, None], [998_000, 28.6, 0.75]]),
}


def run_of(values: Values, backend: str, units: str | None = None) -> Values:
    (found,) = (run for run in values["runs"] if (run["backend"], run["compute_units"]) == (backend, units))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_validations_fit_the_schema(name: str, tmp_path: Path) -> None:
    values = report_values(EXAMPLES[name]())
    fits(values)
    write_json(tmp_path / "report.json", values)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no strict JSON")

    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse) == values


@pytest.mark.parametrize("report", [ValidationReport, CompressionReport])
def test_the_schema_is_one_and_describes_every_field(report: type) -> None:
    schema = schema_of(report)
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, definition in {"report": schema, **schema["$defs"]}.items():
        if definition.get("type") == "object":
            assert definition["description"], name
            assert definition["required"] == list(definition["properties"])
            assert definition["additionalProperties"] is False
            for key, field in definition["properties"].items():
                ours = name not in (
                    "Check",
                    "Finding",
                    "Mismatch",
                    "SignalFidelity",
                    "StoredLayer",
                    "Preprocessing",
                    "OutputOptions",
                )
                assert not ours or "description" in field or "$ref" in field, f"{name}.{key}"


def test_every_object_has_its_keys_and_no_others() -> None:
    """Each object of a report that fits, without one of its keys, or with one more, does not."""
    values = report_values(with_core_ml(good("segmenter")))
    for owner in ("functions", FUNCTION), ("functions", FUNCTION, "operations", 0), ("runs", 1), ("runs", 0, "figures"):
        found: Any = values
        for step in owner:
            found = found[step]
        for key in [*found, "surprise"]:
            with pytest.raises(jsonschema.ValidationError):
                fits(changed(values, *owner, key, to=... if key in found else 1))


def changed(values: Values, *path: str | int, to: Any) -> Values:
    """A copy with another value at one place; `...` takes it away."""
    copy: Values = json.loads(json.dumps(values))
    found: Any = copy
    for step in path[:-1]:
        found = found[step]
    if to is ...:
        del found[path[-1]]
    else:
        found[path[-1]] = to
    return copy


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("verdict",), "MAYBE"),
        (("verdict",), ...),
        (("schema",), 1),
        (("surprise",), 1),
        (("seconds",), "12"),
        (("package", "sha256"), "0"),
        (("functions", FUNCTION, "operations", 0, "own"), "Infinity"),
        (("functions", FUNCTION, "operations", 0, "own"), None),
        (("functions", FUNCTION, "weights", 0, "units"), ...),
        (("runs", 0, "gates", 0, "verdict"), "maybe"),
        (("runs", 0, "backend"), "gpu"),
    ],
    ids=str,
)
def test_what_is_wrong_does_not_fit(path: tuple[str | int, ...], to: Any) -> None:
    values = report_values(good("classifier"))
    with pytest.raises(jsonschema.ValidationError):
        fits(changed(values, *path, to=to))


def test_has_the_package_and_what_it_was_made_of() -> None:
    validation = good("classifier")
    values = report_values(validation)
    assert (values["schema"], values["verdict"], values["reasons"]) == (2, PASS, [])
    assert values["package"]["name"] == "classifier.mlpackage"
    assert (values["package"]["bytes"], values["package"]["sha256"]) == (validation.bytes, validation.digest)
    record = values["package"]["record"]
    assert record["weights"]["sha256"] == validation.record.weights.sha256
    assert not record["weights"]["untrained"]
    assert record["preprocessing"]["crop"] == list(validation.record.preprocessing.crop)
    assert values["pictures"] == {"source": validation.source, "count": 2, "labelled": True}
    assert values["classes"][1] == "goldfish, Carassius auratus"


def test_has_everything_of_the_program() -> None:
    validation = good("palettized")
    program = validation.programs[FUNCTION]
    function = report_values(validation)["functions"][FUNCTION]
    assert [one["name"] for one in function["checks"]] == ["record", "input", "outputs", "weights", "operations"]
    assert {one["format"] for one in function["weights"]} == {"fp16", "6bit"}
    for one, tensor in zip(function["weights"], program.tensors, strict=True):
        assert (one["operation"], one["module"], one["parameter"]) == (
            tensor.operation,
            tensor.module,
            tensor.parameter,
        )
        assert float(one["snr"]) == tensor.snr
        assert (one["stored"], one["passed"]) == (True, True)
    for one, step in zip(function["operations"], program.steps, strict=True):
        assert (one["operation"], float(one["own"]), float(one["accumulated"])) == (
            step.operation,
            step.own,
            step.accumulated,
        )
    assert len(function["ranges"]) == len(program.ranges)
    assert [one["rule"] for one in function["forecast"]] == [one.rule for one in program.findings]
    assert function["departure"] is None


def test_says_why_a_package_fails() -> None:
    values = report_values(faulty())
    mismatch = values["functions"][FUNCTION]["departure"]
    operation = "stage3_1_layers_1_activation"
    assert values["verdict"] == FAIL
    assert (mismatch["operation"], mismatch["type"]) == (operation, "gelu")
    operations = values["functions"][FUNCTION]["operations"]
    assert [one["operation"] for one in operations if one["departs"]] == [operation]
    reasons = values["reasons"]
    assert [reason.partition(":")[0] for reason in reasons] == ["operations", "first mismatch", "reference"]
    assert operation in reasons[1]
    assert "gate snr: expected at least 30 dB, got " in reasons[2]


def test_forecasts_say_that_they_are_some() -> None:
    values = report_values(good("classifier"))
    assert "nothing was run on a Neural Engine" in values["forecast"]["note"]
    assert values["forecast"]["rules"] == dict(RULES)
    assert {one["rule"] for one in values["functions"][FUNCTION]["forecast"]} <= set(RULES)


def test_what_did_not_run_has_not_passed() -> None:
    values = report_values(good("classifier"))
    left = run_of(values, CORE_ML)
    assert (left["verdict"], left["asked"], left["figures"], left["gates"]) == (NOT_RUN, False, None, [])
    assert left["reason"] == "Core ML is on a Mac only"
    gates = {gate["name"]: gate for gate in run_of(values, "reference")["gates"]}
    assert (gates["latency"]["got"], gates["latency"]["passed"], gates["latency"]["verdict"]) == (None, None, NOT_RUN)
    assert (gates["snr"]["passed"], gates["snr"]["verdict"], gates["snr"]["at_least"]) == (True, PASS, True)

    values = report_values(not_run(good("classifier")))
    assert (values["verdict"], values["reasons"]) == (NOT_RUN, ["coreml all: Core ML is on a Mac only"])


def test_has_every_figure_of_a_classifier() -> None:
    validation = good("classifier")
    fidelity = reference_run(validation).fidelity
    assert fidelity is not None
    assert fidelity.ranking is not None
    run = run_of(report_values(validation), "reference")
    signal = fidelity.signals["logits"]
    assert run["pictures"] == 2
    assert run["figures"]["signals"]["logits"] == {
        "snr": signal.snr,
        "worst_snr": signal.worst_snr,
        "cosine": signal.cosine,
        "max_abs_difference": signal.max_abs_difference,
    }
    assert run["figures"]["ranking"]["margin"] == fidelity.ranking.margin
    assert run["figures"]["ranking"]["kl"] == fidelity.ranking.kl
    assert run["figures"]["masks"] is None
    assert run["accuracy"]["difference"]["top1"] == (
        run["accuracy"]["package"]["top1"] - run["accuracy"]["original"]["top1"]
    )
    worst = run["worst"][0]
    result = reference_run(validation).measured.worst[0]
    assert (worst["picture"], worst["snr"]) == (result.name, result.snr)
    assert worst["same_first"] is True
    assert set(worst["correct"]) == {"original", "package"}
    assert [(one["index"], one["original"], one["package"]) for one in worst["classes"]] == result.first
    assert worst["classes"][0]["class"] == validation.original.classes[result.first[0][0]]


def test_has_each_class_of_a_segmenter() -> None:
    run = run_of(report_values(good("segmenter")), "reference")
    masks = run["figures"]["masks"]
    assert len(masks["by_class"]) == masks["classes"]
    assert math.isclose(sum(one["iou"] for one in masks["by_class"]) / masks["classes"], masks["mean_iou"])
    assert run["figures"]["ranking"] is None
    assert run["worst"][0]["pixels"] is not None
    assert run["worst"][0]["same_first"] is None


def test_overlaps_count_what_either_side_has() -> None:
    meter = MaskMeter(3, same=[6, 0, 0], either=[8, 2, 0], reference=[7, 0, 0])
    found = [(one.index, one.class_, one.pixels, one.iou) for one in overlaps(meter, ["cat"])]
    assert found == [(0, "cat", 7, 0.75), (1, "class 1", 0, 0.0)]
    assert list(overlaps(None, [])) == []


def test_has_what_core_ml_said() -> None:
    validation = with_core_ml(good("classifier"))
    values = report_values(validation)
    ran, crashed = run_of(values, CORE_ML, "all"), run_of(values, CORE_ML, "cpuOnly")
    assert ran["latency"]["median_ms"] == 1.25
    operations = ran["plan"]["operations"]
    assert operations[0] == {"operation": "constant", "type": "const", "device": None, "cost": 0.0, "module": ""}
    assert operations[2]["module"] == "backbone.stem.conv"
    count = len(operations) - 1
    assert ran["plan"]["devices"]["cpu"] == {"operations": 1, "share": 1 / count, "cost": 0.5}
    assert math.isclose(ran["plan"]["devices"]["neuralEngine"]["cost"], 0.5)
    assert (crashed["verdict"], crashed["reason"], crashed["figures"]) == (FAIL, "crashed with SIGABRT", None)
    assert values["reasons"] == ["coreml cpuOnly: crashed with SIGABRT"]
    shares = device_shares(plan(validation))
    assert list(shares) == ["neuralEngine", "cpu"]
    assert math.isclose(sum(one.share for one in shares.values()), 1)


def test_has_the_curve_of_a_budget() -> None:
    values = report_values(with_curve(good("features"), [[700_000, 15.1, None], [998_000, math.inf, 0.75]]))
    assert values["curve"] == [
        {"bytes": 700_000, "snr": 15.1, "agreement": None},
        {"bytes": 998_000, "snr": "inf", "agreement": 0.75},
    ]
    assert report_values(good("features"))["curve"] == []


def test_numbers_that_are_none_are_texts() -> None:
    validation = good("features")
    program = validation.programs[FUNCTION]
    values_of = (math.inf, -math.inf, math.nan)
    steps = [dataclasses.replace(step, own=own) for step, own in zip(program.steps, values_of, strict=False)]
    odd = dataclasses.replace(program, steps=tuple(steps))
    values = report_values(dataclasses.replace(validation, programs={FUNCTION: odd}))
    fits(values)
    operations = values["functions"][FUNCTION]["operations"]
    assert [(one["own"], one["departs"]) for one in operations] == [("inf", False), ("-inf", True), ("nan", True)]


def test_texts_that_are_none_can_be_written(tmp_path: Path) -> None:
    """File names may be bytes that are no text."""
    validation = good("features")
    run = reference_run(validation)
    result = dataclasses.replace(run.measured.worst[0], name="\udcff.png")
    odd = dataclasses.replace(run, measured=Measured(run.measured.meters, {}, [result]))
    values = report_values(dataclasses.replace(validation, runs=(odd,)))
    write_json(tmp_path / "report.json", values)
    assert (
        json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["runs"][0]["worst"][0]["picture"] == "?.png"
    )


def test_equal_validations_have_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_json(tmp_path / name, report_values(with_core_ml(good("classifier"))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write .*report.json: No such file or directory"):
        write_json(tmp_path / "missing" / "report.json", report_values(good("features")))
