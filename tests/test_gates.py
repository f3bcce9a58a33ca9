"""Gates by name, and what their results add up to."""

import dataclasses
import math
from typing import Any

import pytest

from mobilevit_coreml.compression.schemes import Budget, Palettize
from mobilevit_coreml.config import Task
from mobilevit_coreml.conversion import scheme_name
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.metrics import (
    BOUNDS,
    FAIL,
    NOT_RUN,
    PASS,
    default_gates,
    gate_results,
    overall,
    parse_gate,
    quality_gates,
    verdict_of,
)
from tests.package.test_record import RECORD


@pytest.mark.parametrize(
    ("text", "gate"),
    [("snr=30", ("snr", 30)), ("top1=0.98", ("top1", 0.98)), ("worst-snr=-inf", ("worst-snr", -math.inf))],
)
def test_gates_are_parsed(text: str, gate: tuple[str, float]) -> None:
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psnr=30", "gate: expected one of snr, worst-snr,"),
        ("snr", "gate snr: expected a number, as in snr=30, got ''; give one"),
        ("snr=high", "gate snr: expected a number, as in snr=30, got 'high'; give one"),
        ("snr=nan", "gate snr: expected a number, as in snr=30, got 'nan'; give one"),
    ],
)
def test_what_is_no_gate(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_gate(text)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize(("figure", "reached"), [(5.0, True), (4.9, None), (5.1, None), (math.nan, False)])
def test_a_gate_is_reached_or_not(name: str, figure: float, reached: bool | None) -> None:
    (result,) = gate_results({name: 5.0}, {name: figure})
    if reached is None:
        reached = (figure > 5) == BOUNDS[name].at_least
    assert result.passed is reached
    assert verdict_of([result]) == (PASS if reached else FAIL)


def test_what_was_not_measured_has_not_passed() -> None:
    results = gate_results({"snr": 30, "pixels": 0.97}, {"pixels": 0.99})
    assert [result.passed for result in results] == [None, True]
    assert verdict_of(results) == PASS  # of what could be measured
    assert verdict_of(results[:1]) == NOT_RUN
    assert verdict_of([]) == NOT_RUN


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ([PASS, PASS], PASS),
        ([PASS, NOT_RUN], NOT_RUN),
        ([NOT_RUN, FAIL, PASS], FAIL),
        ([], NOT_RUN),
    ],
)
def test_the_worst_verdict_counts(verdicts: list[str], verdict: str) -> None:
    assert overall(verdicts) == verdict


@pytest.mark.parametrize(
    ("task", "scheme", "gates"),
    [
        (Task.CLASSIFICATION, Palettize(6), {"snr": 20}),
        (Task.FEATURES, Budget(max_size=500_000), {"snr": 20}),
        (Task.SEGMENTATION, Budget(max_size=500_000), {"snr": 20, "pixels": 0.9}),  # class indices have no SNR
        (Task.CLASSIFICATION, Budget(min_snr=12.5), {"snr": 12.5}),
        (Task.CLASSIFICATION, Budget(min_snr=0.00001), {"snr": 0.00001}),
        (Task.CLASSIFICATION, Budget(min_agreement=0.99), {"top1": 0.99}),
        (Task.SEGMENTATION, Budget(min_agreement=0.95), {"pixels": 0.95}),
    ],
)
def test_compressed_weights_have_one_policy(task: Task, scheme: Any, gates: dict[str, float]) -> None:
    """`convert` measures quality by `quality_gates`, `validate` by `default_gates`."""
    record = dataclasses.replace(RECORD, task=task, compression={"scheme": scheme_name(scheme)})
    assert quality_gates(record) == pytest.approx(gates)
    assert default_gates(record) == quality_gates(record)


def test_uncompressed_weights_have_the_gates_of_their_precision() -> None:
    record = dataclasses.replace(RECORD, task=Task.CLASSIFICATION, compression={})
    assert default_gates(record) == {"snr": 30, "kl": 0.05}
    assert default_gates(dataclasses.replace(record, precision="fp32")) == {"snr": 70, "kl": 0.001}
