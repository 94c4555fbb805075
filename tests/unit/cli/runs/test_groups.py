"""Commands that name a group of jobs, on a host of this machine whose jobs are written by hand."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train_classifier.cli.console import Console
from train_classifier.cli.runs.group_display import GroupDisplay, GroupJob
from train_classifier.core.errors import ExitCode
from train_classifier.core.job import SCHEMA, JobSpec, Repository

GROUP = "20260101-000000-012345"
JOBS = [f"{GROUP}{number:02d}" for number in (1, 2, 3)]
ALONE = "20251231-000000-00000001"


def make_job(state_dir: Path, job: str, code: int = 0, group: str | None = GROUP, **status: Any) -> None:
    """Write the folder of a finished job as the worker does, with an archive unless it failed."""
    folder = state_dir / "jobs" / job
    folder.mkdir(parents=True)
    sweep = {"seed": str(int(job[-2:]))} if group else {}
    spec = JobSpec(id=job, model="mnist", repository=Repository("r", "0" * 16), group=group, sweep=sweep)
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    times = {"times": {}, "updated": 0.0, "state": "finished", **status}
    (folder / "status.json").write_text(
        json.dumps({"schema": SCHEMA, "id": job, "model": "mnist", "version": 1, **times})
    )
    (folder / "log.txt").write_text(f"first of {job[-2:]}\nlast of {job[-2:]}")
    if times["state"] != "finished":
        return
    result: dict[str, Any] = {
        "outcome": "failed" if code else "trained", "exit_code": code, "archive": None, "gpus": [],
        "reason": f"job {job} failed" if code else None, "metrics": {"accuracy": 0.5}, "seconds": {"training": 2.0},
    }  # fmt: skip
    if not code:
        archive = folder / "artefacts.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder / "log.txt", "log.txt")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        result["archive"] = {"bytes": archive.stat().st_size, "sha256": digest}
    (folder / "result.json").write_text(json.dumps({**result, "finished": 1.0}))


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, which archives go to."""
    monkeypatch.delenv("TRAIN_CLASSIFIER_OUTPUT", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A group of which the second job has failed, and an older job; returns the host's state folder."""
    state_dir = tmp_path / "one"
    make_job(state_dir, ALONE, group=None)
    for number, job in enumerate(JOBS):
        make_job(state_dir, job, 4 if number == 1 else 0)
    return state_dir


def test_a_group_is_named_by_its_id_a_beginning_or_last(group: Path, command: Any) -> None:
    for name in (GROUP, GROUP[:-1], "2026", "last"):
        code, out, err = command("status", name, "--json")
        assert code == 0, err
        answer = json.loads(out)
        assert (answer["id"], [job["id"] for job in answer["jobs"]]) == (GROUP, JOBS)
    assert json.loads(command("status", JOBS[1], "--json")[1])["result"]["exit_code"] == 4
    assert json.loads(command("status", ALONE[:6], "--json")[1])["id"] == ALONE
    # The beginning of a group's jobs is longer than the group's id.
    assert "ambiguous" in command("status", GROUP + "0")[2]
    assert "ambiguous" in command("status", "20")[2]
    make_job(group, "20260102-000000-00000001", group=None)
    assert json.loads(command("status", "--json")[1])["id"] == "20260102-000000-00000001"


def test_status_and_list_show_a_group(group: Path, command: Any) -> None:
    code, out, _ = command("status", GROUP)
    assert code == 0 and out.splitlines()[0] == f"group  {GROUP}"
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["1", "seed=1", "trained", "2.0", "s", "0.5"],
        ["2", "seed=2", "failed", "2.0", "s", "0.5"],
        ["3", "seed=3", "trained", "2.0", "s", "0.5"],
    ]
    listed = json.loads(command("list", "--json")[1])
    assert [(job["group"], job["sweep"]) for job in listed] == [
        (None, {}), (GROUP, {"seed": "1"}), (GROUP, {"seed": "2"}), (GROUP, {"seed": "3"}),
    ]  # fmt: skip
    assert f"group {GROUP}: 3 jobs" in command("list")[2]


def test_fetch_brings_every_archive(group: Path, command: Any, tmp_path: Path) -> None:
    code, out, err = command("fetch", GROUP, "--json")
    # The second left none.
    assert code == ExitCode.BAD_INPUT and "left no archive" in err
    assert [bool(job["artefacts"]) for job in json.loads(out)["jobs"]] == [True, False, True]
    assert names() == [f"artefacts-{job}.tar.gz" for job in (JOBS[0], JOBS[2])]
    command("fetch", "last", "-o", "sub/results.tgz")
    assert names("sub") == [f"results-{job}.tgz" for job in (JOBS[0], JOBS[2])]
    # One job of a group is a job as any other.
    assert command("fetch", JOBS[2])[0] == 0 and Path("artefacts.tar.gz").exists()


def test_attach_follows_all_and_returns_the_first_failure(group: Path, command: Any) -> None:
    code, out, err = command("attach", GROUP)
    assert code == ExitCode.FAILED
    assert sorted(out.splitlines()) == [
        f"{number} | {word} of 0{number}" for number in (1, 2, 3) for word in ("first", "last")
    ]
    assert (
        f"group {GROUP} on one: 3 jobs" in err
        and f"job {JOBS[1]} failed" in err
        and "\njob 2 (train-classifier logs " in err
    )
    assert len(names()) == 2
    answer = json.loads(command("attach", GROUP, "--json")[1])
    assert (answer["outcome"], [job["exit_code"] for job in answer["jobs"]]) == ("failed", [0, 4, 0])
    assert answer["jobs"][0]["artefacts"]["bytes"] > 0 and answer["jobs"][2]["sweep"] == {"seed": "3"}


def test_a_job_that_is_gone_does_not_stop_the_others(
    group: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from train_classifier.controller import groups

    follow: Callable[..., Any] = groups.follow

    def follow_less(*words: Any) -> Any:
        shutil.rmtree(group / "jobs" / JOBS[0])
        return follow(*words)

    monkeypatch.setattr(groups, "follow", follow_less)
    code, out, err = command("attach", GROUP)
    assert code == ExitCode.BAD_INPUT and f"no job '{JOBS[0]}'" in err
    assert "3 | last of 03" in out and names() == [f"artefacts-{JOBS[2]}.tar.gz"]


def test_damaged_specification_hides_no_other_job_of_the_group(group: Path, command: Any) -> None:
    """In a folder of the last release another account could write it."""
    for text in ("[]", '{"group": ["x"]}', "", '"x"'):
        (group / "jobs" / JOBS[0] / "spec.json").write_text(text)
        for name in (GROUP, "last"):
            code, out, err = command("status", name, "--json")
            assert code == 0, err
            assert [job["id"] for job in json.loads(out)["jobs"]] == JOBS[1:]
    shown = json.loads(command("list", "--json")[1])
    assert [job["group"] for job in shown] == [None, None, GROUP, GROUP]
    for job in JOBS[1:]:
        (group / "jobs" / job / "spec.json").write_text("[]")
    assert "ambiguous" in command("status", GROUP)[2]


def test_job_that_cannot_be_read_is_named_by_every_command(group: Path, command: Any) -> None:
    """Silence about it would read as: nothing is missing, and all are stopped."""
    make_job(group, f"{GROUP}04", state="pushed")
    (group / "jobs" / JOBS[1] / "status.json").write_text('{"schema": 2, "version": 1, "state": "?"}')
    code, out, err = command("status", GROUP)
    assert code == 0 and "jobs   3" in out and f"job {JOBS[1]} cannot be read" in err
    code, out, err = command("status", GROUP, "--json")
    assert [one["id"] for one in json.loads(out)["failures"]] == [JOBS[1]]
    code, out, err = command("fetch", GROUP, "--json")
    assert [one["id"] for one in json.loads(out)["jobs"] if one["error"]] == [f"{GROUP}04", JOBS[1]]
    code, out, err = command("cancel", GROUP)
    assert code == ExitCode.NOT_READY and f"job {JOBS[1]} may run on" in err and not out
    assert not (group / "jobs" / f"{GROUP}04").exists()
    code, out, err = command("attach", GROUP)
    assert code == ExitCode.NOT_READY and "status.json is damaged" in err and "3 | last of 03" in out


def test_logs_takes_one_job(group: Path, command: Any) -> None:
    for name in (GROUP, "last"):
        code, out, err = command("logs", name)
        assert (code, out) == (ExitCode.BAD_INPUT, "")
        assert f"{GROUP} is a group of 3 jobs" in err and f"{JOBS[0]} to {JOBS[2]}" in err
    assert command("logs", JOBS[1])[1] == "first of 02\nlast of 02"


def test_cancel_reaches_every_job_that_has_not_ended(group: Path, command: Any, tmp_path: Path) -> None:
    make_job(group, f"{GROUP}04", state="pushed")
    code, out, err = command("cancel", GROUP, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["id"], [job["state"] for job in answer["jobs"]]) == (GROUP, ["finished"] * 3 + ["removed"])
    assert not (group / "jobs" / f"{GROUP}04").exists()
    assert "had ended already" in command("cancel", "last")[2]


def test_lines_of_one_job_cannot_look_like_those_of_another(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [GroupJob(job, "mnist", {"seed": "\x1b[2J"}, "one") for job in JOBS]
    display = GroupDisplay(GROUP, jobs, Console())
    display.introduce("one")
    for data in (
        b"1\r2\x1b[1A | w\x9bon\n",
        b" 5%\r10%\r",
        b"99%\r\n",
        b"gr",
        "ö".encode()[:1],
        "ö".encode()[1:],
    ):
        display.job_log(JOBS[0], data)
    display.job_log(JOBS[2], b"x" * 70_000)
    display.job_event(JOBS[0], "ended")
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[:2] == ["1 | 2 | w\N{REPLACEMENT CHARACTER}on", "1 | 99%"] and lines[3] == "1 | grö"
    assert lines[2] == "3 | " + "x" * 70_000 and "\x1b" not in out + err


def test_every_command_prints_its_published_form(group: Path, command: Any) -> None:
    """Of the commands that ask a host, on the real worker; `command` compares each with its schema."""
    for words in (
        ("list", "--all-users"), ("status", ALONE), ("status", GROUP), ("fetch", JOBS[0]), ("attach", JOBS[0]), ("cancel", ALONE),
        ("history", "mnist"), ("compare", *JOBS[:2]), ("clean", "--older", "1d", "--dry-run"), ("report", JOBS[1]),
    ):  # fmt: skip
        code, out, err = command(*words, "--json")
        assert code == 0 and out, (words, err)
    # No host has so many cards; so no container is started to look at one.
    code, out, _ = command("doctor", "--gpus", "64", "--json")
    assert code in (ExitCode.NOT_READY, ExitCode.NO_GPU) and json.loads(out)["hosts"][0]["checks"]
