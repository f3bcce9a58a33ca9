"""Compressed packages from end to end, on weights that mind compression as trained ones do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mobilevit_coreml.cli.convert import main, summary
from mobilevit_coreml.compression import plan
from mobilevit_coreml.compression.calibrate import layers_of
from mobilevit_coreml.compression.schemes import Budget, Compression, Palettize, split
from mobilevit_coreml.compression.search import Candidate, choose, total_bytes
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.errors import ConversionError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.mil import guess_package_bytes
from mobilevit_coreml.model import fold_for_inference
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.package.files import size_of
from mobilevit_coreml.reference import ReferenceEvaluator
from tests.compression.trained_like import trained_like
from tests.peers import snr

SIZE = (96, 96)
KILOBYTE = 1000


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images, six of which calibrate."""
    directory = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(synthetic_images(120, 140, 9)):
        image.save(directory / f"{number}.png")
    return directory


@pytest.fixture(scope="module")
def make(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Conversion]:
    """A conversion of the features of trained-like weights, each in a directory of its own."""
    weights = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.save(trained_like(SIZE).state, weights)

    def made(compression: Compression, images: Path | None = None, precision: str = "fp16") -> Conversion:
        directory = tmp_path_factory.mktemp("package")
        return convert(
            str(weights),
            options=ConversionOptions(
                task="features", image_sizes=(SIZE,), attention="packed", compression=compression, precision=precision
            ),
            output=directory,
            images=images,
        )

    return made


def quality(conversion: Conversion) -> float:
    return conversion.quality["main"].signals["pooled"].snr


@pytest.fixture(scope="module")
def uniform(make: Callable[..., Conversion]) -> Conversion:
    return make(Palettize(6))


@pytest.fixture(scope="module")
def budgeted(make: Callable[..., Conversion], photos: Path) -> Conversion:
    return make(Budget(max_size=700 * KILOBYTE), images=photos)


def test_the_budget_is_kept_and_used(budgeted: Conversion) -> None:
    assert size_of(budgeted.path) == budgeted.bytes
    assert 680 * KILOBYTE < budgeted.bytes <= 700 * KILOBYTE
    assert budgeted.passed


def test_a_budget_beats_one_format_for_all_that_takes_more(budgeted: Conversion, uniform: Conversion) -> None:
    assert budgeted.bytes < uniform.bytes - 100 * KILOBYTE
    assert quality(budgeted) > quality(uniform) + 20  # dB; 43 and 13 were measured


def test_quality_is_that_of_the_saved_package_on_images_it_was_not_calibrated_with(
    budgeted: Conversion, photos: Path
) -> None:
    calibrated, tested = split(sorted(photos.iterdir()))
    assert [path.stem for path in calibrated] == ["0", "1", "3", "4", "6", "7"]
    assert [path.stem for path in tested] == ["2", "5", "8"]
    preprocessing = read_record(budgeted.path).preprocessing
    model = trained_like(SIZE).model()
    from mobilevit_coreml.images import read_image

    images = [preprocessing.prepare(read_image(path)) for path in tested]
    evaluator = ReferenceEvaluator(budgeted.path)
    with torch.no_grad():
        expected = torch.cat([model(torch.from_numpy(preprocessing.pixels(image))).pooled for image in images])
    got = torch.cat([torch.from_numpy(evaluator.run({"image": image})["pooled"]) for image in images])
    assert quality(budgeted) == pytest.approx(snr(expected, got), abs=0.05)
    assert budgeted.quality["main"].images == 3


@pytest.mark.slow
def test_a_bad_allocation_of_as_many_bytes_is_worse(
    make: Callable[..., Conversion], photos: Path, budgeted: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formats where they do most harm: what the search must never do, and these weights must show."""

    def worst(candidates: dict[str, list[Candidate]], budget: float) -> dict[str, Candidate]:
        if budget == float("inf"):
            return choose(candidates, budget)
        found = {path: min(options, key=lambda one: one.bytes) for path, options in candidates.items()}
        for path in sorted(found, key=lambda path: found[path].noise):  # the least sensitive first
            better = max(candidates[path], key=lambda one: one.bytes)
            if total_bytes(found) + better.bytes - found[path].bytes <= budget:
                found[path] = better
        return found

    monkeypatch.setattr("mobilevit_coreml.compression.search.choose", worst)
    bad = make(Budget(max_size=700 * KILOBYTE), images=photos)
    assert bad.bytes > 600 * KILOBYTE
    assert quality(bad) < quality(budgeted) - 15


def test_the_package_says_how_it_was_made(budgeted: Conversion) -> None:
    compression = read_record(budgeted.path).compression
    assert (compression["scheme"], compression["pictures"]) == ("0.7MB", 6)
    layers = [path for paths in compression["layers"].values() for path in paths]
    assert len(layers) == len(set(layers)) == 59
    assert set(compression["left"]) == {"depthwise", "first convolution", "under 1024 weights"}
    sizes = [size for size, _, _ in compression["curve"]]
    assert sizes == sorted(sizes)
    assert len(sizes) >= 4
    printed = summary(budgeted, {})
    assert "  stored as    59 layers: " in printed
    assert "calibrated with 6 images" in " ".join(printed.split())
    assert "  kept in fp16 7 depthwise, " in printed
    assert "  quality      PASS, featureMap " in printed
    assert f"{sizes[0] / 1e6:.2f} MB " in printed
    assert max(map(len, printed.splitlines()[1:])) <= 80


@pytest.mark.slow
def test_conversion_is_deterministic(make: Callable[..., Conversion], photos: Path, budgeted: Conversion) -> None:
    again = make(Budget(max_size=700 * KILOBYTE), images=photos)
    for name in ("weights/weight.bin", "model.mlmodel"):
        first, second = (made.path / "Data" / "com.apple.CoreML" / name for made in (budgeted, again))
        assert first.read_bytes() == second.read_bytes(), name


@pytest.mark.slow
def test_photographs_help_a_uniform_scheme(make: Callable[..., Conversion], photos: Path, uniform: Conversion) -> None:
    calibrated = make(Palettize(6), images=photos)
    assert calibrated.bytes == pytest.approx(uniform.bytes, rel=0.03)
    assert quality(calibrated) > quality(uniform) + 4  # dB; 20.5 and 13.0 were measured


@pytest.mark.slow
def test_an_fp32_budget_is_used_and_its_bytes_are_predicted(make: Callable[..., Conversion], photos: Path) -> None:
    made = make(Budget(max_size=2_500_000), photos, "fp32")
    assert 0.95 * 2_500_000 <= made.bytes <= 2_500_000
    assert made.plan is not None
    model = fold_for_inference(trained_like(SIZE).model("packed"))
    rest = guess_package_bytes("packed", ()) + plan._other_weights(model, layers_of(model)[0], "fp32")
    assert rest + sum(layer.bytes for layer in made.plan.layers) == pytest.approx(made.bytes, rel=0.01)


@pytest.mark.slow
def test_a_quality_is_reached_by_a_smaller_package(make: Callable[..., Conversion], photos: Path) -> None:
    made = make(Budget(min_snr=30), images=photos)
    assert made.quality["main"].passed
    assert made.quality["main"].worst.snr >= 30
    assert made.bytes < 700 * KILOBYTE
    assert made.path.name == "MobileViT_XXS_features_30dB.mlpackage"


def test_poor_quality_is_pointed_out(uniform: Conversion) -> None:
    assert all(entry.passed for entry in uniform.fidelity.values())  # it computes what was put into it
    assert not uniform.passed  # which is of no use
    assert uniform.path.stem.endswith("_failed")
    (notice,) = (notice for notice in uniform.notices if "for every layer" in notice)
    assert notice.startswith("6bit for every layer leaves ")
    assert notice.endswith(" dB; --max-size chooses a format for each layer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "message"),
    [
        (Budget(max_size=200 * KILOBYTE), "max_size: expected at least 0."),
        (Budget(min_snr=90.0), "min_snr: expected at most "),
    ],
)
def test_budgets_that_cannot_be_met(
    make: Callable[..., Conversion], photos: Path, compression: Compression, message: str
) -> None:
    with pytest.raises(ConversionError) as error:
        make(compression, photos)
    assert str(error.value).startswith(message)


def test_a_group_size_that_does_not_divide(make: Callable[..., Conversion]) -> None:
    with pytest.raises(ConversionError) as error:
        make(Palettize(4, 32))
    assert str(error.value) == (
        "group_size: expected a divisor of every layer's output channels, such as 8, got 32, no divisor of 48 "
        "(backbone.stage2.1.expand.conv, and 25 layers more); choose one"
    )


@pytest.mark.slow
def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(trained_like(SIZE).state, tmp_path / "best.pth")
    arguments = ["--weights", str(tmp_path / "best.pth"), "--image-size", "96", "--attention", "packed"]
    arguments += ["--output", str(tmp_path), "--quantize", "int8", "--images", str(photos)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'MobileViT_XXS_features_int8.mlpackage'}\n")
    assert "  stored as    59 layers: 59 in int8\n" in printed
    assert "SNR against these weights in PyTorch fp32" in " ".join(printed.split())
    assert "SNR against the original" in " ".join(printed.split())


def test_choices_are_those_every_target_from_ios16_on_has() -> None:
    assert {format.target for format in plan.COMPRESSED} == {"iOS16"}
