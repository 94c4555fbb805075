"""`top`: cards of several hosts, whatever they answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answering_host import AnsweringHost

from train_classifier.cli.console import Console
from train_classifier.cli.runs import card_display
from train_classifier.core.errors import ExitCode, NotReady

JOB = {"id": "20260101-000000-00000000", "model": "mnist", "user": "ada", "gpus": 1, "since": 0}


def card(index: int, **fields: Any) -> dict[str, Any]:
    known = {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA L4",
        "memory_total_mib": 23034,
        "job": None,
    }
    return {**known, **fields}


def test_cards_jobs_and_queue(capfd: pytest.CaptureFixture[str]) -> None:
    readings = {"use_percent": 97.0, "memory_used_mib": 2048.0, "temperature_c": 61.0, "power_w": 70.4}
    cards = [card(0, job=JOB, **readings), card(1), card(2, others="pid 7 (python) of bob")]
    hosts = [
        AnsweringHost("gpu-1", {"cards": cards, "queue": [JOB] * 12, "problem": None}),
        AnsweringHost("cpu", {"cards": [], "queue": [], "problem": "there is no nvidia-smi on this host"}),
        AnsweringHost("gone", NotReady("no route")),
    ]
    assert card_display.show(hosts, Console()) == ExitCode.NOT_READY
    shown = capfd.readouterr()
    first = next(line for line in shown.out.splitlines() if JOB["id"] in line)
    assert all(part in first for part in ("0 L4", "97%", "2.0 of 22 GiB", "61 °C", "70 W", "mnist", "ada"))
    assert "free" in shown.out and "pid 7 (python) of bob" in shown.out
    assert "12 wait for a GPU" in shown.out and "… and 2 more" in shown.out
    assert "cpu: there is no nvidia-smi" in shown.out and "no route" in shown.err
    assert card_display.show(hosts[:2], Console(json_mode=True)) == 0
    assert [each["host"] for each in json.loads(capfd.readouterr().out)] == ["gpu-1", "cpu"]


@pytest.mark.parametrize("odd", [None, 7, "x", [7], {"cards": 7}, "\x1b[31m"])
def test_what_a_host_says_breaks_nothing(odd: Any, capfd: pytest.CaptureFixture[str]) -> None:
    cards = [
        odd,
        card(0, name=odd, job=odd, use_percent=odd, power_w=odd),
        card(1, job={"id": odd, "since": odd}),
    ]
    answers: list[dict[str, Any]] = [{"cards": odd, "queue": odd}, {"cards": cards, "queue": [odd]}]
    for answer in answers:
        assert card_display.show([AnsweringHost("odd", answer)], Console()) == 0
    assert "\x1b" not in capfd.readouterr().out
