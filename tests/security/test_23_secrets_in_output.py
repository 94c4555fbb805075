"""Row 23: what may hold a password is neither printed (check, diff, verbose) nor logged, nor on a command line, nor left readable."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from hosts import fleet
from hosts.drivers import SIMULATED, SLOTS, simulate_cards
from hosts.machine import TestHost, make_image
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment
from hosts.toolkits import FINGERPRINT, REPOSITORY, key, publish

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(1800)]

#: No server listens there.
NOWHERE = "127.0.0.1:9"
WORDS = (
    "proxy", "secure-proxy", "index", "extra-index", "variable", "mirror", "engine-proxy", "cuda", "toolkit", "key",
    "pat", "app-key", "token", "download",
)  # fmt: skip
SECRETS = {word: f"planted-{word}-{number:03d}-secret" for number, word in enumerate(WORDS, 501)}


def address(word: str, path: str = "") -> str:
    return f"http://somebody:{SECRETS[word]}@{NOWHERE}{path}"


#: Everything that the roles take and that may hold a password.
PLANTED: dict[str, object] = {
    "train_classifier_environment": {
        "http_proxy": address("proxy"),
        "https_proxy": address("secure-proxy"),
        "no_proxy": "localhost",
        "PIP_INDEX_URL": address("index", "/simple"),
        "PIP_EXTRA_INDEX_URL": address("extra-index", "/simple"),
        "SOME_VARIABLE": SECRETS["variable"],
    },
    "train_classifier_apt_mirror": address("mirror", "/debian"),
    "docker_engine_configure_existing": True,
    "docker_engine_daemon_options": {"proxies": {"http-proxy": address("engine-proxy")}},
    "nvidia_driver_cuda_repository_url": address("cuda", "/cuda"),
    "nvidia_container_toolkit_repository_url": address("toolkit", "/toolkit"),
    "nvidia_container_toolkit_key_url": address("key", "/gpgkey"),
    "github_runner_download_url": address("download", "/runner.tar.gz"),
}
#: What makes a run of all roles cheap and possible without a network.
LOCAL: dict[str, object] = {
    **SIMULATED,
    "nvidia_container_toolkit_repository_url": f"file:{REPOSITORY}",
    "nvidia_container_toolkit_key_fingerprint": FINGERPRINT,
    "nvidia_container_toolkit_pci_root": "/srv/simulated/pci",
    "nvidia_container_toolkit_proc_root": "/srv/simulated/proc",
}
NO_RETRIES = {
    f"{role}_download_{setting}": 1
    for role in ("docker_engine", "nvidia_driver", "nvidia_container_toolkit", "training_host")
    for setting in ("retries", "delay")
}
#: Reads the command line of every process for as long as a file is there, and prints the secrets that it saw.
WATCH = """
import json, os, sys, time
from pathlib import Path
secrets, seen = json.loads(sys.argv[1]), set()
print("watching", flush=True)
while os.path.exists("/srv/watch"):
    # Shorter than any program of Ansible's lives, and not all the time of a core.
    time.sleep(0.02)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        seen.update((secret, line.replace("\\0", " ")[:200]) for secret in secrets if secret in line)
print(json.dumps(sorted(seen)))
"""


def playbook(host: TestHost, path: str, *options: str, fails: bool = False, **variables: object) -> str:
    """Run one of our playbooks as verbosely as one can; all that it printed."""
    file = host.directory / "settings.json"
    file.write_text(json.dumps({**PLANTED, **NO_RETRIES, **variables}))
    done = subprocess.run(
        [ANSIBLE_PLAYBOOK, "-vvv", "--diff", *options, "-i", host.inventory(), "-e", f"@{file}", ROOT / path],
        env=ansible_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output[-6000:]
    return output


def hidden_in(text: str) -> dict[str, str]:
    """The secrets in a text, as they are or in base64, each with the place."""
    # Anything long enough to hold one, with the padding that it may lack.
    for word in set(re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text)):
        try:
            text += "\n" + base64.b64decode(word + "=" * (-len(word) % 4)).decode("utf-8", "replace")
        except ValueError:
            continue
    leaks = {}
    for word, secret in SECRETS.items():
        position = text.find(secret)
        if position >= 0:
            task = text.rfind("TASK [", 0, position)
            leaks[word] = text[task : task + 90] + " … " + text[max(0, position - 300) : position + 60]
    return leaks


@pytest.fixture(scope="module")
def host(
    _hosts_possible: None, base_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestHost]:
    """Debian 13 with an engine, two simulated cards whose driver works, and an archive that has the toolkit."""
    host = TestHost.create("secret-host", make_image("trixie"), tmp_path_factory.mktemp("secret-host"))
    try:
        host.load_image(base_image)
        publish(host, "1.18.2-1")
        settings = 'Acquire::AllowInsecureRepositories "true";\nAcquire::Retries "0";\n'
        host.write("/etc/apt/apt.conf.d/99test", settings)
        simulate_cards(host, *SLOTS)
        for slot in SLOTS:
            host.shell(f"mkdir -p /srv/simulated/proc/gpus/{slot} /srv/simulated/modules")
        host.write("/srv/simulated/proc/version", "NVRM version: NVIDIA UNIX  590.48.01  Release Build\n")
        yield host
    finally:
        host.remove()


@pytest.fixture
def watched(host: TestHost) -> Iterator[TestHost]:
    """The host, while its process list is watched; afterwards its journal and files are searched."""
    # The teardown of an earlier test removes both.
    fleet.place_uv(host)
    host.write("/etc/apt/keyrings/nvidia-container-toolkit.asc", key())
    host.shell("touch /srv/watch")
    command = ["docker", "exec", host.container, "python3", "-c", WATCH, json.dumps(list(SECRETS.values()))]
    # Its own command line would have them: it gets them in parts.
    command[-1] = json.dumps([secret.replace("planted-", "planted") for secret in SECRETS.values()])
    command[-2] = WATCH.replace(
        "json.loads(sys.argv[1])", "[s.replace('planted', 'planted-') for s in json.loads(sys.argv[1])]"
    )
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None and watcher.stdout.readline() == "watching\n"
    try:
        yield host
    finally:
        host.shell("rm -f /srv/watch")
        found_secrets = watcher.stdout.read()
        watcher.wait()
    assert json.loads(found_secrets) == []
    assert hidden_in(host.shell("journalctl --no-pager -o cat")) == {}
    # What any account may ask systemd for.
    assert hidden_in(host.shell("systemctl show '*'", user="trainer")) == {}
    readable = host.shell(
        "find /etc /var /run /tmp /home /root /srv /usr/local -xdev -type f -perm -o=r ! -path '/var/log/journal/*' "
        "-exec grep -lE 'planted-[a-z-]+-[0-9]{3}-secret' {} + || :"
    )
    assert readable == ""


def test_23_check_of_the_whole_site_shows_no_secret(watched: TestHost, base_image: str) -> None:
    settings = {
        **SIMULATED, **fleet.role_variables(base_image), "provision_hosts": "all",
        "nvidia_driver_replace": True, "github_runner_repository": "acme/widgets",
        "github_runner_pat": SECRETS["pat"], "github_runner_url": f"http://{NOWHERE}",
    }  # fmt: skip
    output = playbook(watched, "site.yml", "--check", fails=True, **settings)
    # The check ran all roles up to GitHub, which does not answer.
    assert "Preflight | Ask GitHub for the scope" in output
    assert hidden_in(output) == {}


@pytest.mark.full
def test_23_run_of_the_whole_site_shows_no_secret(watched: TestHost, base_image: str) -> None:
    settings = {
        **LOCAL,
        **fleet.role_variables(base_image),
        "provision_hosts": "all",
        "provision_check": False,
    }
    output = playbook(watched, "site.yml", **settings)
    assert hidden_in(output) == {}
    # They arrived, where they are meant to be.
    engine = watched.shell("tr '\\0' '\\n' </proc/$(systemctl show -P MainPID docker)/environ")
    assert SECRETS["secure-proxy"] in engine
    assert SECRETS["engine-proxy"] in watched.shell("cat /etc/docker/daemon.json")
    assert SECRETS["index"] in watched.shell("cat /var/lib/train-classifier/host.json")
    assert watched.exec("cat", "/var/lib/train-classifier/host.json", user="trainer").stdout
    assert hidden_in(playbook(watched, "site.yml", **settings)) == {}
    output = playbook(watched, "playbooks/teardown.yml", teardown_hosts="all", **settings)
    assert hidden_in(output) == {}


#: Roles with settings that make them fail, and what they then say.
FAILURES: dict[str, tuple[str, dict[str, object], str]] = {
    "key": ("nvidia_container_toolkit", {"nvidia_container_toolkit_key_fingerprint": "0" * 40}, "Repository | Fetch the key"),
    "checksum": ("nvidia_driver", {"nvidia_driver_replace": True, "nvidia_driver_branch": 580}, "no checksum is known of"),
    "keyring": ("nvidia_driver", {"nvidia_driver_replace": True, "nvidia_driver_branch": 580, "nvidia_driver_cuda_keyring_checksum": f"sha256:{'0' * 64}"}, "Source | Fetch the package of the key"),
    "packages": ("training_host", {"training_host_uv_version": "0.0.1"}, "python3-pip could not be installed"),
}  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [("key", "checksum", "packages"), pytest.param(("keyring",), marks=pytest.mark.full)],
    ids=",".join,
)
def test_23_failures_show_no_secret(watched: TestHost, base_image: str, names: tuple[str, ...]) -> None:
    """One run for several roles: the next begins when one has failed."""
    tasks = [
        {
            "name": name,
            "block": [{"ansible.builtin.include_role": {"name": role}, "vars": settings}],
            "rescue": [{"ansible.builtin.debug": {"msg": f"{name} has failed"}}],
        }
        for name in names
        for role, settings, _ in [FAILURES[name]]
    ]
    book = watched.directory / "book.yml"
    book.write_text(json.dumps([{"hosts": "all", "become": True, "gather_facts": False, "tasks": tasks}]))
    changed = {setting for name in names for setting in FAILURES[name][1]}
    common = {**LOCAL, **fleet.role_variables(base_image)}
    output = playbook(
        watched, str(book), **{key: value for key, value in common.items() if key not in changed}
    )
    for name in names:
        assert f"{name} has failed" in output, output[-6000:]
        assert FAILURES[name][2] in output, output[-6000:]
    assert hidden_in(output) == {}


@pytest.mark.full
@pytest.mark.parametrize("name", ["verify", "update"])
def test_23_other_playbooks_show_no_secret(watched: TestHost, base_image: str, name: str) -> None:
    settings = {
        **LOCAL,
        **fleet.role_variables(base_image),
        f"{name}_hosts": "all",
        "host_check_strict": False,
    }
    playbook(watched, "site.yml", provision_hosts="all", provision_check=False, **settings)
    assert hidden_in(playbook(watched, f"playbooks/{name}.yml", **settings)) == {}
