"""Figures for people."""

import math

import pytest

from mobilevit_coreml.report.formatting import counted, decibels, megabytes, noise, percent, table


@pytest.mark.parametrize(
    ("value", "text"),
    [(30.0, "30.0 dB"), (29.999, "29.9 dB"), (-0.01, "-0.1 dB"), (math.inf, "inf dB"), (math.nan, "NaN dB")],
)
def test_decibels_are_rounded_down(value: float, text: str) -> None:
    assert decibels(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.99999, "99.99%"), (0.29, "29%"), (0.125, "12.5%"), (0.0, "0%"), (math.nan, "NaN")],
)
def test_percents_are_rounded_down(share: float, text: str) -> None:
    assert percent(share) == text


def test_other_figures() -> None:
    assert [noise(one) for one in (None, 0.0, 1e-5)] == ["not measured", "none", "-50.0 dB"]
    assert megabytes(1_234_567) == "1.23 MB"
    assert (counted(1, "image"), counted(2, "image")) == ("1 image", "2 images")


def test_tables_are_80_columns_wide() -> None:
    text = table(
        "title", [("one", ["word " * 30, "  indented " + "word " * 20]), ("left out", []), ("two", ["x" * 90])]
    )
    lines = text.splitlines()
    assert lines[:2] == ["title", "  one          " + ("word " * 13).rstrip()]
    assert all(len(line) <= 80 for line in lines[:-1])
    assert next(line for line in lines if "indented" in line).startswith(" " * 17 + "indented")
    assert "left out" not in text
    assert lines[-1] == "  two          " + "x" * 90  # a path is not broken
