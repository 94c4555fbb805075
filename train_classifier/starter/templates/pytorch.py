"""Learn to read handwritten digits: python -m MODEL [--epochs N] [--learning-rate X] [--seed N]."""

import argparse
import csv
import json
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

# What is written here comes back as artefacts.tar.gz.
ARTEFACTS = Path("artefacts")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def data() -> list[torch.Tensor]:
    """Return images and labels to train and to test with, on the device."""
    # 1,797 real digits of 8 x 8 pixels, which come with scikit-learn. Put your own data here.
    digits = load_digits()
    images = (digits.images / 16).astype("float32")[:, None]
    parts = train_test_split(images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    return [torch.as_tensor(part, device=DEVICE) for part in parts]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ARTEFACTS.mkdir(exist_ok=True)
    torch.manual_seed(options.seed)

    x_train, x_test, y_train, y_test = data()
    model = network().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    rows: list[dict[str, float]] = []

    # This folder outlives the job; `train-classifier train MODEL --resume last` goes on from what lies in it.
    checkpoint = Path(os.environ.get("TRAIN_CHECKPOINT_DIR", "checkpoints"), "last.pt")
    checkpoint.parent.mkdir(exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows = state["rows"]

    for epoch in range(len(rows) + 1, options.epochs + 1):
        model.train()
        loss_sum = 0.0
        for batch in torch.randperm(len(x_train), device=DEVICE).split(64):
            loss = nn.functional.cross_entropy(model(x_train[batch]), y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(batch)
        model.eval()
        with torch.no_grad():
            scores = model(x_test)
        rows.append(
            {
                "epoch": epoch,
                "loss": loss_sum / len(x_train),
                "val_loss": nn.functional.cross_entropy(scores, y_test).item(),
                "val_accuracy": (scores.argmax(1) == y_test).float().mean().item(),
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
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    torch.save(model.state_dict(), ARTEFACTS / "model.pt")
    (ARTEFACTS / "metrics.json").write_text(json.dumps({"val_accuracy": rows[-1]["val_accuracy"]}))


if __name__ == "__main__":
    main()
