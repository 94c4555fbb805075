#!/usr/bin/python
"""Look at, register or unregister one runner instance's folder on the host. Runs as root."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.github_runner_local import (
    LocalError,
    busy,
    configuration,
    configure,
    drop,
    remove,
    version,
)

DOCUMENTATION = r"""
module: github_runner_instance
short_description: One runner instance's folder
description:
  - For the role github_runner only. The token goes to config.sh by its environment, never by its arguments.
options:
  verb:
    description: Look, ask whether the service runs what is on disk, register, unregister, drop local files.
    type: str
    required: true
    choices: [facts, service, configure, remove, drop]
"""


def service(unit: str, files: list[str]) -> dict[str, bool]:
    """Is the unit older than what it was started from (files changed, or systemd has not read them)?

    Told by times, not by what this run changed: an interrupted run must not leave an old service behind.
    """
    names = "ActiveState,ActiveEnterTimestamp,NeedDaemonReload"
    done = subprocess.run(
        ["systemctl", "show", "--timestamp=unix", f"--property={names}", unit],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    reload = shown.get("NeedDaemonReload") == "yes"
    started = shown.get("ActiveEnterTimestamp", "").removeprefix("@")
    active = shown.get("ActiveState") == "active"
    changed = max((Path(name).stat().st_mtime for name in files if Path(name).exists()), default=0.0)
    stale = active and (reload or not started.isdigit() or changed >= int(started) + 1)
    return {"active": active, "stale": stale, "reload": reload}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "verb": {"required": True, "choices": ["facts", "service", "configure", "remove", "drop"]},
            "folder": {"required": True, "type": "path"},
            "user": {"required": True},
            "unit": {"default": ""},
            "files": {"type": "list", "elements": "path", "default": []},
            "token": {"default": "", "no_log": True},
            "url": {"default": ""},
            "name": {"default": ""},
            "group": {"default": ""},
            "labels": {"type": "list", "elements": "str", "default": []},
            "replace": {"type": "bool", "default": False},
            "no_default_labels": {"type": "bool", "default": False},
            "disable_update": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    folder, user, verb = Path(params["folder"]), params["user"], params["verb"]
    if verb == "facts":
        there = folder.is_dir()
        found = configuration(folder) if there else None
        module.exit_json(
            changed=False,
            version=version(folder, user) if there else "",
            busy=busy(folder) if there else False,
            complete=(folder / ".installed").exists(),
            configured=bool(found),
            agent_id=(found or {}).get("agentId", 0),
            agent_name=(found or {}).get("agentName", ""),
            runner_url=(found or {}).get("gitHubUrl", ""),
            disable_update=bool((found or {}).get("disableUpdate", False)),
        )
    if verb == "service":
        module.exit_json(changed=False, busy=busy(folder), **service(params["unit"], params["files"]))
    if busy(folder):
        module.fail_json(msg=f"A job is running in {folder}; wait for it or cancel it, then run again.")
    if module.check_mode:
        module.exit_json(changed=verb == "configure" or configuration(folder) is not None)
    changed = True
    try:
        if verb == "configure":
            drop(folder)
            configure(folder, user, params["token"], params)
        elif verb == "remove":
            remove(folder, user, params["token"])
            drop(folder)
        else:
            changed = drop(folder)
    except LocalError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
