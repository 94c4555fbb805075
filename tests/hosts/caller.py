"""A caller of the command line: a repository, folders of its own, and one test host as its inventory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import weakref
from pathlib import Path
from typing import Any

import json_output
from loopback.world import wait_until

from .machine import TestHost, state_dir


def archived(archive: Path, name: str) -> bytes:
    """Return the content of a file in an archive."""
    with tarfile.open(archive) as opened:
        member = opened.extractfile(name)
        assert member is not None
        return member.read()


class Caller:
    """Runs `train-classifier` from `folder`/work against `host`, as `user` there."""

    def __init__(self, host: TestHost, folder: Path, user: str = "trainer") -> None:
        self.host, self.folder, self.user = host, folder, user
        self.repo, self.work, self.temp = folder / "repository", folder / "work", folder / "temp"
        for path in (self.repo, self.work, self.temp):
            path.mkdir()
        # Short, since a socket's path may have 108 bytes and ssh adds its own to it.
        self.control = tempfile.mkdtemp(prefix="tc-cp-")
        weakref.finalize(self, shutil.rmtree, self.control, ignore_errors=True)
        self.state = state_dir(user)

    def model(self, name: str, program: str) -> None:
        """Write a model whose `__main__.py` is `program`, as a checkout under a strict umask has it."""
        (self.repo / name).mkdir(mode=0o700)
        (self.repo / name / "__init__.py").touch(mode=0o600)
        (self.repo / name / "__main__.py").touch(mode=0o600)
        (self.repo / name / "__main__.py").write_text(program)

    def command(self, verb: str, *words: str | Path) -> list[str]:
        """Return the argument vector of our command."""
        inventory = str(self.host.inventory(self.user))
        return [sys.executable, "-m", "train_classifier", verb, "--inventory", inventory, *map(str, words)]

    def environment(self) -> dict[str, str]:
        """Return the environment of every command."""
        return {**os.environ, "TMPDIR": str(self.temp), "ANSIBLE_SSH_CONTROL_PATH_DIR": self.control}

    def run(
        self, verb: str, *words: str | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run our command to its end; what --json prints has its published form."""
        done = subprocess.run(
            self.command(verb, *words), capture_output=True, stdin=subprocess.DEVNULL, timeout=240, check=False,
            cwd=cwd or self.work, env=self.environment(),
        )  # fmt: skip
        json_output.check((verb, *words), done.stdout)
        return done

    def start(self, verb: str, *words: str | Path, errors: Path) -> subprocess.Popen[bytes]:
        """Start our command; its standard error goes to the file `errors`."""
        with errors.open("wb") as stream:
            return subprocess.Popen(
                self.command(verb, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stream,
                cwd=self.work, env=self.environment(), start_new_session=True,
            )  # fmt: skip

    def train(self, model: str, *words: str | Path) -> tuple[str, *tuple[str | Path, ...]]:
        """Return the arguments of a `train` of this repository."""
        return ("train", model, "--repo", self.repo, *words)

    def result(self, job: str) -> dict[str, Any]:
        """Return a job's result.json as the host has it, once it is there."""
        path = f"{self.state}/jobs/{job}/result.json"
        done = wait_until(
            lambda: next((d for d in [self.host.exec("cat", path, check=False)] if not d.returncode), None),
            90,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
