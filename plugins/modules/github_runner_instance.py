#!/usr/bin/python
"""Look at, install, register or remove one runner instance on the host. Runs as root."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.github_runner_local import (
    LocalError,
    busy,
    change_record,
    configure,
    fetch,
    install,
    locked,
    read_record,
    registered,
    remove,
    remove_folder,
    remove_registration,
)

DOCUMENTATION = r"""
module: github_runner_instance
short_description: One runner instance on the host
description:
  - For the role github_runner only. The token goes to config.sh by its environment, never by its arguments.
options:
  verb:
    description:
      - Look; ask whether the service runs what is on disk; fetch the archive; install the programs; register;
        unregister by config.sh; remove the registration's files; remove the instance.
    type: str
    required: true
    choices: [facts, service, fetch, install, configure, remove, forget, delete]
"""


def service(unit: str, files: list[str]) -> dict[str, bool]:
    """Is the unit older than what it was started from (files changed, or systemd has not read them)?

    Times decide, not what this run changed, so that an interrupted run leaves no old service behind.
    """
    names = "ActiveState,ActiveEnterTimestamp,NeedDaemonReload"
    process = subprocess.run(
        ["systemctl", "show", "--timestamp=unix", f"--property={names}", unit],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    properties = dict(line.split("=", 1) for line in process.stdout.splitlines() if "=" in line)
    reload = properties.get("NeedDaemonReload") == "yes"
    started = properties.get("ActiveEnterTimestamp", "").removeprefix("@")
    active = properties.get("ActiveState") == "active"
    changed = max((Path(name).stat().st_mtime for name in files if Path(name).exists()), default=0.0)
    stale = active and (reload or not started.isdigit() or changed >= int(started) + 1)
    return {"active": active, "stale": stale, "reload": reload}


def facts(folder: Path, record_file: Path, description_file: str) -> dict[str, Any]:
    """Return what root's record says of the instance, and whether the files of the account exist.

    An earlier release wrote no record: then name and URL are those of the description.
    """
    record = read_record(record_file)
    description: dict[str, Any] = {}
    if description_file and Path(description_file).exists():
        description = json.loads(Path(description_file).read_text())
    identity = record if record else description
    return {
        "version": record.get("version", ""),
        "complete": bool(record.get("version")) and folder.is_dir(),
        "busy": busy(folder),
        "recorded": bool(record),
        "configured": bool(identity.get("url")) and registered(folder),
        "runner_url": identity.get("url", ""),
        "runner_name": identity.get("name", ""),
        "runner_id": record.get("id", 0),
        "has_files": bool(record.get("files")),
        "host_label": description.get("host_label", ""),
        "mode": description.get("mode", ""),
    }


def change(verb: str, folder: Path, record: Path, params: dict[str, Any]) -> bool:
    """Change the instance, whose lock is held; return whether anything changed. Raises LocalError."""
    user = params["user"]
    if verb == "install":
        if not read_record(record):
            change_record(record, url=params["url"] or None, name=params["name"] or None)
        install(Path(params["archive"]), folder, user, params["version"], record)
    elif verb == "configure":
        configure(folder, user, params["token"], params, record)
    elif verb == "remove":
        remove(folder, user, params["token"], record)
        remove_registration(folder, user, record)
    elif verb == "forget":
        return remove_registration(folder, user, record)
    elif verb == "delete":
        removed = remove_folder(folder) or record.exists()
        record.unlink(missing_ok=True)
        return removed
    return True


def main() -> None:
    """Do what the verb says."""
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "verb": {
                "required": True,
                "choices": [
                    "facts",
                    "service",
                    "fetch",
                    "install",
                    "configure",
                    "remove",
                    "forget",
                    "delete",
                ],
            },
            "folder": {"type": "path"},
            "record": {"type": "path"},
            "description": {"default": ""},
            "user": {"default": ""},
            "unit": {"default": ""},
            "files": {"type": "list", "elements": "path", "default": []},
            "archive": {"type": "path", "default": ""},
            "version": {"default": ""},
            # May hold a login for a mirror.
            "download_url": {"default": "", "no_log": True},
            "sha256": {"default": ""},
            "token": {"default": "", "no_log": True},
            "url": {"default": ""},
            "name": {"default": ""},
            "group": {"default": ""},
            "labels": {"type": "list", "elements": "str", "default": []},
            "replace": {"type": "bool", "default": False},
            "no_default_labels": {"type": "bool", "default": False},
        },
        required_if=[("verb", "fetch", ("archive", "sha256"))],
        supports_check_mode=True,
    )
    params = module.params
    verb = params["verb"]
    try:
        if verb == "fetch":
            if module.check_mode:
                module.exit_json(changed=not Path(params["archive"]).exists())
            module.exit_json(changed=fetch(params["download_url"], params["sha256"], Path(params["archive"])))
        folder = Path(params["folder"])
        if verb == "service":
            module.exit_json(changed=False, busy=busy(folder), **service(params["unit"], params["files"]))
        record = Path(params["record"])
        if verb == "facts":
            module.exit_json(changed=False, **facts(folder, record, params["description"]))
        if verb == "delete" and not folder.exists() and not record.exists():
            module.exit_json(changed=False)
        if busy(folder):
            module.fail_json(msg=f"A job is running in {folder}; wait for it or cancel it, then run again.")
        if module.check_mode:
            module.exit_json(changed=verb in ("install", "configure") or record.exists() or folder.exists())
        with locked(record):
            changed = change(verb, folder, record, params)
    except LocalError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.strerror}: {error.filename or params['folder']}. Fix this and run the role again."
        )
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
