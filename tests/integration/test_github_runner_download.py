"""The runner's archive: what does not match its SHA-256 is refused and not kept. The role's own tasks, on this machine."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from github_api.archive import make_archive
from github_api.standin import StandIn
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

ARCHIVE = "actions-runner-linux-x64-2.336.0.tar.gz"
Fetch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn("127.0.0.1") as server:
        server.state.serve_archive(ARCHIVE, make_archive("2.336.0"))
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def fetch(standin: StandIn, cache: Path, tmp_path: Path) -> Fetch:
    """Run the role's download tasks; variables may be given."""

    def run(**variables: str) -> "subprocess.CompletedProcess[str]":
        api = {"url": f"http://127.0.0.1:{standin.port}", "repository": "acme/widgets", "pat": "pat-good"}
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "module_defaults": {"incuvers.train_classifier.github_runner_request": api},
            "vars": {"ansible_python_interpreter": sys.executable},
            "tasks": [
                {"ansible.builtin.set_fact": {"__github_runner_install": []}},
                {"ansible.builtin.include_role": {"name": "github_runner", "tasks_from": "download"}},
            ],
        }
        values = {
            # What the role prepares before it downloads.
            "common_protected_environment": {},
            "__github_runner_cache": str(cache),
            "__github_runner_bare": False,
            "__github_runner_architecture": "x64",
            "__github_runner_states": {"results": [{"item": "1", "complete": False, "version": ""}]},
            **variables,
        }
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        (tmp_path / "values.json").write_text(json.dumps(values))
        values_option = f"@{tmp_path / 'values.json'}"
        command = [ANSIBLE_PLAYBOOK, "-i", "localhost,", tmp_path / "play.yml", "-e", values_option]
        return subprocess.run(
            command, cwd=ROOT, env=ansible_environment(), capture_output=True, text=True, timeout=500
        )

    return run


def test_valid_archive_is_kept(fetch: Fetch, cache: Path, standin: StandIn) -> None:
    done = fetch()
    assert done.returncode == 0, done.stdout
    assert (cache / ARCHIVE).read_bytes() == standin.state.archives[ARCHIVE]


def test_truncated_archive_is_refused(fetch: Fetch, cache: Path, standin: StandIn) -> None:
    standin.state.archives[ARCHIVE] = standin.state.archives[ARCHIVE][:-100]
    done = fetch()
    assert done.returncode == 2
    assert "could not be installed from http://" in done.stdout + done.stderr
    assert ": The checksum for" in done.stdout + done.stderr
    assert "Truncated or changed on the way" in done.stdout + done.stderr
    assert list(cache.iterdir()) == []


def test_wrong_checksum_is_refused(fetch: Fetch, cache: Path) -> None:
    done = fetch(github_runner_version="2.336.0", github_runner_checksum="0" * 64)
    assert done.returncode == 2
    assert "github_runner_checksum is for another version" in done.stdout + done.stderr
    assert list(cache.iterdir()) == []


def test_archive_without_checksum_is_refused(fetch: Fetch, cache: Path, standin: StandIn) -> None:
    del standin.state.downloads[0]["sha256_checksum"]
    done = fetch()
    assert done.returncode == 2
    assert "nothing unverified is installed" in done.stdout + done.stderr
    assert list(cache.iterdir()) == []
