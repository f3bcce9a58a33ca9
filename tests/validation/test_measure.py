"""The figures of many images against the same ones computed at once, and journals that runs go on from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score, top_k_accuracy_score

from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.inference import read_record
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.strict_json import load, parse_json, to_json
from mobilevit_coreml.validation.dataset import LabelledImage
from mobilevit_coreml.validation.measure import MAX_WORST_IMAGES, ImageResult, Measured, _in_order, compare_image
from mobilevit_coreml.validation.original import load_original
from mobilevit_coreml.validation.run import Run, Validation, validate
from mobilevit_coreml.validation.worker import BackendError


def reference_run(validation: Validation) -> Run:
    (run,) = (run for run in validation.runs if run.backend.name == "reference")
    return run


@torch.no_grad()
def both_sides(package: Path, photographs: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Probabilities of PyTorch and of the package for all photographs, and their classes, computed here."""
    original = load_original(read_record(package))
    ((name, preprocessing),) = original.preprocessing.items()
    evaluator = ReferenceEvaluator(package)
    ours, theirs, truth = [], [], []
    for path in sorted(photographs.glob("*/*.png")):
        image = preprocessing.prepare(Image.open(path))
        ours.append(original.models[name](torch.from_numpy(preprocessing.pixels(image))).logits.softmax(1)[0].numpy())
        theirs.append(np.array(list(evaluator.run({"image": image})["classLabel_probs"].values()), np.float32))
        truth.append(int(path.parent.name))
    return np.stack(ours), np.stack(theirs), truth


def test_accuracy_and_agreement_of_labelled_images(classifier: Path, photographs: Path) -> None:
    run = reference_run(validate(classifier, images=photographs, backend="reference"))
    ours, theirs, truth = both_sides(classifier, photographs)
    classes = range(ours.shape[1])
    for side, probabilities in (("original", ours), ("package", theirs)):
        assert run.accuracy[side] == {
            f"top{k}": pytest.approx(top_k_accuracy_score(truth, probabilities, k=k, labels=classes)) for k in (1, 5)
        }
    assert run.fidelity is not None
    assert run.fidelity.ranking is not None
    assert run.fidelity.images == 6
    p, q = (side.astype(np.float64) / side.sum(1, keepdims=True, dtype=np.float64) for side in (ours, theirs))
    kl = (p * np.log(p / q)).sum(1).mean()  # in fp64: its terms are a thousand times as large as their sum
    assert run.fidelity.ranking.kl == pytest.approx(kl, rel=1e-6)
    assert run.fidelity.ranking.top1_agreement == (ours.argmax(1) == theirs.argmax(1)).mean()
    assert len(run.measured.points) == sum(len(one.first) for one in run.measured.worst)


def test_accuracy_where_the_truth_is_what_the_network_says(classifier: Path, photographs: Path, tmp_path: Path) -> None:
    """Untrained weights are right when the directories are called after their answers."""
    ours, theirs, _ = both_sides(classifier, photographs)
    for index, path in enumerate(sorted(photographs.glob("*/*.png"))):
        tree = tmp_path / str(ours[index].argmax() if index else 0)  # but for the first
        tree.mkdir(exist_ok=True)
        Image.open(path).save(tree / f"{index}.png")
    run = reference_run(validate(classifier, images=tmp_path, gates={"accuracy-loss": 0.0}))
    assert run.accuracy["original"]["top1"] == pytest.approx(5 / 6)
    assert run.accuracy["package"]["top1"] == pytest.approx(
        np.mean([a.argmax() == b.argmax() for a, b in zip(ours[1:], theirs[1:], strict=True)]) * 5 / 6
    )
    assert {result.name: result.passed for result in run.results}["accuracy-loss"] is not None


@torch.no_grad()
def test_masks_against_labels(segmenter: Path, tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "SegmentationClass").mkdir()
    rng = np.random.default_rng(0)
    for index, image in enumerate(synthetic_images(110, 130, 3)):
        image.save(tmp_path / "JPEGImages" / f"{index}.png")
        mask = np.kron(rng.integers(0, 22, (11, 13)), np.ones((10, 10))).astype(np.uint8)
        mask[mask == 21] = 255
        Image.fromarray(mask).save(tmp_path / "SegmentationClass" / f"{index}.png")
    journal = tmp_path / "journal.jsonl"
    run = reference_run(validate(segmenter, images=tmp_path, journal=journal))
    original = load_original(read_record(segmenter))
    ((name, preprocessing),) = original.preprocessing.items()
    evaluator = ReferenceEvaluator(segmenter)
    sides: dict[str, list[np.ndarray]] = {"original": [], "package": [], "truth": []}
    for index in range(3):
        image = preprocessing.prepare(Image.open(tmp_path / "JPEGImages" / f"{index}.png"))
        logits = original.models[name](torch.from_numpy(preprocessing.pixels(image))).logits
        whole = torch.nn.functional.interpolate(logits, size=(96, 96), mode="bilinear")
        sides["original"].append(whole.argmax(1)[0].numpy())
        sides["package"].append(evaluator.run({"image": image})["semanticPredictions"])
        sides["truth"].append(preprocessing.prepare_mask(Image.open(tmp_path / "SegmentationClass" / f"{index}.png")))
    truth = np.stack(sides["truth"])
    counts = truth != 255
    for side in ("original", "package"):
        mask = np.stack(sides[side])
        occurring = np.union1d(truth[counts], mask[counts])
        iou = jaccard_score(truth[counts], mask[counts], labels=occurring, average="macro")
        assert run.accuracy[side]["mean_iou"] == pytest.approx(iou)
        assert run.accuracy[side]["pixel_agreement"] == pytest.approx((truth[counts] == mask[counts]).mean())
    resumed = reference_run(validate(segmenter, images=tmp_path, journal=journal))  # the journal has no masks
    for worst in (run.measured.worst, resumed.measured.worst):
        assert sorted(one.name for one in worst) == ["0", "1", "2"]
        for one in worst:
            assert one.masks is not None
            for side, class_map in zip(("original", "package"), one.masks, strict=True):
                np.testing.assert_array_equal(class_map, sides[side][int(one.name)])


def test_the_worst_images_are_kept(classifier: Path) -> None:
    run = reference_run(validate(classifier))
    snrs = [seen.snr for seen in run.measured.worst]
    assert len(snrs) == MAX_WORST_IMAGES
    assert snrs == sorted(snrs)
    assert run.fidelity is not None
    assert snrs[0] == run.fidelity.signals["logits"].worst_snr


def figures(validation: Validation) -> object:
    run = reference_run(validation)
    return run.fidelity, run.accuracy, [dataclasses.asdict(seen) for seen in run.measured.worst], run.measured.points


def test_a_run_that_was_cut_off_goes_on(
    classifier: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = figures(validate(classifier, images=photographs))
    journal = tmp_path / "journal.jsonl"
    compared: list[str] = []

    def counted(image: LabelledImage, *rest: Any) -> ImageResult:
        compared.append(image.name)
        if len(compared) == 4:
            raise KeyboardInterrupt
        return compare_image(image, *rest)

    monkeypatch.setattr("mobilevit_coreml.validation.run.compare_image", counted)
    with pytest.raises(KeyboardInterrupt):
        validate(classifier, images=photographs, journal=journal)
    lines = journal.read_text().splitlines()
    assert len(lines) == 4  # what is compared, and three images
    journal.write_text("\n".join([*lines[:3], lines[3][:-20]]))  # the last line was not finished either
    compared.clear()
    compared += [""] * 4  # no further interruption
    assert figures(validate(classifier, images=photographs, journal=journal)) == whole
    assert len(compared) == 4 + 4
    assert figures(validate(classifier, images=photographs, journal=journal)) == whole
    assert len(compared) == 4 + 4  # everything is known now
    assert len(journal.read_text().splitlines()) == 7


def test_figures_survive_being_written(classifier: Path) -> None:
    seen = reference_run(validate(classifier)).measured.worst[0]
    assert load(ImageResult, parse_json(to_json(seen)), "result") == seen
    alone, twice = Measured(), Measured()
    alone.add(seen)
    for _ in range(2):
        twice.add(seen)
    assert twice.meters.images == 2
    assert twice.meters.fidelity({}).signals["logits"].snr == pytest.approx(
        alone.meters.fidelity({}).signals["logits"].snr
    )


def test_classes_that_are_not_the_packages() -> None:
    assert _in_order({"b": 0.25, "a": 0.75}, ["a", "b"]) == {"a": 0.75, "b": 0.25}
    with pytest.raises(BackendError, match="probabilities of 2 classes"):
        _in_order({"b": 0.25, "c": 0.75}, ["a", "b"])
