"""Edges of the worker: what refusals mean, who gets no GPU, what a door of rsync takes, which launcher is fit."""

import os
from pathlib import Path

import pytest
from docker.types import DeviceRequest

from train_classifier.core.errors import BadInput, NoGpu, NotReady
from train_classifier.worker.containers import helper
from train_classifier.worker.system import host_faults, launcher, program
from train_classifier.worker.training import container
from train_classifier.worker.transfer import rsync


class Refusal:
    """What the SDK raises, as far as `explain` looks."""

    def __init__(self, explanation: str) -> None:
        self.explanation = explanation


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            'invalid mount config for type "bind": bind source path does not exist: /srv/nvidia-faces',
            NotReady,
        ),
        ("Conflict: accidental", NotReady),
        ('could not select device driver "" with capabilities: [[gpu]]', NoGpu),
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", NoGpu),
        ("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7", NoGpu),
    ],
)
def test_what_the_engine_means(said: str, kind: type[Exception]) -> None:
    assert type(container.explain(Refusal(said))) is kind


def test_who_gets_no_gpu() -> None:
    void = {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert helper.no_gpus({}) == void
    by_cdi = DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=0"])
    assert helper.no_gpus({"device_requests": [by_cdi]}) == void
    by_runtime = DeviceRequest(device_ids=["GPU-1"], capabilities=[["gpu"]])
    assert helper.no_gpus({"device_requests": [by_runtime]}) == {}


@pytest.mark.parametrize(
    "option", ["--log-file=/x", "--files-from=/etc/x", "--link-dest=/etc", "--temp-dir=/", "-o /x"]
)
def test_a_door_refuses_options_that_reach_further(option: str) -> None:
    with pytest.raises(BadInput, match="not allowed: "):
        rsync._checked_options(["--server", option, "-lptS", ".", "."], sending=False)


def test_a_door_drops_every_path() -> None:
    words = ["--server", "--sender", "-re.iLsfxCIvu", "--timeout=120", ".", "/etc/passwd", "../../x", "y"]
    assert rsync._checked_options(words, sending=True) == [
        "--server", "--sender", "-re.iLsfxCIvu", "--timeout=120", ".",
    ]  # fmt: skip


def test_a_users_systemd_without_our_groups_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launcher._manager_has_current_groups(tmp_path)
    manager = tmp_path / "proc" / "77"
    manager.mkdir(parents=True)
    (manager / "comm").write_text("systemd\n")
    ours = " ".join(str(group) for group in os.getgroups())
    (manager / "status").write_text(f"Name:\tsystemd\nGroups:\t{ours} 4711 \n")
    assert launcher._manager_has_current_groups(tmp_path)
    # Added to docker since then.
    now = [*os.getgroups(), 4712]
    monkeypatch.setattr(os, "getgroups", lambda: now)
    assert not launcher._manager_has_current_groups(tmp_path)


def test_a_unit_learns_where_the_engine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
    monkeypatch.delenv("TRAIN_CLASSIFIER_HOST_JSON", raising=False)
    assert launcher._passed_variables() == {"DOCKER_HOST": "unix:///run/user/1000/docker.sock"}


def test_faults_of_the_host_are_no_bugs() -> None:
    import docker.errors
    import requests.exceptions

    full = host_faults.of_host(OSError(28, "No space left on device"))
    away = host_faults.of_host(requests.exceptions.ChunkedEncodingError("Connection broken"))
    refused = host_faults.of_host(
        docker.errors.APIError("x", explanation="write /var/lib/docker: no space left on device")
    )
    assert full is not None and "No space left" in full.reason
    assert away is not None and "engine went away" in away.reason
    assert refused is not None and "disk" in refused.reason
    assert (
        host_faults.of_host(FileNotFoundError(2, "No such file")) is None
        and host_faults.of_host(ValueError()) is None
    )


def test_the_program_is_opened_while_another_process_writes_its_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python writes `submit.cpython-311.pyc.<number>` and renames it: what was listed may be gone."""
    (tmp_path / "__main__.py").touch(0o600)
    (tmp_path / "__pycache__").mkdir(0o700)
    (tmp_path / "__pycache__" / "later.pyc").touch(0o600)
    walk = os.walk

    def as_seen_before_the_rename(top: Path) -> list[tuple[str, list[str], list[str]]]:
        return [(folder, folders, ["gone.pyc.1399", *names]) for folder, folders, names in walk(top)]

    monkeypatch.setattr(program, "PROGRAM", tmp_path)
    monkeypatch.setattr(program.os, "walk", as_seen_before_the_rename)
    program.open_to_all()
    monkeypatch.undo()
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")} == {
        "__main__.py": 0o644, "__pycache__": 0o755, "later.pyc": 0o644,
    }  # fmt: skip
