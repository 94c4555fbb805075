"""The role github_runner on a systemd host in a container, against the API stand-in that remembers.

Real: Ansible, systemd, accounts, files, the role. Stand-ins: GitHub's API and its runner archive (tests/github_api).
Check mode, the packages and their removal, and the cleaning timer are tests/integration/test_provisioning.py's; what GitHub may
answer is tests/unit/roles/test_github_runner_api.py's; the modes of one job each are
tests/security/test_rules_runner_account.py's, on the host that it looks through.
"""

from typing import Any

import pytest
from github_api.archive import make_archive
from hosts.runner import REPO, Host

pytestmark = [pytest.mark.host, pytest.mark.engine, pytest.mark.timeout(3000)]

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
SMI = """#!/bin/sh
case "$*" in
    *--query-gpu*) echo "NVIDIA GeForce RTX 3090, 24576, 550.163.01" ;;
    *) echo "| NVIDIA-SMI 550.163.01   Driver Version: 550.163.01   CUDA Version: 12.4 |" ;;
esac
"""


@pytest.fixture
def host(runner_host: Host) -> Host:
    return runner_host


def test_taken_name_and_expired_token_are_refused(host: Host) -> None:
    """The tasks of a registration alone, up to what GitHub says."""
    facts = {
        "__github_runner_full_name": "gpu-1",
        "__github_runner_scope": {"runner_url": f"{host.url}/acme/widgets"},
        "__github_runner_state": {"runner_url": "", "runner_name": "", "runner_id": 0, "configured": False},
    }
    expired = host.role("register", **{**facts, "github_runner_pat": "pat-expired"})
    expired.refused("It says so too when the token has expired")
    other = host.standin.state.add_runner(REPO, "gpu-1", ["self-hosted", "host-gpu9"], status="offline")
    outcome = host.role("register", **facts)
    outcome.refused("The name gpu-1 is taken", "host-gpu9", "github_runner_replace: true")
    assert {name: runner["id"] for name, runner in host.runners().items()} == {"gpu-1": other["id"]}


def test_runners_are_registered_changed_updated_drained_and_removed(host: Host) -> None:
    """One installation goes through everything: each run of the role takes long."""
    first = register_among_others(host)
    forget_a_runner(host, "gpu-2", first["gpu-2"])

    # One run: gpu-1 gets other labels in place, without a restart; gpu-2 is registered anew.
    started = host.sh("systemctl show -P ExecMainStartTimestampMonotonic github-runner@1")
    host.sh(f"cat > /usr/bin/nvidia-smi <<'E'\n{SMI}E\nchmod 755 /usr/bin/nvidia-smi")
    variables = {
        "github_runner_count": 2,
        "github_runner_releases_url": host.url,
        "train_classifier_ca_bundle": BUNDLE,
    }
    host.role(**variables).good()
    host.online("gpu-1", "gpu-2")
    gpu = {"gpu", "gpu-rtx-3090", "vram-24g", "cuda-12.4", "driver-550"}
    assert host.labels("gpu-1") == {"self-hosted", "Linux", "X64", "train-classifier", "host-gpu1"} | gpu
    assert host.runners()["gpu-1"]["id"] == first["gpu-1"]
    assert host.sh("systemctl show -P ExecMainStartTimestampMonotonic github-runner@1") == started
    assert host.runners()["gpu-2"]["id"] != first["gpu-2"]

    update_by_timer(host)
    assert host.role(**variables).good().changed == 0

    listener_starts_again(host)
    job_runs_as_the_account(host)
    drain_waits_for_a_job(host)
    removal_waits_for_a_job_and_leaves_nothing(host)


def register_among_others(host: Host) -> dict[str, int]:
    """Install two runners; returns their ids at GitHub. 130 others are there, and a request that fails twice is repeated."""
    for number in range(130):
        host.standin.state.add_runner(REPO, f"other-{number}", ["self-hosted"])
    # The host's own is on a later page.
    entry = host.standin.state.add_runner(REPO, "gpu-1", ["self-hosted", "host-gpu1"], status="offline")
    host.standin.state.fail("registration-token", 503, times=2)
    variables = {"github_runner_labels": ["lab"], "train_classifier_ca_bundle": BUNDLE}
    out = host.role(github_runner_count=2, **variables).good().out
    host.online("gpu-1", "gpu-2")
    assert host.labels("gpu-1") == {"self-hosted", "Linux", "X64", "train-classifier", "host-gpu1", "lab"}
    first = {name: runner["id"] for name, runner in host.runners().items()}
    assert first["gpu-1"] != entry["id"], "an offline entry of this host is replaced without being asked for"
    assert "secret" not in out
    assert len(host.standin.state.config_arguments) == 2
    assert not any("secret" in word for words in host.standin.state.config_arguments for word in words)
    assert "secret" not in host.sh("journalctl --no-pager -o cat")
    search = "grep -rlE '(registration|remove)-secret|pat-good' /var/lib/github-runner /etc/github-runner; echo none"
    assert host.sh(search) == "none"
    return first


def forget_a_runner(host: Host, name: str, runner_id: int) -> None:
    """Delete a runner at GitHub: its listener ends and says so."""
    unit = f"github-runner@{name.removeprefix('gpu-')}"
    with host.standin.state.lock:
        del host.standin.state.runners[REPO][runner_id]
    host.sh(f"systemctl restart {unit}", check=False)
    host.wait("given up", lambda: host.sh(f"systemctl is-active {unit}", check=False) == "failed")
    assert "Run the role github_runner again" in host.sh(f"journalctl --no-pager -o cat -u {unit}")


def update_by_timer(host: Host) -> None:
    """Root replaces the programs between two jobs, by the public release, without a credential."""
    assert host.sh("systemctl is-enabled github-runner-update.timer") == "enabled"
    registered = host.runners()["gpu-1"]["id"]
    before = len(host.standin.state.requests)
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
    host.online("gpu-1", "gpu-2")
    assert host.runners()["gpu-1"]["id"] == registered
    assert host.sh("ls /run/github-runner") == ""
    releases = [request for request in host.standin.state.requests[before:] if "/releases/" in request[0]]
    assert len(releases) == 2
    assert not any(authorization for _, authorization in releases)


def listener_starts_again(host: Host) -> None:
    restarts = int(host.sh("systemctl show -P NRestarts github-runner@1"))
    host.sh("systemctl kill --signal=KILL github-runner@1")
    host.wait("restarted", lambda: int(host.sh("systemctl show -P NRestarts github-runner@1")) > restarts)
    host.online("gpu-1", "gpu-2")


def job_runs_as_the_account(host: Host) -> None:
    """Between the hooks, with the certificates that the role was given, and without root's settings."""
    host.start_job(
        'id -un; cat /etc/github-runner/environment || echo unreadable; echo "bundle $NODE_EXTRA_CA_CERTS"', 2
    )
    log = host.job_done(2)
    assert {"github-runner", "unreadable", f"bundle {BUNDLE}", "codes [0, 0, 0]"} <= set(log.splitlines())
    assert "disk:" in log


def drain_waits_for_a_job(host: Host) -> None:
    """The job ends once the host is drained; no runner takes another until it is undrained."""
    marker = "/var/lib/train-classifier/drain"
    host.start_job(f"until [ -e {marker} ]; do sleep 0.2; done; echo finished", 2)
    refused = host.role("no_jobs", role="host_check")
    refused.refused("1 job(s) run (a workflow job of github-runner@2): nothing was touched")
    host.role("drain", role="host_check", host_check_drain_poll_s=1).good()
    assert {"finished", "codes [0, 0, 0]"} <= set(host.job_done(2).splitlines())
    assert host.sh("pgrep -f 'bin/Runner[.]Listener'", check=False) == ""
    assert host.sh("systemctl is-active github-runner@1 github-runner@2").split() == ["active", "active"]
    assert {host.runners()[name]["status"] for name in ("gpu-1", "gpu-2")} == {"offline"}
    host.role("undrain", role="host_check").good()
    host.online("gpu-1", "gpu-2")


def removal_waits_for_a_job_and_leaves_nothing(host: Host) -> None:
    host.start_job("sleep 3600", 2)
    host.role("uninstall").refused("is running a job; nothing was changed")
    host.sh("pkill -xf 'sleep 3600'")
    host.job_done(2)
    host.role("uninstall").good()
    assert not {"gpu-1", "gpu-2"} & set(host.runners())
    left = """
    ls -d /etc/github-runner /var/lib/github-runner /usr/local/lib/github-runner /var/cache/github-runner /run/github-runner
    ls -d /etc/systemd/system/github-runner* /etc/systemd/system/timers.target.wants/*github-runner*
    systemctl list-units --all --no-legend 'github-runner@*' 'github-runner-update*'
    getent passwd github-runner github-runner-setup
    """
    assert host.sh(left, check=False) == ""


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
    host.standin.state.public.add(REPO)
    host.role().refused("acme/widgets is public", "github_runner_allow_public")
    assert host.sh("test -e /etc/github-runner || echo none") == "none"


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
