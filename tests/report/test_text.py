"""Figures at a terminal."""

import dataclasses
import math

import pytest

from mobilevit_coreml.metrics import Fidelity, MaskFidelity, RankingFidelity, SignalFidelity, gate_results
from mobilevit_coreml.report.collect import gate_of, gate_text
from mobilevit_coreml.report.text import verification_lines

GOOD = Fidelity(8, {"snr": 30.0}, {"logits": SignalFidelity(45.12, 40.04, 0.99998765, 0.1)})
RANKING = RankingFidelity(1.0, 0.875, 0.0312, 0.0012, 0.001)
MASKS = MaskFidelity(0.99734, 0.9281, 13)


def lines(fidelity: Fidelity) -> list[str]:
    return verification_lines(fidelity, "PyTorch fp32")


def test_report_of_a_classifier() -> None:
    assert lines(dataclasses.replace(GOOD, ranking=RANKING)) == [
        "PASS, logits 45.1 dB SNR against PyTorch fp32 (gate 30 dB)",
        "worst image 40.0 dB, cosine 0.999988",
        "largest difference of a probability 0.0012, KL 0.001 nats",
        "top-1 equal on 100%, top-5 on 87.5% of 8 images",
        "smallest top-1 margin 0.031",
    ]


def test_report_of_a_segmenter() -> None:
    assert lines(dataclasses.replace(GOOD, masks=MASKS, gates={"snr": 30, "pixels": 0.97})) == [
        "PASS, logits 45.1 dB SNR against PyTorch fp32 (gate 30 dB)",
        "worst image 40.0 dB, cosine 0.999988",
        "pixel agreement 99.73% (gate 0.97)",
        "mean IoU 0.928 over 13 classes, 8 images",
    ]


def test_report_of_features_has_the_worst_first() -> None:
    map_ = SignalFidelity(29.96, 20.0, 0.98, 1.0)
    assert lines(dataclasses.replace(GOOD, signals={"pooled": GOOD.signals["logits"], "featureMap": map_})) == [
        "FAIL, featureMap 29.9 dB SNR against PyTorch fp32 (gate 30 dB)",
        "worst image 20.0 dB, cosine 0.980000",
        "pooled 45.1 dB, worst image 40.0 dB, cosine 0.999988",
        "largest difference 1 over 8 images",
    ]


def test_a_signal_that_is_no_number_comes_first() -> None:
    bad = dataclasses.replace(GOOD.signals["logits"], snr=math.nan)
    found = lines(dataclasses.replace(GOOD, signals={"good": GOOD.signals["logits"], "bad": bad}))
    assert found[0] == "FAIL, bad NaN dB SNR against PyTorch fp32 (gate 30 dB)"
    assert lines(dataclasses.replace(GOOD, gates={}))[0] == "logits 45.1 dB SNR against PyTorch fp32"


@pytest.mark.parametrize(
    ("name", "gate", "figure", "text"),
    [
        ("snr", 30.0, 29.99, "expected at least 30 dB, got 29.9 dB"),
        ("top1", 0.98, 0.97, "expected at least 0.98, got 0.97"),
        ("top1", 0.98, 0.97999, "expected at least 0.98, got 0.97999"),
        ("kl", 0.05, 0.0500001, "expected at most 0.05 nats, got 0.0500001 nats"),
        ("latency", 5.0, 12.3456, "expected at most 5 ms, got 12.35 ms"),
        ("cosine", 0.9, math.nan, "expected at least 0.9, got nan"),
        ("miou", 0.9, None, "expected at least 0.9, got not measured"),
    ],
)
def test_a_gate_that_is_missed_never_looks_reached(name: str, gate: float, figure: float | None, text: str) -> None:
    (result,) = gate_results({name: gate}, {} if figure is None else {name: figure})
    assert gate_text(gate_of(result)) == f"gate {name}: {text}"
