"""`hosts`: the list in the caller's own settings file, and which of several hosts a job goes to."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import json_output
import pytest
from answering_host import AnsweringHost

from train_classifier.cli.app import run
from train_classifier.cli.hosts import choose, hosts
from train_classifier.core.errors import ExitCode, NotReady, TrainClassifierError
from train_classifier.request import settings_file

#: Names that need no name service.
FIRST, SECOND = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("INVENTORY", "HOST"):
        monkeypatch.delenv(f"TRAIN_CLASSIFIER_{name}", raising=False)
    return tmp_path / "train-classifier" / "config.toml"


def test_list_grows_and_shrinks_and_the_rest_stays(own_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own_file.parent.mkdir()
    earlier = "# mine\n[defaults]\ngpus = 0  # cpu\n\n[models.m]\nenvironment = { A = 'b' }\n"
    own_file.write_text(earlier)
    own_file.chmod(0o640)
    for name in (FIRST, SECOND, FIRST):
        capfd.readouterr()
        words = ["hosts", "add", name, "--unchecked", "--json"]
        assert run(words) == 0
        out = capfd.readouterr().out
        assert json.loads(out)["ready"] is None
        json_output.check(words, out)
    assert own_file.read_text() == f'hosts = ["{FIRST}", "{SECOND}"]\n\n{earlier}'
    assert settings_file.load_own(own_file).hosts == (FIRST, SECOND)
    assert stat.S_IMODE(own_file.stat().st_mode) == 0o640
    capfd.readouterr()
    assert run(["hosts", "list", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == [FIRST, SECOND] and not err
    json_output.check(["hosts", "list", "--json"], out)
    for name in (FIRST, SECOND):
        assert run(["hosts", "remove", name]) == 0
    assert own_file.read_text() == earlier
    capfd.readouterr()
    assert run(["hosts", "list"]) == 0
    out, err = capfd.readouterr()
    assert not out and "hosts add HOST" in err
    assert run(["hosts", "remove", FIRST]) == 2
    assert list(own_file.parent.iterdir()) == [own_file]


def test_every_command_uses_them(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [host.name for host in hosts(None, None)] == ["localhost"]
    for name in (FIRST, SECOND):
        assert run(["hosts", "add", name, "--unchecked"]) == 0
    assert stat.S_IMODE(own_file.stat().st_mode) == 0o600
    assert [host.name for host in hosts(None, None)] == [FIRST, SECOND]
    assert [host.name for host in hosts(None, SECOND)] == [SECOND]
    # Another one that ssh knows, this machine, and an inventory win.
    assert [host.name for host in hosts(None, "127.0.0.3")] == ["127.0.0.3"]
    assert [host.name for host in hosts(None, "localhost")] == ["localhost"]
    monkeypatch.setenv("TRAIN_CLASSIFIER_INVENTORY", "127.0.0.4,")
    assert [host.name for host in hosts(None, None)] == ["127.0.0.4"]


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=x", "me@gpu-1", "a,b", "no such", "nowhere.invalid", "localhost", "*"]
)
def test_what_is_no_host_is_refused(own_file: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["hosts", "add", "--unchecked", "--", name]) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err and ("~/.ssh/config" in err) == ("@" in name)
    assert not own_file.exists()


def test_host_that_is_not_ready_is_not_added(own_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Nothing of ours listens on the first port.
    assert run(["hosts", "add", "127.255.255.254", "--json"]) == 3
    out, err = capfd.readouterr()
    json_output.check(["hosts", "add", "--json"], out)
    assert "was not added" in err and not json.loads(out)["ready"]
    assert not own_file.exists()


def test_repository_names_no_hosts(tmp_path: Path) -> None:
    (tmp_path / "train-classifier.toml").write_text('hosts = ["elsewhere"]\n')
    with pytest.raises(Exception, match="a repository names no hosts"):
        settings_file.load(tmp_path)


def host(name: str, busy: list[bool], queued: int | None = 0, ready: bool = True) -> AnsweringHost:
    checks = [] if ready else [{"status": "fail", "message": "the disk is full", "hint": None}]
    gpus = [{"busy_by": "a job" if each else None, "memory_free_mib": 8000} for each in busy]
    return AnsweringHost(name, {"ready": ready, "gpus": gpus, "queued": queued, "checks": checks})


def test_free_gpu_wins_then_the_shortest_queue_then_the_first() -> None:
    dead = AnsweringHost("dead", NotReady("dead does not answer"))
    full, busy, waited_for = (
        host("full", [False], ready=False),
        host("busy", [True, True], 3),
        host("w", [False], 1),
    )
    free = host("free", [True, False])
    chosen, reason, failures = choose([dead, full, busy, waited_for, free], 1, None)
    assert (chosen.name, reason) == ("free", "1 of its GPUs is free")
    assert [str(failure) for failure in failures] == ["dead does not answer", "full: the disk is full"]
    # A free card that a waiting job gets is not free.
    assert choose([busy, waited_for], "auto", None)[0].name == "w"
    assert choose([busy, free], 2, None)[0].name == "free"
    # Nor is one with less memory than was asked for.
    assert choose([free], 1, 8000)[1] == "1 of its GPUs is free"
    assert "the fewest jobs wait there" in choose([free], 1, 9000)[1]
    assert "the fewest jobs wait there: 0" in choose([busy, free], 2, None)[1]
    assert choose([host("cpu", [], None), busy], 0, None)[0].name == "cpu"
    assert choose([host("cluster", [], None)], 1, None)[1] == "the first that is ready"
    with pytest.raises(
        TrainClassifierError, match=r"None of the 2 .*: dead does not answer full: the disk"
    ) as caught:
        choose([dead, full], 1, None)
    assert caught.value.code == ExitCode.NOT_READY
