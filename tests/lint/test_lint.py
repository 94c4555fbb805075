"""The linters, as tests: one report and one exit status for all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def files(*patterns: str) -> list[str]:
    """Paths of the repository's files that match, as git knows them (all, where there is no git)."""
    if (REPOSITORY / ".git").exists() and shutil.which("git"):
        command = [
            "git",
            "-c",
            "safe.directory=*",
            "ls-files",
            "-co",
            "--exclude-standard",
            "-z",
            "--",
            *patterns,
        ]
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        return sorted(path for path in listed.split("\0") if path and (REPOSITORY / path).is_file())
    paths = {path for pattern in patterns for path in REPOSITORY.rglob(pattern)}
    return sorted(str(p.relative_to(REPOSITORY)) for p in paths if ".venv" not in p.parts and p.is_file())


def shell_scripts() -> list[str]:
    """Files that a POSIX shell or bash runs, by their first line."""
    scripts = []
    for path in files("*"):
        with (REPOSITORY / path).open("rb") as stream:
            first = stream.readline(64)
        if first.startswith((b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash", b"# shellcheck shell=")):
            scripts.append(path)
    return scripts


def lint(*command: str | Path, **environment: str) -> None:
    """Run a linter at the repository's root; fail with what it says."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", **environment},
    )  # fmt: skip
    if done.returncode:
        pytest.fail(
            f"{Path(str(command[0])).name}: exit {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False
        )


def test_ruff() -> None:
    lint(BIN / "ruff", "check", "--no-cache", ".")


def test_mypy(tmp_path: Path) -> None:
    lint(BIN / "mypy", "--cache-dir", str(tmp_path))


def test_mypy_of_the_worker(tmp_path: Path) -> None:
    """By the oldest Python that mypy still knows; ruff knows 3.9, and a job runs by a real one of that version."""
    worker = ("train_classifier/worker", "train_classifier/core")
    lint(BIN / "mypy", "--cache-dir", str(tmp_path), "--python-version", "3.10", *worker)


def test_import_linter() -> None:
    lint(BIN / "lint-imports", "--no-cache")


def test_yamllint() -> None:
    lint(BIN / "yamllint", "--config-file", ".config/yamllint.yml", *files("*.yml", "*.yaml"))


def test_shellcheck() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    lint(program, "--external-sources", "--source-path=SCRIPTDIR/..", *shell_scripts())


def test_ansible_syntax(tmp_path: Path) -> None:
    roles = sorted(path.name for path in (REPOSITORY / "roles").iterdir())
    book = tmp_path / "roles.yml"
    tasks = [{"ansible.builtin.import_role": {"name": name}} for name in roles]
    book.write_text(json.dumps([{"hosts": "localhost", "tasks": tasks}]))
    playbooks = [
        path
        for path in files("site.yml", "playbooks/*.yml", "molecule/*.yml")
        if path.count("/") < 3 and not path.endswith("/molecule.yml")
    ]
    environment = {"ANSIBLE_HOME": str(tmp_path), "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles")}
    lint(BIN / "ansible-playbook", "--syntax-check", "-i", "localhost,", book, *playbooks, **environment)


def test_ansible_lint(tmp_path: Path) -> None:
    """All but the syntax: ansible-lint starts ansible-playbook for each playbook and role, test_ansible_syntax once for all."""
    no_syntax_check = tmp_path / "bin/ansible-playbook"
    no_syntax_check.parent.mkdir()
    no_syntax_check.write_text("#!/bin/sh\n")
    no_syntax_check.chmod(0o755)
    # Offline: the collections come from the ansible package, not from Galaxy.
    lint(
        BIN / "ansible-lint", "--offline", "--config-file", ".config/ansible-lint.yml", "-q",
        ANSIBLE_HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path),
        PATH=os.pathsep.join((str(no_syntax_check.parent), str(BIN), os.environ["PATH"])),
    )  # fmt: skip
