#!/usr/bin/python
"""Ask GitHub about runners, and change what it knows of them. Runs where the credential is."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.github_runner_api import ApiError, GitHub, Scope, archive_name, is_own, release

DOCUMENTATION = r"""
module: github_runner_request
short_description: Read and change self-hosted runner entries at GitHub
description:
  - For the role github_runner only. Credentials are never returned and never logged.
options:
  verb:
    description: What to do, see the role's tasks.
    type: str
    required: true
    choices: [scope, find, token, delete, labels, download, sweep]
"""

LINUX = "linux"


def _custom(runner: dict[str, Any]) -> list[str]:
    return [label["name"] for label in runner["labels"] if label.get("type") != "read-only"]


def _brief(runner: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": runner["id"],
        "name": runner["name"],
        "status": runner["status"],
        "busy": runner["busy"],
        "labels": [label["name"] for label in runner["labels"]],
        "custom_labels": _custom(runner),
    }


def scope(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return whether the scope exists, may be used, and is open to the code of strangers."""
    if github.has_credentials:
        github.find("")
    group = github.group(params["group"]) if github.has_credentials and params["group"] else None
    return {
        "public": github.public_reason(params["group"]),
        "group_id": int(group["id"]) if group else 1,
        "runner_url": github.scope.runner_url,
        "api_url": github.scope.api_url,
    }


def find(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return the entry of a name, and whether it is the one that the record on the host means."""
    runner = github.find(params["name"])
    own = runner is not None and is_own(runner, params["id"], params["host_label"])
    return {"runner": _brief(runner) if runner else None, "own": own}


def token(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return a token to register or to remove a runner."""
    if check:
        return {"changed": True, "token": ""}
    make = github.remove_token if params["kind"] == "remove" else github.registration_token
    return {"changed": True, "token": make()}


def delete(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Remove the entry that root's record on the host means."""
    runner = github.find(params["name"])
    if runner is None or not is_own(runner, params["id"], params["host_label"]):
        return {}
    if runner["busy"]:
        raise ApiError(
            f"The runner {runner['name']!r} is running a job; wait for it or cancel it, then run again."
        )
    return {"changed": True if check else github.delete(runner["id"])}


def labels(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Bring the custom labels of a registered runner to those of the settings."""
    runner = github.find(params["name"])
    if runner is None:
        return {"changed": check}
    current, labels = sorted(_custom(runner), key=str.casefold), sorted(params["labels"], key=str.casefold)
    if [name.casefold() for name in current] == [name.casefold() for name in labels]:
        return {}
    if not check:
        github.set_labels(runner["id"], labels)
    return {"changed": True, "diff": {"before": "\n".join(current) + "\n", "after": "\n".join(labels) + "\n"}}


def download(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Where the archive is and what its SHA-256 must be."""
    version, architecture = params["version"], params["architecture"]
    filename = archive_name(version, architecture)
    for entry in github.downloads() if github.has_credentials else []:
        if entry["os"] != LINUX or entry["architecture"] != architecture:
            continue
        if version and entry["filename"] != filename:
            continue
        return {
            "version": entry["filename"].rsplit("-", 1)[1].removesuffix(".tar.gz"),
            "url": entry["download_url"],
            "filename": entry["filename"],
            "sha256": entry.get("sha256_checksum", ""),
        }
    if not version:
        raise ApiError(
            f"GitHub offers no runner for {LINUX} {architecture} here. "
            "Set github_runner_version and github_runner_checksum."
        )
    if not params["checksum"]:
        return dict(release(params["releases_url"], architecture, version))
    address = f"https://github.com/actions/runner/releases/download/v{version}/{filename}"
    return {"version": version, "url": address, "filename": filename, "sha256": ""}


def sweep(github: GitHub, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Remove our entries that stayed offline for longer than `older_s`.

    GitHub keeps no time of last contact: `known` carries when each was first seen offline, from run to run.
    """
    now, known = time.time(), params["known"]
    keep = {f"host-{name}".casefold() for name in params["keep_hosts"]}
    offline: dict[str, float] = {}
    stale: list[dict[str, Any]] = []
    for runner in github.runners():
        names = {label["name"].casefold() for label in runner["labels"]}
        own = params["mark"].casefold() in names and runner["name"].startswith(params["prefix"])
        if not own or runner["status"] != "offline" or runner["busy"] or names & keep:
            continue
        key = str(runner["id"])
        since = float(known.get(key, now))
        if now - since >= params["older_s"]:
            stale.append({"id": runner["id"], "name": runner["name"], "offline_s": int(now - since)})
        offline[key] = since
    removed = []
    if not (check or params["dry_run"]):
        for runner in stale:
            if github.delete(runner["id"]):
                removed.append(runner["name"])
            offline.pop(str(runner["id"]))
    return {"changed": bool(removed), "stale": stale, "removed": removed, "known": offline}


VERBS = {f.__name__: f for f in (scope, find, token, delete, labels, download, sweep)}


def main() -> None:
    """Do what the verb says."""
    module = AnsibleModule(
        argument_spec={
            "verb": {"required": True, "choices": sorted(VERBS)},
            "url": {"required": True},
            "api_url": {"default": ""},
            "repository": {"default": ""},
            "organization": {"default": ""},
            "enterprise": {"default": ""},
            "pat": {"default": "", "no_log": True},
            "app_id": {"default": ""},
            "app_installation_id": {"default": ""},
            "app_key": {"default": "", "no_log": True},
            # Not by the task's environment, which is on a command line: a proxy may have a password.
            # As JSON, since Ansible masks each value of a dictionary in all that is returned, and the address
            # of the runner may be part of one.
            "environment": {"default": "{}", "no_log": True},
            "runner_url": {"default": ""},
            "group": {"default": ""},
            "name": {"default": ""},
            "id": {"type": "int", "default": 0},
            "host_label": {"default": ""},
            "kind": {"default": "registration", "choices": ["registration", "remove"]},
            "labels": {"type": "list", "elements": "str", "default": []},
            "version": {"default": ""},
            "architecture": {"default": "x64"},
            "checksum": {"default": ""},
            "releases_url": {"default": "https://api.github.com"},
            "mark": {"default": ""},
            "prefix": {"default": ""},
            "older_s": {"type": "float", "default": 0},
            "dry_run": {"type": "bool", "default": True},
            "known": {"type": "dict", "default": {}},
            "keep_hosts": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    values = {name: str(value) for name, value in json.loads(params["environment"]).items()}
    os.environ.update(values)
    # A login stays masked.
    module.no_log_values |= {value for value in values.values() if "@" in value}
    try:
        if params["runner_url"]:
            # Where root's record says that an instance is registered, which need not be where it shall be.
            scope = Scope.parse(params["runner_url"], params["api_url"])
            if not scope.is_at(params["url"]):
                # The credential is for github_runner_url and goes to no other host.
                module.exit_json(changed=False, elsewhere=True, runner=None, own=False)
        else:
            names = (params["repository"], params["organization"], params["enterprise"])
            scope = Scope.of(params["url"], *names, params["api_url"])
        github = GitHub(
            scope,
            pat=params["pat"],
            app_id=params["app_id"],
            app_installation_id=params["app_installation_id"],
            app_key=params["app_key"],
        )
        answer = VERBS[params["verb"]](github, params, module.check_mode)
    except ApiError as error:
        module.fail_json(msg=str(error), status=error.status)
    module.exit_json(**{"changed": False, "elsewhere": False, **answer})


if __name__ == "__main__":
    main()
