"""Fixtures more than one module needs. Everything is made here; nothing is fetched."""

import os

# Before anything imports torch: two threads that wait for each other on a busy machine cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports the hub's client, which reads them once: the tests must run without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from pathlib import Path

import pytest

from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.conversion import convert
from mobilevit_coreml.model import ImageClassifier
from tests.peers import hugging_face_classifier


@pytest.fixture(scope="session")
def xs_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of an xs classifier with 1000 named classes: config.json and model.safetensors."""
    directory = tmp_path_factory.mktemp("xs_snapshot")
    hugging_face_classifier("xs", id2label={index: f"class {index}" for index in range(1000)}).save_pretrained(
        directory
    )
    return directory


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with nothing in it, in place of the user's."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def untrained_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 package of the untrained xxs classifier."""
    return convert("untrained", "xxs", output=tmp_path_factory.mktemp("package"), verify=False).path


@pytest.fixture(scope="session")
def untrained_model() -> ImageClassifier:
    """The PyTorch model of that package, in eval mode."""
    checkpoint = load_checkpoint("untrained", "xxs")
    model = ImageClassifier(checkpoint.config).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    return model
