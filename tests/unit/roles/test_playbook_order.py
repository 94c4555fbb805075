"""The playbooks with roles that do nothing but say that they were called: which host gets what, and who is left alone.

A task of such a role needs no connection, and the hosts have an address at which nothing answers.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment
from role_files import load

UNINSTALL = [
    f"{role}/uninstall"
    for role in (
        "github_runner",
        "training_host",
        "nvidia_container_toolkit",
        "nvidia_driver",
        "docker_engine",
    )
]
PROVIDE = [
    f"{role}/main" for role in ("docker_engine", "nvidia_driver", "nvidia_container_toolkit", "training_host")
]
#: It refuses an Ansible that is too old: before a host is drained, or a role is gone.
FIRST = "common/require_ansible"
#: `fails` names the entry that fails on a host.
STUB = """
- ansible.builtin.debug:
    msg: >-
      CALL {{ inventory_hostname }} ENTRY
      {{ 'drained' if host_check_drained | default(false) }} {{ nvidia_driver_state | default('') }}
      {{ 'update' if github_runner_update | default(false) }}
- ansible.builtin.fail: {msg: asked to}
  when: fails | default('') == 'ENTRY'
- ansible.builtin.set_fact:
    host_check_result: {ready: "{{ not unready | default(false) }}"}
  when: "'ENTRY' == 'host_check/main'"
"""


class Site:
    """A copy of the playbooks beside stubs of the roles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for book in (ROOT / "playbooks").glob("*.yml"):
            text = re.sub(r"gather_facts: true\n +gather_subset: .*", "gather_facts: false", book.read_text())
            (folder / book.name).write_text(text)
        for path in (ROOT / "roles").glob("*/tasks/*.yml"):
            entry = f"{path.parts[-3]}/{path.stem}"
            stub = folder / "roles" / path.relative_to(ROOT / "roles")
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(STUB.replace("ENTRY", entry))

    def run(self, *books: str, **hosts: dict[str, object]) -> tuple[dict[str, list[str]], str]:
        """What was called on each of the hosts, which have these variables; and what was printed."""
        nowhere = {"ansible_host": "192.0.2.1", "ansible_connection": "ssh", "ansible_ssh_timeout": 1}
        inventory = {"all": {"hosts": {host: {**nowhere, **variables} for host, variables in hosts.items()}}}
        (self.folder / "inventory.json").write_text(json.dumps(inventory))
        chosen = json.dumps({f"{book}_hosts": "all" for book in books})
        paths = [self.folder / f"{book}.yml" for book in books]
        done = subprocess.run(
            [ANSIBLE_PLAYBOOK, "-i", self.folder / "inventory.json", "-e", chosen, *paths],
            cwd=self.folder, env=ansible_environment(ANSIBLE_ROLES_PATH=str(self.folder / "roles")),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        calls: dict[str, list[str]] = {host: [] for host in hosts}
        for host, call in re.findall(r'"msg": "CALL (\w+) (.*?) *"', done.stdout):
            calls[host].append(" ".join(call.split()))
        assert "unreachable=1" not in done.stdout and any(calls.values()), done.stdout + done.stderr
        return calls, done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_teardown_touches_no_host_while_one_is_busy(site: Site) -> None:
    calls, _ = site.run("teardown", one={}, two={"fails": "host_check/no_jobs"})
    assert calls == {"one": [FIRST, "host_check/no_jobs"], "two": [FIRST, "host_check/no_jobs"]}


def test_teardown_goes_on_without_a_host_that_fails(site: Site) -> None:
    calls, _ = site.run("teardown", one={}, two={"fails": "training_host/uninstall"})
    before = [FIRST, "host_check/no_jobs"]
    assert calls == {"one": [*before, *UNINSTALL], "two": [*before, *UNINSTALL[:2]]}


def test_only_a_host_that_is_proven_gets_a_runner(site: Site) -> None:
    unchecked = {"provision_check": False, "github_runner_enterprise": "acme"}
    calls, printed = site.run(
        "provision",
        proven={"github_runner_repository": "acme/widgets"},
        unready={"github_runner_repository": "acme/widgets", "unready": True},
        without={},
        failed={"github_runner_organization": "acme", "fails": "host_check/main"},
        unchecked=unchecked,
        insisted={**unchecked, "provision_runner_unproven": True},
    )
    checked = [*PROVIDE, "host_check/main"]
    assert calls == {
        "proven": [*checked, "github_runner/main"],
        "unready": checked,
        "without": checked,
        "failed": checked,
        "unchecked": PROVIDE,
        "insisted": [*PROVIDE, "github_runner/main"],
    }
    assert set(re.findall(r"(\w+) gets no runner", printed)) == {"unready", "unchecked"}


def test_metrics_come_with_their_variable_alone(site: Site) -> None:
    # The host without metrics answers first: the order of the other's roles does not follow it.
    hosts = {"two": {}, "one": {"provision_monitoring": True}}
    provided, torn_down, updated = (
        site.run(book, **hosts)[0] for book in ("provision", "teardown", "update")
    )
    checked = [*PROVIDE, "host_check/main"]
    assert provided == {"one": [*checked, "monitoring/main"], "two": checked}
    assert torn_down["one"][2:4] == ["github_runner/uninstall", "monitoring/uninstall"]
    assert "monitoring/uninstall" not in torn_down["two"]
    assert ["monitoring/main latest" in updated[host] for host in hosts] == [False, True]


def test_teardown_takes_the_roles_that_are_named_and_refuses_unknown_ones(site: Site) -> None:
    named = {"teardown_roles": ["docker_engine", "github_runner"]}
    calls, printed = site.run("teardown", one=named, two={"teardown_roles": ["docker_engin"]})
    before = [FIRST, "host_check/no_jobs"]
    assert calls == {"one": [*before, "github_runner/uninstall", "docker_engine/uninstall"], "two": before}
    assert "teardown_roles names docker_engin; it takes github_runner, monitoring," in printed


def test_update_takes_one_host_after_the_other(site: Site) -> None:
    calls, printed = site.run("update", one={"github_runner_repository": "acme/widgets"}, two={})
    before = [f"{call} latest" for call in (FIRST, "host_check/drain", *PROVIDE)] + [
        "host_check/main drained latest"
    ]
    runner, after = ["github_runner/main latest update"], ["host_check/undrain latest"]
    assert calls == {"one": [*before, *runner, *after], "two": [*before, *after]}
    assert printed.index("CALL one host_check/undrain") < printed.index("CALL two host_check/drain")


def test_update_ends_at_a_host_that_fails_and_leaves_it_drained(site: Site) -> None:
    calls, _ = site.run("update", one={"fails": "docker_engine/main"}, two={})
    assert calls["one"] == [f"{call} latest" for call in (FIRST, "host_check/drain", "docker_engine/main")]
    assert calls["two"] == []


def test_short_playbooks_call_their_roles(site: Site) -> None:
    calls, _ = site.run("prepare", "verify", "sweep", one={})
    assert calls["one"] == [
        "docker_engine/main",
        "training_host/main",
        "host_check/main",
        "github_runner/sweep",
    ]


def test_playbooks_that_change_a_host_become_root_and_those_of_a_person_do_not() -> None:
    for book in (ROOT / "playbooks").glob("*.yml"):
        of_a_person = book.stem in ("train", "cancel")
        for play in (play for play in load(book) if "hosts" in play):
            assert play["become"] is not of_a_person, f"{book.name}: {play['name']}"
            assert play["gather_facts"] == ("gather_subset" in play), f"{book.name}: {play['name']}"
