"""Learn to read handwritten digits: python -m MODEL [--epochs N] [--learning-rate X] [--seed N]."""

import argparse
import csv
import json
import os
from pathlib import Path

import joblib
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

# What is written here comes back as artefacts.tar.gz.
ARTEFACTS = Path("artefacts")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ARTEFACTS.mkdir(exist_ok=True)

    # 1,797 real digits of 8 x 8 pixels, which come with scikit-learn. Put your own data here.
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data / 16, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )

    # This folder outlives the job; `train-classifier train MODEL --resume last` goes on from what lies in it.
    checkpoint = Path(os.environ.get("TRAIN_CHECKPOINT_DIR", "checkpoints"), "state.joblib")
    checkpoint.parent.mkdir(exist_ok=True)
    if checkpoint.exists():
        model, rows = joblib.load(checkpoint)
    else:
        model = MLPClassifier((64,), learning_rate_init=options.learning_rate, random_state=options.seed)
        rows = []

    for epoch in range(len(rows) + 1, options.epochs + 1):
        model.partial_fit(x_train, y_train, classes=digits.target_names)
        rows.append(
            {
                "epoch": epoch,
                "loss": log_loss(y_train, model.predict_proba(x_train)),
                "val_loss": log_loss(y_test, model.predict_proba(x_test)),
                "val_accuracy": model.score(x_test, y_test),
            }
        )
        progress = "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items() if name != "epoch")
        print(f"epoch {epoch}/{options.epochs}  {progress}")
        # Learning curves of the report and the job summary.
        with (ARTEFACTS / "history.csv").open("w", newline="") as file:
            history = csv.DictWriter(file, rows[0])
            history.writeheader()
            history.writerows(rows)
        # Written beside it and renamed: a job that is stopped leaves no half checkpoint.
        joblib.dump((model, rows), checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    joblib.dump(model, ARTEFACTS / "model.joblib")
    (ARTEFACTS / "metrics.json").write_text(json.dumps({"val_accuracy": model.score(x_test, y_test)}))


if __name__ == "__main__":
    main()
