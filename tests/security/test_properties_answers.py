"""Whatever a host answers, every command ends with a sentence: no bug, no control characters, and JSON with --json."""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from train_classifier.cli import app
from train_classifier.cli.inside import tensorboard
from train_classifier.cli.runs.training_run import TrainingRun
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import ExitCode, NotReady

JOB = "20260101-000000-00000001"
ESCAPE = "\x1b[2J"
RESULT = {
    "outcome": "trained", "exit_code": 0, "reason": None, "metrics": {"acc": 0.5}, "seconds": {"training": 3.5},
    "archive": {"bytes": 10, "sha256": "x"}, "gpus": [{"name": "H"}], "image": {"digest": "d"}, "model": "m",
    "started": 1, "finished": 2,
}  # fmt: skip
SPEC = {
    "schema": 2, "id": JOB, "model": "m", "arguments": ["--x", "1"],
    "repository": {"name": "r", "key": "0" * 16, "commit": "a" * 40, "dirty": False},
}  # fmt: skip
STATUS = {
    "state": "finished",
    "model": "m",
    "times": {"training": [1, 2]},
    "version": 3,
    "notes": [ESCAPE],
    "submitted": 1,
}
ENTRY = {"id": JOB, "model": "m", "state": "running", "metrics": {"a": 1}, "arguments": ["x"], "started": 1}
#: What is in the answer to any question.
ANSWER: dict[str, Any] = {
    "id": JOB, "status": STATUS, "result": RESULT, "spec": SPEC, "runs": [{**ENTRY, "outcome": "trained", "finished": 2}],
    "files": "", "gone": [], "has_files": True, "removed": {"jobs": 1, "bytes": 3}, "kept_bytes": 3, "page": "",
    "checks": [{"name": "a", "status": "ok", "message": "m", "hint": None}], "gpus": [{"index": 0, "name": "x"}],
    "cards": [{"index": 0, "name": "x"}], "queue": [{"job": JOB}], "ready": True, "host": {"name": "h"},
    "engine": {"version": "1"}, "state": "finished", "log_size": 0, "data": "", "missing": {}, "left_out": [],
}  # fmt: skip
#: One file of an archive, and an event file, with the content "x".
FILE = [
    {"file": "artefacts/tfevents", "offset": 0, "bytes": 1},
    {"data": "eJyrAAAAeQB5"},
    {"sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"},
]
ODD: list[Any] = [
    None, True, 0, -1, 1e300, float("nan"), float("inf"), "x", "\ud800", ESCAPE, "..", "9" * 50, [], {}, [[1]],
    {"id": []}, [None],
]  # fmt: skip
COMMANDS = [
    "list", "list --all --json", "list --all-users", "status", f"status {JOB} --json", "logs last", "report last",
    "report last --json", "report last -o r.html", "attach last", "fetch last", f"fetch {JOB} artefacts",
    f"fetch {JOB} artefacts --json", "cancel last", "cancel last --json", "rerun last", f"rerun {JOB} --repo /none",
    "history m", "history m --json", f"compare {JOB} {JOB[:-1]}2", f"compare {JOB} {JOB[:-1]}2 --json",
    f"compare {JOB} {JOB[:-1]}2 --html c.html", "clean --dry-run", "clean --dry-run --json", "top", "doctor",
    "doctor --json", "board last --port 1",
]  # fmt: skip


def changed(chance: random.Random, value: Any) -> Any:
    """The value with odd ones in it, and without some of its keys."""
    if isinstance(value, dict):
        value = {key: changed(chance, each) for key, each in value.items()}
        if value and chance.random() < 0.3:
            key = chance.choice(list(value))
            value.pop(key) if chance.random() < 0.3 else value.update({key: chance.choice(ODD)})
        return value
    if isinstance(value, list):
        return [changed(chance, each) for each in value] + [chance.choice(ODD)] * (chance.random() < 0.05)
    return chance.choice(ODD) if chance.random() < 0.03 else value


class OddHost(RemoteHost):
    """A host that answers every question with much of what a worker says, and odd values among it."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__("odd")
        self.chance = chance

    def _answers(self, data: bytes) -> Iterator[bytes]:
        request = json.loads(data)
        # The job's id as it was asked for, so that two names are two jobs.
        answer = {**ANSWER, "id": request.get("id") if str(request.get("id")).startswith("2026") else JOB}
        if request["verb"] == "list":
            answer["jobs"] = [ENTRY]
        elif self.chance.random() < 0.1:
            answer["jobs"] = [{**answer, "id": f"{JOB[:-2]}0{number}"} for number in (1, 2)]
        if request["verb"] == "events":
            answer |= {"files": 1, "left_out": 0}
        for each in [*FILE * (request["verb"] in ("files", "events")), answer]:
            is_odd = self.chance.random() < 0.7
            yield json.dumps(changed(self.chance, each) if is_odd else each).encode()

    def _run(self, argv: list[str], data: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        return 0, list(self._answers(data))[-1] if data else b"", b""

    def _lines(
        self, argv: list[str], data: bytes, answer_timeout: float
    ) -> Generator[bytes, None, tuple[int, bytes]]:
        yield from self._answers(data)
        return 0, b""

    def _rsync(self, *_: Any, **__: Any) -> None:
        raise NotReady("there is no rsync")


@pytest.fixture(params=[30, pytest.param(500, marks=pytest.mark.full)])
def many(request: pytest.FixtureRequest) -> int:
    """How many answers each command gets."""
    return int(request.param)


def test_no_answer_of_a_host_is_a_bug(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAIN_CLASSIFIER_PATIENCE", "0.1s")
    monkeypatch.setattr("train_classifier.cli.hosts.find_inventory", lambda *_: (None, None))
    monkeypatch.setattr(tensorboard, "_program", lambda: ["false"])
    # What comes next asks Ansible.
    monkeypatch.setattr(TrainingRun, "run", lambda *_: ExitCode.NOT_READY)
    bugs = []
    for command in COMMANDS:
        for seed in range(many):
            host = OddHost(random.Random(f"{seed} {command}"))
            monkeypatch.setattr("train_classifier.cli.hosts.hosts", lambda *_, host=host: [host])
            code = app.run(command.split())
            out, err = capfd.readouterr()
            try:
                assert code != ExitCode.BUG and ESCAPE not in out + err
                if "--json" in command:
                    json.loads(out, parse_constant=pytest.fail)
            except (AssertionError, ValueError) as problem:
                bugs.append((command, seed, err[-300:], problem))
    assert bugs == []
