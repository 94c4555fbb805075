"""Merge settings into daemon.json without losing what people wrote there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def json_problem(text: str) -> str:
    """Return why a text is no JSON object; empty when it is one, or when there is no text."""
    try:
        return "" if isinstance(json.loads(text or "{}"), dict) else "it holds no object"
    except ValueError as error:
        return str(error)


def merge(current: dict[str, Any], settings: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Merge `settings` into `current`, key by key at every depth, except what was edited by hand.

    `written` is what this role wrote last: a key that differs from it was edited and stays. A key in
    `written` that is no setting any more, and was not edited, is removed. Returns `result` and `edited`.
    """
    edited: list[str] = []
    return {"result": _merge(current, settings, written, "", edited), "edited": edited}


def _merge(
    current: dict[str, Any], settings: dict[str, Any], written: dict[str, Any], path: str, edited: list[str]
) -> dict[str, Any]:
    result = dict(current)
    for key, value in settings.items():
        old = written.get(key)
        if isinstance(value, dict) and isinstance(result.get(key, {}), dict):
            deeper = old if isinstance(old, dict) else {}
            result[key] = _merge(result.get(key, {}), value, deeper, f"{path}{key}.", edited)
        elif key in result and result[key] != value and result[key] != old:
            edited.append(path + key)
        else:
            result[key] = value
    for key in written:
        if key not in settings and key in result:
            if result[key] == written[key]:
                del result[key]
            elif isinstance(written[key], dict) and isinstance(result[key], dict):
                result[key] = _merge(result[key], {}, written[key], f"{path}{key}.", edited)
    return result


#: The package with the engine, by its source.
ENGINES = {"distribution": "docker.io", "docker": "docker-ce"}


def foreign(host: Mapping[str, str], record: Mapping[str, Any]) -> bool:
    """Return whether somebody else installed the engine: before this role came, or instead of its own.

    `host` are the answers of the probe, `record` is what the role did there.
    """
    if not record or record.get("foreign"):
        return bool(record.get("foreign", "running" in host))
    own = ENGINES[record.get("source", "distribution")]
    return "running" in host and host.get("installed", own) != own


def conflict(host: Mapping[str, str], source: str, record: Mapping[str, Any], name: str) -> str:
    """Return why the engine of this source cannot be had on a host that has another one; else empty.

    An engine that somebody else installed is used as it is, unless Docker's own was asked for; none is ever
    replaced.
    """
    package = ENGINES[source]
    installed = host.get("installed", package)
    if installed == package:
        return ""
    recorded = record.get("source", "distribution")
    if record and not record.get("foreign") and installed == ENGINES[recorded]:
        roles = """-e '{"teardown_roles": ["docker_engine"]}'"""
        return (
            f"the engine is {installed}, which this role installed (docker_engine_source: {recorded}), and "
            f"stays: {package} would end every container. Set docker_engine_source: {recorded}, or change "
            f"the engine: ansible-playbook playbooks/teardown.yml --limit {name} {roles} (it refuses while "
            "a job runs), then site.yml."
        )
    if source == "docker":
        return (
            f"dockerd is installed from {installed}, which docker-ce would replace with every container on "
            "it: nothing was changed. Set docker_engine_source: distribution to have it used as it is, or "
            f"remove {installed} while no job runs, and run again."
        )
    if "running" in host and foreign(host, record):
        return ""
    return (
        f"dockerd is installed from {installed}, which the distribution's docker.io would replace: start it "
        "(systemctl start docker) to have it used as it is, or remove it, and run again."
    )


class FilterModule:
    """The filters of the role docker_engine."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "docker_engine_conflict": conflict,
            "docker_engine_foreign": foreign,
            "docker_engine_json_problem": json_problem,
            "docker_engine_merge": merge,
        }
