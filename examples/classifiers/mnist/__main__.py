"""Train a small convolutional network on handwritten digits: python -m mnist [--epochs N]."""

import argparse
import csv
import json
import os
import shutil
import time
from pathlib import Path

import keras

from mnist import digits

ARTEFACTS = Path("artefacts")
FIELDS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mnist", description=__doc__)
    parser.add_argument(
        "--epochs", type=int, default=12, help="epochs in all, those before a resume included"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def network(learning_rate: float) -> keras.Model:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


class Progress(keras.callbacks.Callback):
    """After each epoch: one line in the log, one in history.csv, and a checkpoint to go on from."""

    def __init__(self, checkpoints: Path | None) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.started = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {name: round(float(logs[name]), 5) for name in FIELDS[1:]}
        history = ARTEFACTS / "history.csv"
        new = not history.exists()
        with history.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(
            f"epoch {epoch + 1:2}/{self.params['epochs']}  loss {row['loss']:.4f}"
            f"  accuracy {row['accuracy']:.4f}  validation accuracy {row['val_accuracy']:.4f}"
            f"  {time.monotonic() - self.started:.1f} s",
            flush=True,
        )
        if self.checkpoints:
            # Model and history in one step, so that a kill between the two cannot leave them out of step.
            folder = self.checkpoints / f"epoch-{epoch + 1:05}"
            unfinished = self.checkpoints / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self.model.save(unfinished / "model.keras")
            shutil.copy(history, unfinished)
            unfinished.rename(folder)
            for old in sorted(self.checkpoints.glob("epoch-*"))[:-1]:
                shutil.rmtree(old)


def main() -> None:
    options = arguments()
    keras.utils.set_random_seed(options.seed)
    ARTEFACTS.mkdir(exist_ok=True)
    (ARTEFACTS / "history.csv").unlink(missing_ok=True)
    started = time.monotonic()

    parts = digits.load()
    print("digits: " + ", ".join(f"{len(labels)} {name}" for name, (_, labels) in parts.items()), flush=True)

    # train-classifier names a folder that outlives the job; with --resume it holds what an earlier job left.
    folder = os.environ.get("TRAIN_CHECKPOINT_DIR")
    checkpoints = Path(folder) if folder else None
    done = sorted(checkpoints.glob("epoch-*")) if checkpoints else []
    epoch = 0
    if done:
        epoch = int(done[-1].name.removeprefix("epoch-"))
        model = keras.saving.load_model(done[-1] / "model.keras")
        shutil.copy(done[-1] / "history.csv", ARTEFACTS)
        print(f"resumed after epoch {epoch}", flush=True)
    else:
        model = network(options.learning_rate)

    model.fit(
        *parts["train"],
        validation_data=parts["validation"],
        initial_epoch=epoch,
        epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks=[Progress(checkpoints)],
        verbose=0,
    )

    # The test digits are looked at here and nowhere else.
    loss, accuracy = model.evaluate(*parts["test"], verbose=0)
    model.save(ARTEFACTS / "model.keras")
    metrics = {
        "test_accuracy": round(float(accuracy), 4),
        "test_loss": round(float(loss), 4),
        "epochs": max(epoch, options.epochs),
        "parameters": model.count_params(),
        "training_seconds": round(time.monotonic() - started, 1),
    }
    (ARTEFACTS / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
