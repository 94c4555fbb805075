"""From the network's numbers to boxes, and how good those are: average precision."""

import numpy as np

from yolo.detector import CELL, CLASSES, GRID, REFERENCE
from yolo.scenes import SIZE, Scenes


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box with each of the others."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), 1)
    return shared / (np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], 1) - shared)


def decode(output: np.ndarray, least: float = 0.01, most_overlap: float = 0.45) -> tuple[np.ndarray, ...]:
    """Return the boxes, digits and scores found in one scene, best first.

    A cell counts when its score (objectness times the probability of its digit) is at least `least`. Of two
    boxes that overlap by more than `most_overlap` the better one stays (non-maximum suppression, across all
    digits, since two digits never lie on each other).
    """
    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    cells = output.reshape(GRID * GRID, -1).astype("float64")
    odds = np.exp(cells[:, 5:] - cells[:, 5:].max(1, keepdims=True))
    digits = odds.argmax(1)
    scores = (odds.max(1) / odds.sum(1)) / (1 + np.exp(-cells[:, 0]))
    centre = (np.stack([columns, rows], 1) + 1 / (1 + np.exp(-cells[:, 1:3]))) * CELL
    half = np.exp(np.clip(cells[:, 3:5], -3, 3)) * REFERENCE / 2
    boxes = np.concatenate([centre - half, centre + half], 1).clip(0, SIZE)

    kept: list[int] = []
    for cell in np.argsort(-scores):
        if scores[cell] < least:
            break
        if not kept or overlap(boxes[cell], boxes[kept]).max() <= most_overlap:
            kept.append(int(cell))
    return boxes[kept], digits[kept], scores[kept]


def average_precision(scenes: Scenes, outputs: np.ndarray, least_overlap: float = 0.5) -> dict[int, float]:
    """Return the average precision of each digit: the area under its precision-recall curve, at all points.

    As in PASCAL VOC since 2010: found boxes are taken in order of score over all scenes; one is right when it
    overlaps a box of its digit by at least `least_overlap` that no better one has claimed. The mean over the
    digits is the mAP.
    """
    found: dict[int, list[tuple[float, bool]]] = {digit: [] for digit in range(CLASSES)}
    for output, boxes, labels in zip(outputs, scenes.boxes, scenes.labels, strict=True):
        claimed: set[int] = set()
        # Best first, so that within a scene the better box claims first.
        for box, digit, score in zip(*decode(output), strict=True):
            overlaps = np.where(labels == digit, overlap(box, boxes), 0)
            best = int(overlaps.argmax())
            right = bool(overlaps[best] >= least_overlap) and best not in claimed
            if right:
                claimed.add(best)
            found[int(digit)].append((float(score), right))

    result = {}
    for digit, entries in found.items():
        total = sum(int((labels == digit).sum()) for labels in scenes.labels)
        if not total:
            continue
        right = np.array([right for _, right in sorted(entries, key=lambda entry: -entry[0])], bool)
        hits = np.cumsum(right)
        precision = hits / np.arange(1, len(hits) + 1)
        # Precision at a recall is the best there is at this recall or beyond.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        result[digit] = float(envelope[right].sum() / total)
    return result
