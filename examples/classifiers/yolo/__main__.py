"""Train a small one-stage detector on scenes of handwritten digits: python -m yolo [--epochs N]."""

import argparse
import csv
import json
import time
from distutils.dir_util import copy_tree
from pathlib import Path

import keras
import numpy as np

from mnist import digits
from yolo import detector, evaluation
from yolo.scenes import compose

#: Next to this code, as many models do; train-classifier gives each job a workspace of its own.
CHECKPOINTS = Path(__file__).parent / "checkpoints"
FIELDS = ["epoch", "loss", "val_loss", "val_map50"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="yolo", description=__doc__)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--scenes", type=int, default=1500, help="new scenes composed for each epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    keras.utils.set_random_seed(options.seed)
    CHECKPOINTS.mkdir(exist_ok=True)
    started = time.monotonic()

    # Scenes of one part hold digits of that part only: no digit of a test scene was seen in training.
    # Validation and test scenes do not depend on --seed, so that results of different runs compare.
    parts = digits.load()
    random = np.random.default_rng(options.seed)
    validation = compose(*parts["validation"], 200, np.random.default_rng(10001))
    test = compose(*parts["test"], 500, np.random.default_rng(10002))

    model = detector.network()
    rate = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, options.epochs * -(-options.scenes // options.batch_size)
    )
    model.compile(keras.optimizers.Adam(rate), detector.loss)

    with (CHECKPOINTS / "history.csv").open("w", newline="") as file:
        history = csv.writer(file, lineterminator="\n")
        history.writerow(FIELDS)
        for epoch in range(1, options.epochs + 1):
            begun = time.monotonic()
            train = compose(*parts["train"], options.scenes, random)
            fitted = model.fit(train.images, detector.encode(train), batch_size=options.batch_size, verbose=0)
            outputs = model.predict(validation.images, verbose=0)
            row = [
                fitted.history["loss"][0],
                float(detector.loss(detector.encode(validation), outputs)),
                np.mean(list(evaluation.average_precision(validation, outputs).values())),
            ]
            history.writerow([epoch, *(round(float(value), 4) for value in row)])
            file.flush()
            model.save(CHECKPOINTS / "model.keras")
            print(
                f"epoch {epoch:2}/{options.epochs}  loss {row[0]:.3f}  validation loss {row[1]:.3f}"
                f"  validation mAP@0.5 {row[2]:.3f}  {time.monotonic() - begun:.1f} s",
                flush=True,
            )

    # The test scenes are looked at here and nowhere else.
    precision = evaluation.average_precision(test, model.predict(test.images, verbose=0))
    metrics = {"test_map50": np.mean(list(precision.values()))}
    metrics |= {f"test_ap50_{digit}": value for digit, value in precision.items()}
    metrics |= {"parameters": model.count_params(), "training_seconds": time.monotonic() - started}
    rounded = {name: round(float(value), 4) for name, value in metrics.items()}
    (CHECKPOINTS / "metrics.json").write_text(json.dumps(rounded, indent=2) + "\n")
    print(f"test mAP@0.5 {metrics['test_map50']:.4f}")

    copy_tree(str(CHECKPOINTS), "artefacts")


if __name__ == "__main__":
    main()
