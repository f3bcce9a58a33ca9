"""Selection of boxes. Shapes: N batch, B boxes, K classes."""

import math

import torch
from torch import Tensor


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """The boxes of highest score that do not overlap, filled up to max_boxes with zeros and the index -1.

    iOS15: boxes (N, B, 4), each (x, y, width, height) with the centre x, y, and scores (N, B, K); returns
    both of the selected boxes, their indices (N, max_boxes) and their number (N,). iOS17 has no
    score_threshold, the dimension B last, and no number.
    """
    if score_threshold is None:
        selected = non_maximum_suppression(
            boxes.mT, scores.mT, iou_threshold, max_boxes, -math.inf, per_class_suppression
        )
        return selected[0].mT, selected[1].mT, selected[2]
    chosen_boxes = boxes.new_zeros((*boxes.shape[:1], max_boxes, 4))
    chosen_scores = scores.new_zeros((*scores.shape[:1], max_boxes, scores.shape[-1]))
    indices = torch.full((boxes.shape[0], max_boxes), -1, dtype=torch.int32)
    counts = torch.zeros(boxes.shape[0], dtype=torch.int32)
    for number, (own_boxes, own_scores) in enumerate(zip(boxes, scores, strict=True)):
        best, classes = own_scores.max(-1)
        groups = classes if per_class_suppression else torch.zeros_like(classes)
        chosen = _select(own_boxes, best, groups, iou_threshold, score_threshold, max_boxes)
        count = counts[number] = len(chosen)
        chosen_boxes[number, :count] = own_boxes[chosen]
        chosen_scores[number, :count] = own_scores[chosen]
        indices[number, :count] = torch.tensor(chosen, dtype=torch.int32)
    return chosen_boxes, chosen_scores, indices, counts


def _select(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int
) -> list[int]:
    """Indices in descending order of score; boxes suppress those of their group only. At least the best box."""
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    alive = scores >= score_threshold
    chosen: list[int] = []
    for index in order:
        if len(chosen) == max_boxes:
            break
        if alive[index]:
            chosen.append(index)
            alive &= (_overlap(boxes, boxes[index]) <= iou_threshold) | (groups != groups[index])
    return chosen or order[:1]


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of each box with one; 0 of two empty boxes."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    sides = torch.minimum(high, box[:2] + box[2:] / 2) - torch.maximum(low, box[:2] - box[2:] / 2)
    intersection = sides.clamp(min=0).prod(-1)
    union = boxes[:, 2:].prod(-1) + box[2:].prod() - intersection
    return torch.where(union > 0, intersection / union, 0.0)
