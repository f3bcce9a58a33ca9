"""Packages asked about photographs, by the reference evaluator and by a stand-in for Core ML.

Networks are untrained, so their answers are noise, but PyTorch's noise. Where it matters which pixel
has which class a package finds colors instead.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn

from mobilevit_coreml._coremltools import ct, quietly
from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import CLASSIFICATION, FEATURES, SEGMENTATION
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.images import read_image, synthetic_images
from mobilevit_coreml.inference import cosine_similarities, predict, read_record
from mobilevit_coreml.masks import VOID
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from tests.untrained import untrained_model

CROP = 128, 160
SMALL = 64, 64
EXIF_ORIENTATION = 0x0112


def save_photographs(directory: Path, count: int = 2) -> list[Path]:
    """PNG files of 200 by 133 pixels."""
    for number, image in enumerate(synthetic_images(133, 200, count)):
        image.save(directory / f"photo {number}.png")
    return sorted(directory.iterdir())


def pixels_of(photo: Path, crop: tuple[int, int], resize: int) -> Tensor:
    """What PyTorch is given of a photograph."""
    preprocessing = Preprocessing(resize, crop, "BGR")
    return torch.from_numpy(preprocessing.pixels(preprocessing.prepare(read_image(photo))))


class Colors(nn.Module):
    """Classes are red, green and blue, and logits the brightness of each."""

    def __init__(self, form: OutputOptions) -> None:
        super().__init__()
        self.form = form

    def forward(self, pixels: Tensor) -> Tensor:
        logits = pixels / 255
        if self.form.size == "network":
            logits = nn.functional.avg_pool2d(logits, 4)
        if self.form.type == "logits":
            return logits
        labels = logits.argmax(1)
        return labels[0].int() if self.form.type == "labels" else labels[:, None].float()


def save_colors_package(path: Path, form: OutputOptions, preprocessing: Preprocessing) -> Path:
    """A segmenter's package that finds the colors of each pixel, in place of a network."""
    height, width = preprocessing.input_size
    name = "logits" if form.type == "logits" else "semanticPredictions"
    gray = ct.ImageType(name=name, color_layout=ct.colorlayout.GRAYSCALE)
    with quietly():
        program = ct.convert(
            torch.jit.trace(Colors(form).eval(), torch.rand(1, 3, height, width)),
            inputs=[ct.ImageType("image", (1, 3, height, width), color_layout=ct.colorlayout.RGB)],
            outputs=[gray if form.type == "image" else ct.TensorType(name)],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
    record = PackageRecord(
        version="1",
        variant="custom",
        task=SEGMENTATION,
        attention="packed",
        unfold="space_to_batch",
        precision="fp32",
        weights=WeightsSource("colors", "test"),
        preprocessing=preprocessing,
        outputs=form,
        config={},
        expand=False,
        labels=("red", "green", "blue"),
        colors=("#000000", "#00FF00", "#0000FF"),
    )
    program.user_defined_metadata.update(record.to_metadata())
    program.save(str(path))
    return path


def colorful(width: int, height: int) -> Image.Image:
    """Red at the top left, green at the top right, blue below, each over another part, none pure."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    classes = np.where(y > 0.6, 2, np.where(x > 0.45, 1, 0))
    paint = np.array([(200, 60, 20), (90, 180, 10), (0, 100, 220)], np.uint8)
    return Image.fromarray(paint[classes])


def brightest(photograph: Image.Image) -> NDArray[np.int64]:
    return np.asarray(photograph).argmax(-1)


pytestmark = pytest.mark.usefixtures("shallow")
FP32 = {"precision": "fp32", "attention": "packed"}


@pytest.fixture
def classifier(shallow: None, converted: Callable[..., Conversion]) -> Path:
    return converted("untrained", "xxs", image_sizes=[SMALL], **FP32).path


@pytest.fixture
def segmenter(shallow: None, converted: Callable[..., Conversion]) -> Path:
    return converted("untrained", "xxs", task=SEGMENTATION, image_sizes=[CROP], **FP32).path


@pytest.fixture
def extractor(shallow: None, converted: Callable[..., Conversion]) -> Path:
    options = {"hidden_states": True, "output_dtype": "float16", "target": "iOS17"}
    return converted("untrained", "xxs", task=FEATURES, image_sizes=[SMALL], **options, **FP32).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_photographs(tmp_path_factory.mktemp("photos"))


@torch.no_grad()
def test_a_classifier_says_what_pytorch_says(classifier: Path, photos: list[Path]) -> None:
    model = untrained_model(CLASSIFICATION, SMALL)
    answers = list(predict(classifier, photos, "reference"))
    assert len(answers) == 2
    for photo, probabilities in zip(photos, answers, strict=True):
        assert len(probabilities) == 1000
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        expected = model(pixels_of(photo, SMALL, 72)).logits.softmax(1)[0]
        # fp32 on both sides: sums in another order
        in_order = [probabilities[label] for label in model.config.id2label if label != "crane"]
        assert in_order == pytest.approx([p for i, p in enumerate(expected.tolist()) if i not in (134, 517)], rel=1e-3)
        assert probabilities["crane"] == pytest.approx(float(expected[134]), rel=1e-3)
        assert probabilities["crane (517)"] == pytest.approx(float(expected[517]), rel=1e-3)


@torch.no_grad()
def test_a_segmenter_says_what_pytorch_says(segmenter: Path, photos: list[Path]) -> None:
    """Logits enlarged to the crop as transformers does, their classes to the photograph as Pillow does."""
    model = untrained_model(SEGMENTATION, CROP)
    found = list(predict(segmenter, photos, "reference"))
    seen = set()
    for photo, answer in zip(photos, found, strict=True):
        logits = model(pixels_of(photo, CROP, 136)).logits
        labels = nn.functional.interpolate(logits, CROP, mode="bilinear").argmax(1)[0].numpy()
        # 200 x 133 becomes 204 x 136, of which the crop leaves 22 and 4 pixels on each side
        left, top, right, bottom = (round(edge * 200 / 204) for edge in (22, 4, 182, 132))
        part = Image.fromarray(labels.astype(np.uint8)).resize((right - left, bottom - top), Image.Resampling.NEAREST)
        expected = np.full((133, 200), -1)
        expected[top:bottom, left:right] = np.asarray(part)
        assert answer.image.tobytes() == read_image(photo).tobytes()
        assert answer.class_map.shape == (133, 200)
        assert np.array_equal(answer.class_map == VOID, expected == -1)
        assert (answer.class_map == expected).mean() > 0.999  # where two classes come close rounding decides
        assert sum(answer.shares.values()) == pytest.approx(1)
        first = int(np.bincount(expected[expected >= 0]).argmax())
        assert next(iter(answer.shares)) == model.config.id2label[first]
        assert tuple(answer.colors) == model.config.id2label
        assert answer.colors["person"] == "#C08080"
        seen.add(first)
    assert len(seen) == 2  # not the same whatever is asked


@torch.no_grad()
def test_features_are_pytorchs(extractor: Path, photos: list[Path]) -> None:
    model = untrained_model(FEATURES, SMALL)
    for photo, features in zip(photos, predict(extractor, photos, "reference"), strict=True):
        result = model(pixels_of(photo, SMALL, 72))
        expected = {"pooled": result.pooled, "featureMap": result.feature_map}
        expected |= {f"stage{number}": stage for number, stage in enumerate(result.hidden_states, start=1)}
        assert list(features) == list(expected)
        for name, value in expected.items():
            assert features[name].dtype == np.float32
            assert features[name].shape == value.shape
            # the outputs are rounded to float16: half a unit in the last of 11 bits, and small ones near 0
            assert features[name] == pytest.approx(value.numpy(), rel=1e-3, abs=1e-3 * float(value.abs().max()))


@pytest.mark.parametrize(
    "form",
    [OutputOptions(), OutputOptions("image"), OutputOptions("logits"), OutputOptions("logits", size="network")],
    ids=lambda form: f"{form.type} {form.size}",
)
def test_each_form_of_mask_lands_on_the_photograph(tmp_path: Path, form: OutputOptions) -> None:
    package = save_colors_package(tmp_path / "colors.mlpackage", form, Preprocessing(136, CROP, "RGB"))
    wide, high = tmp_path / "wide.png", tmp_path / "high.png"
    colorful(333, 250).save(wide)
    colorful(120, 260).save(high)  # of which the crop is wider: there is padding
    for answer in predict(package, [wide, high], "reference"):
        expected = brightest(answer.image)
        known = answer.class_map != VOID
        assert known.mean() > 0.4
        # Classes part along two lines; the cells of the network's map are 4 pixels of the crop, up to 8 of these.
        edges = 0.05 if form.size == "network" else 0.02
        assert (answer.class_map == expected)[known].mean() > 1 - edges
        assert set(answer.shares) == {"red", "green", "blue"}
        for index, label in enumerate(("red", "green", "blue")):
            assert answer.shares[label] == pytest.approx((expected[known] == index).mean(), abs=edges)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photograph_is_put_upright(tmp_path: Path, orientation: int) -> None:
    """Cameras store what their sensor sees, and how it was held."""
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    package = save_colors_package(tmp_path / "colors.mlpackage", OutputOptions(), Preprocessing(136, CROP, "RGB"))
    upright = colorful(150, 230)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored = upright.transpose(turn)
    stored.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").size == ((150, 230) if orientation == 3 else (230, 150))
    expected, answer = predict(package, [tmp_path / "upright.png", tmp_path / "turned.png"], "reference")
    assert answer.image.size == (150, 230)
    assert answer.class_map.shape == (230, 150)
    assert np.array_equal(answer.class_map, expected.class_map)
    assert answer.image.tobytes() == upright.tobytes()


def test_an_own_record_is_read(segmenter: Path) -> None:
    record = read_record(segmenter)
    assert (record.task, record.variant, record.precision) == ("segmentation", "xxs", "fp32")
    assert record.preprocessing == Preprocessing(136, CROP, "BGR", fill=True)
    assert record.weights.untrained


@pytest.mark.parametrize(
    ("backend", "function", "message"),
    [
        ("tpu", None, "backend: expected one of auto, coreml, reference, got 'tpu'; choose one of these"),
        ("reference", "size_64", "function: expected one of main, got 'size_64'; choose one of these"),
    ],
)
def test_what_is_not_there_to_choose(
    classifier: Path, photos: list[Path], backend: str, function: str | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        next(predict(classifier, photos, backend, function))
    assert str(error.value) == message


def test_the_one_function_of_a_package_has_a_name(extractor: Path, photos: list[Path]) -> None:
    (named,), (unnamed,) = (list(predict(extractor, photos[:1], "reference", name)) for name in ("main", None))
    assert np.array_equal(named["pooled"], unnamed["pooled"])


def test_photographs_are_read_one_after_the_other(classifier: Path, photos: list[Path], tmp_path: Path) -> None:
    """The first answer is there before anybody looks at the second picture."""
    answers = predict(classifier, [photos[0], tmp_path / "none.png"], "reference")
    assert len(next(answers)) == 1000
    with pytest.raises(InputError, match="none.png: expected an image Pillow can read, got No such file"):
        next(answers)


def core_ml(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Image.Image], dict[str, Any]]
) -> list[Mapping[str, Any]]:
    """Put a stand-in for MLModel on a Mac in place, which takes what coremltools' own would; returns its arguments."""
    signature = inspect.signature(ct.models.MLModel.__init__)
    made: list[Mapping[str, Any]] = []

    def model(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(None, *args, **kwargs).arguments
        assert isinstance(arguments["model"], str)
        made.append({name: value for name, value in arguments.items() if name != "self"})

        def predict(data: dict[str, Any]) -> dict[str, Any]:
            assert list(data) == ["image"]
            assert data["image"].mode == "RGB"
            return answer(data["image"])

        return SimpleNamespace(predict=predict)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", model)
    return made


@pytest.mark.parametrize("backend", ["auto", "coreml"])
def test_core_ml_classifies_on_a_mac(
    classifier: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    sizes = []

    def answer(image: Image.Image) -> dict[str, Any]:
        sizes.append(image.size)
        return {"classLabel": "b", "classLabel_probs": {"a": 0.25, "b": 0.75}}

    made = core_ml(monkeypatch, answer)
    answers = [list(entry.items()) for entry in predict(classifier, photos, backend)]
    assert answers == [[("b", 0.75), ("a", 0.25)]] * 2
    assert made == [{"model": str(classifier)}]  # one model for all photographs
    assert sizes == [(64, 64)] * 2


def test_core_ml_is_told_the_function(classifier: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = core_ml(monkeypatch, lambda _: {"classLabel": "a", "classLabel_probs": {"a": 1.0}})
    assert list(predict(classifier, photos[:1], "coreml", "main")) == [{"a": 1.0}]
    assert made == [{"model": str(classifier), "function_name": "main"}]


@pytest.mark.parametrize("type_", ["labels", "image"])
def test_core_ml_segments_on_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: str) -> None:
    """An array of int32, or a gray picture."""
    package = save_colors_package(tmp_path / "colors.mlpackage", OutputOptions(type_), Preprocessing(136, CROP, "RGB"))
    colorful(333, 250).save(tmp_path / "photo.png")
    (reference,) = predict(package, [tmp_path / "photo.png"], "reference")

    def answer(image: Image.Image) -> dict[str, Any]:
        labels = brightest(image)
        return {
            "semanticPredictions": labels.astype(np.int32)
            if type_ == "labels"
            else Image.fromarray(labels.astype(np.uint8))
        }

    core_ml(monkeypatch, answer)
    (found,) = predict(package, [tmp_path / "photo.png"])
    assert np.array_equal(found.class_map, reference.class_map)
    assert found.shares == reference.shares


def test_core_ml_extracts_features_on_a_mac(
    extractor: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core ML has its outputs in an order of its own."""
    names = ("stage5", "pooled", "stage1", "featureMap", "stage2", "stage3", "stage4")
    core_ml(monkeypatch, lambda _: {name: np.full((1, 2), number) for number, name in enumerate(names)})
    (features,) = predict(extractor, photos[:1])
    assert list(features) == ["pooled", "featureMap", *(f"stage{number}" for number in range(1, 6))]
    assert {name: int(value[0, 0]) for name, value in features.items()} == {n: i for i, n in enumerate(names)}


def test_auto_is_the_reference_off_a_mac(classifier: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = core_ml(monkeypatch, lambda _: {})
    monkeypatch.setattr(sys, "platform", "linux")
    (auto,), (reference,) = (list(predict(classifier, photos[:1], backend)) for backend in ("auto", "reference"))
    assert auto == reference
    assert made == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosine_similarities_are_scikit_learns(dtype: type[np.generic]) -> None:
    pooled = np.random.default_rng(0).normal(1, 2, (7, 30)).astype(dtype)
    pooled[3] = pooled[1] * 1000
    pooled[4] = -pooled[2]
    ours = cosine_similarities(pooled)
    assert ours.shape == (7, 7)
    assert ours == pytest.approx(cosine_similarity(pooled.astype(np.float64)), abs=1e-6)  # float32's norms
    assert (ours[1, 3], ours[2, 4]) == pytest.approx((1, -1), abs=1e-6)


def test_features_of_nothing_but_zeros_are_like_nothing() -> None:
    pooled = np.array([[0, 0], [3, 4]], np.float32)
    assert cosine_similarities(pooled) == pytest.approx(np.array([[0.0, 0], [0, 1]]))
    assert cosine_similarities(pooled) == pytest.approx(cosine_similarity(pooled))


def test_the_likeness_of_half_precision_features_does_not_overflow() -> None:
    features = np.full((2, 640), 100, np.float16)  # their squares' sum is past 65504
    assert cosine_similarities(features) == pytest.approx(np.ones((2, 2)))
