"""The tasks of all roles and playbooks, each with the conditions under which it runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).parents[1]
INNER = ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers", "roles")
#: What a task has beside its module.
KEYWORDS = {
    "name", "when", "vars", "register", "loop", "loop_control", "until", "retries", "delay", "changed_when", "failed_when",
    "check_mode", "diff", "no_log", "become", "become_user", "delegate_to", "environment", "notify", "args", "tags", "run_once",
    "module_defaults", "any_errors_fatal", "listen", "throttle", "timeout", "async", "poll", "vars_files", "delegate_facts",
    "ignore_unreachable", "collections", "with_items", "connection", "remote_user", "gather_facts", "debugger",
}  # fmt: skip
#: Modules that start programs; Ansible skips these in check mode, unless `check_mode: false`.
PROGRAMS = ("command", "shell", "script")


#: Ten times as fast, where PyYAML was built with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def load(path: Path) -> Any:
    """What a YAML file of the repository says."""
    return yaml.load(path.read_text(encoding="utf-8"), LOADER)


@dataclass(frozen=True)
class Task:
    """One task, with what it inherits from its blocks."""

    path: Path
    keys: dict[str, Any]
    conditions: tuple[str, ...]
    blocks: tuple[dict[str, Any], ...] = ()
    #: The parts of its blocks in which it stands: block, rescue, always, tasks, …
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}: {self.keys.get('name')}"

    @property
    def role(self) -> str:
        """The role; of a playbook `playbooks`."""
        parts = self.path.relative_to(ROOT).parts
        return parts[1] if parts[0] == "roles" else "playbooks"

    @property
    def module(self) -> str:
        """The module's name, without `ansible.builtin.`; empty for a block or a play."""
        names = [name for name in self.keys if name not in KEYWORDS and name not in INNER]
        return names[0].removeprefix("ansible.builtin.") if len(names) == 1 else ""

    @property
    def arguments(self) -> Any:
        """The module's arguments as they are written: a table, or a text."""
        return self.keys.get(f"ansible.builtin.{self.module}", self.keys.get(self.module))

    def argument(self, name: str) -> str:
        """One argument as a text; empty if it is not given."""
        value = self.arguments.get(name, "") if isinstance(self.arguments, dict) else ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    @property
    def program(self) -> str:
        """What the task starts, words without quotes and brackets; empty if it starts no program."""
        if self.module not in PROGRAMS:
            return ""
        if isinstance(self.arguments, str):
            return self.arguments
        return self.argument("cmd") or " ".join(re.sub(r"[\[\]{}'\",+]", " ", self.argument("argv")).split())

    @property
    def parts_of_files(self) -> list[Task]:
        """Of common_files the tasks that it stands for, a `copy` or a `file` for each entry; of any other task itself."""
        if not self.module.endswith(".common_files"):
            return [self]
        keys = {name: value for name, value in self.keys.items() if not name.endswith(".common_files")}
        parts = []
        for entry in self.arguments["files"]:
            folder = entry.get("state") == "directory"
            arguments = {"owner": "root", "group": "root", "mode": "0755" if folder else "0644", **entry}
            needed = arguments.pop("needed", "")
            decides = (text.strip("{} ") for text in (str(needed), entry.get("state", "")) if "{{" in text)
            conditions = (*self.conditions, *decides)
            if folder or arguments.get("state") == "absent":
                module = "file"
            else:
                module = "copy"
                arguments["dest"] = arguments.pop("path")
                arguments.pop("state", None)
                # Written where the probe found no record.
                if "recorded" in str(needed):
                    arguments["force"] = False
            keys_of_part = {**keys, f"ansible.builtin.{module}": arguments}
            parts.append(dataclasses.replace(self, keys=keys_of_part, conditions=conditions))
        return parts

    @property
    def has_rescue(self) -> bool:
        """Whether its failure is reported by a rescue."""
        pairs = zip(self.blocks, self.parts, strict=True)
        return any("rescue" in block and part == "block" for block, part in pairs)

    @property
    def items(self) -> list[Any]:
        """The elements of its loop, if these are written there."""
        loop = self.keys.get("loop")
        return loop if isinstance(loop, list) else []


def task_files() -> list[Path]:
    """Every file of tasks: of the roles and their handlers, and the playbooks."""
    roles = (ROOT / "roles").glob("*/[th]a*s/*.yml")
    return sorted([*roles, ROOT / "site.yml", *(ROOT / "playbooks").glob("*.yml")])


def tasks_of(path: Path) -> Iterator[Task]:
    """The tasks, blocks and plays of a file, at every depth."""

    def walk(nodes: Any, parent: Task) -> Iterator[Task]:
        for keys in nodes or []:
            if not isinstance(keys, dict):
                continue
            when = keys.get("when", [])
            conditions = (*parent.conditions, *map(str, when if isinstance(when, list) else [when]))
            yield (task := Task(path, keys, conditions, parent.blocks, parent.parts))
            for name in INNER:
                inner = Task(path, {}, conditions, (*task.blocks, keys), (*task.parts, name))
                yield from walk(keys.get(name), inner)

    yield from walk(load(path), Task(path, {}, ()))


@functools.cache
def all_tasks() -> tuple[Task, ...]:
    """Every task, block and play of the repository."""
    return tuple(task for path in task_files() for task in tasks_of(path))


def included_files(task: Task) -> list[Path]:
    """The files of tasks that a task includes; of a name that is a template, all that it can mean."""
    if task.module in ("include_tasks", "import_tasks"):
        name = task.arguments if isinstance(task.arguments, str) else task.argument("file")
        return sorted(task.path.parent.glob(re.sub(r"\{\{.*?\}\}", "*", name)))
    if task.module in ("include_role", "import_role"):
        pattern = re.sub(r"\{\{.*?\}\}", "*", task.argument("name"))
        entry = re.sub(r"\{\{.*?\}\}", "*", task.argument("tasks_from") or "main").removesuffix(".yml")
        return sorted((ROOT / "roles").glob(f"{pattern}/tasks/{entry}.yml"))
    return []


@functools.cache
def includers(path: Path) -> tuple[Task, ...]:
    """The tasks that include a file."""
    return tuple(task for task in all_tasks() if path in included_files(task))


def _conjuncts(condition: str) -> Iterator[jinja2.nodes.Node]:
    expression = jinja2.Environment().parse("{{ " + condition + " }}").body[0].nodes[0]  # type: ignore[attr-defined]
    waiting = [expression]
    while waiting:
        node = waiting.pop()
        if isinstance(node, jinja2.nodes.And):
            waiting += [node.left, node.right]
        else:
            yield node


def conjuncts(condition: str) -> set[str]:
    """The parts of a condition that `and` joins, in one form."""
    return {repr(node) for node in _conjuncts(condition)}


def skips_check_mode(condition: str) -> bool:
    """Whether a condition never holds in check mode."""
    return any(
        isinstance(node, jinja2.nodes.Not)
        and isinstance(node.node, jinja2.nodes.Name)
        and node.node.name == "ansible_check_mode"
        for node in _conjuncts(condition)
    )


def needs_check_mode(condition: str) -> bool:
    """Whether a condition holds in check mode only."""
    for node in _conjuncts(condition):
        wanted = True
        while isinstance(node, jinja2.nodes.Not):
            node, wanted = node.node, not wanted
        if isinstance(node, jinja2.nodes.Name) and node.name == "ansible_check_mode" and wanted:
            return True
    return False


def runs_in_check_mode(task: Task) -> bool:
    """Whether a condition of the task, of its blocks, or of all includes of its file keeps it out of check mode."""
    if any(skips_check_mode(condition) for condition in task.conditions):
        return False
    sites = includers(task.path)
    return not sites or any(runs_in_check_mode(site) for site in sites)


def all_conditions(task: Task) -> tuple[str, ...]:
    """The conditions of the task and its blocks, and those of includes of its file."""
    inherited = (all_conditions(site) for site in includers(task.path) if site.path != task.path)
    return (*task.conditions, *(condition for conditions in inherited for condition in conditions))
