"""Small packages and images for the validator."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.validation import backends
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.framework import FRAMEWORK, Reading, check_framework
from mobilevit_coreml.validation.worker import in_this_process
from tests.validation.fault_injection import good_package_of

Convert = Callable[..., Conversion]


@pytest.fixture
def classifier(shallow: None, converted: Convert) -> Path:
    """An fp16 package of a shallow untrained xxs classifier for images of 64x64."""
    return converted("untrained", "xxs", image_sizes=((64, 64),), attention="packed").path


@pytest.fixture
def segmenter(shallow: None, converted: Convert) -> Path:
    """An fp16 package of a shallow untrained xxs segmenter for images of 96x96."""
    return converted("untrained", "xxs", task="segmentation", image_sizes=((96, 96),), attention="packed").path


@pytest.fixture(scope="session")
def good_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A package by its name in `fault_injection.PACKAGES`, built once per run."""
    return partial(good_package_of, tmp_path_factory)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in three directories called after class indices."""
    directory = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(synthetic_images(120, 100, 6)):
        tree = directory / str(100 * (index // 2))
        tree.mkdir(exist_ok=True)
        image.save(tree / f"{index}.png")
    return directory


@pytest.fixture(scope="session")
def one_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one image, where the number of them does not matter."""
    directory = tmp_path_factory.mktemp("one_image")
    synthetic_images(120, 100, 1)[0].save(directory / "0.png")
    return directory


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core ML in this process; test_worker.py has real ones."""
    monkeypatch.setattr(backends, "in_worker", lambda _timeout, *rest: in_this_process(*rest))


@pytest.fixture(autouse=True)
def without_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare validations of other tests than those of the framework's check the seconds that its libraries take."""
    if request.module.__name__.endswith(("test_framework", "test_fault_injection")):
        return

    def check(reading: Reading, *arguments: Any) -> Check:
        if reading.weights is None:
            return check_framework(reading, *arguments)
        return Check(FRAMEWORK, None, "not part of this test")

    monkeypatch.setattr("mobilevit_coreml.validation.run.check_framework", check)
