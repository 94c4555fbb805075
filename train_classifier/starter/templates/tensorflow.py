"""Learn to read handwritten digits: python -m MODEL [--epochs N] [--learning-rate X] [--seed N]."""

import argparse
import json
import os
from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# What is written here comes back as artefacts.tar.gz.
ARTEFACTS = Path("artefacts")


def network() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ARTEFACTS.mkdir(exist_ok=True)
    keras.utils.set_random_seed(options.seed)

    # 1,797 real digits of 8 x 8 pixels, which come with scikit-learn. Put your own data here.
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images[..., None] / 16, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )

    # This folder outlives the job; `train-classifier train MODEL --resume last` goes on from what lies in it.
    checkpoints = Path(os.environ.get("TRAIN_CHECKPOINT_DIR", "checkpoints"), "backup")
    model = network()
    model.compile(
        keras.optimizers.Adam(options.learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(
        x_train,
        y_train,
        validation_data=(x_test, y_test),
        epochs=options.epochs,
        verbose=2,
        callbacks=[
            keras.callbacks.BackupAndRestore(checkpoints, delete_checkpoint=False),
            # Learning curves of the report and the job summary.
            keras.callbacks.CSVLogger(ARTEFACTS / "history.csv"),
        ],
    )

    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    model.save(ARTEFACTS / "model.keras")
    (ARTEFACTS / "metrics.json").write_text(json.dumps({"val_loss": loss, "val_accuracy": accuracy}))


if __name__ == "__main__":
    main()
