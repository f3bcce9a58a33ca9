"""non_maximum_suppression against a greedy choice by torchvision's matrix of overlaps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from mobilevit_coreml._coremltools import mb
from tests.reference.one_op import Array, assert_outputs, run_op

RNG = np.random.default_rng(0)
N, B, K = 2, 40, 3
BOXES = np.concatenate([RNG.uniform(0, 10, (N, B, 2)), RNG.uniform(0.5, 6, (N, B, 2))], -1).astype(np.float32)
SCORES = RNG.permutation(N * B * K).reshape(N, B, K).astype(np.float32) / (N * B * K)


def greedy(corners: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou: float) -> list[int]:
    overlaps = (box_iou(corners, corners) > iou) & (groups[:, None] == groups)
    kept: list[int] = []
    for index in np.argsort(-scores.numpy(), kind="stable").tolist():
        if not overlaps[index, kept].any():
            kept.append(index)
    return kept


def expected(iou: float, least: float, most: int, per_class: bool) -> tuple[Array, Array, Array, Array]:
    """The selected boxes, scores, indices and numbers of each image."""
    indices, counts = np.full((N, most), -1, np.int32), np.zeros(N, np.int32)
    chosen_boxes, chosen_scores = np.zeros((N, most, 4), np.float32), np.zeros((N, most, K), np.float32)
    for n in range(N):
        boxes, (best, classes) = torch.from_numpy(BOXES[n]), torch.from_numpy(SCORES[n]).max(-1)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1)
        above = (best >= least).nonzero()[:, 0]
        group = classes[above] if per_class else torch.zeros_like(classes[above])
        kept = above[greedy(corners[above], best[above], group, iou)][:most].numpy()
        kept = kept if len(kept) else np.array([int(best.argmax())])  # as coremltools' own reference
        counts[n] = len(kept)
        indices[n, : len(kept)] = kept
        chosen_boxes[n, : len(kept)], chosen_scores[n, : len(kept)] = BOXES[n, kept], SCORES[n, kept]
    return chosen_boxes, chosen_scores, indices, counts


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize(("iou", "least", "most"), [(0.3, 0.5, 5), (0.1, 0.2, 40), (0.7, 0.0, 60), (0.3, 2.0, 5)])
def test_up_to_ios16(iou: float, least: float, most: int, per_class: bool, tmp_path: Path) -> None:
    def build(boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(
            boxes=boxes,
            scores=scores,
            iou_threshold=np.float32(iou),
            score_threshold=np.float32(least),
            max_boxes=most,
            per_class_suppression=per_class,
        )

    names = ("boxes", "scores", "indices", "number")
    outputs = run_op(build, {"boxes": BOXES, "scores": SCORES}, tmp_path)
    assert_outputs(outputs, dict(zip(names, expected(iou, least, most, per_class), strict=True)))


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize(("iou", "most"), [(0.3, 5), (0.7, 60)])
def test_from_ios17(iou: float, most: int, per_class: bool, tmp_path: Path) -> None:
    def build(boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(
            boxes=boxes,
            scores=scores,
            iou_threshold=np.float32(iou),
            max_boxes=most,
            per_class_suppression=per_class,
        )

    boxes, scores, indices, _ = expected(iou, -1, most, per_class)
    inputs: dict[str, Array] = {"boxes": BOXES.swapaxes(1, 2).copy(), "scores": SCORES.swapaxes(1, 2).copy()}
    answers = {"boxes": boxes.swapaxes(1, 2), "scores": scores.swapaxes(1, 2), "indices": indices}
    assert_outputs(run_op(build, inputs, tmp_path, "iOS17"), answers)


def test_boxes_without_an_area_suppress_nothing(tmp_path: Path) -> None:
    boxes = np.array([[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 2, 2], [1, 1, 2, 2]]], np.float32)
    scores = np.array([[[0.9], [0.8], [0.7], [0.6]]], np.float32)

    def build(boxes: Any, scores: Any) -> Any:
        options = {"iou_threshold": np.float32(0.5), "score_threshold": np.float32(0)}
        return mb.non_maximum_suppression(boxes=boxes, scores=scores, max_boxes=4, **options)[2]

    corners = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 2, 2], [0, 0, 2, 2]])
    kept = greedy(corners, torch.from_numpy(scores[0, :, 0]), torch.zeros(4), 0.5)
    outputs = run_op(build, {"boxes": boxes, "scores": scores}, tmp_path)
    assert_outputs(outputs, {"indices": np.array([[*kept, -1]], np.int32)})
