"""The runner role's parts that need no host: documented options, GPU labels, ownership of `_work`."""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ROLE = ROOT / "roles/github_runner"


def load(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("entry", ["main", "uninstall", "sweep"])
def test_documented_defaults_equal_real_ones(entry: str) -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    documented = {name: option["default"] for name, option in specs[entry]["options"].items()}
    assert documented == defaults


HEADER = "| NVIDIA-SMI 550.163.01   Driver Version: 550.163.01   CUDA Version: 12.4 |"


@pytest.mark.parametrize(
    ("query", "header", "labels"),
    [
        ("", "", []),
        (
            "NVIDIA GeForce RTX 3090, 24576, 550.163.01\nNVIDIA GeForce RTX 3090, 24576, 550.163.01\n",
            HEADER,
            ["gpu", "gpu-rtx-3090", "vram-24g", "driver-550", "cuda-12.4"],
        ),
        ("NVIDIA GeForce GTX 970, 4041, 535.1", "", ["gpu", "gpu-gtx-970", "vram-4g", "driver-535"]),
        ("NVIDIA A100-SXM4-80GB, [N/A], [N/A]", HEADER, ["gpu", "gpu-a100-sxm4-80gb", "cuda-12.4"]),
        ("[N/A], 1, 2", HEADER, []),
        ("no, such answer, at, all", HEADER, []),
    ],
)
def test_labels_come_from_nvidia_smi(query: str, header: str, labels: list[str]) -> None:
    module = load("github_runner_gpu_labels", ROOT / "plugins/modules/github_runner_gpu_labels.py")
    assert module.from_answers(query, header) == labels


@pytest.fixture
def prepare() -> ModuleType:
    return load("prepare", ROLE / "files/prepare.py")


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
def test_owner_is_repaired_inside_work_only(prepare: ModuleType, tmp_path: Path) -> None:
    work, outside = tmp_path / "_work", tmp_path / "outside"
    (work / "deep").mkdir(parents=True)
    (work / "deep/file").write_text("x")
    outside.mkdir()
    (outside / "precious").write_text("x")
    (work / "to-folder").symlink_to(outside)
    (work / "dangling").symlink_to("/nowhere")
    os.link(outside / "precious", work / "hard")
    changed, skipped = prepare.repair_ownership(work, 12345, 12345)
    assert (changed, skipped) == (5, 1)
    owners = {p.relative_to(tmp_path).as_posix(): p.lstat().st_uid for p in tmp_path.rglob("*")}
    assert owners == {
        "_work": 12345,
        "_work/deep": 12345,
        "_work/deep/file": 12345,
        "_work/to-folder": 12345,
        "_work/dangling": 12345,
        "_work/hard": 0,
        "outside": 0,
        "outside/precious": 0,
    }
    assert prepare.repair_ownership(work, 12345, 12345) == (0, 1)


def test_work_that_is_a_link_is_refused(prepare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "_work").symlink_to("/etc")
    with pytest.raises(OSError):
        prepare.repair_ownership(tmp_path / "_work", 12345, 12345)
    assert prepare.repair_ownership(tmp_path / "none", 12345, 12345) == (0, 0)


class _Account:
    pw_uid, pw_gid = os.getuid(), os.getgid()


def test_delay_grows_with_each_refused_registration(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "instances").mkdir()
    instance = {"mode": "jit", "user": "somebody", "folder": str(tmp_path / "1")}
    (tmp_path / "instances/1.json").write_text(json.dumps(instance))
    slept: list[float] = []
    refused = True

    def mint(*_: object) -> None:
        if refused:
            raise prepare.ApiError("The App's key was revoked (401).", 401)

    monkeypatch.setattr(prepare, "ETC", tmp_path)
    monkeypatch.setattr(prepare, "RUN", tmp_path / "run")
    monkeypatch.setattr(prepare, "mint", mint)
    monkeypatch.setattr(prepare.pwd, "getpwnam", lambda _: _Account)
    monkeypatch.setattr(prepare.time, "sleep", slept.append)
    assert [prepare.main("1") for _ in range(9)] == [1] * 9
    assert slept == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert "revoked (401). Trying again in 300 s." in capsys.readouterr().err
    # It waits before systemd's own limit ends it.
    assert max(slept) < 900
    refused = False
    assert prepare.main("1") == 0
    refused = True
    assert prepare.main("1") == 1
    assert slept[-1] == 5


INSTANCE = {
    "mode": "jit", "user": "somebody", "name": "host-1", "host_label": "host-1", "url": "https://github.com/acme", "group_id": 1,
    "api_url": "", "labels": ["ours"], "no_default_labels": False, "architecture": "x64",
}  # fmt: skip


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_just_in_time_configuration_is_for_root_alone(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """Whoever reads it is the runner: systemd reads it as root, and no account of the host does."""

    class Api:
        def just_in_time(self, name: str, group: int, labels: list[str]) -> tuple[int, str]:
            return 7, f"{name} {group} {' '.join(labels)}"

        def find(self, _: str) -> None:
            return None

    monkeypatch.setattr(prepare, "ETC", tmp_path / "etc")
    monkeypatch.setattr(prepare, "RUN", tmp_path / "run")
    monkeypatch.setattr(prepare, "client", lambda _: Api())
    monkeypatch.setattr(prepare, "remove_registration", lambda *_: None)
    # What a start that was killed left, and anybody could read.
    (tmp_path / "run").mkdir()
    (tmp_path / "etc").mkdir()
    secret = tmp_path / "run/1.env"
    secret.write_text("old")
    secret.chmod(0o666)
    before = os.umask(umask)
    try:
        prepare.mint("1", INSTANCE, tmp_path / "1")
    finally:
        os.umask(before)
    assert secret.read_text() == "ACTIONS_RUNNER_INPUT_JITCONFIG=host-1 1 self-hosted Linux X64 ours\n"
    assert secret.stat().st_mode & 0o777 == 0o600 & ~umask
    record = tmp_path / "etc/records/1.json"
    assert record.stat().st_mode & 0o077 == 0 and json.loads(record.read_text())["id"] == 7


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o602, 0o601])
def test_key_that_others_can_reach_is_not_used(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(prepare, "ETC", tmp_path)
    (tmp_path / "app.json").write_text('{"app_id": "1", "app_installation_id": "2"}')
    (tmp_path / "app.pem").write_text("a key")
    (tmp_path / "app.pem").chmod(mode)
    with pytest.raises(prepare.ApiError, match="must be root's and 0600"):
        prepare.client(INSTANCE)


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
def test_key_of_root_is_used_and_that_of_an_account_is_not(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "ETC", tmp_path)
    (tmp_path / "app.json").write_text('{"app_id": "1", "app_installation_id": "2"}')
    key = tmp_path / "app.pem"
    key.write_text("a key")
    key.chmod(0o600)
    assert prepare.client(INSTANCE)
    os.chown(key, 12345, 12345)
    with pytest.raises(prepare.ApiError, match="must be root's and 0600"):
        prepare.client(INSTANCE)


def hook(name: str, folder: Path) -> str:
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "GITHUB_RUNNER_FOLDER": str(folder)}
    script = ROLE / "files" / name
    return subprocess.run(
        ["bash", script], env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
def test_hooks_report_what_a_job_leaves(tmp_path: Path) -> None:
    (tmp_path / "_work").mkdir()
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\ncat $GITHUB_RUNNER_FOLDER/running\n")
    docker.chmod(0o755)
    running = tmp_path / "running"
    running.write_text("before\n")
    assert hook("job-started.sh", tmp_path) == ""
    (tmp_path / "_work/ours").write_text("x")
    output = hook("job-completed.sh", tmp_path)
    assert "::warning" not in output and "disk:" in output

    hook("job-started.sh", tmp_path)
    running.write_text("before\nleft\n")
    foreign_file = tmp_path / "_work/::error::theirs"
    foreign_file.write_text("x")
    os.chown(foreign_file, 12345, 12345)
    output = hook("job-completed.sh", tmp_path)
    assert "::warning title=containers left::containers of train-classifier still run: left\n" in output
    assert "::warning title=foreign files left::1 entries in _work belong to another user" in output
    assert "::error" not in output
