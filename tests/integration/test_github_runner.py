"""The role github_runner on a systemd host in a container, against the API stand-in that remembers.

Real: Ansible, systemd, accounts, files, the role. Stand-ins: GitHub's API and its runner archive (tests/github_api).
Check mode on a bare host, idempotence, a listener that dies and the teardown are Molecule's (molecule/github_runner).
"""

from pathlib import Path
from typing import Any

import pytest
from github_api.archive import make_archive
from hosts.runner import REPO, Host, make_app_key

pytestmark = [pytest.mark.host, pytest.mark.engine, pytest.mark.timeout(3000)]

SMI = """#!/bin/sh
case "$*" in
    *--query-gpu*) echo "NVIDIA GeForce RTX 3090, 24576, 550.163.01" ;;
    *) echo "| NVIDIA-SMI 550.163.01   Driver Version: 550.163.01   CUDA Version: 12.4 |" ;;
esac
"""


@pytest.fixture
def host(runner_host: Host) -> Host:
    return runner_host


def test_registration_handles_existing_runners_and_api_errors(host: Host) -> None:
    """The name is taken, an own runner is replaced, there are 130 others, errors, changed labels, a deletion at GitHub."""
    other = host.standin.state.add_runner(REPO, "gpu-1", ["self-hosted", "host-gpu9"], status="offline")
    host.role().refused("The name gpu-1 is taken", "host-gpu9", "github_runner_replace: true")
    assert set(host.runners()) == {"gpu-1"}
    assert host.runners()["gpu-1"]["id"] == other["id"]

    # The own runner is on a later page; a request that fails twice is repeated.
    host.standin.state.runners[REPO].clear()
    for number in range(130):
        host.standin.state.add_runner(REPO, f"other-{number}", ["self-hosted"])
    left = host.standin.state.add_runner(REPO, "gpu-1", ["self-hosted", "host-gpu1"], status="offline")
    host.standin.state.fail("registration-token", 503, times=2)
    out = host.role(github_runner_count=2, github_runner_labels=["lab"]).good().out
    host.online("gpu-1", "gpu-2")
    assert host.labels("gpu-1") == {"self-hosted", "Linux", "X64", "train-classifier", "host-gpu1", "lab"}
    first = {name: runner["id"] for name, runner in host.runners().items()}
    assert first["gpu-1"] != left["id"], "an offline entry of this host is replaced without being asked for"
    assert "secret" not in out
    assert len(host.standin.state.config_arguments) == 2
    assert not any("secret" in word for words in host.standin.state.config_arguments for word in words)
    assert "secret" not in host.sh("journalctl --no-pager -o cat")
    search = "grep -rlE '(registration|remove)-secret|pat-good' /var/lib/github-runner /etc/github-runner; echo none"
    assert host.sh(search) == "none"

    # Deleted at GitHub: the listener ends and says so.
    with host.standin.state.lock:
        del host.standin.state.runners[REPO][first["gpu-2"]]
    host.sh("systemctl restart github-runner@2", check=False)
    host.wait("given up", lambda: host.sh("systemctl is-active github-runner@2", check=False) == "failed")
    assert "Run the role github_runner again" in host.sh("journalctl --no-pager -o cat -u github-runner@2")

    # One run: gpu-1 gets other labels in place, without a restart; gpu-2 is registered anew.
    started = host.sh("systemctl show -P ExecMainStartTimestampMonotonic github-runner@1")
    host.sh(f"cat > /usr/bin/nvidia-smi <<'E'\n{SMI}E\nchmod 755 /usr/bin/nvidia-smi")
    host.role(github_runner_count=2).good()
    host.online("gpu-1", "gpu-2")
    gpu = {"gpu", "gpu-rtx-3090", "vram-24g", "cuda-12.4", "driver-550"}
    assert host.labels("gpu-1") == {"self-hosted", "Linux", "X64", "train-classifier", "host-gpu1"} | gpu
    assert host.runners()["gpu-1"]["id"] == first["gpu-1"]
    assert host.sh("systemctl show -P ExecMainStartTimestampMonotonic github-runner@1") == started
    assert host.runners()["gpu-2"]["id"] != first["gpu-2"]


@pytest.mark.full
def test_lower_count_removes_a_runner(host: Host) -> None:
    host.role(github_runner_count=2).good()
    host.online("gpu-1", "gpu-2")
    host.role(github_runner_count=1).good()
    assert set(host.runners()) == {"gpu-1"}
    assert host.sh("ls /var/lib/github-runner") == "1\nhome"


def test_wrong_settings_are_refused_before_any_change(host: Host) -> None:
    wrong = host.role(
        github_runner_mode="jit", github_runner_labels=["a,b"], github_runner_organization="acme"
    )
    wrong.refused(
        "Set exactly one of github_runner_repository",
        "a PAT is refused there",
        "must not be empty nor hold a comma",
    )
    host.role(github_runner_pat="pat-expired").refused("It says so too when the token has expired")
    host.role(github_runner_pat="pat-weak").refused(
        "The token has the scopes: read:org", "Administration: write"
    )
    host.standin.state.public.add(REPO)
    host.role().refused("acme/widgets is public", "github_runner_allow_public")
    assert host.sh("test -e /etc/github-runner || echo none") == "none"


@pytest.fixture(scope="module")
def app_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return make_app_key(tmp_path_factory.mktemp("app"))


@pytest.mark.parametrize("mode", ["jit", pytest.param("ephemeral", marks=pytest.mark.full)])
def test_one_job_modes_register_for_each_job(host: Host, app_key: tuple[str, Path], mode: str) -> None:
    """Each registration is minted by root from the App's key; `_work` gets its owner back; the hooks report."""
    host.standin.state.app_public_key = str(app_key[1])
    variables = {
        "github_runner_pat": "",
        "github_runner_app_id": "1234",
        "github_runner_app_key": app_key[0],
        "github_runner_mode": mode,
        "github_runner_environment": {"STANDIN_API": f"{host.url}/api/v3"},
    }
    out = host.role(**variables).good().out
    host.online("gpu-1")
    assert app_key[0].splitlines()[3] not in out
    assert host.sh("stat -c '%U %a' /etc/github-runner/app.pem") == "root 600"
    assert "denied" in host.sh("runuser -u github-runner -- cat /etc/github-runner/app.pem 2>&1", check=False)
    assert host.sh("test -e /run/github-runner/1.env || echo gone") == "gone"

    first = host.runners()["gpu-1"]["id"]
    host.sh("install -d -o github-runner /var/lib/github-runner/1/_work")
    host.start_job("echo hello; cat /etc/github-runner/app.pem || echo no key")
    log = host.job_done()
    assert "hello" in log
    assert "no key" in log
    assert "disk:" in log
    assert "codes [0, 0, 0]" in log
    host.sh(
        "cd /var/lib/github-runner/1/_work; mkdir deep; echo x > deep/file; ln -s /etc/shadow link; ln /etc/hostname hard 2>/dev/null;"
        "echo x > twice; ln twice /var/lib/github-runner/twice"
    )
    host.wait(
        "registered for the next job", lambda: host.runners().get("gpu-1", {}).get("id", first) != first
    )
    host.online("gpu-1")
    assert host.standin.state.ended_jobs == ["gpu-1"]
    host.sh("systemctl restart github-runner@1")
    host.online("gpu-1")
    owners = host.sh(
        "cd /var/lib/github-runner/1/_work; stat -c '%n %U' deep deep/file link twice; stat -c %U /etc/shadow"
    ).split("\n")
    assert owners == [
        "deep github-runner",
        "deep/file github-runner",
        "link github-runner",
        "twice root",
        "root",
    ]

    host.role("uninstall", **variables).good()
    assert host.runners() == {}


@pytest.mark.full
def test_token_made_by_hand_registers_and_running_job_delays_changes(host: Host) -> None:
    """An expired token, registration and removal; a running job delays all changes."""

    def with_token(version: str, token: str) -> dict[str, Any]:
        archive = f"actions-runner-linux-x64-{version}.tar.gz"
        host.standin.state.serve_archive(archive, make_archive(version))
        return {
            "github_runner_pat": "",
            "github_runner_token": token,
            "github_runner_version": version,
            "github_runner_checksum": host.standin.state.downloads[0]["sha256_checksum"],
            "github_runner_download_url": f"{host.url}/_archive/{archive}",
        }

    expired = host.standin.state.mint(REPO, "registration", lasts_s=-1)
    run = host.role(**with_token("2.336.0", expired))
    run.refused("It answers the same for an expired token", "last one hour")
    assert expired not in run.out
    good = host.standin.state.mint(REPO, "registration")
    assert good not in host.role(**with_token("2.336.0", good)).good().out
    host.online("gpu-1")
    assert host.sh("systemctl is-enabled github-runner-update.timer", check=False) == "disabled"

    host.start_job("sleep 600")
    remove_token = host.standin.state.mint(REPO, "remove")
    removal = {"github_runner_pat": "", "github_runner_remove_token": remove_token}
    host.role("uninstall", **removal).refused("is running a job; nothing was changed")
    newer = with_token("2.400.0", good)
    assert "update to 2.400.0 is deferred" in host.role(**newer).good().out
    host.sh("pkill -xf 'sleep 600'")
    host.job_done()
    host.role(**newer).good()
    host.online("gpu-1")
    assert host.sh("/var/lib/github-runner/1/bin/Runner.Listener --version") == "2.400.0"

    # How the listener ends decides: 5 is tried again, 7 is not.
    host.sh("runuser -u github-runner -- sh -c 'echo 5 > /var/lib/github-runner/1/.exit'")
    host.wait("restarted", lambda: int(host.sh("systemctl show -P NRestarts github-runner@1")) > 0)
    host.sh("runuser -u github-runner -- sh -c 'echo 7 > /var/lib/github-runner/1/.exit'")
    host.wait("given up", lambda: host.sh("systemctl is-active github-runner@1", check=False) == "failed")
    assert "github_runner_update: true" in host.sh("journalctl --no-pager -o cat -u github-runner@1")

    host.role("uninstall", github_runner_pat="").refused("github_runner_remove_token")
    assert remove_token not in host.role("uninstall", **removal).good().out
    assert host.runners() == {}
    assert host.role("uninstall", **removal).good().changed == 0


def test_timer_updates_idle_runner(host: Host) -> None:
    """Root replaces the programs between two jobs, by the public release, without a credential."""
    host.role(github_runner_releases_url=host.url).good()
    host.online("gpu-1")
    assert host.sh("systemctl is-enabled github-runner-update.timer") == "enabled"
    registered = host.runners()["gpu-1"]["id"]
    host.sh("systemctl start github-runner-update")
    assert host.sh("systemctl show -P NRestarts github-runner@1") == "0"

    version = "actions-runner-linux-x64-2.400.0.tar.gz"
    host.standin.state.serve_archive(version, make_archive("2.400.0"))
    host.start_job("until [ -e /tmp/end ]; do sleep 0.2; done; rm -f /tmp/end; echo whole")
    host.sh("systemctl start --no-block github-runner-update")
    host.wait("asked to be idle", lambda: host.sh("ls /run/github-runner/hold-1", check=False) != "")
    assert host.sh("/var/lib/github-runner/1/bin/Runner.Listener --version") == "2.336.0"
    host.sh("runuser -u github-runner -- touch /tmp/end")
    host.wait(
        "updated",
        lambda: host.sh("systemctl show -P ActiveState github-runner-update") in ("inactive", "failed"),
    )
    assert host.sh("systemctl show -P Result github-runner-update") == "success"
    assert host.sh("/var/lib/github-runner/1/bin/Runner.Listener --version") == "2.400.0"
    log = host.sh("cat /var/lib/github-runner/1/_diag/job.log")
    assert "whole" in log and "codes [0, 0, 0]" in log
    host.online("gpu-1")
    assert host.runners()["gpu-1"]["id"] == registered
    assert host.sh("ls /run/github-runner") == ""
    releases = [request for request in host.standin.state.requests if "/releases/" in request[0]]
    assert len(releases) == 2
    assert not any(authorization for _, authorization in releases)
    assert host.role(github_runner_releases_url=host.url).good().changed == 0


def test_sweep_removes_only_own_offline_runners(host: Host) -> None:
    state = host.standin.state
    state.add_runner(REPO, "gone-1", ["train-classifier", "host-gone"])
    state.add_runner(REPO, "here-1", ["train-classifier", "host-gpu1"])
    state.add_runner(REPO, "alive", ["train-classifier", "host-gone"], status="online")
    state.add_runner(REPO, "theirs", ["self-hosted"])
    first = host.role("sweep", github_runner_sweep_dry_run=False).good()
    assert "offline, but not for long enough: 1" in first.out
    dry = host.role("sweep", github_runner_sweep_older_than=0).good()
    assert "would remove: gone-1" in dry.out
    assert len(host.runners()) == 4
    host.role("sweep", github_runner_sweep_older_than=0, github_runner_sweep_dry_run=False).good()
    assert set(host.runners()) == {"here-1", "alive", "theirs"}
