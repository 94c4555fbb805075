"""Rules for every task of every role: rights of files, output, exit statuses, check mode, handlers, systemd.

A rule holds for tasks to come as well; what is exempt is named with its reason.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from role_files import (
    PROGRAMS,
    ROOT,
    Task,
    all_conditions,
    all_tasks,
    conjuncts,
    includers,
    load,
    needs_check_mode,
    runs_in_check_mode,
)

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())
TASKS = [part for task in all_tasks() if task.module for part in task.parts_of_files]
WRITING = ("copy", "template", "get_url", "lineinfile", "blockinfile", "file")
#: Nothing of these is for others to read, not even the names of what is inside; the state folder is only walked through.
CLOSED_FOLDERS = re.compile(
    r"/home$|__github_runner_records \}\}$|__common_environment_folder \}\}$|__training_host_state \}\}$"
)
#: Not secret, although their changes are not printed: a unit had proxies in an earlier release.
READABLE = ("__docker_engine_unit ",)
#: Start nothing, write nothing, and answer by their exit status: 1 or 2 says that there is nothing.
ANSWERING = re.compile(
    r"^(?:grep|getent|find|pkill|modinfo|modprobe|dpkg-query|dkms autoinstall|systemctl list-unit-files)\b"
)
#: What a program that runs in check mode must not hold: it would change a host that was only to be looked at.
CHANGING = re.compile(
    r"\bapt-get (?!-s\b|[^|;&\n]*\bupdate\b)|\bapt-mark (?!showhold)|\bdpkg --(?:configure|install)|\b(?:rm|mv|cp|ln|mkdir|touch|tee|chmod|chown|truncate) "
    r"|\binstall -|\bsystemctl (?!is-|list-|show|--version)|\bdocker (?:pull|run|build|rm|rmi|load|start|restart|stop|kill)\b"
    r"|\bdocker (?:image|container|volume) (?!ls|inspect)|\bmodprobe (?!-n)|\bgpasswd\b|\b(?:user|group)(?:add|del|mod)\b|\bloginctl\b"
    r"|\bupdate-initramfs\b|\bbuild-image\b|\bexportfs -r|\bdkms (?!status)|\bsed -i|>\s*(?!/dev/null)[\"$/]"
)


def names(tasks: list[Task]) -> list[str]:
    return sorted({str(task) for task in tasks})


def of_items(task: Task, text: str) -> list[str]:
    """What an argument is for each element of the loop; once where the loop has no table of elements."""
    tables = [item for item in task.items if isinstance(item, dict)]
    pattern = r"\{\{ item\.(\w+)(?: \| default\('([^']*)'\))? \}\}"

    def of(item: dict[str, Any]) -> str:
        return re.sub(pattern, lambda match: str(item.get(match[1], match[2])), text)

    return [of(item) for item in tables] or [text]


class WrittenFile:
    """A file or folder that a task writes, for one element of its loop."""

    def __init__(self, task: Task, position: int) -> None:
        def argument(*keys: str) -> str:
            texts = of_items(task, next(filter(None, map(task.argument, keys)), ""))
            return texts[position if len(texts) > 1 else 0]

        self.task = task
        self.path = argument("dest", "path")
        self.owner, self.group, self.mode = argument("owner"), argument("group"), argument("mode")
        self.modes = [int(mode, 8) for mode in re.findall(r"\b[0-7]{4}\b", self.mode)]
        self.is_folder = task.argument("state") == "directory"

    def __str__(self) -> str:
        return f"{self.task}: {self.path} {self.owner}:{self.group} {self.mode}"


def written_files() -> Iterator[WrittenFile]:
    for task in TASKS:
        state = task.argument("state")
        if task.module in WRITING and state not in ("absent", "link"):
            for position in range(max(1, len([item for item in task.items if isinstance(item, dict)]))):
                yield WrittenFile(task, position)


WRITTEN = list(written_files())


def test_what_is_written_has_a_mode_and_only_root_can_change_it() -> None:
    assert not [str(file) for file in WRITTEN if not file.mode]
    # The queue of the host: whoever is in the group docker takes a ticket there.
    shared = [file for file in WRITTEN if any(mode & 0o022 for mode in file.modes)]
    # And the folder that a cluster shares: each account makes its own in it, as in /tmp.
    assert [(file.path, file.group, file.mode) for file in shared] == [
        ("{{ slurm_controller_shared_dir }}", "root", "1777"),
        ("{{ __training_host_root }}/queue", "docker", "2770"),
    ]


def test_what_is_written_belongs_to_root_except_homes() -> None:
    accounts = ("{{ training_host_service_user }}", "{{ github_runner_user }}")
    for file in WRITTEN:
        owners = set(re.findall(r"'([^']+)'", file.owner)) or {file.owner}
        if file.path.endswith("/home"):
            assert file.owner in accounts, file
        elif file.owner in ("munge", "slurm"):
            # What the daemon of that name alone reads.
            assert file.modes[0] & 0o077 == 0, file
            continue
        else:
            assert owners <= {"", "root"}, file
        groups = set(re.findall(r"'([^']+)'", file.group)) or {file.group}
        assert groups <= {"", "root", "docker", *accounts}, file
        # A group other than root's: only where its members read or write, and others do not.
        assert "docker" not in groups or all(mode & 0o007 == 0 for mode in file.modes), file


def test_what_is_not_printed_is_not_readable_by_others() -> None:
    """A task that hides what it writes writes something that may hold a password."""
    hidden = [file for file in WRITTEN if "no_log" in file.task.keys or file.task.keys.get("diff") is False]
    assert len(hidden) > 10
    for file in hidden:
        # `no_log: "{{ '@' in … }}"` hides an address of where the file comes from. Folders have a rule of their own.
        if file.is_folder or file.task.module == "get_url" or any(name in file.path for name in READABLE):
            continue
        # A file that was there keeps the mode that its owner gave it; else the first mode is the one for a secret.
        if "omit" in file.mode and not file.mode.startswith("{{ '"):
            continue
        assert file.modes and file.modes[0] & 0o007 == 0, file
        assert file.modes[0] & 0o070 == 0 or "docker" in file.group, file


@pytest.mark.parametrize("role", ROLES)
def test_options_that_hold_a_password_are_not_logged(role: str) -> None:
    """What is wrong with an option is printed with its value, unless it says so."""
    path = ROOT / "roles" / role / "meta/argument_specs.yml"
    for entry in load(path)["argument_specs"].values() if role != "training_job" else ():
        for name, option in entry.get("options", {}).items():
            if re.search(r"_(?:environment|pat|app_key|token)$", name):
                assert option.get("no_log") is True, name


def test_closed_folders_are_closed() -> None:
    # Somebody else's state folder keeps its mode; only the way through it is opened.
    folders = [file for file in WRITTEN if file.is_folder and file.mode != "a+x"]
    closed = [file for file in folders if CLOSED_FOLDERS.search(file.path)]
    assert len(closed) >= 5
    for file in closed:
        assert file.modes and file.modes[0] & 0o066 == 0, file
        assert file.modes[0] & 0o011 == 0 or "__training_host_state " in file.path, file


def test_accounts_keep_their_other_groups() -> None:
    members = [task for task in TASKS if task.module == "user" and task.argument("groups")]
    assert members and not names([task for task in members if task.arguments.get("append") is not True])


def test_programs_say_when_they_changed_something() -> None:
    """Also those that ansible-lint does not ask: a script, and a command with `creates`, which may not run at all."""
    silent = [
        task
        for task in TASKS
        if task.module in PROGRAMS and "changed_when" not in task.keys
        and not {"creates", "removes"} & {*(task.arguments if isinstance(task.arguments, dict) else ()), *task.keys.get("args", {})}
        and "engine-without-systemd" not in task.program
    ]  # fmt: skip
    assert not names(silent)


def test_what_a_program_does_is_what_its_task_reports() -> None:
    """A program that only reads is no change; one that writes is, but for what a change itself needs."""
    quiet = re.compile(
        "interrupted|during the change|packages again|with nvidia-ctk|start limit|will be installed|for runtimes"
        "|read its lists|own calls of apt|apt's errors"
    )
    programs = [task for task in TASKS if task.module in PROGRAMS]
    loud = [task for task in programs if task.keys.get("changed_when") is True]
    assert not names([task for task in loud if not CHANGING.search(task.program)])
    silent = [
        task for task in programs if task.keys.get("changed_when") is False and CHANGING.search(task.program)
    ]
    assert not names([task for task in silent if not quiet.search(task.keys["name"])])


def test_no_other_collection_is_needed() -> None:
    """A module by another name than Ansible's own and ours would have to be installed beside ansible-core."""
    modules = [key for task in TASKS for key in task.keys if "." in key]
    assert len(modules) > 300
    assert {key.rpartition(".")[0] for key in modules} == {"ansible.builtin", "incuvers.train_classifier"}
    texts = [path.read_text() for folder in ("roles", "playbooks") for path in (ROOT / folder).rglob("*.yml")]
    assert not re.findall(
        r"\b(?:ansible|community|containers)\.(?!builtin\b)[a-z]+\.[a-z_]+", "\n".join(texts)
    )


def test_no_flag_repeats_a_default() -> None:
    """So that each flag that is written says something, and can be seen to be wrong."""
    on_by_default = {"install_recommends", "get_checksum", "create_home", "update_cache_valid"}
    for task in all_tasks():
        for name in ("diff", "gather_facts") if task.module else ():
            assert task.keys.get(name) is not True, task
        for name in ("no_log", "run_once", "any_errors_fatal", "ignore_errors"):
            assert task.keys.get(name) is not False, task
        for name, value in task.arguments.items() if isinstance(task.arguments, dict) else ():
            if task.module in (
                *PROGRAMS,
                *WRITING,
                "apt",
                "user",
                "group",
                "stat",
                "find",
                "systemd_service",
            ):
                assert value is not True or name not in on_by_default, f"{task}: {name}"
                expected = (
                    name in on_by_default or (name == "force" and task.module == "copy") or name == "enabled"
                )
                assert value is not False or expected, f"{task}: {name}"
        if task.module == "get_url" and "checksum" not in task.arguments:
            assert task.arguments.get("force") is True, f"{task}: an old file would stay"


def test_units_are_enabled_when_they_start_and_disabled_when_they_stop() -> None:
    for task in TASKS:
        if task.module == "systemd_service" and isinstance(enabled := task.arguments.get("enabled"), bool):
            assert enabled == (task.argument("state") != "stopped"), task


def test_accounts_of_the_roles_are_of_the_system_and_have_no_login() -> None:
    made = [
        task
        for task in TASKS
        if task.module in ("user", "group") and not {"append", "state"} & set(task.arguments)
    ]
    assert len(made) >= 5
    for task in made:
        assert task.arguments.get("system") is True, task
        if task.module == "user":
            assert (
                task.arguments.get("create_home") is False and task.arguments["shell"] == "/usr/sbin/nologin"
            ), task


def test_what_systemd_says_of_the_engine_is_not_shown() -> None:
    """Its unit's environment has the proxies, which may hold a password; only -v shows what a task answers."""
    units = [
        task
        for task in TASKS
        if task.module == "systemd_service" and task.argument("name") == "docker.service"
    ]
    assert len(units) == 2
    assert not names([task for task in units if task.keys.get("no_log") != "{{ ansible_verbosity > 0 }}"])


def test_holds_change_only_where_there_are_some() -> None:
    """Without a package apt-mark fails."""
    marks = [
        task
        for task in TASKS
        if re.search(r"\{\{ \['?apt-mark'|apt-mark (?:un)?hold else", task.argument("argv"))
    ]
    assert len(marks) > 8
    for task in marks:
        packages = re.sub(r"^.*?\] \+ (.*) \}\}$", r"\1", task.argument("argv"))
        # The upgrade is simulated with the same packages before.
        if "__docker_engine_simulated" not in " ".join(task.conditions):
            parts = {part for condition in task.conditions for part in conjuncts(condition)}
            assert conjuncts(f"{packages} | length > 0") <= parts, task


def test_programs_of_a_role_get_one_of_their_words() -> None:
    path = ROOT / "roles/training_host/files/metadata-firewall"
    words = set(re.findall(r"^    (\w+)\)", path.read_text(), re.M))
    arguments = [
        task.arguments["argv"][1:] for task in TASKS if "__training_host_firewall }}" in task.argument("argv")
    ]
    assert arguments == [["block"], ["allow"]] and {"block", "allow"} <= words


def test_what_pip_prints_is_not_shown() -> None:
    """It names the indexes that it asks, with their passwords."""
    tasks = [task for task in TASKS if re.search(r"\bpip3? (?:install|download)\b", task.program)]
    assert tasks and not names([task for task in tasks if task.keys.get("no_log") is not True])


def test_package_lists_that_are_read_are_no_change() -> None:
    lists = [task for task in TASKS if task.module == "apt" and task.arguments.get("update_cache")]
    assert lists and not names([task for task in lists if task.keys.get("changed_when") is not False])


def test_packages_come_without_recommended_ones() -> None:
    installs = [
        task
        for task in TASKS
        if task.module == "apt" and task.argument("name") and task.argument("state") != "absent"
    ]
    assert installs
    assert not names([task for task in installs if task.arguments.get("install_recommends") is not False])
    for task in TASKS:
        for line in task.program.splitlines():
            assert not re.search(r"apt-get\b.* install ", line) or "--no-install-recommends" in line, task


def test_packages_wait_for_another_package_manager() -> None:
    assert not names([task for task in TASKS if task.module == "apt" and not task.argument("lock_timeout")])


def test_changed_packages_restart_no_service() -> None:
    """Ubuntu's needrestart would, after apt: the engine's restart ends jobs. Of package_record a test of its own says so."""
    apt_environment = load(ROOT / "roles/common/vars/main.yml")["__common_apt_environment"]
    assert apt_environment == {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    changing = [
        task
        for task in TASKS
        if task.module == "apt"
        or re.search(
            r"\bapt-get (?:(?!-s\b)\S+ )*(?:install|remove|purge|autoremove|upgrade|dist-upgrade)\b",
            task.program,
        )
    ]
    assert len(changing) > 10
    for task in changing:
        environment = str(task.keys.get("environment", ""))
        assert "common_protected_environment" in environment or "NEEDRESTART_SUSPEND" in environment, task


def text_of(role: str) -> str:
    folder = ROOT / "playbooks" if role == "playbooks" else ROOT / "roles" / role
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.yml")))


def test_exit_status_that_is_looked_at_fails_no_task() -> None:
    """A task whose result another one judges, or whose program says by its status that there is nothing."""
    for task in TASKS:
        if task.module not in PROGRAMS or "failed_when" in task.keys:
            continue
        register = task.keys.get("register", "-")
        # Several tasks may use one name; then the file tells which is meant.
        same_name = [other for other in TASKS if other.keys.get("register") == register]
        text = text_of(task.role) if len(same_name) == 1 else task.path.read_text()
        judged = re.search(
            rf"\b{register}(?:\.results \| map\(attribute='rc'\)|\.rc\b| \| (?:\w+\.)*{task.role}_\w+)", text
        )
        may_be_missing = task.keys.get("check_mode") is False and task.program.startswith("cat ")
        answers = ANSWERING.match(task.program) or may_be_missing
        is_there = "until" in task.keys or task.has_rescue or "removes" in str(task.arguments)
        assert is_there or not (judged or answers), task


def test_files_that_may_be_missing_fail_no_task() -> None:
    reads = [task for task in TASKS if task.module == "slurp"]
    assert not names([task for task in reads if "not found" not in str(task.keys.get("failed_when"))])


def test_check_mode_says_what_would_change() -> None:
    reports = [
        task
        for task in TASKS
        if re.search(r"what (?:would be installed|a run would do)$", task.keys.get("name", ""))
    ]
    assert len(reports) >= 4
    assert not names([task for task in reports if task.keys.get("changed_when") is not True])


def test_environment_that_is_gone_at_the_next_boot_is_no_change() -> None:
    writes = [task for task in TASKS if task.role == "common" and task.module in WRITING]
    assert writes and not names([task for task in writes if task.keys.get("changed_when") is not False])


def test_what_runs_in_check_mode_only_looks() -> None:
    """Check mode changes no host, not even a bare one."""
    looking = [task for task in TASKS if task.keys.get("check_mode") is False]
    assert len(looking) > 30
    for task in looking:
        assert task.module in PROGRAMS, task
        assert task.keys.get("changed_when") is False, task
        changing = CHANGING.search(re.sub(r"\{%.*?%\}|^ *#.*", "", task.program, flags=re.M))
        assert not changing, f"{task}: {changing and changing[0]}"


def test_of_two_tasks_that_write_the_same_the_first_compares() -> None:
    """The marker of a restart is written between them: a run that is killed there must not have written yet."""
    pairs = [
        (first, second)
        for position, first in enumerate(TASKS)
        for second in TASKS[position + 1 :]
        if first.module in WRITING and (first.path, first.module, first.arguments) == (second.path, second.module, second.arguments)
        and first.argument("dest") + str(first.keys.get("loop")) == second.argument("dest") + str(second.keys.get("loop"))
    ]  # fmt: skip
    assert len(pairs) >= 3
    assert not names([first for first, _ in pairs if first.keys.get("check_mode") is not True])
    comparing = {
        str(task) for task in TASKS if task.keys.get("check_mode") is True and task.module in WRITING
    }
    assert comparing == {str(first) for first, _ in pairs}


def test_answers_that_check_mode_needs_are_there() -> None:
    """A probe that check mode would skip answers nothing to the tasks that read it."""
    skipped = [
        task
        for task in TASKS
        if task.module in PROGRAMS and task.keys.get("changed_when") is False and task.keys.get("check_mode") is not False
        and "register" in task.keys and "until" not in task.keys and runs_in_check_mode(task)
    ]  # fmt: skip
    assert not names(skipped)


#: Read where another condition says that the question was asked: a version is asked for where an instance is installed; an engine
#: that is installed has accounts added, and one that was to be verified runs.
ASKED = {"__github_runner_download", "__docker_engine_members", "__docker_engine_info"}


def test_answers_are_read_where_the_question_was_asked() -> None:
    """A condition that is inverted, at the question or where its answer is read, ends in a traceback or decides wrongly."""
    compared = 0
    for task in TASKS:
        name = task.keys.get("register", "")
        if not task.conditions or len([1 for other in TASKS if other.keys.get("register") == name]) > 1:
            continue
        asked = {part for condition in task.conditions for part in conjuncts(condition)}
        # Not what has a default, nor whether it was asked or changed something.
        reads = re.compile(
            rf"\b{name}\b(?:\.\w+)*(?! \| default| is (?:not )?(?:skipped|changed|succeeded))\b(?!\.)"
        )
        for other in (other for other in TASKS if other.path == task.path and other is not task and name):
            keys = {key: value for key, value in other.keys.items() if key != "when"}
            if name not in ASKED and reads.search(yaml.safe_dump(keys, width=10000, allow_unicode=True)):
                compared += 1
                parts = {part for condition in other.conditions for part in conjuncts(condition)}
                # `x.problem | default('') != ''` is such a condition, too.
                assert asked <= parts or f"{name}." in " ".join(other.conditions), (
                    f"{task}: {other.keys['name']}"
                )
    assert compared >= 8


def test_tasks_for_check_mode_alone_only_report() -> None:
    """A change that only check mode would make is one that nobody gets."""
    reporting = [task for task in TASKS if any(map(needs_check_mode, task.conditions))]
    assert reporting
    allowed = ("debug", "include_tasks")
    assert not names([task for task in reporting if task.module not in allowed])


def test_refusals_and_reports_have_a_condition() -> None:
    """A task that only fails would always do so, and a report that always comes is not read."""
    always = re.compile(
        "the chosen driver|^Keep . Report that the driver stays|the stale entries|Refuse to run without tasks_from|what could not be fetched"
    )
    for task in TASKS:
        if (
            task.module in ("fail", "debug")
            and not always.search(task.keys["name"])
            and "rescue" not in task.parts
        ):
            assert "when" in task.keys, task


def test_check_mode_starts_no_container() -> None:
    workers = [task for task in TASKS if task.module == "host_check_worker"]
    assert workers
    for task in workers:
        assert re.search(r"\band not ansible_check_mode\b", task.arguments["request"]["deep"]), task


def test_systemd_is_asked_only_where_it_runs() -> None:
    """A container or a minimal system has none; role github_runner requires it."""
    for task in TASKS:
        units = task.module in ("systemd_service", "service") or re.match(
            "(?:systemctl|loginctl) ", task.program
        )
        # Units that were found are there.
        is_listed = re.search(r"\.files\b", str(task.keys.get("loop", "")))
        if units and not is_listed and task.role != "github_runner":
            assert any(re.search("service_mgr|systemd", condition) for condition in all_conditions(task)), (
                task
            )


def resolved(role: str, text: str) -> str:
    """A text with the role's variables that are plain texts in their places."""
    variables: dict[str, Any] = {}
    for path in (ROOT / "roles" / role).glob("*/main.yml"):
        if path.parent.name in ("vars", "defaults"):
            variables |= load(path) or {}
    for _ in range(4):
        text = re.sub(
            r"\{\{ (\w+) \}\}",
            lambda m: value if isinstance(value := variables.get(m[1]), str) else m[0],
            text,
        )
    return text


@pytest.mark.parametrize("role", ROLES)
def test_handlers_and_their_notifications_fit(role: str) -> None:
    path = ROOT / "roles" / role / "handlers/main.yml"
    handlers = [handler["name"] for handler in load(path) or []] if path.exists() else []
    notified = {task.keys["notify"] for task in TASKS if task.role == role and "notify" in task.keys}
    assert notified == set(handlers)
    assert bool(handlers) == path.exists()


def paths_of(task: Task) -> str:
    """The paths that a task writes or removes."""
    looped = yaml.safe_dump(task.keys.get("loop", ""), width=10000)
    return resolved(
        task.role, " ".join((task.argument("dest"), task.argument("path"), task.argument("src"), looped))
    )


def test_initial_file_system_follows_modprobe_d() -> None:
    """Else nouveau takes the card at the next boot: what loads modules then reads its own copy of modprobe.d."""
    changing = [task for task in TASKS if task.module in WRITING and "/etc/modprobe.d" in paths_of(task)]
    assert len(changing) >= 2
    for task in changing:
        handlers = load(ROOT / "roles" / task.role / "handlers/main.yml")
        programs = [
            handler["ansible.builtin.command"]["argv"]
            for handler in handlers
            if handler["name"] == task.keys.get("notify")
        ]
        assert programs == [["update-initramfs", "-u", "-k", "all"]], task


def test_handlers_run_before_a_reboot() -> None:
    """A reboot comes within the role, its handlers only at the end of the play."""
    for role in {task.role for task in TASKS if task.module == "reboot"}:
        files = {
            task.path
            for task in TASKS
            if task.role == role and "notify" in task.keys and "uninstall" not in task.path.name
        }
        assert files
        for path in files:
            order = [
                task.module if "notify" not in task.keys else "notify" for task in TASKS if task.path == path
            ]
            flushed = [task for task in TASKS if task.path == path and task.arguments == "flush_handlers"]
            assert flushed and order[-1] == "meta", path


def written_paths(role: str) -> set[str]:
    """Absolute paths of the files that a role writes, outside of folders that it shares with others."""
    paths = set()
    for file in WRITTEN:
        if file.task.role == role and not file.is_folder and "uninstall" not in file.task.path.name:
            looped = [str(item) for item in file.task.items if isinstance(item, str)] or [""]
            paths |= {resolved(role, file.path.replace("{{ item }}", item)) for item in looped}
    return {path for path in paths if path.startswith("/") and "{{" not in path}


@pytest.mark.parametrize(
    "role", [role for role in ROLES if role not in ("common", "host_check", "training_job")]
)
def test_teardown_removes_every_file_that_the_role_writes(role: str) -> None:
    # Merged into, or kept: the engine's configuration, and the key's package, which apt may clean away.
    shared = {"/etc/docker/daemon.json", "/var/lib/train-classifier/drain"}
    # Removed by name with the folder, or by the program of the teardown: __training_host_names, records.
    removing = [
        task
        for task in TASKS
        if task.role == role and re.search("uninstall|remove|no_firewall", task.path.name)
    ]
    text = resolved(
        role, "\n".join(yaml.safe_dump(task.keys, width=10000, allow_unicode=True) for task in removing)
    )
    variables = load(ROOT / "roles" / role / "vars/main.yml")
    text += " ".join(
        f"/var/lib/train-classifier/{name}" for name in variables.get("__training_host_names", [])
    )
    removed = re.findall(r"(?<![\w}])/[\w./@-]+", text)
    left = {
        path for path in (written_paths(role) - shared) | (written_paths("common") if role == "docker_engine" else set())
        if not any(path == one or path.startswith(one.rstrip("/") + "/") for one in removed if one.count("/") > 1 and one != "/etc/apt")
    }  # fmt: skip
    assert left == set()


def test_package_sources_are_tried_before_they_are_added() -> None:
    sources = [
        file
        for file in WRITTEN
        if "/sources.list.d/" in resolved(file.task.role, file.path)
        and file.task.keys.get("check_mode") is not True
    ]
    assert {file.task.role for file in sources} == {
        "docker_engine",
        "nvidia_container_toolkit",
        "nvidia_driver",
    }
    for file in sources:
        text = file.task.path.read_text()
        assert "try_source" in text[: text.index(f"name: {file.task.keys['name']}\n")], file


def test_units_that_are_written_or_removed_are_read_again() -> None:
    for task in TASKS:
        if (
            task.module not in WRITING
            or "/etc/systemd/system" not in paths_of(task)
            or task.argument("state") == "directory"
        ):
            continue
        # Role docker_engine reloads when it restarts the engine; what it removes goes with the engine. What apply_unit starts it
        # has read again, and the teardown of slurm_node reloads at its end.
        if task.role in ("docker_engine", "slurm_node"):
            continue
        register = task.keys.get("register", "-")
        readers = [
            other for other in TASKS
            if other.path == task.path and other.module == "systemd_service"
            and (register in other.argument("daemon_reload") or (other.arguments.get("daemon_reload") is True and register in str(other.keys.get("when"))))
        ]  # fmt: skip
        assert readers or "notify" in task.keys, task
    restarts = [
        task for task in TASKS if task.role == "docker_engine" and task.argument("state") == "restarted"
    ]
    assert restarts and all(task.arguments["daemon_reload"] is True for task in restarts)


def test_driver_is_loaded_with_the_module_of_cuda() -> None:
    """CUDA opens /dev/nvidia-uvm; a container that was started without it never sees a card."""
    loads = [task for task in TASKS if task.program.startswith("modprobe ")]
    assert loads
    for task in loads:
        assert task.arguments["argv"] == ["modprobe", "-a", "nvidia", "nvidia_uvm"], task


def test_questions_to_github_come_from_an_ordinary_account() -> None:
    """The controller asks; there the role needs no root, and may not have it."""
    delegated = [task for task in TASKS if "delegate_to" in task.keys and task.role == "github_runner"]
    assert delegated
    assert not names([task for task in delegated if task.keys.get("become") is not False])


def test_records_from_before_are_written_once() -> None:
    """A second run would record what the first one brought."""
    before = [
        task for task in TASKS
        if task.module == "copy" and re.search(r"before(?:\.json|_packages)", task.argument("dest"))
    ]  # fmt: skip
    assert before and not names([task for task in before if task.arguments.get("force") is not False])


def cdi_program() -> Task:
    [task] = [task for task in TASKS if re.search("nvidia-ctk .*cdi generate", task.program)]
    return task


def test_cdi_specification_follows_the_driver(tmp_path: Path) -> None:
    """An old one names files that the new driver has not: no container starts with a card."""
    spec, driver = tmp_path / "cdi/nvidia.yaml", tmp_path / "driver"
    toolkit = tmp_path / "nvidia-ctk"
    toolkit.write_text(
        f'#!/bin/sh\nfor word; do case $word in --output=*) cp {driver} "${{word#*=}}" ;; esac; done\n'
    )
    toolkit.chmod(0o755)
    task = cdi_program()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SPEC": str(spec)}
    assert list(task.keys["environment"]) == ["SPEC"]
    changed = []
    for version in ("580.1", "580.1", "580.2"):
        driver.write_text(version)
        done = subprocess.run(
            ["/bin/sh", "-c", task.program], env=environment, capture_output=True, text=True, check=True
        )
        changed.append("changed" in done.stdout.splitlines())
        assert spec.read_text() == version and [path.name for path in spec.parent.iterdir()] == [spec.name]
    assert changed == [True, False, True]
    assert f"'changed' in {task.keys['register']}.stdout_lines" == task.keys["changed_when"]
    # Also where a specification is there already.
    assert not {"creates", "removes"} & {*task.keys.get("args", {})}
    assert not re.search("spec|generated|stat", " ".join(all_conditions(task)).replace("inspect", "")), task


@pytest.mark.parametrize("role", ROLES)
def test_every_template_and_program_of_a_role_is_used(role: str) -> None:
    # What lies in the role common is for the others.
    text = "".join(map(text_of, ROLES if role == "common" else [role]))
    text += "".join(path.read_text() for path in (ROOT / "plugins").rglob("*.py"))
    for path in (ROOT / "roles" / role).glob("[tf][ei][ml][pe]*/*"):
        # A lock is chosen by the kind of the image.
        name = path.name.removesuffix(".j2")
        assert name in text or path.suffix == ".lock", path


def test_options_that_are_empty_write_no_file() -> None:
    """A file that holds little but an option that is empty by default is written only where it is set."""
    for task in TASKS:
        content = task.argument("content")
        options = load(ROOT / "roles" / task.role / "defaults/main.yml") or {} if task.role in ROLES else {}
        for name in re.findall(r"\{\{ (\w+)(?: \| \w+)* \}\}", content):
            empty = options.get(name) == "" or "default('', true)" in str(options.get(name))
            decided = " ".join(task.conditions) + str([load(ROOT / "roles" / task.role / "vars/main.yml").get(word)
                for condition in task.conditions for word in re.findall(r"__\w+", condition)] if task.conditions else "")  # fmt: skip
            assert not empty or name in decided or "app_key" in name, task


def test_marker_of_an_administrator_stays() -> None:
    """Who took a host out of service puts it back."""
    removing = [
        task
        for task in TASKS
        if "host_check_drain_marker" in task.argument("path") and task.argument("state") == "absent"
    ]
    assert removing
    assert not names([task for task in removing if "== __host_check_reason" not in " ".join(task.conditions)])


def test_questions_that_need_a_credential_have_one() -> None:
    """With a token made by hand the role asks GitHub nothing that an account would have to."""
    for task in TASKS:
        if task.module == "github_runner_request" and task.argument("verb") in (
            "find",
            "token",
            "delete",
            "labels",
        ):
            assert re.search(
                r"__github_runner_credential|__github_runner_remote\.own", " ".join(task.conditions)
            ), task


def own_names(role: str) -> tuple[set[str], set[str]]:
    """The variables that a role sets, and those of its own prefix that it reads."""
    folder, text = ROOT / "roles" / role, text_of(role)
    files = [load(path) for part in ("defaults", "vars") for path in (folder / part).glob("*.yml")]
    defined = {name for variables in files for name in variables or {}}
    # Not a key of `vars:` of an include, unless it is this role's own.
    defined |= set(re.findall(r"^ +(?:- )?(_*\w+):(?: |$)", text, re.M))
    defined |= set(re.findall(r"^ *(?:register|loop_var): (\w+)$", text, re.M))
    texts = [text, *(path.read_text() for path in (folder / "templates").glob("*"))]
    read = set(re.findall(rf"(?<![\w.:/'-])(__{role}_\w+)(?!\w*:)\b", "\n".join(texts)))
    return defined, read


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_that_is_read_is_set(role: str) -> None:
    """By a file of variables, or by the task that looks for what it says."""
    defined, read = own_names(role)
    assert sorted(read - defined) == []


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_that_is_set_is_read(role: str) -> None:
    """Also in another role, a playbook, or a filter's arguments; what nothing reads was read by a task that is gone."""
    everything = "\n".join(
        path.read_text()
        for folder in ("roles", "playbooks", "plugins")
        for path in sorted((ROOT / folder).rglob("*.*[ml2y]"))
    )
    files = [
        load(path) for part in ("defaults", "vars") for path in (ROOT / "roles" / role / part).glob("*.yml")
    ]
    names = {name for variables in files for name in variables or {}}
    text = re.sub(r"^ *\w+:", "", everything, flags=re.M)
    # Options are described in argument_specs, where they are keys.
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", text)) == []


@pytest.mark.parametrize("role", ROLES)
def test_every_file_of_tasks_is_included(role: str) -> None:
    specified = set(load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"])
    for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        assert path.stem in specified | {"main", "uninstall"} or includers(path), path


#: Programs that fetch something.
FETCHING = re.compile(
    r"\b(?:curl|wget|mmdebstrap|urlopen|build-image)\b|\b(?:docker|podman) pull\b|\bgit (?:clone|fetch|pull)\b"
    r"|\bpip3? (?:install|download)\b|\bapt-get\b.*\bupdate\b"
)


def fetches(task: Task) -> bool:
    """Whether a task fetches something through the network."""
    # The modules that ask GitHub have sentences of their own: what is missing there is a right or a setting. So has config.sh.
    if "verb" in str(task.arguments):
        return task.argument("verb") == "fetch"
    if "package_record" in task.module:
        # Only to see what will come it reads apt's lists.
        return not (task.argument("state") or task.argument("coming") or task.keys.get("check_mode") is True)
    return (
        task.module in ("get_url", "uri", "pip", "git", "unarchive", "apt_key", "apt_repository")
        or (task.module == "apt" and task.argument("state") != "absent")
        or "common_protected_environment" in str(task.keys.get("environment", ""))
        or bool(FETCHING.search(task.program))
    )


def rescue_of(task: Task) -> list[dict[str, Any]]:
    """The tasks of the innermost rescue that reports a failure of the task, also around an include of its file."""
    for block, part in reversed(list(zip(task.blocks, task.parts, strict=True))):
        if part == "block" and "rescue" in block:
            return block["rescue"]
    rescues = [rescue_of(site) for site in includers(task.path)]
    return rescues[0] if rescues and all(rescues) else []


def test_every_fetch_ends_in_the_same_sentence() -> None:
    """What could not be fetched from where, why, and which setting helps: `roles/common/tasks/fetch_failed.yml`."""
    tasks = [task for task in TASKS if fetches(task) and "rescue" not in task.parts]
    assert len(tasks) > 20 and {"docker_engine", "nvidia_driver", "github_runner"} <= {
        task.role for task in tasks
    }
    for task in tasks:
        last = (rescue_of(task) or [{}])[-1].get("ansible.builtin.include_role", {})
        assert (last.get("name"), last.get("tasks_from")) == ("common", "fetch_failed"), task


def test_what_a_rescue_is_about_is_done() -> None:
    """A block that says that something could not be installed installs something."""
    rescues = [
        task for task in TASKS if "rescue" in task.parts and task.argument("tasks_from") == "fetch_failed"
    ]
    installing = ("installed", "upgraded")
    blocks = [task.blocks[-1] for task in rescues if task.keys["vars"].get("common_fetch_verb") in installing]
    assert len(blocks) >= 6
    for block in blocks:
        done = [
            task for task in TASKS if block in task.blocks and task.parts[task.blocks.index(block)] == "block"
        ]
        assert [
            task
            for task in done
            if (task.module == "apt" and task.argument("name")) or task.argument("verb") == "fetch"
        ], block["block"]


def test_downloads_are_tried_again() -> None:
    """What goes through the network comes with a delay, and as often as its role says."""
    # One asks once more what the task before it could not reach; the driver's errors are read for a message.
    once = ("Require that all sources answer", "Read apt's errors")
    for task in TASKS:
        if fetches(task) and not task.keys["name"].endswith(once):
            assert {"until", "retries", "delay"} <= set(task.keys), task


#: The supported releases, as the files of variables are named.
RELEASES = [
    name.lower().replace(" ", "_") for name in load(ROOT / "roles/common/vars/main.yml")["__common_releases"]
]
#: Programs and files that have the name of a package.
ALSO_PROGRAMS = {"nvidia-smi", "mokutil"}


def variables_of(role: str, release: str) -> dict[str, Any]:
    """The variables of a role that are only for a distribution or a release, as roles/common loads them."""
    folder, variables = ROOT / "roles" / role / "vars", {}
    for name in (release.partition("_")[0], release):
        variables |= (load(folder / f"{name}.yml") or {}) if (folder / f"{name}.yml").exists() else {}
    return variables


def package_names(variables: Any) -> set[str]:
    """The names of packages in variables, without what is filled in."""
    if isinstance(variables, dict | list):
        values = variables.values() if isinstance(variables, dict) else variables
        return {name for value in values for name in package_names(value)}
    text = re.sub(r"\{\{(.*?)\}\}", lambda m: " ".join(re.findall(r"'([a-z][^']+)'", m[1])), str(variables))
    return set(re.findall(r"(?<![\w.^/-])[a-z][a-z0-9.+]+-[a-z0-9.+-]+|(?<![\w.^/-])lib[a-z0-9.+]+", text))


def text_for_all_releases(role: str) -> str:
    """Tasks, handlers, templates and the variables of every distribution."""
    paths = (
        path
        for part in ("tasks", "handlers", "templates")
        for path in (ROOT / "roles" / role / part).glob("*")
    )
    return "\n".join(
        path.read_text() for path in [*paths, *(ROOT / "roles" / role / "vars").glob("main.yml")]
    )


@pytest.mark.parametrize("role", ROLES)
def test_every_release_has_its_variables(role: str) -> None:
    """A file that is missing, or a variable in it, would end a run in the middle of the role."""
    by_release = {release: set(variables_of(role, release)) for release in RELEASES}
    files = {path.stem for path in (ROOT / "roles" / role / "vars").glob("*.yml")}
    assert files <= {"main", *RELEASES, *(release.partition("_")[0] for release in RELEASES)}
    main = ROOT / "roles" / role / "vars/main.yml"
    needed = set().union(*by_release.values()) - set(load(main) if main.exists() else ())
    needed = {name for name in needed if re.search(rf"\b{name}\b", text_for_all_releases(role))}
    # Only where a source is added (`__nvidia_driver_adds_source`).
    only_some = {"__nvidia_driver_suite"}
    assert {release: needed - only_some - present for release, present in by_release.items()} == {
        release: set() for release in RELEASES
    }


def test_names_that_differ_by_distribution_stand_in_files_of_variables() -> None:
    """A further distribution is further files: no task, filter or module names a package that another one has not."""
    programs = [path for folder in ("roles", "plugins") for path in (ROOT / folder).rglob("*")
                if re.search(r"/(?:tasks|handlers|templates|filter|modules)/", str(path)) and path.suffix in (".yml", ".py", ".j2")]  # fmt: skip
    text = "\n".join(path.read_text() for path in programs)
    differing = set()
    for role in ROLES:
        by_release = [package_names(variables_of(role, release)) for release in RELEASES]
        differing |= set().union(*by_release) - set.intersection(*by_release)
    assert {
        "docker-cli",
        "python3.11-venv",
        "libicu76",
        "linux-modules-nvidia-",
        "nvidia-kernel-dkms",
    } <= differing
    named = {name for name in differing - ALSO_PROGRAMS if re.search(rf"(?<![\w.-]){re.escape(name)}", text)}
    assert named == set()


def test_packages_that_tasks_install_are_variables() -> None:
    for task in TASKS:
        for name in ("name", "packages") if task.module == "apt" or "package_record" in task.module else ():
            assert re.match(r"\{\{ [a-z_]|$", task.argument(name)), task


def test_no_task_asks_for_a_distribution_by_name() -> None:
    """What differs is a variable, which `roles/common/tasks/facts.yml` loads."""
    name = r"(?:ansible_facts\.|ansible_)distribution\w*|incuvers\.train_classifier\.common_release"
    asking = re.compile(
        rf"(?:{name})(?: \| lower)?\)? *(?:[!=]=|in\b|not in\b)|\[(?:{name})|\.get\([^)]*(?:{name})"
    )
    for path in (path for path in (ROOT / "roles").rglob("*") if path.suffix in (".yml", ".j2")):
        role = path.relative_to(ROOT / "roles").parts[0]
        for line in path.read_text().splitlines() if role != "common" else ():
            assert not asking.search(line), f"{path}: {line}"


#: A shell's words for a new file or folder.
MAKING = re.compile(
    r"\bmkdir\b|\btouch |\bmktemp\b|\bcp |\btee [\"$/](?!dev/)|(?<![-\w])>>?\s*(?:\"?\$|/(?!dev/))"
)


def test_programs_that_make_files_choose_their_umask() -> None:
    """Root's umask may be 077, as guides for hardened systems want it: then ordinary accounts read nothing that the roles made."""
    shells = [task for task in TASKS if task.module == "shell" and MAKING.search(task.program)]
    assert len(shells) >= 5
    assert not names([task for task in shells if not re.search(r"^umask 0[27][27]$", task.program, re.M)])
    # What systemd starts as an account has its umask from there.
    units = {"job-started.sh", "prepare.py"}
    files = [path for path in (ROOT / "roles").glob("*/files/*") if path.suffix != ".lock"]
    files += [path for path in (ROOT / "plugins/modules").glob("*.py") if "_request" not in path.name]
    made = {
        path.name for path in files
        if MAKING.search(text := path.read_text()) or re.search(r"\.mkdir\(|write_|exclusive\(|setsid -f", text)
    } - units  # fmt: skip
    assert {"common_files.py", "package_record.py", "apt_lists.py", "build-image"} <= made
    closed = [
        path.name
        for path in files
        if path.name in made and not re.search(r"umask\(0o022\)|^umask 022$", path.read_text(), re.M)
    ]
    assert not closed
