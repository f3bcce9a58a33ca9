"""What a package says of its making, through its metadata and back."""

import dataclasses

import pytest

from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.config import Task
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing

RECORD = PackageRecord(
    version="1.2.3",
    variant="xs",
    task=Task.CLASSIFICATION,
    attention="packed",
    unfold="pixel_shuffle",
    precision="fp16",
    weights=WeightsSource("someone/model", "timm", revision="abc", sha256="123"),
    preprocessing=Preprocessing(400, (320, 384), "RGB", "bicubic", 1 / 255, include_crop=True, reduce_labels=True),
    config={"image_size": [320, 384], "qkv_bias": True},
    outputs=OutputOptions("logits", "network", "float16", hidden_states=5),
    expand=False,
    labels=("background", "cat"),
    colors=("#000000", "#FFFFFF"),
    labels_renamed={"517": "crane"},
    sizes={"size_320x384": (320, 384), "size_640": (640, 640)},
)


def test_record_survives_the_metadata() -> None:
    metadata = RECORD.to_metadata()
    assert all(key.startswith("mobilevit_coreml.") and isinstance(value, str) for key, value in metadata.items())
    assert PackageRecord.from_metadata({"another": "key", **metadata}) == RECORD
    assert metadata["mobilevit_coreml.unfold"] == "pixel_shuffle"
    assert metadata["mobilevit_coreml.channel_order"] == "RGB"
    assert "mobilevit_coreml.untrained" not in metadata


def test_a_package_without_a_record() -> None:
    with pytest.raises(KeyError):
        PackageRecord.from_metadata({"another": "key"})


def test_every_function_has_a_pixel_contract_of_its_own() -> None:
    preprocessing = RECORD.by_function()
    assert preprocessing["size_320x384"] == RECORD.preprocessing
    assert (preprocessing["size_640"].resize, preprocessing["size_640"].crop) == (800, (640, 640))
    assert dataclasses.replace(RECORD, sizes={}).by_function() == {"main": RECORD.preprocessing}
