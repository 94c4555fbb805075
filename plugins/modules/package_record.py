#!/usr/bin/python
"""One record of the packages that the roles bring to a host, and their removal."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: package_record
short_description: Record the packages that a role brings, and remove them with it
description:
  - For the roles of train-classifier only.
  - C(present) reads apt's lists if a package is missing, and records what an installation would bring.
  - It installs nothing.
  - C(absent) removes what the roles brought and no other role, and nothing else on the host, needs.
options:
  role:
    description: The role that needs the packages.
    type: str
    required: true
  state:
    description: Whether the role needs packages (C(present)) or is removed.
    type: str
    choices: [present, absent]
    default: present
  packages:
    description: What the role needs.
    type: list
    elements: str
    default: []
  coming:
    description: The packages that will come; they are then neither simulated nor are the lists read.
    type: list
    elements: str
  keep:
    description: Packages that stay although the role is removed.
    type: list
    elements: str
    default: []
  remove_before_purge:
    description: Files that must be gone before the packages are purged.
    type: list
    elements: path
    default: []
  lock_timeout:
    description: Seconds to wait for another package manager.
    type: int
    default: 300
"""

FOLDER = Path("/var/lib/train-classifier/installed")
RECORD = FOLDER / "packages.json"
ENGINE_RECORD = Path("/etc/docker/train-classifier.json")
# What earlier releases recorded, one package a line. Two roles still read theirs.
EARLIER = {
    "training_host": FOLDER / "training_host.packages",
    "github_runner": FOLDER / "github_runner.packages",
    "nvidia_driver": FOLDER / "nvidia_driver.brought",
    "nvidia_container_toolkit": FOLDER / "nvidia_container_toolkit/packages.brought",
}
# Ansible's module for apt installs it by itself.
APT_BINDING = "python3-apt"
FORM = "${db:Status-Status} ${Package} ${Architecture}\\n"
ENVIRONMENT = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def new_packages(simulation: str) -> list[str]:
    """Return the packages that apt-get -s would newly install; an upgrade of one that is there is none."""
    return re.findall(r"^Inst (\S+) \(", simulation, re.MULTILINE)


def removed_packages(simulation: str) -> set[str]:
    """Return the packages that apt-get -s would remove."""
    return set(re.findall(r"^(?:Remv|Purg) (\S+) ", simulation, re.MULTILINE))


def earlier_record() -> dict[str, Any]:
    """Return what earlier releases recorded, as a record."""
    needed = {
        role: sorted({line.split()[0] for line in path.read_text().splitlines() if line.strip()})
        for role, path in EARLIER.items()
        if path.exists()
    }
    if ENGINE_RECORD.exists():
        needed["docker_engine"] = json.loads(ENGINE_RECORD.read_text()).get("packages", [])
    needed = {role: names for role, names in needed.items() if names}
    brought = sorted({name for names in needed.values() for name in names})
    return {"before": {}, "brought": brought, "wanted": needed}


class Packages:
    """The record, and the package manager of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.role: str = module.params["role"]
        self.record = json.loads(RECORD.read_text()) if RECORD.exists() else earlier_record()

    def run(self, *command: str) -> str:
        """Run a command of the package manager and return its output; the module fails when it fails."""
        status, output, errors = self.module.run_command(list(command), environ_update=ENVIRONMENT)
        if status:
            reason = " ".join(re.findall(r"^[EW]: .*", errors, re.MULTILINE)) or errors.strip()
            self.module.fail_json(msg=f"{' '.join(command[:2])} …: {reason}", stderr=errors, rc=status)
        return str(output)

    def apt_get(self, *words: str) -> str:
        """Run apt-get. What is only recommended or suggested by another package is not needed."""
        weak = ("APT::AutoRemove::RecommendsImportant=false", "APT::AutoRemove::SuggestsImportant=false")
        options = (f"DPkg::Lock::Timeout={self.module.params['lock_timeout']}", *weak)
        return self.run("apt-get", "-y", *(word for option in options for word in ("-o", option)), *words)

    def in_state(self, state: str) -> set[str]:
        """Return the packages whose status is `state`, named as apt names them."""
        native = {"all", self.run("dpkg", "--print-architecture").strip()}
        rows = self.run("dpkg-query", "-W", "-f", FORM).splitlines()
        return {
            name if architecture in native else f"{name}:{architecture}"
            for status, name, architecture in (row.split() for row in rows)
            if status == state
        }

    def marked(self, mark: str) -> set[str]:
        """Return the packages that apt-mark lists for `mark`."""
        return set(self.run("apt-mark", f"show{mark}").split())

    def set_auto(self, names: Iterable[str]) -> None:
        """Mark those of the packages as automatically installed that are not."""
        manual = sorted(set(names) & self.marked("manual"))
        if manual:
            self.run("apt-mark", "auto", *manual)

    def save(self) -> None:
        """Write the record whole, or remove it when no role needs a package."""
        if self.record["wanted"]:
            # Everybody reads files below it, also when root's umask says otherwise.
            before = os.umask(0o022)
            FOLDER.mkdir(parents=True, exist_ok=True)
            os.umask(before)
            with tempfile.NamedTemporaryFile("w", dir=FOLDER, delete=False) as file:
                json.dump(self.record, file, indent=1, sort_keys=True)
            Path(file.name).chmod(0o644)
            self.module.atomic_move(file.name, str(RECORD))
        else:
            RECORD.unlink(missing_ok=True)
        for role in ("training_host", "github_runner"):
            EARLIER[role].unlink(missing_ok=True)

    def repair(self) -> None:
        """Finish what a killed run or a power cut interrupted: apt refuses to work until then."""
        command = ["dpkg", "--configure", "-a"]
        for _ in range(self.module.params["lock_timeout"] // 5):
            status, _, errors = self.module.run_command(command, environ_update=ENVIRONMENT)
            if status == 0 or "lock" not in errors:
                break
            time.sleep(5)
        self.run(*command)

    def add(self) -> None:
        """Record what the role needs and what comes with it, before it is installed."""
        packages, coming = self.module.params["packages"], self.module.params["coming"]
        installed = self.in_state("installed")
        missing = [name for name in packages if name not in installed]
        wanted, brought = set(self.record["wanted"].get(self.role, [])), set(self.record["brought"])
        recorded = wanted >= set(packages) and brought >= set(coming or [])
        answer = {"missing": missing, "recorded": recorded}
        if self.module.check_mode or (recorded and not missing):
            self.module.exit_json(changed=False, **answer)
        if missing and coming is None:
            self.repair()
            self.apt_get("-qq", "-o", "APT::Update::Error-Mode=any", "update")
            names = missing + ([] if APT_BINDING in installed else [APT_BINDING])
            coming = new_packages(self.apt_get("-s", "--no-install-recommends", "install", *names))
        if not self.record["before"]:
            marks = {mark: self.marked(mark) - set(self.record["brought"]) for mark in ("auto", "manual")}
            marks["removed"] = self.in_state("config-files")
            self.record["before"] = {mark: sorted(names) for mark, names in marks.items()}
        self.record["brought"] = sorted({*brought, *(coming or [])})
        # Ansible needs its module for apt as long as one role is there.
        self.record["wanted"][self.role] = sorted({*wanted, *packages, APT_BINDING})
        self.save()
        self.module.exit_json(changed=True, **answer)

    def can_go(self, names: set[str]) -> bool:
        """Return whether apt could remove just these packages, with nothing else removed or installed."""
        command = ["apt-get", "-s", "remove", *sorted(names)]
        status, simulation, _ = self.module.run_command(command, environ_update=ENVIRONMENT)
        return status == 0 and removed_packages(simulation) == names and not new_packages(simulation)

    def unneeded(self, candidates: set[str]) -> set[str]:
        """Return the candidates that can go alone: all of them, or those that nothing needs."""
        if candidates and self.can_go(candidates):
            return candidates
        automatic = removed_packages(self.apt_get("-s", "autoremove")) & candidates
        return automatic if automatic and self.can_go(automatic) else set()

    def remove(self) -> None:
        """Remove what the roles brought and nothing needs once this role is gone."""
        if self.role not in self.record["wanted"]:
            self.module.exit_json(changed=False, removed=[])
        if self.module.check_mode:
            self.module.exit_json(changed=True, removed=[])
        self.repair()
        role_packages = set(self.record["wanted"].pop(self.role))
        others = {name for names in self.record["wanted"].values() for name in names}
        brought = set(self.record["brought"]) - set(self.module.params["keep"])
        before = self.record["before"]
        candidates = (brought - others) & self.in_state("installed") - self.marked("hold")
        self.set_auto(candidates | ((role_packages - others) & set(before.get("auto", []))))
        unneeded = self.unneeded(candidates)
        if unneeded:
            self.apt_get("remove", *sorted(unneeded))
        for path in self.module.params["remove_before_purge"]:
            Path(path).unlink(missing_ok=True)
        purge = sorted((brought & self.in_state("config-files")) - set(before.get("removed", [])))
        if purge:
            self.apt_get("purge", *purge)
        self.record["brought"] = sorted(brought & self.in_state("installed"))
        self.save()
        self.module.exit_json(changed=True, removed=sorted({*unneeded, *purge}))


def main() -> None:
    """Record or remove, as the role asks."""
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "coming": {"type": "list", "elements": "str"},
            "keep": {"type": "list", "elements": "str", "default": []},
            "remove_before_purge": {"type": "list", "elements": "path", "default": []},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    packages = Packages(module)
    if module.params["state"] == "present":
        packages.add()
    else:
        packages.remove()


if __name__ == "__main__":
    main()
