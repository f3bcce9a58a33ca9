"""Fixtures more than one module needs. Everything is made here; nothing is fetched."""

import gc
import json
import os
import sys

# Before anything imports torch: two threads that wait for each other on a busy machine cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports the hub's client, which reads them once: the tests must run without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.checkpoints.load import load_checkpoint
from mobilevit_coreml.checkpoints.untrained import SEED, untrained_state
from mobilevit_coreml.config import CLASSIFICATION, TASKS, MobileViTConfig
from mobilevit_coreml.conversion import Conversion
from mobilevit_coreml.model import ImageClassifier, backbone
from mobilevit_coreml.package.metadata import FUNCTION
from tests.cache import convert_once, once_per_run
from tests.peers import hugging_face_classifier


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make a conversion a third cheaper, without a change to the programs."""
    gc.collect()
    gc.freeze()  # all that is imported by now stays: a collection need not look at it again
    remember_untrained_states()
    if "coremltools" in sys.modules:
        validate_programs_once()


def remember_untrained_states() -> None:
    """Compute the untrained weights of a configuration once a process: a second of arithmetic for 512x512 pixels."""

    @cache
    def remembered(config: MobileViTConfig, seed: int, task: str, _depth: str) -> dict[str, torch.Tensor]:
        return untrained_state(config, seed, task)

    def state(config: MobileViTConfig, seed: int = SEED, task: str = CLASSIFICATION) -> dict[str, torch.Tensor]:
        depth = f"{backbone.DEPTHS} {backbone.BLOCKS}"  # which the fixture `shallow` changes
        return {name: tensor.clone() for name, tensor in remembered(config, seed, task, depth).items()}

    pytest.MonkeyPatch().setattr("mobilevit_coreml.checkpoints.load.untrained_state", state)


def validate_programs_once() -> None:
    """Let coremltools validate a program after the last pass of a pipeline, not after each of about 115."""
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    validate, apply_pipeline = Program.validate, PassPipelineManager.apply_pipeline

    def apply(program: Any, pipeline: Any) -> None:
        Program.validate = lambda *_, **__: None
        try:
            apply_pipeline(program, pipeline)
        finally:
            Program.validate = validate
        program.validate()

    PassPipelineManager.apply_pipeline = staticmethod(apply)


@pytest.fixture(scope="session")
def xs_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of an xs classifier with 1000 named classes: both configurations, and its weights."""
    return once_per_run(tmp_path_factory, "xs_snapshot", save_xs_snapshot)


def save_xs_snapshot(directory: Path) -> Path:
    names = {index: f"class {index}" for index in range(1000)}
    hugging_face_classifier("xs", id2label=names).save_pretrained(directory)
    pixels = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}, "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps({**pixels, "do_flip_channel_order": True}))
    return directory


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with nothing in it, in place of the user's."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Conversion]:
    """`convert`, once per run for all workers: takes its arguments but `output`, does not verify unless asked to."""
    return partial(convert_once, tmp_path_factory)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one layer where MobileViT has two to four: half of the operations, half of a conversion's time.

    For `untrained` weights in this process, where the depth does not matter.
    """
    for name in ("DEPTHS", "BLOCKS"):
        monkeypatch.setattr(backbone, name, dict.fromkeys(getattr(backbone, name), 1))


@pytest.fixture(scope="session")
def untrained_package(converted: Callable[..., Conversion]) -> Path:
    """An fp16 package of the untrained xxs classifier."""
    return converted("untrained", "xxs").path


@pytest.fixture(scope="session")
def untrained_model() -> ImageClassifier:
    """The PyTorch model of that package, in eval mode."""
    checkpoint = load_checkpoint("untrained", "xxs")
    model = ImageClassifier(checkpoint.config).eval()
    model.load_state_dict(checkpoint.state, strict=False)
    return model


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of weights for each task, of a network as narrow as can be: 0.1 MB, for 64 pixels."""
    return once_per_run(tmp_path_factory, "small_weights", save_small_weights)


def save_small_weights(directory: Path) -> dict[str, Path]:
    config = MobileViTConfig(
        image_size=64,
        hidden_sizes=(8, 8, 8),
        neck_hidden_sizes=(8,) * 7,
        expand_ratio=1.0,
        mlp_ratio=1.0,
        aspp_out_channels=8,
        id2label=("no", "yes"),
    )
    paths: dict[str, Path] = {task: directory / f"{task}.pth" for task in TASKS}
    for task, path in paths.items():
        torch.save(untrained_state(config, SEED, task), path)
    return paths


@pytest.fixture(scope="session")
def small_packages(small_weights: dict[str, Path], converted: Callable[..., Conversion]) -> dict[str, Path]:
    """An fp16 package of each of these."""
    return {
        task: converted(str(path), image_sizes=[(64, 64)], attention="packed").path
        for task, path in small_weights.items()
    }


@pytest.fixture
def stub_program(small_packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Spare the conversions of this process the ML Program: they take that of a task's small package.

    For what happens around it, to `small_weights` at 64x64 pixels.
    """

    def take(task: str) -> None:
        program = ct.models.MLModel(str(small_packages[task]), skip_model_load=True)
        monkeypatch.setattr("mobilevit_coreml.stages.build_programs", lambda *_: {FUNCTION: program})

    return take
