"""The rules of docs/security.md against the account of a runner: nothing that the role leaves on a host makes it root.

Written from the rules and without the role's code: units, files, sockets and programs are what the host says they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from github_api.archive import make_archive
from hosts.runner import Host, make_app_key
from rules_support import CANARIES, PROOF, Site, own_units, swapping

pytestmark = [pytest.mark.host, pytest.mark.engine, pytest.mark.timeout(3000)]

OWN = "/var/lib/github-runner"
#: Folders of the system in which everybody may make files, as on the host without the role.
SHARED = ("/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue", "/dev/")

#: Root waits longer after each refusal: this resets their count.
RESET_REFUSALS = "rm -f /run/github-runner/*.refusals"


@pytest.fixture(scope="module")
def app_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return make_app_key(tmp_path_factory.mktemp("app"))


@pytest.fixture
def mode() -> str:
    """The mode in which root does most: it mints a registration for each job."""
    return "jit"


@pytest.fixture
def count() -> int:
    """How many runners the host has."""
    return 1


@pytest.fixture
def variables(runner_host: Host, app_key: tuple[str, Path], mode: str, count: int) -> dict[str, Any]:
    """Settings with which root has the most to do: besides the registrations it updates by a timer."""
    runner_host.standin.state.app_public_key = str(app_key[1])
    return {
        "github_runner_pat": "",
        "github_runner_app_id": "1234",
        "github_runner_app_key": app_key[0],
        "github_runner_mode": mode,
        "github_runner_count": count,
        "github_runner_releases_url": runner_host.url,
        "github_runner_environment": {"STANDIN_API": f"{runner_host.url}/api/v3"},
    }


@pytest.fixture
def site(runner_host: Host, variables: dict[str, Any], count: int) -> Iterator[Site]:
    """The host with runners, which are online."""
    before = Site(runner_host.name, "nobody").audit()
    out = runner_host.role(**variables).good().out
    assert variables["github_runner_app_key"].splitlines()[3] not in out
    runner_host.online(*(f"gpu-{number + 1}" for number in range(count)))
    new_site = Site(runner_host.name, "github-runner")
    new_site.before = before
    try:
        yield new_site
    finally:
        new_site.remove_planted()


def account_rights(site: Site) -> list[str]:
    """What the account can use against root, beyond what anybody can on the host without the role."""
    audited = site.audit()
    answer = [line for line in audited["weak"] if line not in site.before["weak"]]
    for kind in ("privileged", "sockets", "rules"):
        answer += [f"{kind}: {line}" for line in audited[kind] if line not in site.before[kind]]
    allowed = (OWN, *SHARED)
    answer += [
        f"writable: {path}"
        for path in audited["writable"]
        if not path.startswith(allowed) and path not in site.before["writable"]
    ]
    answer += [f"group: {name}" for name in audited["groups"] if name != "github-runner"]
    return answer


@pytest.mark.parametrize("mode", ["jit", pytest.param("ephemeral", marks=pytest.mark.full)])
def test_account_cannot_change_what_root_runs_or_reads(
    runner_host: Host, site: Site, variables: dict[str, Any]
) -> None:
    """Nor get the key that registers runners, which root uses before each job."""
    assert own_units(site)
    assert account_rights(site) == []

    # The account is no administrator by any other way.
    assert site.sh("sudo -n -l 2>&1 || true", user="github-runner").count("NOPASSWD") == 0
    for words in (
        "restart github-runner@1",
        "start github-runner-update",
        "daemon-reload",
        "set-environment A=b",
    ):
        assert site.sh(f"systemctl --no-ask-password {words} >/dev/null 2>&1 && echo done", user="github-runner", check=False) == ""  # fmt: skip

    # No file, environment or argument that it can read has the key that registers runners.
    key = "BEGIN (RSA )?PRIVATE KEY"
    script = (
        f"grep -rlsE '{key}' /etc /run /var/lib /var/log /var/cache /usr/local /root /tmp /var/tmp;"
        f"grep -lasE '{key}' /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true"
    )
    assert [line for line in site.sh(script, user="github-runner").splitlines() if "/self/" not in line] == []

    # The audit can fail.
    unit = next(unit for unit in own_units(site) if unit.startswith("github-runner"))
    fragment = site.sh(f"systemctl show -P FragmentPath {unit}")
    for spoil, undo, word in (
        (f"chmod o+w {fragment}", f"chmod o-w {fragment}", fragment),
        ("chown github-runner /usr/local/bin", "chown root /usr/local/bin", "/usr/local/bin"),
        ("cp /bin/true /usr/local/bin/x; chmod 4755 /usr/local/bin/x", "rm /usr/local/bin/x", "privileged"),
        ("usermod -aG disk github-runner", "gpasswd -d github-runner disk", "group: disk"),
        ("echo 'github-runner ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/x", "rm /etc/sudoers.d/x", "rules"),
    ):
        site.sh("mkdir -p /etc/sudoers.d; " + spoil)
        assert any(word in line for line in account_rights(site)), spoil
        site.sh(undo)
    assert account_rights(site) == []

    root_registers_for_each_job(runner_host)
    runner_host.role("uninstall", **variables).good()
    assert runner_host.runners() == {}


def root_registers_for_each_job(host: Host) -> None:
    """Each registration is minted by root from the App's key; `_work` gets its owner back; the hooks report."""
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


def run_everything_of_root(host: Host, site: Site, variables: dict[str, Any], version: str) -> str:
    """Run everything of root's: units, timers' services, hooks, an update, the role; returns the output."""
    host.standin.state.serve_archive(f"actions-runner-linux-x64-{version}.tar.gz", make_archive(version))
    units = own_units(site)
    outputs = []
    for unit in units:
        outputs.append(
            site.sh(
                f"{RESET_REFUSALS}; timeout 90 systemctl restart {unit} 2>&1; systemctl is-active {unit}",
                check=False,
            )
        )
    site.sh(
        "systemctl start systemd-tmpfiles-clean systemd-tmpfiles-setup; systemctl daemon-reload", check=False
    )
    site.sh("mkdir -p /var/lib/train-classifier; echo why > /var/lib/train-classifier/drain")
    site.sh(
        f"{RESET_REFUSALS}; timeout 60 systemctl restart 'github-runner@*'; rm -r /var/lib/train-classifier",
        check=False,
    )
    outputs.append(host.role(**variables, github_runner_update=True).out)
    return "\n".join(outputs)


def assert_watch_finds_a_weak_unit(site: Site) -> None:
    """A unit of root's that runs and reads what the account planted is found by each of the three ways."""
    unit = f"[Service]\nType=oneshot\nExecStart=/bin/sh {OWN}/1/payload\nExecStart=/bin/cat {OWN}/1/to-trap\n"
    site.sh("cat > /etc/systemd/system/weak.service; systemctl daemon-reload", input=unit)
    with site.watched() as watched:
        site.sh("systemctl start weak")
    assert any("weak.service" in line for line in account_rights(site)), account_rights(site)
    site.sh("rm /etc/systemd/system/weak.service; systemctl daemon-reload")
    assert any(line.startswith(f"{OWN}/1/payload opened by uid 0") for line in watched["opened"]), watched
    assert any(line.startswith("trap ") for line in watched["opened"]), watched
    assert "payload as root" in site.sh(f"cat {PROOF}; : > {PROOF}")


@pytest.mark.full
@pytest.mark.parametrize("count", [2])
def test_root_does_not_use_files_planted_by_the_account(
    runner_host: Host, site: Site, variables: dict[str, Any]
) -> None:
    before = site.canaries()
    runner_host.start_job("echo hello")
    folders = site.plant()
    assert f"{OWN}/1" in folders, folders
    assert_watch_finds_a_weak_unit(site)
    with site.watched() as watched:
        outputs = run_everything_of_root(runner_host, site, variables, "2.400.0")
        with swapping(site, f"{OWN}/1", f"{OWN}/2", f"{OWN}/1/_work", f"{OWN}/home"):
            for _ in range(5):
                site.sh(
                    f"{RESET_REFUSALS}; timeout 60 systemctl restart github-runner@1 github-runner@2",
                    check=False,
                )
            outputs += run_everything_of_root(runner_host, site, variables, "2.401.0")
        outputs += runner_host.role("uninstall", **variables).out
    assert int(watched["count"][0]) > 1000, "nothing was watched"
    assert watched["opened"] == [], outputs
    assert site.sh(f"cat {PROOF}") == ""
    assert [line for line in site.snapshot(CANARIES) if line not in before] == []
