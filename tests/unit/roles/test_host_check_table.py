"""The table of host_check over several hosts: in batches, with hosts that were lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hosts.play import ANSIBLE_PLAYBOOK, ansible_environment

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
