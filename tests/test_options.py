"""What can be asked for of a compression, and the one line for what cannot."""

from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.checkpoints.load import Checkpoint, load_checkpoint
from mobilevit_coreml.compression.budget import Budget
from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.errors import ConversionError, OutputError
from mobilevit_coreml.options import check_report, check_scheme, scheme_of, target_for
from mobilevit_coreml.package.interface import OutputForm

UNFOLD = "space_to_batch"
NOTHING: dict[str, Any] = dict.fromkeys(
    ["palettize", "group_size", "quantize", "prune", "max_size", "min_snr", "min_agreement"]
)


@pytest.mark.parametrize(
    ("options", "expected", "name"),
    [
        ({}, None, None),
        ({"palettize": 6}, Format(PALETTE, 6), "6bit"),
        ({"palettize": 4, "group_size": 16}, Format(PALETTE, 4, 16), "4bit_g16"),
        ({"quantize": "int4"}, Format(INTEGER, 4), "int4"),
        ({"prune": 0.75}, Format(SPARSE, zeros=0.75), "sparse75"),
        ({"max_size": 850_000}, Budget(max_bytes=850_000), "0.85MB"),
        ({"min_snr": 25.0}, Budget(min_snr=25.0), "25dB"),
        ({"min_agreement": 0.99}, Budget(min_agreement=0.99), "agree99"),
    ],
)
def test_a_scheme_and_its_name(options: dict[str, Any], expected: object, name: str | None) -> None:
    scheme = scheme_of(**{**NOTHING, **options})
    assert scheme == expected
    assert scheme is None or str(scheme) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"palettize": 5}, "palettize: expected one of 8, 6, 4, 3, 2, 1, got '5'; choose one of these"),
        ({"quantize": "int2"}, "quantize: expected one of int8, int4, got 'int2'; choose one of these"),
        ({"prune": 1.0}, "prune: expected a share between 0 and 1, got 1; 0.5 halves the weights"),
        (
            {"group_size": 16},
            "group_size: expected a number of channels, at least 1, beside palettize, got 16; leave it out",
        ),
        (
            {"palettize": 4, "group_size": 0},
            "group_size: expected a number of channels, at least 1, beside palettize, got 0; leave it out",
        ),
        ({"palettize": 6, "max_size": 10**6}, "max_size: expected one scheme, got palettize beside it; leave one out"),
        ({"max_size": 0}, "max_size: expected a number above 0, at most 1e+09, got 0; change it"),
        ({"min_snr": float("nan")}, "min_snr: expected a number above 0, at most 200, got nan; change it"),
        ({"min_agreement": 1.01}, "min_agreement: expected a number above 0, at most 1, got 1.01; change it"),
    ],
)
def test_schemes_there_are_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError) as error:
        scheme_of(**{**NOTHING, **options})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("scheme", "target"),
    [
        (None, "iOS16"),
        (Format(PALETTE, 6), "iOS16"),
        (Format(PALETTE, 3), "iOS18"),
        (Format(PALETTE, 4, 8), "iOS18"),
        (Format(INTEGER, 4), "iOS18"),
        (Budget(min_snr=20), "iOS16"),
    ],
)
def test_the_least_target(scheme: Format | Budget | None, target: str) -> None:
    assert target_for(None, OutputForm(), False, scheme, UNFOLD) == target
    assert target_for("iOS26", OutputForm(), False, scheme, UNFOLD) == "iOS26"


@pytest.mark.parametrize(
    ("scheme", "target", "message"),
    [
        (
            Format(PALETTE, 3),
            "iOS17",
            "target: expected iOS18 or later for weights in 3bit, got iOS17; raise it with --",
        ),
        (
            Format(INTEGER, 8),
            "iOS15",
            "target: expected iOS16 or later for weights in int8, got iOS15; raise it with --",
        ),
        (Budget(max_bytes=10**6), "iOS15", "target: expected iOS16 or later for a budget, got iOS15; raise"),
    ],
)
def test_a_target_that_lacks_the_format(scheme: Format | Budget, target: str, message: str) -> None:
    with pytest.raises(ConversionError) as error:
        target_for(target, OutputForm(), False, scheme, UNFOLD)
    assert str(error.value).startswith(message)


def test_pixel_unshuffle_is_not_in_the_first_target() -> None:
    assert target_for(None, OutputForm(), False, None, "pixel_shuffle") == "iOS16"
    assert target_for("iOS15", OutputForm(), False, None, UNFOLD) == "iOS15"
    with pytest.raises(ConversionError) as error:
        target_for("iOS15", OutputForm(), False, None, "pixel_shuffle")
    assert str(error.value) == (
        "target: expected iOS16 or later for the unfold form pixel_shuffle, got iOS15; raise it with --target"
    )


@pytest.fixture(scope="module")
def features() -> Checkpoint:
    return load_checkpoint("untrained", "xxs", "features")


@pytest.mark.parametrize(
    ("scheme", "sizes", "pictures", "message"),
    [
        (
            Format(PALETTE, 6),
            1,
            2,
            "images: expected at least 3 pictures to calibrate and to test with, got 2; add some",
        ),
        (Budget(min_snr=20), 1, 0, "images: expected photographs to calibrate with, got none; "),
        (Budget(min_snr=20), 2, 9, "budget: expected one image size, got 2; make a package for each"),
        (
            Budget(min_agreement=0.9),
            1,
            9,
            "min_agreement: expected classes, got features, which have none; use min_snr",
        ),
    ],
)
def test_schemes_that_these_weights_and_pictures_do_not_allow(
    features: Checkpoint, scheme: Format | Budget, sizes: int, pictures: int, message: str
) -> None:
    with pytest.raises(ConversionError) as error:
        check_scheme(scheme, features, [(64, 64)] * sizes, pictures)
    assert str(error.value).startswith(message)


def test_reports_need_an_ending_and_something_to_report(tmp_path: Path) -> None:
    (tmp_path / "old.json").touch()
    for path, scheme, verify, error, message in (
        (
            "r.pdf",
            Format(PALETTE, 6),
            True,
            OutputError,
            "expected a name ending in .html or .json or .png, got another",
        ),
        ("r.json", None, True, ConversionError, "report: expected a compression that is verified, got none; leave it"),
        ("r.json", Format(PALETTE, 6), False, ConversionError, "report: expected a compression that is verified, got"),
        ("old.json", Format(PALETTE, 6), True, OutputError, "expected a free name, got an existing file; add --force"),
    ):
        with pytest.raises(error, match=message):
            check_report(tmp_path / path, scheme, verify, force=False)
    check_report(tmp_path / "old.json", Format(PALETTE, 6), verify=True, force=True)
    check_report(None, None, verify=False, force=False)
