"""The detector: a grid of cells, each of which may find one digit whose centre lies in it.

After YOLO (Redmon et al., You Only Look Once, 2016) and YOLO9000 (2016), without anchor boxes. For each
cell the network gives 5 + 10 numbers: objectness; the centre's place in the cell (x, y); the logarithm of
width and height against REFERENCE pixels; a score for each digit.
"""

import keras
import numpy as np
import tensorflow as tf

from yolo.scenes import SIZE, Scenes

CELL = 8
GRID = SIZE // CELL
CLASSES = 10
#: Pixels: about the side of a typical box, so that the network starts near it.
REFERENCE = 18.0


def network() -> keras.Model:
    layers = keras.layers
    x = image = keras.Input((SIZE, SIZE, 1))
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.LeakyReLU(negative_slope=0.1)(x)
        x = layers.MaxPooling2D()(x)
    # A cell must see more than itself: a digit is up to four cells high.
    for filters in (96, 96):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.LeakyReLU(negative_slope=0.1)(x)
    return keras.Model(image, layers.Conv2D(5 + CLASSES, 1)(x))


def encode(scenes: Scenes) -> np.ndarray:
    """Return what the network should say of each scene: N x GRID x GRID x (objectness, x, y, w, h, digit)."""
    target = np.zeros((len(scenes.images), GRID, GRID, 6), "float32")
    for cells, boxes, labels in zip(target, scenes.boxes, scenes.labels, strict=True):
        for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
            x, y = (x0 + x1) / 2 / CELL, (y0 + y1) / 2 / CELL
            size = np.log((x1 - x0) / REFERENCE), np.log((y1 - y0) / REFERENCE)
            cells[int(y), int(x)] = 1, x % 1, y % 1, *size, label
    return target


def loss(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Objectness in every cell; box and class only where there is a digit. Mean over the scenes."""
    present = target[..., 0]
    objectness = tf.nn.sigmoid_cross_entropy_with_logits(present, output[..., 0])
    centre = tf.reduce_sum(tf.square(target[..., 1:3] - tf.sigmoid(output[..., 1:3])), -1)
    size = tf.reduce_sum(tf.square(target[..., 3:5] - output[..., 3:5]), -1)
    digit = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(target[..., 5], tf.int32), output[..., 5:])
    cells = objectness + present * (5 * centre + 5 * size + digit)
    return tf.reduce_mean(tf.reduce_sum(cells, (1, 2)))
