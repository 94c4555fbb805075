"""The table of host_check: over several hosts, in batches, with hosts that were lost; and the row of held packages."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

PLAY = """
- hosts: all
  gather_facts: false
  serial: {serial}
  tasks:
    - ansible.builtin.fail: {{msg: lost on the way}}
      when: inventory_hostname in lost
    - ansible.builtin.set_fact:
        host_check_result: {{ready: true, rows: [{{name: card, status: ok, message: "{message}"}}]}}
    - ansible.builtin.include_role: {{name: host_check, tasks_from: table}}
"""


def tables(folder: Path, serial: str, lost: tuple[str, ...] = ()) -> tuple[list[str], dict[str, Any]]:
    """What each printed table's last line says, and the report at the end."""
    (folder / "play.yml").write_text(PLAY.format(serial=serial, message="word " * 40))
    variables = {"lost": lost, "host_check_json": str(folder / "report.json"), "ansible_connection": "local"}
    command = [ANSIBLE_PLAYBOOK, "-i", "a,b,c,", "-e", json.dumps(variables), folder / "play.yml"]
    done = subprocess.run(command, env=ansible_environment(), capture_output=True, text=True, check=False)
    table = done.stdout.partition("HOST  CHECK  STATUS  MESSAGE\n")[2].partition("hosts ready")[0]
    assert 0 < max(map(len, table.splitlines())) <= 80, done.stdout
    ends = [line for line in done.stdout.splitlines() if line.endswith("hosts ready for training")]
    assert ends, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return ends, report


def test_hosts_of_later_batches_are_not_failures(tmp_path: Path) -> None:
    ends, report = tables(tmp_path, "1")
    assert [end.partition(" hosts")[0] for end in ends] == ["1 of 1", "2 of 2", "3 of 3"]
    assert report["ready"] and list(report["hosts"]) == ["a", "b", "c"]


def test_lost_host_is_a_failure(tmp_path: Path) -> None:
    ends, report = tables(tmp_path, "'100%'", lost=("a",))
    assert ends == ["2 of 3 hosts ready for training"]
    assert not report["ready"]
    assert "an earlier task failed" in report["hosts"]["a"]["rows"][0]["message"]


SOURCE = ROOT / "plugins/filter/host_check.py"
HELD = ["held containerd", "held libc6:i386", "held runc", "days 2"]


def rows(lines: list[str]) -> list[dict[str, Any]]:
    """What the filter answers."""
    spec = importlib.util.spec_from_file_location("host_check_filters", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answer: list[dict[str, Any]] = module.held_rows(lines)
    return answer


@pytest.mark.parametrize(
    "line",
    [
        "Inst runc [1.1.5] (1.1.6 Debian-Security:13/stable-security [amd64])",
        "Inst runc [1.1.5] (1.1.6 Ubuntu:24.04/noble-security, Ubuntu:24.04/noble-updates [amd64]) []",
    ],
)
def test_security_update_of_a_held_package_is_a_warning(line: str) -> None:
    (row,) = rows([*HELD, line, "Inst libseccomp2 (2 Debian-Security:13/stable-security [amd64])"])
    assert (row["status"], row["message"]) == ("warn", "held packages have security updates: runc 1.1.6")
    assert "playbooks/update.yml" in row["hint"]


def test_each_newer_version_of_dockers_own_packages_is_a_warning() -> None:
    line = (
        "Inst docker-ce [5:28.5.2-1~debian.13~trixie] (5:29.0.0-1~debian.13~trixie Docker CE:trixie [amd64])"
    )
    (row,) = rows(["held docker-ce", "days 1", line])
    assert (
        row["status"] == "warn" and "newer versions: docker-ce 5:29.0.0-1~debian.13~trixie" in row["message"]
    )


def test_other_updates_are_none() -> None:
    (row,) = rows([*HELD, "Inst runc [1.1.5] (1.2.0 Debian:13.2/stable [amd64])"])
    assert (row["name"], row["status"]) == ("held-updates", "ok")


def test_old_lists_prove_nothing() -> None:
    (row,) = rows(["held runc", "days 30"])
    assert (row["status"], "30 days old" in row["message"]) == ("warn", True)


def test_host_that_holds_nothing_has_no_row() -> None:
    assert rows([]) == []
