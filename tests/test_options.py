"""Options of a conversion, and the one line for those that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.compression.formats import INTEGER, PALETTE, SPARSE, Format
from mobilevit_coreml.compression.schemes import Budget, Palettize, Prune, Quantize
from mobilevit_coreml.conversion import convert, scheme_name
from mobilevit_coreml.errors import ConversionError, OutputError
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.prepare import make_record


@pytest.mark.parametrize(
    ("compression", "expected", "name"),
    [
        (Palettize(6), Format(PALETTE, 6), "6bit"),
        (Palettize(4, 16), Format(PALETTE, 4, 16), "4bit_g16"),
        (Quantize("int4"), Format(INTEGER, 4), "int4"),
        (Prune(0.75), Format(SPARSE, zeros=0.75), "sparse75"),
        (Budget(max_size=850_000), None, "0.85MB"),
        (Budget(min_snr=25.0), None, "25dB"),
        (Budget(min_agreement=0.99), None, "agree99"),
        (None, None, ""),
    ],
)
def test_compression_and_its_name(compression: Any, expected: object, name: str) -> None:
    assert getattr(compression, "format", None) == expected
    assert scheme_name(compression) == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Palettize(5), "palettize: expected one of 8, 6, 4, 3, 2, 1, got 5; choose one of these"),
        (lambda: Quantize("int2"), "quantize: expected one of int8, int4, got 'int2'; choose one of these"),
        (lambda: Prune(1.0), "prune: expected a share between 0 and 1, got 1; 0.5 halves the weights"),
        (lambda: Palettize(4, 0), "group_size: expected at least 1 channel, got 0; leave it out"),
        (lambda: Budget(), "budget: expected one of max_size, min_snr, min_agreement, got none"),
        (lambda: Budget(10**6, 20), "budget: expected one of max_size, min_snr, min_agreement, got max_size and min_"),
        (lambda: Budget(max_size=0), "max_size: expected a number above 0, at most 1e+09, got 0; change it"),
        (lambda: Budget(min_snr=float("nan")), "min_snr: expected a number above 0, at most 200, got nan; change it"),
        (lambda: Budget(min_agreement=1.01), "min_agreement: expected a number above 0, at most 1, got 1.01; change"),
        (lambda: ConversionOptions(attention="flash"), "attention: expected one of split_einsum, packed, got 'flash'"),
        (lambda: ConversionOptions(precision="int8"), "precision: expected one of fp16, fp32, got 'int8'"),
        (lambda: ConversionOptions(channel_order="GBR"), "channel_order: expected one of BGR, RGB, got 'GBR'"),
        (
            lambda: ConversionOptions(image_sizes=((64, 64), (64, 64))),
            "image_sizes: expected each size once, got one twice; leave the second out",
        ),
        (
            lambda: ConversionOptions(image_sizes=((64, 64), (96, 96)), compression=Budget(min_snr=20)),
            "budget: expected one image size, got 2; make a package for each",
        ),
        (
            lambda: ConversionOptions(task="classification", output_type="labels"),
            "output_type: expected logits or probabilities of a classifier, got labels; drop it",
        ),
        (
            lambda: ConversionOptions(task="segmentation", output_dtype="float16"),
            "output_dtype: expected features, logits or probabilities, got class indices; leave it out",
        ),
        (
            lambda: ConversionOptions(task="features", compression=Budget(min_agreement=0.9)),
            "min_agreement: expected classes, got features, which have none; use min_snr",
        ),
        (
            lambda: ConversionOptions(task="features", labels="names.txt"),
            "labels: expected none, since features have no classes; leave them out",
        ),
    ],
)
def test_options_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConversionError) as error:
        make()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "target", "what"),
    [
        ({}, "iOS16", None),
        ({"compression": Palettize(6)}, "iOS16", "weights in 6bit"),
        ({"compression": Palettize(3)}, "iOS18", "weights in 3bit"),
        ({"compression": Palettize(4, 8)}, "iOS18", "weights in 4bit_g8"),
        ({"compression": Quantize("int4")}, "iOS18", "weights in int4"),
        ({"compression": Budget(min_snr=20)}, "iOS16", "a budget"),
        ({"unfold": "pixel_shuffle"}, "iOS16", "unfold pixel_shuffle"),
        ({"task": "features", "output_dtype": "float16"}, "iOS16", "float16 outputs"),
        ({"image_sizes": ((64, 64), (96, 96))}, "iOS18", "several image sizes in one package"),
    ],
)
def test_the_least_target(options: dict[str, Any], target: str, what: str | None) -> None:
    assert ConversionOptions(**options).resolved_target() == target
    assert ConversionOptions(**options, target="iOS26").resolved_target() == "iOS26"
    if what is None:
        assert ConversionOptions(**options, target="iOS15").resolved_target() == "iOS15"
        return
    with pytest.raises(ConversionError) as error:
        ConversionOptions(**options, target="iOS15")
    assert str(error.value) == f"target: expected {target} or later for {what}, got iOS15; raise it"


def test_options_of_another_task_than_the_weights_have() -> None:
    features = load_checkpoint("untrained", "xxs", "features")
    with pytest.raises(ConversionError, match="output_type: expected classes, got features; leave it out"):
        make_record(features, ConversionOptions(output_type="logits"))
    assert make_record(features, ConversionOptions(hidden_states=True))[0].outputs.hidden_states == 5


@pytest.mark.parametrize(
    ("count", "compression", "message"),
    [
        (2, Palettize(6), "images: expected at least 3 to calibrate and to test with, got 2; add some"),
        (0, Budget(min_snr=20), "images: expected photographs to calibrate with, got none; name their directory"),
    ],
)
def test_too_few_images_to_compress_with(count: int, compression: Any, message: str, tmp_path: Path) -> None:
    for index in range(count):
        (tmp_path / f"{index}.png").touch()
    with pytest.raises(ConversionError) as error:
        convert("untrained", "xxs", ConversionOptions(compression=compression), images=tmp_path if count else None)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "compression", "verify", "error", "message"),
    [
        ("r.pdf", Palettize(6), True, OutputError, "expected a name ending in .html or .json or .png, got another"),
        ("r.json", None, True, ConversionError, "report: expected a compression that is verified, got none; leave it"),
        ("r.json", Palettize(6), False, ConversionError, "report: expected a compression that is verified, got"),
        ("old.json", Palettize(6), True, OutputError, "expected a free name, got an existing file; add --force"),
    ],
)
def test_reports_need_an_ending_and_something_to_report(
    name: str, compression: Any, verify: bool, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "old.json").touch()
    options = ConversionOptions(compression=compression)
    with pytest.raises(error, match=message):
        convert("untrained", "xxs", options, output=tmp_path, report=tmp_path / name, verify=verify)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
