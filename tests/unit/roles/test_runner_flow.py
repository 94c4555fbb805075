"""What role github_runner does to an instance in each of its states: its tasks as they are, with modules that only note that they were called."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment
from role_files import INNER, Task, load

#: What decides, and needs no host.
KEPT = ("include_tasks", "set_fact", "assert", "fail", "debug", "meta")
STUB = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        with open(task_vars["calls"], "a") as calls:
            calls.write(self._task.args["task"] + "\\n")
        answer = task_vars.get("answers", {}).get(self._task.args["task"], {})
        return {"changed": False, "rc": 0, "stdout": "", "stdout_lines": [], **answer}
"""


def stubbed(path: Path, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same tasks, whose modules are replaced."""
    changed = []
    for keys in tasks:
        module = Task(path, keys, ()).module
        new = {key: stubbed(path, value) if key in INNER else value for key, value in keys.items()}
        if module and module not in KEPT:
            new = {key: value for key, value in new.items() if key.removeprefix("ansible.builtin.") != module}
            for unneeded in ("delegate_to", "become", "environment", "args", "no_log"):
                new.pop(unneeded, None)
            new["stub"] = {"task": keys["name"]}
        changed.append(new)
    return changed


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the role, and the module that notes its calls."""
    role = ROOT / "roles/github_runner"
    for part in ("defaults", "vars"):
        (tmp_path / "roles/github_runner" / part).mkdir(parents=True)
        (tmp_path / "roles/github_runner" / part / "main.yml").write_text(
            (role / part / "main.yml").read_text()
        )
    (tmp_path / "roles/github_runner/tasks").mkdir()
    for path in (role / "tasks").glob("*.yml"):
        (tmp_path / "roles/github_runner/tasks" / path.name).write_text(
            yaml.safe_dump(stubbed(path, load(path)))
        )
    (tmp_path / "action_plugins").mkdir()
    (tmp_path / "action_plugins/stub.py").write_text(STUB)
    return tmp_path


STATE = {
    "item": "1", "busy": False, "complete": True, "configured": True, "runner_id": 7, "runner_name": "gpu-1",
    "runner_url": "https://github.com/acme", "host_label": "host-gpu", "has_files": True,
}  # fmt: skip
HOST = {
    "github_runner_name": "gpu", "github_runner_pat": "pat", "__github_runner_install": [],
    "__github_runner_scope": {"runner_url": "https://github.com/acme", "api_url": "", "group_id": 1},
    "__github_runner_download": {"version": "2", "filename": "runner.tar.gz"},
    "answers": {
        "Register | Ask GitHub for the name": {"runner": {"busy": False, "status": "online", "labels": []}, "own": True},
        "Leave | Remove the old entry": {"elsewhere": False},
        "Token | Ask GitHub for a token": {"token": "t"},
        "Service | Read the state of the service": {"reload": False, "stale": False, "busy": False},
    },
}  # fmt: skip
SETTINGS = "Instance | Write the description that root reads before each start"
SERVICE = ["Service | Read the state of the service", "Service | Enable and start the service"]
ASK = "Register | Ask GitHub for the name"
NEW = ["Token | Ask GitHub for a token", "Register | Run config.sh"]
INSTALL = ["Install | Stop the service", "Install | Unpack the archive and move it to its place"]
FIRST = {"complete": False, "configured": False, "runner_url": "", "runner_name": "", "runner_id": 0}
NOBODY = {**HOST["answers"], ASK: {"runner": None, "own": False}}  # type: ignore[dict-item]

#: The state of the instance, settings, and what is done, in its order.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "registered": ({}, {}, [SETTINGS, ASK, "Register | Update its labels", *SERVICE]),
    "registered-busy": ({"busy": True}, {}, [SETTINGS, ASK, "Register | Update its labels", *SERVICE]),
    "new": (
        FIRST,
        {"__github_runner_install": ["1"], "answers": NOBODY},
        [INSTALL[1], SETTINGS, ASK, *NEW, *SERVICE],
    ),
    "older": ({}, {"__github_runner_install": ["1"]}, [*INSTALL, SETTINGS, ASK, "Register | Update its labels", *SERVICE]),
    "older-busy": (
        {"busy": True},
        {"__github_runner_install": ["1"]},
        [SETTINGS, ASK, "Register | Update its labels", *SERVICE],
    ),
    # Of an earlier release: it is converted once it is idle.
    "converted-later": ({"complete": False, "busy": True}, {"__github_runner_install": ["1"]}, []),
    "one-job": ({}, {"github_runner_mode": "jit"}, [SETTINGS, *SERVICE]),
    # GitHub has removed it.
    "forgotten": (
        {},
        {"answers": NOBODY},
        [SETTINGS, ASK, "Register | Stop the service", *NEW, *SERVICE],
    ),
    "by-token": ({}, {"github_runner_pat": "", "github_runner_token": "t"}, [SETTINGS, *SERVICE]),
    "moved": (
        {"runner_url": "https://github.com/other"},
        {"answers": NOBODY},
        [
            SETTINGS, ASK, "Leave | Stop the service", "Leave | Remove the old entry", "Leave | Remove the old registration",
            "Register | Stop the service", *NEW, *SERVICE,
        ],
    ),
    "moved-by-token": (
        {"runner_url": "https://github.com/other"},
        {"github_runner_pat": "", "github_runner_token": "t"},
        [
            SETTINGS, "Leave | Stop the service", "Leave | Remove the old registration",
            "Register | Stop the service", NEW[1], *SERVICE,
        ],
    ),
    "moved-busy": ({"runner_url": "https://github.com/other", "busy": True}, {"answers": NOBODY}, [SETTINGS, ASK]),
}  # fmt: skip


def test_each_state_of_an_instance(project: Path) -> None:
    hosts = {
        name: {**HOST, **settings, "__github_runner_state": {**STATE, **state}, "calls": str(project / name)}
        for name, (state, settings, _) in CASES.items()
    }
    (project / "inventory.json").write_text(
        json.dumps({"all": {"hosts": hosts, "vars": {"ansible_connection": "local"}}})
    )
    tasks = [{"include_role": {"name": "github_runner", "tasks_from": "instance"}}]
    (project / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    done = subprocess.run(
        [ANSIBLE_PLAYBOOK, "-i", project / "inventory.json", project / "play.yml"],
        cwd=project, env=ansible_environment(ANSIBLE_ROLES_PATH=str(project / "roles")), capture_output=True, text=True, check=False,
    )  # fmt: skip
    calls = {
        name: (project / name).read_text().splitlines() if (project / name).exists() else [] for name in CASES
    }
    assert calls == {name: expected for name, (_, _, expected) in CASES.items()}, (
        done.stdout[-6000:] + done.stderr
    )
    reports = [line for line in done.stdout.splitlines() if '"msg"' in line]
    assert len([line for line in reports if "is running a job; its update to 2 is deferred" in line]) == 2, (
        reports
    )
    assert len([line for line in reports if "stays listed as offline" in line]) == 1, reports
