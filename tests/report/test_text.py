"""Figures at a terminal."""

import dataclasses
import math

from mobilevit_coreml.metrics import Fidelity, MaskFidelity, RankingFidelity, SignalFidelity
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
        "over 8 images",
    ]


def test_a_signal_that_is_no_number_comes_first() -> None:
    bad = dataclasses.replace(GOOD.signals["logits"], snr=math.nan)
    found = lines(dataclasses.replace(GOOD, signals={"good": GOOD.signals["logits"], "bad": bad}))
    assert found[0] == "FAIL, bad NaN dB SNR against PyTorch fp32 (gate 30 dB)"
    assert lines(dataclasses.replace(GOOD, gates={}))[0] == "logits 45.1 dB SNR against PyTorch fp32"
