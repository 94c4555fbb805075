"""The worker's checks reach a host whatever the connection does with standard input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hosts.play import ANSIBLE_PLAYBOOK, ansible_environment

#: Another user than this one, whom no password is asked for: root's `su`, and sudo of a machine for tests.
OTHER = (
    {"ansible_become_method": "sudo", "ansible_become_user": "root"}
    if os.geteuid()
    else {
        "ansible_become_method": "su",
        "ansible_become_user": "nobody",
        "ansible_become_flags": "-s /bin/sh",
    }
)
METHOD = OTHER["ansible_become_method"]


@pytest.mark.skipif(shutil.which(METHOD) is None, reason=f"no {METHOD} on this machine")
def test_checks_run_on_this_machine_as_another_user_with_a_password(tmp_path: Path) -> None:
    """A local connection that has a password for another user passes input on only where it pipelines."""
    task = {"host_check_worker": {"request": {"deep": False}}, "register": "worker"}
    book = [
        {"hosts": "localhost", "connection": "local", "gather_facts": False, "become": True, "tasks": [task]}
    ]
    (tmp_path / "book.yml").write_text(json.dumps(book))
    password = json.dumps({"ansible_become_password": "not asked for", **OTHER})
    done = subprocess.run(
        [ANSIBLE_PLAYBOOK, "-i", "localhost,", "-e", password, tmp_path / "book.yml"],
        env=ansible_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
