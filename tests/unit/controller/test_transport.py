"""Connections to a host, with a real sshd: each failure of ssh has its own message, in bounded time."""

from __future__ import annotations

import base64
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback.line import Line
from loopback.sshd import Sshd, free_port

from train_classifier.controller import follow, processes, ssh_errors, transport
from train_classifier.controller.transport import RemoteHost, Unreachable
from train_classifier.controller.worker_bundle import bundle
from train_classifier.core.errors import BadInput, ExitCode, NotReady
from train_classifier.core.job import DataFolder, JobSpec, Repository
from train_classifier.core.options import ACTION, READER
from train_classifier.worker.system.host import Host

QUESTION = {"verb": "list", "all": True}


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    daemon = Sshd(tmp_path_factory.mktemp("sshd"))
    yield daemon
    daemon.stop()


def host(ssh: list[str], **options: str) -> RemoteHost:
    return RemoteHost("gpu1", ssh, **options)


def refused(ssh: list[str], **options: str) -> Unreachable:
    with pytest.raises(Unreachable) as caught:
        host(ssh, **options).call(QUESTION)
    assert caught.value.code == ExitCode.NOT_READY
    assert "gpu1" in caught.value.reason
    assert caught.value.hint
    return caught.value


def test_changed_host_key_is_refused_and_not_accepted(sshd: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sshd.keygen(other)
    known_hosts = tmp_path / "known_hosts"
    kind, key = other.with_suffix(".pub").read_text().split()[:2]
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    error = refused(sshd.ssh(known_hosts=known_hosts))
    assert "host key of gpu1 has changed" in error.reason
    assert error.final
    assert known_hosts.read_text() == f"[127.0.0.1]:{sshd.port} {kind} {key}\n"


def test_unknown_host_key_is_reported(sshd: Sshd, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    assert "host key of gpu1 is not known" in refused(sshd.ssh(known_hosts=known_hosts)).reason
    assert known_hosts.read_text() == ""


def test_key_with_a_passphrase_and_no_agent(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    locked = tmp_path / "locked"
    sshd.keygen(locked, "a long passphrase")
    error = refused(sshd.ssh(key=locked))
    assert "has a passphrase and no agent" in error.reason
    assert "ssh-add" in str(error.hint)


@pytest.mark.skipif(
    os.getuid() != 0, reason="ssh checks the mode of files of other accounts only as root does here"
)
def test_key_readable_by_others_is_reported(sshd: Sshd, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.write_text(sshd.key.read_text())
    loose.chmod(0o644)
    error = refused(sshd.ssh(key=loose))
    assert "others may read the file" in error.reason
    assert "chmod 600" in str(error.hint)


def test_permission_denied(sshd: Sshd, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    sshd.keygen(stranger)
    assert "permission denied" in refused(sshd.ssh(key=stranger)).reason


def test_port_refused(sshd: Sshd) -> None:
    assert "nothing listens on its ssh port" in refused(sshd.ssh(port=free_port())).reason


def test_unknown_name(sshd: Sshd) -> None:
    assert "name of gpu1 cannot be resolved" in refused(sshd.ssh(host="no-such-host.invalid")).reason


def test_a_remote_command_of_the_configuration_does_not_replace_ours(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("RemoteCommand tmux attach\nRequestTTY force\n")
    command = ["ssh", "-F", str(tmp_path / "config"), *sshd.ssh()[3:]]
    assert RemoteHost("gpu1", command).login_output() == ""


def test_a_login_shell_that_prints_is_found(sshd: Sshd, tmp_path: Path) -> None:
    noisy = tmp_path / "ssh"
    noisy.write_text('#!/bin/sh\necho Welcome; echo to gpu1\nexec ssh "$@"\n')
    noisy.chmod(0o755)
    host = RemoteHost("gpu1", [str(noisy), *sshd.ssh()[1:]], state_dir=str(tmp_path / "state"))
    assert host.login_output() == "Welcome\nto gpu1"
    # What a push says about it.
    (tmp_path / "file").touch()
    with pytest.raises(NotReady, match="prints text of its own") as caught:
        host.push(tmp_path, [b"file"], "20260101-000000-00000001")
    assert ".bashrc" in str(caught.value.hint)


@pytest.mark.parametrize("home", [None, "", "/nonexistent/home", "/proc", "relative"])
def test_home_of_the_environment_does_not_move_the_state(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controller and worker find the same folder: below XDG_STATE_HOME, else in the account's home."""
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)

    def folder() -> str:
        line = RemoteHost("here")._state().replace('"$U" = 0', '"$U" = -1') + '; printf %s "$S"'
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    account = pwd.getpwuid(os.geteuid())
    assert folder() == f"{account.pw_dir}/.local/state/train-classifier"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert folder() == f"{tmp_path}/train-classifier"
    if os.geteuid():
        assert str(Host().state_dir({})) == f"{tmp_path}/train-classifier"


def test_silent_port_is_bounded(sshd: Sshd) -> None:
    """The port accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = sshd.ssh(port=server.getsockname()[1])
        error = refused(["ssh", "-o", "ConnectTimeout=2", *command[1:]])
    assert "timed out" in error.reason


def test_half_open_connection_is_noticed(sshd: Sshd) -> None:
    """The connection dies while a command runs: ssh's keepalive ends it within a minute."""
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        ssh = transport._with_options(sshd.ssh(port=line.port))
        process = subprocess.Popen(
            [*ssh, "echo ready; sleep 600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        line.freeze()
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 255
        assert ssh_errors.explain("gpu1", ssh, stderr).kind == "cut"
        line.mend()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("ssh: connect to host a port 22: No route to host", "down"),
        ("ssh: connect to host a port 22: Network is unreachable", "down"),
        ("ssh: connect to host a port 22: Connection timed out", "timeout"),
        ("kex_exchange_identification: Connection closed by remote host", "cut"),
        ("client_loop: send disconnect: Broken pipe", "cut"),
        ("something never seen before", "cut"),
    ],
)
def test_messages_that_loopback_cannot_produce(message: str, kind: str) -> None:
    assert ssh_errors.explain("gpu1", ["ssh", "a"], message).kind == kind


def test_missing_python_is_reported(sshd: Sshd) -> None:
    with pytest.raises(NotReady) as caught:
        host(sshd.ssh(), python="/no/such/python3").call(QUESTION)
    assert "has no /no/such/python3" in caught.value.reason


def test_missing_ssh_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="not installed on this machine"):
        host([str(tmp_path / "ssh"), "gpu1"]).call(QUESTION)


def test_worker_is_installed_once_and_login_shell_output_is_ignored(sshd: Sshd, tmp_path: Path) -> None:
    from train_classifier.controller.worker_bundle import bundle

    state = tmp_path / "state of the host"
    over_ssh = host(sshd.ssh(), state_dir=str(state))
    assert over_ssh.call(QUESTION)["jobs"] == []
    installed = state / "workers" / bundle()[0]
    before = installed.stat().st_mtime_ns
    assert RemoteHost("localhost", state_dir=str(state)).call(QUESTION)["jobs"] == []
    assert installed.stat().st_mtime_ns == before
    assert [entry.name for entry in (state / "workers").iterdir()] == [installed.name]


def test_worker_names_inputs_when_the_action_asks(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages name options as the reader of the controller knows them, also over ssh."""
    folder = DataFolder("/usr/share", "d", from_checkout=True)
    spec = JobSpec("20250131-120000-0123abcd", "m", Repository("r", "0" * 16), data=(folder,))
    question = {
        "verb": "prepare",
        "spec": spec.to_dict(),
        "files": base64.b64encode(zlib.compress(b"")).decode(),
    }
    for connection in (None, sshd.ssh()):
        for reader, expected in (
            ("", "or give --data /usr/share:d"),
            (ACTION, "and give input data /usr/share:d"),
        ):
            monkeypatch.setenv(READER, reader)
            with pytest.raises(BadInput, match=expected):
                RemoteHost("gpu1", connection, state_dir=str(tmp_path / "state")).call(question)


def test_machine_without_sshd_skips_with_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install openssh-server"):
        Sshd(tmp_path / "sshd")
    assert not (tmp_path / "sshd").exists()


def test_answer_follows_other_output() -> None:
    assert transport._last_line(b'Welcome to gpu1!\r\n\n{"a": 1}\r\n') == b'{"a": 1}'


def test_missing_local_rsync_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_sh = tmp_path / "bin"
    only_sh.mkdir()
    (only_sh / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(only_sh))
    with pytest.raises(NotReady, match="rsync is not installed on this machine"):
        RemoteHost("here", state_dir=str(tmp_path)).push(tmp_path, [b"a"], "20260101-000000-00000000")


def test_push_and_pull_install_a_removed_worker(tmp_path: Path) -> None:
    here = RemoteHost("here", state_dir=str(tmp_path / "state"))
    # The worker's own answer, not that of a shell without one.
    for action in (
        lambda: here.pull("20260101-000000-00000000", tmp_path / "x"),
        lambda: here.push(tmp_path, [], "20260101-000000-00000000"),
    ):
        with pytest.raises(BadInput, match="no job"):
            action()
        shutil.rmtree(tmp_path / "state")


def host_with_worker(program: str, tmp_path: Path) -> RemoteHost:
    """This machine, whose worker is `program`, a shell script."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat >{tmp_path}/request\n{program}\n")
    python.chmod(0o755)
    here = RemoteHost("gpu1", None, python=str(python), state_dir=str(tmp_path / "state"))
    worker = tmp_path / "state/workers" / bundle()[0]
    worker.mkdir(parents=True)
    (worker / "__main__.py").touch()
    return here


def test_stream_yields_each_answer_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "go on"
    os.mkfifo(fifo)
    here = host_with_worker(
        f"""echo Welcome; printf '{{"n": '; sleep 0.2; echo '1}}'; read _ <'{fifo}'; echo '{{"n": 2}}'""",
        tmp_path,
    )
    answers = here.stream(QUESTION, answer_timeout=20)
    assert next(answers) == {"n": 1}
    fifo.write_text("\n")
    assert list(answers) == [{"n": 2}]


@pytest.mark.parametrize(
    ("program", "kind", "answered"),
    [
        ("sleep 60", "silent", 0),
        ("""echo '{"n": 1}'; sleep 60""", "silent", 1),
        ("echo nonsense; exit 3", "no-answer", 0),
        ("""echo '{"n": 1}'; printf '{"n": '""", "no-answer", 1),
    ],
    ids=["silent", "silent after an answer", "no answer", "cut in an answer"],
)
def test_stream_that_fails(tmp_path: Path, program: str, kind: str, answered: int) -> None:
    answers = []
    with pytest.raises(Unreachable) as caught:
        for answer in host_with_worker(program, tmp_path).stream(QUESTION, answer_timeout=1):
            answers.append(answer)
    assert (caught.value.kind, len(answers)) == (kind, answered)


def test_closed_stream_leaves_no_process(tmp_path: Path) -> None:
    answers = host_with_worker(
        f"""echo $$ >{tmp_path}/pid; echo '{{"n": 1}}'; exec sleep 60""", tmp_path
    ).stream(QUESTION, answer_timeout=20)
    next(answers)
    pid = int((tmp_path / "pid").read_text())
    answers.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()


def test_stream_raises_worker_error(tmp_path: Path) -> None:
    here = host_with_worker("""echo '{"error": {"code": 3, "reason": "no engine"}}'""", tmp_path)
    with pytest.raises(NotReady, match="no engine"):
        list(here.stream(QUESTION, answer_timeout=20))


def test_stream_waits_for_slow_reader(tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"""echo '{{"n": 1}}'; while [ ! -e '{go}' ]; do sleep 0.05; done; echo '{{"n": 2}}'"""
    answers = host_with_worker(script, tmp_path).stream(QUESTION, answer_timeout=2)
    assert next(answers) == {"n": 1}
    # Longer than the answer's timeout.
    time.sleep(2.4)
    go.touch()
    assert list(answers) == [{"n": 2}]


def test_stream_does_not_wait_for_open_standard_error(tmp_path: Path) -> None:
    here = host_with_worker(
        """echo '{"n": 1}'; sleep 600 >/dev/null & echo $! >PID""".replace("PID", str(tmp_path / "pid")),
        tmp_path,
    )
    assert list(here.stream(QUESTION, answer_timeout=120)) == [{"n": 1}]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def answering(folder: Path, printed: bytes) -> RemoteHost:
    """Return this machine with something in the worker's place that prints this, whatever it is asked."""
    worker = folder / "state" / "workers" / bundle()[0]
    worker.mkdir(parents=True)
    (worker / "__main__.py").touch()
    (folder / "printed").write_bytes(printed)
    program = folder / "program"
    program.write_text(f"#!/bin/sh\ncat >/dev/null\nexec cat '{folder / 'printed'}'\n")
    program.chmod(0o755)
    return RemoteHost("gpu1", state_dir=str(folder / "state"), python=str(program))


@pytest.mark.parametrize(
    "printed",
    [
        '{"status": [], "id": "1"}',
        '{"id": "../../x"}',
        '{"id": "\\u001b[2J"}',
        '{"jobs": [1]}',
        '{"jobs": {}}',
        '{"runs": [{"id": "a", "model": 3}]}',
        '{"result": {"seconds": {"training": "long"}}}',
        '{"result": {"archive": {"bytes": 1}}}',
        '{"result": {"exit_code": 1e999}}',
        '{"status": {"times": {"training": [1]}}}',
        '{"status": {"times": {"training": [1, 1e999]}}}',
        '{"result": {"finished": 1' + "0" * 400 + "}}",
        '{"spec": {"environment": ' + '{"a": ' * 200 + "1" + "}" * 201 + "}",
        '{"log_size": "8"}',
        '{"id": ".."}',
        '{"jobs": [{}]}',
        '{"file": 1}',
        '{"bytes": "1"}',
        '{"offset": 1e999}',
        '{"missing": {"a": [1]}}',
        '{"left_out": [{}]}',
        '{"gone": 1}',
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_answer_of_a_worker_is_refused_in_a_sentence(printed: str, tmp_path: Path) -> None:
    host = answering(tmp_path, printed.encode())
    with pytest.raises(NotReady, match="What gpu1 answered does not have the form"):
        host.call(QUESTION)
    with pytest.raises(NotReady, match="What gpu1 answered does not have the form"):
        list(host.stream(QUESTION, 60))


@pytest.mark.parametrize(
    "printed", [b"[" * 100_000, b'{"a": ' * 100_000, b"1", b"x"], ids=["list", "object", "number", "word"]
)
def test_what_is_no_object_is_no_answer(printed: bytes, tmp_path: Path) -> None:
    host = answering(tmp_path, printed)
    with pytest.raises(Unreachable, match="did not answer 'list'"):
        host.call(QUESTION)
    with pytest.raises(Unreachable, match="did not answer 'list'"):
        list(host.stream(QUESTION, 60))


def test_answer_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = answering(tmp_path, b"")
    (tmp_path / "printed").unlink()
    (tmp_path / "printed").symlink_to("/dev/zero")
    # The limit itself takes a second to reach.
    monkeypatch.setattr(processes, "MOST_BYTES", 1 << 20)
    with pytest.raises(NotReady, match="longer than any answer"):
        host.call(QUESTION)
    with pytest.raises(NotReady, match="longer than any answer"):
        list(host.stream(QUESTION, 60))


def test_names_and_values_of_a_model_have_any_type_and_versions_a_fraction(tmp_path: Path) -> None:
    answer = {
        "id": "20260101-000000-00000000", "status": {"version": 4.25}, "archive": "/x",
        "result": {"metrics": {"id": 1, "jobs": 2.5}, "archive": {"bytes": 1, "sha256": "0"}, "seconds": {"queue": 0.5}},
        "spec": {"environment": {"status": "1", "id": "/"}, "gpus": "auto"},
    }  # fmt: skip
    assert answering(tmp_path, json.dumps(answer).encode()).call(QUESTION) == answer


def test_what_is_no_number_of_json_becomes_null(tmp_path: Path) -> None:
    host = answering(tmp_path, b'{"result": {"metrics": {"loss": NaN, "gain": -Infinity}}}')
    assert host.call(QUESTION)["result"]["metrics"] == {"loss": None, "gain": None}


def test_failure_of_any_form_is_a_failure(tmp_path: Path) -> None:
    answer = {"error": {"code": 2, "hint": {"a": 1}, "detail": [1], "reason": 5, "problems": [3, "\x1b[2J"]}}
    with pytest.raises(BadInput, match="3; "):
        answering(tmp_path, json.dumps(answer).encode()).call(QUESTION)


def test_log_that_unpacks_without_end_is_cut_and_a_damaged_one_refused() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(64 << 20))).decode()
    assert len(follow.log_bytes({"data": bomb})) == follow.CHUNK
    for data in ("x", "eHh4"):
        with pytest.raises(NotReady, match="came damaged"):
            follow.log_bytes({"id": "1", "data": data})
