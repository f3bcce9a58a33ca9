"""Packages of every task, form and size, and a fresh read of what was written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.cli.convert import summary
from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.options import ConversionOptions
from mobilevit_coreml.reference import ReferenceEvaluator
from tests.cache import once_per_run
from tests.peers import hugging_face_segmenter, snr

NAMES = ("background", "cat", "dog", "dog", "tree")  # two alike, as in some datasets


@pytest.fixture
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of a fine-tuned segmenter of five classes, 128x128, with its preprocessing."""
    return once_per_run(tmp_path_factory, "segmenter", save_segmenter)


def save_segmenter(directory: Path) -> Path:
    peer = hugging_face_segmenter("xxs", image_size=128, id2label=dict(enumerate(NAMES)))
    peer.save_pretrained(directory)
    preprocessing = {
        "crop_size": {"height": 128, "width": 128},
        "size": {"shortest_edge": 136},
        "do_flip_channel_order": True,
        "do_reduce_labels": True,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return directory


@pytest.fixture
def fine_tuned(segmenter: Path, converted: Callable[..., Conversion]) -> Conversion:
    return converted(str(segmenter), precision="fp32", attention="packed", verify=True)


def test_a_segmenter_of_ones_own(fine_tuned: Conversion) -> None:
    printed = summary(fine_tuned, {})
    assert "  outputs      semanticPredictions, 5 classes\n" in printed
    assert "  verified     PASS, logits " in printed
    assert "               pixel agreement " in printed
    assert fine_tuned.path.name == "DeepLabV3_MobileViT_XXS_fp32.mlpackage"
    spec = ct.utils.load_spec(str(fine_tuned.path))
    image = spec.description.input[0].type.imageType
    assert (image.height, image.width) == (128, 128)
    (mask,) = spec.description.output
    assert (mask.name, list(mask.type.multiArrayType.shape)) == ("semanticPredictions", [128, 128])
    assert mask.shortDescription == "Class index of each pixel of the image: rows, columns"
    metadata = spec.description.metadata.userDefined
    assert metadata["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    parameters = json.loads(metadata["com.apple.coreml.model.preview.params"])
    assert parameters["labels"] == ["background", "cat", "dog", "dog (3)", "tree"]
    assert parameters["colors"][0] == "#000000"
    assert len(set(parameters["colors"])) == 5
    record = read_record(fine_tuned.path)
    assert (record.task, record.labels, record.expand) == ("segmentation", tuple(parameters["labels"]), False)
    assert (record.preprocessing.resize, record.preprocessing.reduce_labels) == (136, True)
    assert record.config["output_stride"] == 16


@torch.no_grad()
def test_its_mask_is_transformers(fine_tuned: Conversion, segmenter: Path) -> None:
    """Through transformers' own processor and post-processing, on a photograph of another size."""
    from transformers import MobileViTForSemanticSegmentation
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    photograph = synthetic_images(150, 201, 1)[0]
    processor = MobileViTImageProcessorPil.from_pretrained(segmenter, resample=2)
    peer = MobileViTForSemanticSegmentation.from_pretrained(segmenter).eval()
    outputs = peer(**processor(photograph, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(128, 128)])
    prepared = read_record(fine_tuned.path).preprocessing.prepare(photograph)
    mask = ReferenceEvaluator(fine_tuned.path, "fp32").run({"image": prepared})["semanticPredictions"]
    assert mask.dtype == np.int32
    # fp32 throughout; only where two classes are equal to the last digits may they part
    assert (mask == expected.numpy()).mean() > 0.999
    assert len(np.unique(mask)) > 1


def types_in(package: Path) -> set[str]:
    (block,) = ct.utils.load_spec(str(package)).mlProgram.functions["main"].block_specializations.values()
    return {operation.type for operation in block.operations}


@pytest.mark.usefixtures("shallow")
def test_either_implementation_of_unfold_computes_the_same(converted: Callable[..., Conversion]) -> None:
    """At a size whose maps are no multiples of the patch from stage 4 on."""
    options = {"task": "segmentation", "image_sizes": [(144, 208)], "output_type": "logits", "attention": "packed"}
    kinds = {
        "space_to_batch": {"space_to_batch", "batch_to_space"},
        "pixel_shuffle": {"pixel_unshuffle", "pixel_shuffle"},
    }
    logits = []
    for unfold in kinds:
        made = converted("untrained", "xxs", **options, unfold=unfold, precision="fp32", verify=True)
        assert made.passed
        assert made.fidelity["main"].worst.snr > 100  # fp32 on both sides
        assert read_record(made.path).unfold == unfold
        suffix = "" if unfold == "space_to_batch" else ", pixel_shuffle unfold"
        assert f"target       iOS16, fp32, packed attention{suffix}\n" in summary(made, {})
        others = {kind for name in kinds if name != unfold for kind in kinds[name]}
        found = types_in(made.path)
        assert kinds[unfold] <= found
        assert not others & found
        outputs = ReferenceEvaluator(made.path, "fp32").run({"image": synthetic_images(144, 208, 1)[0]})
        logits.append(torch.from_numpy(outputs["logits"]))
    assert snr(*logits) > 100


@pytest.mark.usefixtures("shallow")
def test_no_preview_of_what_xcode_cannot_show(converted: Callable[..., Conversion]) -> None:
    options = {"image_sizes": [(96, 128)], "output_type": "image", "output_size": "network", "attention": "packed"}
    path = converted("untrained", "xxs", task="segmentation", **options).path
    metadata = ct.utils.load_spec(str(path)).description.metadata.userDefined
    assert not [key for key in metadata if key.startswith("com.apple.coreml.model.preview")]
    assert read_record(path).labels[:2] == ("background", "aeroplane")
    mask = ReferenceEvaluator(path).run({"image": synthetic_images(96, 128, 1)[0]})["semanticPredictions"]
    assert isinstance(mask, Image.Image)
    assert (mask.mode, mask.size) == ("L", (8, 6))


@pytest.mark.usefixtures("shallow")
def test_a_mask_that_is_off_by_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_coreml.mil import export

    honest = export.segmentation_output
    monkeypatch.setattr(export, "segmentation_output", lambda *arguments: honest(*arguments) + 1)
    options = ConversionOptions(task="segmentation", image_sizes=((64, 64),), attention="packed")
    made = convert("untrained", "xxs", options, output=tmp_path)
    assert not made.passed
    assert made.fidelity["main"].worst.snr > 30  # of the logits, which are right
    assert [path.stem for path in tmp_path.iterdir()] == ["DeepLabV3_MobileViT_XXS_fp16_untrained_failed"]


def test_features_of_a_segmenter(segmenter: Path, converted: Callable[..., Conversion]) -> None:
    made = converted(str(segmenter), task="features", hidden_states=True, attention="packed", verify=True)
    assert made.path.name == "MobileViT_XXS_features_fp16.mlpackage"
    assert made.passed
    assert list(made.fidelity["main"].signals) == ["pooled", "featureMap", *(f"stage{n}" for n in range(1, 5))]
    assert "outputs      pooled; featureMap; stage1; stage2; stage3; stage4\n" in summary(made, {})
    record = read_record(made.path)
    assert (record.expand, record.labels, record.config["output_stride"]) == (False, (), 16)
    outputs = ReferenceEvaluator(made.path).run({"image": synthetic_images(128, 128, 1)[0]})
    assert outputs["pooled"].dtype == np.float32
    assert (outputs["pooled"].shape, outputs["featureMap"].shape) == ((1, 80), (1, 80, 8, 8))


SIZES = {"size_128": (128, 128), "size_96x160": (96, 160)}


@pytest.fixture
def sizes(shallow: None, converted: Callable[..., Conversion]) -> Conversion:
    return converted("untrained", "xxs", image_sizes=tuple(SIZES.values()), attention="packed", verify=True)


def test_several_sizes_are_functions_of_one_package(sizes: Conversion) -> None:
    assert sizes.target == "iOS18"
    assert sizes.passed
    assert list(sizes.fidelity) == list(SIZES)
    printed = summary(sizes, {})
    text = "input image, 128x128, 160 wide by 96 high pixels, any pixel buffer (BGR inside) functions"
    assert text in " ".join(printed.split())
    assert max(map(len, printed.splitlines()[1:])) <= 80
    assert "  functions    size_128, size_96x160\n" in printed
    assert "  verified     size_128:\n                 PASS, logits " in printed
    spec = ct.utils.load_spec(str(sizes.path))
    assert spec.specificationVersion == 9
    assert spec.description.defaultFunctionName == "size_128"
    assert [function.name for function in spec.description.functions] == list(SIZES)
    for function, (height, width) in zip(spec.description.functions, SIZES.values(), strict=True):
        image = function.input[0].type.imageType
        assert (image.height, image.width) == (height, width)
        assert f"{width}x{height} pixels" in function.input[0].shortDescription
        assert [output.name for output in function.output] == ["classLabel", "classLabel_probs"]
        assert all(output.shortDescription for output in function.output)
        assert function.predictedFeatureName == "classLabel"
    record = read_record(sizes.path)
    assert record.sizes == SIZES
    assert record.preprocessing.crop == (128, 128)


def names_in(package: Path, function: str) -> list[str]:
    (block,) = ct.utils.load_spec(str(package)).mlProgram.functions[function].block_specializations.values()
    return [operation.outputs[0].name for operation in block.operations if operation.type != "const"]


def test_each_function_is_a_package_of_its_own_but_for_the_weights_they_share(
    sizes: Conversion, converted: Callable[..., Conversion]
) -> None:
    for function, size in SIZES.items():
        alone = converted("untrained", "xxs", image_sizes=[size], attention="packed", target="iOS18")
        image = synthetic_images(*size, 1)[0]
        expected = ReferenceEvaluator(alone.path).run({"image": image})
        assert ReferenceEvaluator(sizes.path, function_name=function).run({"image": image}) == expected
        assert names_in(sizes.path, function) == names_in(alone.path, "main")
        weights = [path / "Data/com.apple.CoreML/weights/weight.bin" for path in (sizes.path, alone.path)]
        assert weights[0].stat().st_size < 1.01 * weights[1].stat().st_size


def test_equal_conversions_of_several_sizes_have_equal_weights_and_programs(sizes: Conversion, tmp_path: Path) -> None:
    options = ConversionOptions(image_sizes=tuple(SIZES.values()), attention="packed")
    again = convert("untrained", "xxs", options, output=tmp_path, verify=False)
    for name in ("weights/weight.bin", "model.mlmodel"):
        first, second = (path / "Data" / "com.apple.CoreML" / name for path in (sizes.path, again.path))
        assert first.read_bytes() == second.read_bytes(), name


TASKS = ["classification", "segmentation", pytest.param("features", marks=pytest.mark.slow)]


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("task", TASKS)
def test_a_package_that_crops_itself_says_what_one_that_does_not_says(
    task: str, converted: Callable[..., Conversion]
) -> None:
    photograph = synthetic_images(211, 333, 1)[0]
    outputs = []
    for include_crop in (False, True):
        options = {"include_crop": True} if include_crop else {}
        path = converted("untrained", "xxs", task=task, image_sizes=[(128, 128)], attention="packed", **options).path
        record = read_record(path)
        assert record.preprocessing.include_crop == include_crop
        prepared = record.preprocessing.prepare(photograph)
        side = {False: 128, True: 136 if task == "segmentation" else 144}[include_crop]
        assert prepared.size == (side, side)
        outputs.append(ReferenceEvaluator(path).run({"image": prepared}))
    without, with_crop = outputs
    assert without.keys() == with_crop.keys()
    for name, value in without.items():
        assert np.array_equal(value, with_crop[name]) if isinstance(value, np.ndarray) else value == with_crop[name]


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("task", TASKS)
def test_sizes_that_are_no_square_and_do_not_divide(task: str, converted: Callable[..., Conversion]) -> None:
    options = {"output_type": "logits"} if task == "segmentation" else {}
    made = converted(
        "untrained",
        "xxs",
        task=task,
        image_sizes=[(144, 208)],
        **options,
        attention="packed",
        unfold="space_to_batch",
        precision="fp32",
        verify=True,
    )
    (fidelity,) = made.fidelity.values()
    assert fidelity.passed
    assert min(signal.snr for signal in fidelity.signals.values()) > 100


REFUSED = [
    ({"task": "detection"}, "task: expected one of classification, segmentation, features, got 'det"),
    ({"output_type": "mask"}, "output_type: expected one of labels, logits, probabilities, image, "),
    ({"output_size": "512"}, "output_size: expected one of image, network, got '512'; choose one"),
    ({"output_dtype": "int8"}, "output_dtype: expected one of float32, float16, got 'int8'; choose"),
    ({"output_type": "labels"}, "output_type: expected logits or probabilities of a classifier, got labels; drop it"),
    ({"task": "segmentation", "output_dtype": "float16"}, "output_dtype: expected features, logits or probabilities, "),
    ({"task": "segmentation", "hidden_states": True}, "hidden_states: expected features, got segmentation; leave"),
    ({"task": "features", "output_size": "network"}, "output_size: expected segmentation, got features; leave it"),
    (
        {"task": "features", "output_dtype": "float16", "target": "iOS15"},
        "target: expected iOS16 or later for float16 outputs, got iOS15; raise it",
    ),
    (
        {"image_sizes": [(64, 64), (96, 96)], "target": "iOS17"},
        "target: expected iOS18 or later for several image sizes in one package, got iOS17; raise it",
    ),
    (
        {"image_sizes": [(64, 64), (4096, 4096)]},
        "image size: expected attention to take at most 5 GB, got 275 GB for 4096x4096 pixels; choose",
    ),
    ({"image_sizes": [(64, 64), (64, 64)]}, "image_sizes: expected each size once, got one twice"),
    ({"image_sizes": [(64, 64), (7, 64)]}, "image_size: expected an int or (height, width), each 8 to"),
    ({"task": "features", "labels": "../names.txt"}, "labels: expected none, since features have no classes; leave"),
]


@pytest.mark.parametrize(("request_", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_requests_that_cannot_be_met(
    request_: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(MobileViTError) as raised:
        convert("untrained", "xxs", ConversionOptions(**request_))
    assert str(raised.value).startswith(message)
    assert list((tmp_path / "here").iterdir()) == []
