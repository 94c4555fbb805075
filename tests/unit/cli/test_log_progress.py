"""How far a training is, from logs as the frameworks write them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_classifier.cli.runs.log_progress import TAIL, LogProgress

KERAS = (
    "Epoch 2/12\n"
    "\x1b[1m375/375\x1b[0m \x1b[32m━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m2s\x1b[0m 5ms/step - accuracy: 0.8 - loss: 0.6\n"
    "Epoch 3/12\n"
    "\r\x1b[1m  1/375\x1b[0m ━ \x1b[1m4s\x1b[0m 12ms/step - accuracy: 0.9062 - loss: 0.3541"
    "\r\x1b[1m 45/375\x1b[0m ━━ \x1b[1m1s\x1b[0m 5ms/step - accuracy: 0.9119 - loss: 0.3187"
)
LIGHTNING = (
    "Epoch 0: 100%|██████████| 100/100 [00:10<00:00,  9.5it/s, v_num=0, train_loss=0.512]\n"
    "\rEpoch 1:  45%|████▌     | 45/100 [00:05<00:06,  9.1it/s, v_num=0, train_loss=0.304]"
)
TQDM = "reading\n\r 12%|█▏        | 12/100 [00:01<00:08, 10.1it/s]\r 45%|████▌     | 45/100 [00:04<00:05, 10.1it/s]"
TRANSFORMERS = (
    "{'loss': 0.5231, 'grad_norm': 1.2, 'learning_rate': 4.5e-05, 'epoch': 1.5}\n"
    "\r 50%|█████     | 150/300 [01:00<01:00,  2.5it/s]"
)
OURS = "epoch 4/20  loss 0.312  val_loss 0.4012  val_accuracy 0.881\n"


@pytest.mark.parametrize(
    ("log", "summary"),
    [
        (KERAS, "epoch 3/12 · step 45/375 · accuracy 0.9119 · loss 0.3187"),
        (LIGHTNING, "epoch 1 · step 45/100 · train_loss 0.304"),
        (TQDM, "step 45/100"),
        (TRANSFORMERS, "epoch 1 · step 150/300 · loss 0.5231"),
        (OURS, "epoch 4/20 · loss 0.312 · val_loss 0.4012 · val_accuracy 0.881"),
        ("Epoch: 7, loss = 1e-05\n", "epoch 7 · loss 1e-05"),
        ("Epoch [3/10], Step [5/8], Loss: 2.5\n", "epoch 3/10 · Loss 2.5"),
        ("[2026-01-02 03:04:05] epoch 2 of 9\n", "epoch 2/9"),
        # Other letters and digits may be wide, or turn the direction of the line.
        ("epoch ٣/٩ loss_\u05d0\u05d1: ٤ loss: 1\n", "loss 1"),
        ("the loss of life; see 2026/11/28 and version 1.2/3.4\n", ""),
        ("", ""),
    ],
)
def test_what_frameworks_write(log: str, summary: str) -> None:
    progress = LogProgress()
    for start in range(0, len(log), 7):
        progress.feed(log[start : start + 7].encode())
    assert progress.summary(0.0) == summary


def test_time_left_is_that_of_the_epochs_seen() -> None:
    progress = LogProgress()
    progress.feed(b"epoch 5/10\n")
    assert progress.summary(100.0) == "epoch 5/10"
    progress.feed(b"epoch 7/10\n")
    assert progress.summary(120.0) == "epoch 7/10 · about 30 s left"
    assert progress.summary(125.0) == "epoch 7/10 · about 25 s left"
    assert progress.summary(190.0) == "epoch 7/10"
    # A second training in the same job begins again.
    for fold, start in ((1, 200.0), (2, 300.0)):
        progress.feed(b"epoch 1/4\n")
        assert progress.summary(start) == "epoch 1/4", fold
        progress.feed(b"epoch 2/4\n")
        assert progress.summary(start + 10) == "epoch 2/4 · about 20 s left", fold


def test_epochs_that_an_attach_shows_at_once_are_soon_forgotten() -> None:
    progress = LogProgress()
    for epoch in range(1, 51):
        progress.feed(f"epoch {epoch}/100\n".encode())
        progress.summary(epoch / 100)
    for epoch in range(51, 56):
        progress.feed(f"epoch {epoch}/100\n".encode())
        shown = progress.summary(epoch * 60.0)
    assert shown == "epoch 55/100 · about 45 min 0 s left"


CARD = {"uuid": "GPU-1", "percent": 80, "memory_mib": 1024}


@pytest.mark.parametrize(
    ("figures", "summary"),
    [
        ({}, "epoch 4/20 · loss 0.312 · val_loss 0.4012 · val_accuracy 0.881"),
        # What is in history.csv comes before what stands in the log.
        ({"history": {"epoch": 3, "loss": 0.5}}, "epoch 4/20 · loss 0.5"),
        ({"gpus": [CARD]}, "epoch 4/20 · GPU 80 % 1.0 GiB · loss 0.312 · val_loss 0.4012 · val_accuracy 0.881"),
        (
            {"gpus": [CARD, {**CARD, "percent": 40}, {**CARD, "percent": None}], "history": {"f1": 1}},
            "epoch 4/20 · 3 GPUs 60 % 3.0 GiB · f1 1",
        ),
        ({"gpus": [{**CARD, "memory_mib": None}], "history": {"f1": 1}}, "epoch 4/20 · GPU 80 % · f1 1"),
        ({"gpus": [{"uuid": "GPU-1", "percent": None, "memory_mib": None}], "history": {"f1": 1}}, "epoch 4/20 · f1 1"),
        # A host may answer what it likes.
        ({"history": {"a\x1b[2J": 1, "\u05d0": 2, "b": "3", "c": True, "d" * 99: 0.25}}, "epoch 4/20 · " + "d" * 23 + "… 0.25"),
        ({"history": [1], "gpus": {"a": 1}}, "epoch 4/20 · loss 0.312 · val_loss 0.4012 · val_accuracy 0.881"),
        ({"history": {"loss": 1}, "gpus": [7, {"percent": "1"}, {"percent": 10**400}, {"memory_mib": 1e299}]}, "epoch 4/20 · loss 1"),
    ],
)  # fmt: skip
def test_figures_of_the_host(figures: dict[str, Any], summary: str) -> None:
    progress = LogProgress()
    progress.feed(OURS.encode())
    assert progress.summary(0.0, figures) == summary


def test_epoch_is_that_of_the_history_where_the_log_has_none() -> None:
    assert LogProgress().summary(0.0, {"history": {"epoch": 7.0, "loss": 1}}) == "epoch 7 · loss 1"


@pytest.mark.parametrize(
    ("log", "left"),
    [("epoch 3/12", " · about 8 min 20 s left"), ("epoch 1/12", ""), ("epoch 3", ""), ("epoch 13/12", "")],
)
def test_time_left_at_one_look_is_by_the_beginning_of_the_training(log: str, left: str) -> None:
    progress = LogProgress()
    progress.feed(log.encode() + b"\n")
    assert progress.summary(1100.0, began=1000.0) == log + left


@given(st.lists(st.binary(max_size=2000), max_size=4))
def test_no_log_breaks_it(parts: list[bytes]) -> None:
    progress = LogProgress()
    for part in parts:
        progress.feed(part)
    assert progress.summary(1.0).isprintable()


@pytest.mark.parametrize(
    "piece", ["epoch ", "9", "1/", "loss: ", "val_", "'epoch': ", "\x1b[", "\r", "loss=1e", "0.0"]
)
def test_hostile_logs_cost_little(piece: str) -> None:
    progress = LogProgress()
    progress.feed((piece * TAIL).encode())
    before = time.process_time()
    progress.summary(1.0)
    assert time.process_time() - before < 5
