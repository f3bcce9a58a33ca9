"""Journals that runs go on from: of the same package, weights, options and images, or an error."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mobilevit_coreml.errors import InputError, MobileViTError, OutputError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.metrics import Meters, SignalMeter
from mobilevit_coreml.validation.backends import CORE_ML, REFERENCE, Backend
from mobilevit_coreml.validation.dataset import LabelledImage, load_images
from mobilevit_coreml.validation.journal import open_journal
from mobilevit_coreml.validation.measure import ImageResult
from mobilevit_coreml.validation.original import Original, load_original
from mobilevit_coreml.validation.run import _subject, validate

SUBJECT = {"package": "digest", "function": "main"}


def image_of(path: Path, truth: int | Path | None = None) -> LabelledImage:
    return LabelledImage(path.name, lambda: Image.open(path), truth, path)


def result_of(name: str) -> ImageResult:
    return ImageResult(name, Meters(1, {"logits": SignalMeter(1.0, 1.0, 1.0, 1e-5, 50.0, 0.1)}), {}, [(3, 0.5, 0.25)])


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, synthetic_images(8, 8, 3), strict=True):
        image.save(path)
    return [image_of(path) for path in paths]


@pytest.fixture
def journal(images: list[LabelledImage], tmp_path: Path) -> Path:
    """A journal of two of the three images."""
    path = tmp_path / "journal.jsonl"
    with open_journal(path, SUBJECT) as journal:
        for image in images[:2]:
            journal.write(image, result_of(image.name))
    return path


def test_results_are_read_back(journal: Path, images: list[LabelledImage]) -> None:
    with open_journal(journal, SUBJECT) as found:
        results = [found.known(image) for image in images]
    assert results == [result_of("0.png"), result_of("1.png"), None]


def test_a_line_that_was_cut_off_is_removed(journal: Path, images: list[LabelledImage]) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    with open_journal(journal, SUBJECT) as found:
        assert [found.known(image) is None for image in images] == [False, True, True]
        found.write(images[1], result_of("1.png"))
    assert journal.read_bytes() == whole


def test_another_subject_is_an_error(journal: Path) -> None:
    before = journal.read_bytes()
    for subject in ({**SUBJECT, "package": "another"}, {**SUBJECT, "more": ""}):
        with (
            pytest.raises(InputError, match="expected one of this package with these weights and options, got another"),
            open_journal(journal, subject),
        ):
            pass
    assert journal.read_bytes() == before


def test_another_image_of_the_same_name_is_an_error(journal: Path, images: list[LabelledImage]) -> None:
    image = images[0]
    assert image.path is not None
    mask = image.path.with_name("mask.png")
    mask.write_bytes(b"a mask")
    others = [dataclasses.replace(image, truth=truth) for truth in (0, mask)]
    digests = {one.digest() for one in (image, *others)}
    assert len(digests) == 3
    mask.write_bytes(b"another mask")
    assert others[1].digest() not in digests
    with open_journal(journal, SUBJECT) as found:
        for other in others:
            with pytest.raises(InputError, match="expected the result of 0.png as it is, got another image's of this"):
                found.known(other)
        shutil.copy(image.path.with_name("2.png"), image.path)
        with pytest.raises(InputError, match="expected the result of 0.png as it is, got another image's of this name"):
            found.known(image)
        image.path.unlink()
        with pytest.raises(InputError, match="image 0.png: expected a file to read, got No such file"):
            found.known(image)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"no json\n", "expected JSON"),
        (b"[]\n", "line: expected an object"),
        (b"\xff\xfe\n", "expected JSON"),
        (b'{"digest": "a"}\n', "line: expected result, got none"),
    ],
)
def test_a_damaged_journal_is_one_line(journal: Path, line: bytes, message: str) -> None:
    first, second, *_ = journal.read_bytes().splitlines(keepends=True)
    for content in (first + line, first + second.replace(b'"noise"', b'"nose"')):
        journal.write_bytes(content)
        expected = message if content.endswith(line) else "expected only reference, output, .*, got 'nose'"
        raises = pytest.raises(MobileViTError, match=f"journal .*{expected}.*name another file")
        with raises, open_journal(journal, SUBJECT):
            pass
    journal.write_bytes(b"x" * 10**6)
    with pytest.raises(InputError, match="expected one of this package"), open_journal(journal, SUBJECT):
        pass


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write .*journal: "), open_journal(tmp_path / "no" / "journal", {}):
        pass


def test_the_subject_is_all_that_figures_depend_on(classifier: Path) -> None:
    original = load_original(read_record(classifier))
    record = original.record

    def changed(**fields: object) -> Original:
        return dataclasses.replace(original, record=dataclasses.replace(record, **fields))  # type: ignore[arg-type]

    originals = [
        original,
        changed(weights=dataclasses.replace(record.weights, seed=1)),
        changed(preprocessing=dataclasses.replace(record.preprocessing, channel_order="RGB")),
        changed(config={**record.config, "layer_norm_eps": 1e-3}),
        dataclasses.replace(original, classes=(*original.classes[1:], original.classes[0])),
    ]
    reference = Backend(REFERENCE)
    subjects = [_subject("digest", one, reference, "main") for one in originals]
    subjects += [
        _subject("another", original, reference, "main"),
        _subject("digest", original, Backend(CORE_ML, "all"), "main"),
        _subject("digest", original, Backend(CORE_ML, "cpuOnly"), "main"),
        _subject("digest", original, reference, "size_64"),
    ]
    assert len({str(subject) for subject in subjects}) == len(subjects)


def test_synthetic_images_have_a_digest(classifier: Path) -> None:
    original = load_original(read_record(classifier))
    ((_, preprocessing),) = original.preprocessing.items()
    digests = [image.digest() for image in load_images(None, "classification", original.classes, preprocessing)]
    assert len(set(digests)) == 8


def test_validate_with_other_images_of_the_same_names(classifier: Path, photographs: Path, tmp_path: Path) -> None:
    images, journal = tmp_path / "images", tmp_path / "journal.jsonl"
    shutil.copytree(photographs, images)
    validate(classifier, images=images, journal=journal, backend="reference")
    first, second, *_ = sorted(images.glob("*/*.png"))
    shutil.copy(second, first)
    with pytest.raises(InputError, match="got another image's of this name; name another file, or remove it"):
        validate(classifier, images=images, journal=journal, backend="reference")
