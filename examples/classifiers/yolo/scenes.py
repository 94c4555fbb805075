"""Scenes to look for digits in: a few MNIST digits of different sizes on a noisy background."""

import dataclasses

import numpy as np

#: Pixels of a scene's side.
SIZE = 64
MOST_DIGITS = 4
#: Height of a digit's box in pixels.
SMALLEST, LARGEST = 14, 30


@dataclasses.dataclass
class Scenes:
    """Images (N x SIZE x SIZE), and for each its boxes (x0, y0, x1, y1 in pixels) with their digits."""

    images: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]


def crop(digit: np.ndarray) -> np.ndarray:
    """Cut a digit out of its margin, so that its box is tight."""
    rows, columns = np.flatnonzero(digit.max(1) > 0.2), np.flatnonzero(digit.max(0) > 0.2)
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image by linear interpolation, first along its rows, then along its columns."""
    for axis, size in ((0, height), (1, width)):
        at = np.clip((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5, 0, image.shape[axis] - 1)
        low = at.astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        part = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image


def compose(digits: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> Scenes:
    """Return `count` scenes made of the given digits only. No two digits of a scene overlap."""
    glyphs = [crop(digit) for digit in digits]
    scenes = Scenes(random.uniform(0, 0.25, (count, SIZE, SIZE)).astype("float32"), [], [])
    for image in scenes.images:
        boxes: list[tuple[int, int, int, int]] = []
        classes: list[int] = []
        wanted = random.integers(1, MOST_DIGITS, endpoint=True)
        # A crowded scene may have no room for all: it then has fewer.
        for _ in range(8 * wanted):
            if len(boxes) == wanted:
                break
            chosen = random.integers(len(glyphs))
            height = int(random.integers(SMALLEST, LARGEST, endpoint=True))
            ratio = glyphs[chosen].shape[1] / glyphs[chosen].shape[0]
            width = int(np.clip(round(height * ratio), 3, LARGEST))
            x, y = (int(random.integers(SIZE - side, endpoint=True)) for side in (width, height))
            box = (x, y, x + width, y + height)
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                continue
            place = image[y : y + height, x : x + width]
            np.maximum(place, resize(glyphs[chosen], height, width) * random.uniform(0.7, 1), out=place)
            boxes.append(box)
            classes.append(int(labels[chosen]))
        scenes.boxes.append(np.array(boxes, "float32"))
        scenes.labels.append(np.array(classes))
    return scenes
