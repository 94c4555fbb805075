"""Run one of our roles on a test host with ansible-playbook."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .machine import HostError, TestHost

ROOT = Path(__file__).parents[2]


ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


@functools.cache
def _modules() -> str:
    """The folder where the modules stay that callbacks/load_once.py keeps, until this process of pytest ends."""
    folder = tempfile.mkdtemp(prefix="tc-ansible-modules-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def load_once() -> dict[str, str]:
    """The variables with which a run of Ansible costs less CPU time: see callbacks/load_once.py."""
    return {
        "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).with_name("callbacks")),
        "ANSIBLE_CALLBACKS_ENABLED": "load_once",
        "ANSIBLE_LOAD_ONCE_MODULES": _modules(),
    }


def ansible_environment(**variables: str) -> dict[str, str]:
    """The environment in which ansible-playbook runs our playbooks."""
    path = f"{ANSIBLE_PLAYBOOK.parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "PATH": path}
    return {**os.environ, **settings, **load_once(), **variables}


@dataclass(frozen=True, kw_only=True)
class PlayResult:
    """The result of a run: the recap's counts and all that was printed (one line for each message)."""

    status: int
    changed: int
    failed: int
    output: str


def play(
    host: TestHost,
    *roles: str,
    check: bool = False,
    fails: bool = False,
    user: str = "root",
    become: bool = True,
    tasks_from: str = "main",
    timeout: float = 1200,
    **variables: object,
) -> PlayResult:
    """Apply roles to a host and return the recap; raises HostError when it fails and should not, or the reverse."""
    tasks = [
        {"name": f"Apply {role}", "ansible.builtin.include_role": {"name": role, "tasks_from": tasks_from}}
        for role in roles
    ]
    facts = variables.pop("ansible_facts", None)
    if facts is not None:
        tasks.insert(
            0, {"name": "Set the facts of another system", "ansible.builtin.set_fact": {**_cacheable(facts)}}
        )
    book = [{"hosts": "all", "gather_facts": False, "become": become, "tasks": tasks}]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "play.yml").write_text(json.dumps(book))
        (Path(folder) / "variables.json").write_text(json.dumps(variables))
        command = [ANSIBLE_PLAYBOOK, "-i", host.inventory(user), "-e", f"@{folder}/variables.json"]
        done = subprocess.run(
            [*command, f"{folder}/play.yml", *(["--check"] if check else [])],
            cwd=folder, env=ansible_environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles")),
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    output = done.stdout + done.stderr
    if (done.returncode != 0) != fails:
        raise HostError(f"{', '.join(roles)} on {host.name}: exit {done.returncode}\n{output}")
    recap = re.search(rf"^{re.escape(host.name)}\s*:.*?changed=(\d+).*?failed=(\d+)", output, re.M)
    changed, failed = map(int, recap.groups()) if recap else (0, 0)
    return PlayResult(status=done.returncode, changed=changed, failed=failed, output=output)


def _cacheable(facts: object) -> dict[str, object]:
    assert isinstance(facts, dict)
    # A fact set with cacheable is also found below ansible_facts.
    return {**{f"ansible_{name}": value for name, value in facts.items()}, "cacheable": True}
