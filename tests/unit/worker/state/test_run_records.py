"""Runs that are kept after their jobs are cleaned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from train_classifier.worker.state import run_records
from train_classifier.worker.state.store import Store


def entry(number: int, **fields: object) -> dict[str, object]:
    return {"id": f"20260101-000000-{number:08x}", "model": "m", "metrics": {"loss": number}, **fields}


def test_runs_are_kept_once_in_order_and_damage_hides_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert run_records.kept(store, "m") == []
    for number in (2, 1, 2):
        run_records.keep(store, entry(number))
    run_records.keep(store, entry(3, model="other"))
    with (tmp_path / "runs.jsonl").open("ab") as file:
        file.write(b'\xff\n[]\n{"id": 7, "model": "m"}\n{"id": "../x", "model": "m"}\n' + b'{"id": "2026')
    assert run_records.kept(store, "m") == [entry(1), entry(2)]


def test_long_run_loses_what_is_long(tmp_path: Path) -> None:
    run_records.keep(Store(tmp_path), entry(1, arguments=["x" * 99999], outcome="trained"))
    (run,) = run_records.kept(Store(tmp_path), "m")
    assert (run["outcome"], run["arguments"], run["metrics"]) == ("trained", [], None)


def test_older_half_of_a_full_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_records, "MOST_BYTES", 2000)
    for number in range(100):
        run_records.keep(Store(tmp_path), entry(number))
    status = os.stat(tmp_path / "runs.jsonl")
    assert status.st_size < 2200 and status.st_mode & 0o777 == 0o600
    runs = run_records.kept(Store(tmp_path), "m")
    assert runs[-1] == entry(99) and runs == [entry(number) for number in range(100 - len(runs), 100)]
    assert json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0]) == runs[0]
