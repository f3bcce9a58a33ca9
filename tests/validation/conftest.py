"""Small packages and pictures for the validator."""

from pathlib import Path

import pytest

from mobilevit_coreml.conversion import convert
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.validation.worker import in_this_process


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 package of the untrained xxs classifier for pictures of 64x64."""
    directory = tmp_path_factory.mktemp("classifier")
    return convert("untrained", "xxs", ConversionOptions(image_sizes=((64, 64),)), output=directory, verify=False).path


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 package of the untrained xxs segmenter for pictures of 96x96."""
    directory = tmp_path_factory.mktemp("segmenter")
    return convert(
        "untrained",
        "xxs",
        ConversionOptions(task="segmentation", image_sizes=((96, 96),)),
        output=directory,
        verify=False,
    ).path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in three directories called after class indices."""
    directory = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(synthetic_images(120, 100, 6)):
        tree = directory / str(100 * (index // 2))
        tree.mkdir(exist_ok=True)
        image.save(tree / f"{index}.png")
    return directory


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core ML in this process; test_worker.py has real ones."""
    monkeypatch.setattr(
        "mobilevit_coreml.validation.backends.in_worker", lambda _timeout, *rest: in_this_process(*rest)
    )
