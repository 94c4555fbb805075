"""The module package_record: what a role brings, what another still needs, and what the last one leaves."""

from __future__ import annotations

import fcntl
import importlib.util
import itertools
import json
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SOURCE = Path(__file__).parents[3] / "plugins/modules/package_record.py"


class Host:
    """A package manager of a few packages: what each depends on, and which are there."""

    def __init__(self, depends: dict[str, list[str]], installed: list[str]) -> None:
        self.depends = depends
        self.installed = set(installed)
        self.automatic = {"libc"} & self.installed
        self.held: set[str] = set()
        self.warnings: list[str] = []
        self.locked = 0
        self.configuration_left: set[str] = set()
        self.conflicts: dict[str, str] = {}
        self.purge_fails = False
        self.removal_fails = False
        self.half_configured: set[str] = set()

    def needs(self, names: set[str]) -> set[str]:
        """The packages with all that they depend on."""
        found = set(names)
        while more := {other for name in found for other in self.depends.get(name, [])} - found:
            found |= more
        return found

    def install(self, *names: str) -> None:
        """Install packages as Ansible's module for apt does: what is asked for is marked as manual."""
        new = self.needs(set(names)) - self.installed
        self.installed |= new
        self.automatic = (self.automatic | new) - set(names)

    def answer(self, command: list[str], environment: dict[str, str]) -> str:
        """What dpkg, apt-mark or apt-get prints."""
        # needrestart would ask, or restart the engine under running jobs.
        assert environment["NEEDRESTART_SUSPEND"] and environment["DEBIAN_FRONTEND"] == "noninteractive"
        words = [word for word in command[1:] if word not in ("-y", "-o", "-qq") and "::" not in word]
        names = set(words)
        if command[0] == "dpkg":
            return "amd64" if "--print-architecture" in names else ""
        if command[0] == "dpkg-query":
            rows = [
                f"{'half-configured' if name in self.half_configured else 'installed'} {name} all"
                for name in self.installed
            ]
            return "\n".join(rows + [f"config-files {name} all" for name in self.configuration_left])
        if command[0] == "apt-mark":
            if words[0] == "auto":
                self.automatic |= names & self.installed
            listed = {
                "showauto": self.automatic, "showmanual": self.installed - self.automatic, "showhold": self.held,
            }  # fmt: skip
            return "\n".join(listed.get(words[0], set()))
        if "install" in names:
            new = self.needs(names) & set(self.depends) - self.installed
            gone = {self.conflicts[name] for name in new if name in self.conflicts} & self.installed
            return "\n".join([f"Inst {name} (1)" for name in new] + [f"Remv {name} [1]" for name in gone])
        gone = {name for name in self.installed if self.needs({name}) & names}
        if "remove" in names and "-s" not in names:
            if self.removal_fails:
                # As apt, which forgets the marks first.
                self.automatic -= gone
                raise AssertionError
            self.installed -= gone
            self.configuration_left |= gone
            self.automatic &= self.installed
        if "purge" in names:
            assert not self.purge_fails
            self.configuration_left -= names
        return "\n".join(f"Remv {name} [1]" for name in gone)


@pytest.fixture
def record(tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_record", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "installed"
    module.FOLDER, module.RECORD = folder, folder / "packages.json"  # type: ignore[attr-defined]
    module.ENGINE_RECORD = tmp_path / "engine.json"  # type: ignore[attr-defined]
    module.EARLIER = {role: folder / path.name for role, path in module.EARLIER.items()}  # type: ignore[attr-defined]
    return module


def call(
    record: ModuleType, host: Host, role: str, state: str, packages: list[str], **options: Any
) -> dict[str, Any]:
    """One task of a role."""
    answers: dict[str, Any] = {}

    def stop(**values: Any) -> None:
        answers.update(values)
        raise SystemExit

    def run(command: list[str], environ_update: dict[str, str]) -> tuple[int, str, str]:
        if host.locked and command[0] in ("apt-get", "dpkg"):
            host.locked -= 1
            return 100, "", "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"
        return 0, host.answer(command, environ_update), ""

    module = SimpleNamespace(
        params={
            "role": role, "state": state, "packages": packages, "coming": None, "keep": [],
            "remove_before_purge": [], "lock_timeout": 5, **options,
        },
        check_mode=False, exit_json=stop, fail_json=stop, warn=host.warnings.append,
        run_command=run,
    )  # fmt: skip
    work = record.Packages.__new__(record.Packages)
    try:
        with pytest.raises(SystemExit):
            work.__init__(module)
            work.add() if state == "present" else work.remove()
    finally:
        if hasattr(work, "folder"):
            os.close(work.folder)
    return answers


def provide(record: ModuleType, host: Host, role: str, *packages: str) -> None:
    """A role installs packages."""
    call(record, host, role, "present", list(packages))
    host.install(*packages, "python3-apt")


DEPENDS = {
    "libc": [], "tar": ["libc"], "python3-apt": [], "engine": ["runc", "certificates"], "runc": [], "certificates": ["libc"],
    "git": ["curl", "certificates"], "curl": [], "tool": ["curl"],
}  # fmt: skip


@pytest.mark.parametrize("order", [("engine", "runner"), ("runner", "engine")])
def test_package_that_another_role_needs_stays_until_that_role_goes(
    record: ModuleType, order: tuple[str, str]
) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "engine", "engine", "certificates")
    provide(record, host, "runner", "git", "certificates", "libc")
    # It was there before, and not because somebody asked for it.
    host.automatic.discard("libc")
    call(record, host, order[0], "absent", [])
    kept = {"engine": ["engine", "runc"], "runner": ["git", "curl"]}[order[1]]
    assert host.installed == {"libc", "tar", "certificates", "python3-apt", *kept}
    call(record, host, order[1], "absent", [])
    assert host.installed == {"libc", "tar"}
    assert (host.automatic, host.configuration_left) == ({"libc"}, set())
    assert not record.RECORD.exists()


def test_what_an_administrator_installed_since_keeps_what_it_needs(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "runner", "git")
    host.install("tool")
    call(record, host, "runner", "absent", [])
    assert host.installed == {"libc", "tar", "tool", "curl"}


def test_package_that_somebody_holds_stays_and_is_named(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "runner", "git")
    host.held = {"curl", "tar"}
    call(record, host, "runner", "absent", [])
    assert host.installed == {"libc", "tar", "curl"}
    [warning] = host.warnings
    assert warning.startswith("curl: the roles brought") and "apt-get purge curl" in warning


def test_dependency_that_an_administrator_asked_for_since_stays(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "runner", "git")
    host.install("curl")
    call(record, host, "runner", "absent", [])
    assert (host.installed, host.automatic) == ({"libc", "tar", "curl"}, {"libc"})


def test_what_others_need_keeps_nothing_else(record: ModuleType) -> None:
    """An administrator's tool needs curl; an automatic package of theirs, which nothing needs, does so, too."""
    host = Host({**DEPENDS, "unused": ["runc"]}, ["libc", "tar"])
    provide(record, host, "runner", "git", "engine")
    host.install("tool", "unused")
    host.automatic.add("unused")
    call(record, host, "runner", "absent", [])
    assert host.installed == {"libc", "tar", "tool", "curl", "unused", "runc"}


def test_engine_that_an_administrator_replaced_is_purged_by_its_own_role_alone(record: ModuleType) -> None:
    """Its purge removes /var/lib/docker, which another package of an engine may use now."""
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "docker_engine", "engine")
    provide(record, host, "runner", "git")
    host.installed.remove("engine")
    host.configuration_left.add("engine")
    assert "engine" not in call(record, host, "runner", "absent", [])["removed"]
    assert host.configuration_left == {"engine"}
    assert "engine" in call(record, host, "docker_engine", "absent", [])["removed"]


def test_packages_that_would_remove_others_are_refused(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    host.conflicts = {"runc": "tar"}
    failure = call(record, host, "docker_engine", "present", ["engine"])
    assert failure["msg"].startswith("engine and python3-apt would replace tar: no package was changed.")
    assert failure["removes"] == ["tar"]
    assert not record.RECORD.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "\udcff", '{"wanted": {}}', '{"before": {}, "brought": {}, "wanted": []}',
        '{"before": {}, "brought": ["-o"], "wanted": {}}', '{"before": {}, "brought": [1], "wanted": {}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", ["present", "absent"])
def test_record_that_cannot_be_read_ends_in_a_sentence(record: ModuleType, text: str, state: str) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    record.FOLDER.mkdir()
    record.RECORD.write_bytes(text.encode("utf-8", "surrogateescape"))
    failure = call(record, host, "engine", state, ["engine"])
    assert failure["msg"].startswith(f"the record of packages cannot be read ({record.RECORD}: ")
    assert record.RECORD.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_what_another_play_records_meanwhile_is_kept(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    read, others = record.Packages.read, ["engine"]

    def read_before_another(packages: Any) -> Any:
        value = read(packages)
        if others:
            provide(record, host, "docker_engine", others.pop())
        return value

    record.Packages.read = read_before_another  # type: ignore[attr-defined]
    provide(record, host, "runner", "git")
    kept = json.loads(record.RECORD.read_text())
    assert set(kept["wanted"]) == {"docker_engine", "runner"}
    assert {"runc", "git"} <= set(kept["brought"])


def test_play_waits_for_another_only_for_a_time(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    record.FOLDER.mkdir()
    other = os.open(record.FOLDER, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    failure = call(record, host, "engine", "present", ["engine"], lock_timeout=1)
    os.close(other)
    assert failure["msg"].startswith("another play changes the packages of this host")
    provide(record, host, "engine", "engine")


def test_lock_of_apt_is_waited_for(record: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    clock = SimpleNamespace(sleep=lambda seconds: None, monotonic=itertools.count().__next__)
    monkeypatch.setattr(record, "time", clock)
    host.locked = 3
    provide(record, host, "engine", "engine")
    assert not host.locked
    host.locked = 100
    failure = call(record, host, "engine", "absent", [])
    assert "Could not get lock /var/lib/apt/lists/lock" in failure["msg"]


def test_mark_of_a_package_that_came_between_two_roles_is_restored(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "docker_engine", "engine")
    host.install("tool")
    provide(record, host, "runner", "curl")
    assert "curl" not in host.automatic
    call(record, host, "runner", "absent", [])
    call(record, host, "docker_engine", "absent", [])
    assert (host.installed, host.automatic) == ({"libc", "tar", "tool", "curl"}, {"libc", "curl"})


def test_killed_write_leaves_nothing(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    dump, record.json.dump = record.json.dump, lambda *_, **__: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        call(record, host, "engine", "present", ["engine"])
    record.json.dump = dump  # type: ignore[attr-defined]
    provide(record, host, "engine", "engine")
    assert [path.name for path in record.FOLDER.iterdir()] == ["packages.json"]
    (record.FOLDER / "packages.new").touch()
    call(record, host, "engine", "absent", [])
    assert not list(record.FOLDER.iterdir())


def test_upgraded_package_is_not_a_new_one(record: ModuleType) -> None:
    simulation = "Inst libc [1.0] (1.1 Debian)\nInst git (2 Debian [amd64])\nConf git (2 Debian)\n"
    assert record.new_packages(simulation) == ["git"]


def test_removal_killed_before_the_purge_is_finished_by_the_next_run(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "engine", "engine")
    host.purge_fails = True
    with pytest.raises(AssertionError):
        call(record, host, "engine", "absent", [])
    host.purge_fails = False
    call(record, host, "engine", "absent", [])
    assert (host.installed, host.configuration_left) == ({"libc", "tar"}, set())


def test_killed_removal_is_finished_by_the_next_run(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "engine", "engine")
    host.removal_fails = True
    with pytest.raises(AssertionError):
        call(record, host, "engine", "absent", [])
    host.removal_fails = False
    # dpkg does not configure what it is to remove.
    host.half_configured = {"engine"}
    call(record, host, "engine", "absent", [])
    assert (host.installed, host.configuration_left) == ({"libc", "tar"}, set())


def test_configuration_that_was_left_before_stays(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    host.configuration_left = {"curl"}
    provide(record, host, "runner", "git")
    host.configuration_left = set()
    call(record, host, "runner", "absent", [])
    assert host.configuration_left == {"curl"}


def test_records_of_the_last_release_are_taken_over(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    host.install("engine", "git")
    record.FOLDER.mkdir()
    record.EARLIER["github_runner"].write_text("git\ncurl\n")
    record.EARLIER["nvidia_container_toolkit"].write_text("runc 1.0-1\n")
    record.ENGINE_RECORD.write_text(json.dumps({"packages": ["engine", "certificates"]}))
    removed = call(record, host, "github_runner", "absent", [])
    assert removed["removed"] == ["curl", "git"]
    assert not record.EARLIER["github_runner"].exists()
    call(record, host, "nvidia_container_toolkit", "absent", [])
    assert host.installed == {"libc", "tar", "engine", "runc", "certificates"}
    call(record, host, "docker_engine", "absent", [])
    assert host.installed == {"libc", "tar"}


def test_second_run_records_nothing_new(record: ModuleType) -> None:
    host = Host(DEPENDS, ["libc", "tar"])
    provide(record, host, "engine", "engine")
    assert call(record, host, "engine", "present", ["engine"]) == {
        "changed": False,
        "missing": [],
        "recorded": True,
    }


def test_everybody_reads_what_lies_beside_the_record(record: ModuleType, tmp_path: Path) -> None:
    top = tmp_path / "top"
    record.FOLDER, record.RECORD = top / "installed", top / "installed" / "packages.json"  # type: ignore[attr-defined]
    before = os.umask(0o077)
    try:
        provide(record, Host(DEPENDS, []), "engine", "engine")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (top, record.FOLDER, record.RECORD)] == [
        0o755,
        0o755,
        0o644,
    ]
