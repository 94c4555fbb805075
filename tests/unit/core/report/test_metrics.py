"""Metrics that a model wrote: how many are taken, and how long the records of many jobs become."""

from __future__ import annotations

import json

from train_classifier.core.report import metrics


def test_names_of_all_metrics_are_bounded_together() -> None:
    # As JSON each letter has twelve bytes.
    written = {f"{chr(0x1D400) * 190}{number}": number for number in range(1000)}
    chosen, problem = metrics.read(json.dumps(written, ensure_ascii=False).encode())
    assert chosen is not None and problem is not None and "too long together" in problem
    assert metrics.MOST_NAMES * 0.9 < sum(len(json.dumps(name)) for name in chosen) <= metrics.MOST_NAMES
    assert list(chosen) == list(written)[: len(chosen)]
    many, problem = metrics.read(json.dumps({f"metric_{number}": 0.5 for number in range(1001)}).encode())
    assert many is not None and len(many) == metrics.MOST and problem is not None


def test_first_metrics_of_an_entry() -> None:
    named = {f"m{number}": number / 3 for number in range(1000)}
    chosen = metrics.first(named, 1000)
    assert chosen is not None and 10 < len(chosen) < 100 and len(json.dumps(chosen)) <= 1000
    assert list(chosen.items()) == list(named.items())[: len(chosen)]
    assert metrics.first({"a": 1}, 1000) == {"a": 1} and metrics.first(None, 1000) is None
