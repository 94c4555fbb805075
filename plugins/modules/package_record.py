#!/usr/bin/python
"""One record of the packages that the roles bring to a host, and their removal."""

from __future__ import annotations

import fcntl
import json
import os
import re
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
  - It installs nothing, and fails where an installation would remove something.
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
# A killed removal may leave a package half configured, and `dpkg --configure -a` does not change that.
PRESENT = (
    "installed",
    "half-configured",
    "half-installed",
    "unpacked",
    "triggers-awaited",
    "triggers-pending",
)
# needrestart, which Ubuntu runs after apt, would restart the engine under running jobs, or ask.
ENVIRONMENT = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}


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


def is_record(value: Any) -> bool:
    """Return whether a value has the form of a record; no name in it may be an option of apt."""
    try:
        lists = [
            value["brought"],
            value.get("removing", []),
            *value["wanted"].values(),
            *value["before"].values(),
        ]
    except (AttributeError, KeyError, TypeError):
        return False
    return all(
        isinstance(names, list)
        and all(isinstance(name, str) and re.fullmatch(r"[^-\s]\S*", name) for name in names)
        for names in lists
    )


class Packages:
    """The record, and the package manager of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        # Everybody reads what lies beside the record, also when root's umask says otherwise.
        os.umask(0o022)
        self.module = module
        self.role: str = module.params["role"]
        self.record = self.read()

    def read(self) -> dict[str, Any]:
        """Return the record; the module fails where it cannot be read."""
        try:
            record = json.loads(RECORD.read_text()) if RECORD.exists() else earlier_record()
            problem = "" if is_record(record) else "it does not have the form of one"
        except (AttributeError, OSError, ValueError) as error:
            problem = str(error)
        if problem:
            paths = [RECORD] if RECORD.exists() else [*EARLIER.values(), ENGINE_RECORD]
            self.module.fail_json(
                msg=f"the record of packages cannot be read ({', '.join(map(str, paths))}: {problem}), "
                "so nothing was changed. Correct it, or put it aside (mv): "
                "the packages that it names then stay at a teardown."
            )
        return record

    def lock(self) -> None:
        """Wait for the module of another play, and read what it recorded. The lock ends with this process."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.folder = os.open(FOLDER, os.O_RDONLY)
        for _ in range(self.module.params["lock_timeout"]):
            try:
                fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(1)
            else:
                break
        else:
            self.module.fail_json(
                msg="another play changes the packages of this host: wait for it, and run again"
            )
        self.record = self.read()

    def run(self, *command: str) -> str:
        """Run a command of the package manager and return its output; the module fails when it fails.

        It waits for another one: apt itself does not wait for the lock of its lists, nor dpkg for any.
        """
        end = time.monotonic() + self.module.params["lock_timeout"]
        while True:
            status, output, errors = self.module.run_command(list(command), environ_update=ENVIRONMENT)
            if status == 0 or not re.search(r"\block\b", errors) or time.monotonic() > end:
                break
            time.sleep(5)
        if status:
            reason = " ".join(re.findall(r"^[EW]: .*", errors, re.MULTILINE)) or errors.strip()
            self.module.fail_json(msg=f"{' '.join(command[:2])} …: {reason}", stderr=errors, rc=status)
        return str(output)

    def apt_get(self, *words: str) -> str:
        """Run apt-get. What is only recommended or suggested by another package is not needed."""
        weak = ("APT::AutoRemove::RecommendsImportant=false", "APT::AutoRemove::SuggestsImportant=false")
        options = (f"DPkg::Lock::Timeout={self.module.params['lock_timeout']}", *weak)
        return self.run("apt-get", "-y", *(word for option in options for word in ("-o", option)), *words)

    def in_state(self, *states: str) -> set[str]:
        """Return the packages whose status is one of these, named as apt names them."""
        native = {"all", self.run("dpkg", "--print-architecture").strip()}
        rows = self.run("dpkg-query", "-W", "-f", FORM).splitlines()
        return {
            name if architecture in native else f"{name}:{architecture}"
            for status, name, architecture in (row.split() for row in rows)
            if status in states
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
        new = RECORD.with_suffix(".new")
        if self.record["wanted"]:
            with new.open("w") as file:
                json.dump(self.record, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            new.chmod(0o644)
            new.replace(RECORD)
        else:
            RECORD.unlink(missing_ok=True)
            # Of a run that was killed, or had no space.
            new.unlink(missing_ok=True)
        for role in ("training_host", "github_runner"):
            EARLIER[role].unlink(missing_ok=True)

    def repair(self) -> None:
        """Finish what a killed run or a power cut interrupted: apt refuses to work until then."""
        self.run("dpkg", "--configure", "-a")

    def coming(self, missing: list[str]) -> list[str]:
        """Return what an installation would bring; the module fails where it would remove something."""
        self.repair()
        self.apt_get("-qq", "-o", "APT::Update::Error-Mode=any", "update")
        simulation = self.apt_get("-s", "--no-install-recommends", "install", *missing)
        if removes := sorted(removed_packages(simulation)):
            text = f"{' and '.join(missing)} would replace {' and '.join(removes)}: no package was changed."
            text += " Remove them, if nothing uses them, and run again."
            self.module.fail_json(msg=text, removes=removes)
        return new_packages(simulation)

    def add(self) -> None:
        """Record what the role needs and what comes with it, before it is installed."""
        packages, coming = self.module.params["packages"], self.module.params["coming"]
        installed = self.in_state("installed")
        missing = [name for name in packages if name not in installed]
        recorded = set(self.record["wanted"].get(self.role, [])) >= set(packages) and set(
            self.record["brought"]
        ) >= set(coming or [])
        answer = {"missing": missing, "recorded": recorded}
        if self.module.check_mode or (recorded and not missing):
            self.module.exit_json(changed=False, **answer)
        self.lock()
        if missing and coming is None:
            coming = self.coming(missing + ([] if APT_BINDING in installed else [APT_BINDING]))
        wanted, brought = set(self.record["wanted"].get(self.role, [])), set(self.record["brought"])
        # Ansible needs its module for apt as long as one role is there.
        wanted |= {*packages, APT_BINDING}
        new = set(coming or []) - brought
        # What is asked for by name is marked as manual afterwards.
        before = {
            "auto": self.marked("auto") & wanted - brought,
            "removed": self.in_state("config-files") & new,
        }
        for mark, names in before.items():
            self.record["before"][mark] = sorted({*names, *self.record["before"].get(mark, [])})
        self.record["brought"] = sorted(brought | new)
        self.record["wanted"][self.role] = sorted(wanted)
        self.save()
        self.module.exit_json(changed=True, **answer)

    def removed_with(self, names: set[str]) -> set[str]:
        """Return what apt would change to remove these packages."""
        command = ["apt-get", "-s", "remove", *sorted(names)]
        status, simulation, _ = self.module.run_command(command, environ_update=ENVIRONMENT)
        return {"an error"} if status else removed_packages(simulation) | set(new_packages(simulation))

    def unneeded(self, candidates: set[str]) -> set[str]:
        """Return the candidates that can go with nothing but candidates."""
        if self.removed_with(candidates) == candidates:
            return candidates
        going: set[str] = set()
        for name in sorted(candidates):
            if name not in going and (more := self.removed_with(going | {name})) <= candidates:
                going = more
        return going

    def remove(self) -> None:
        """Remove what the roles brought and nothing needs once this role is gone."""
        if self.role not in self.record["wanted"]:
            self.module.exit_json(changed=False, removed=[])
        if self.module.check_mode:
            self.module.exit_json(changed=True, removed=[])
        self.lock()
        self.repair()
        role_packages = set(self.record["wanted"].get(self.role, []))
        other_roles = {role: names for role, names in self.record["wanted"].items() if role != self.role}
        others = {name for names in other_roles.values() for name in names}
        brought = set(self.record["brought"]) - set(self.module.params["keep"])
        before = self.record["before"]
        # What no role named and is marked as manual, an administrator has asked for since. apt forgets the
        # marks of what it removes before it does so: a killed removal leaves those packages as manual.
        ours = role_packages | set(self.record.get("removing", []))
        held = self.marked("hold")
        candidates = (brought - others) & self.in_state(*PRESENT) - held - (self.marked("manual") - ours)
        if kept := sorted((brought - others) & held):
            names = " ".join(kept)
            self.module.warn(
                f"{', '.join(kept)}: the roles brought these packages; they stay, since somebody holds them. "
                f"To remove them as well: apt-mark unhold {names}; apt-get purge {names}"
            )
        self.set_auto(candidates | ((role_packages - others) & set(before.get("auto", []))))
        unneeded = self.unneeded(candidates)
        if unneeded:
            self.record["removing"] = sorted(unneeded)
            self.save()
            self.apt_get("remove", *sorted(unneeded))
        # An administrator may have removed a package that another role brought: its purge is that role's.
        purge = sorted((brought - others) & self.in_state("config-files") - set(before.get("removed", [])))
        if purge:
            for path in self.module.params["remove_before_purge"]:
                Path(path).unlink(missing_ok=True)
            self.apt_get("purge", *purge)
        left = self.in_state(*PRESENT, "config-files")
        self.record = {"before": before, "brought": sorted(brought & left), "wanted": other_roles}
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
    try:
        if module.params["state"] == "present":
            packages.add()
        else:
            packages.remove()
    except OSError as error:
        module.fail_json(msg=f"the record of packages ({RECORD}) could not be written: {error}")


if __name__ == "__main__":
    main()
