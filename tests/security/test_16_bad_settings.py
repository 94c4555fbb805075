"""Row 16: bad input in a settings file, a flag, a variable or a requirements file ends in a message and exit 2."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core import apt_file, options, requirements_file
from train_classifier.core.errors import BadInput
from train_classifier.core.project import project_file
from train_classifier.request import build, env_file, settings_file

ROOT = Path(__file__).parents[2]
DIGITS = "9" * 5000
#: Seconds of processor time that no input may take.
MOST_CPU = 5.0


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "mnist").mkdir(parents=True)
    (folder / "mnist" / "__main__.py").write_text("print()\n")
    return folder


def train(repo: Path, *flags: str, **environ: str) -> str:
    """Do a dry run by the real command; return its messages about the bad input."""
    done = subprocess.run(
        [sys.executable, "-m", "train_classifier", "train", "mnist", "--dry-run", *flags], cwd=repo,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "HOME": str(repo.parent), **environ},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    messages = done.stderr.decode()
    assert done.returncode == 2, (done.returncode, messages)
    assert "Traceback" not in messages and "bug" not in messages and len(messages) < 5000, messages
    return messages


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"[defaults]\n\ngpus = {DIGITS}\n", "line 3: the number is beyond all limits"),
        (f"[defaults]\nmemory = 0x{'f' * 5000}\n", "'defaults.memory' is a number beyond 64 bits"),
        ("[defaults]\ntimeout = inf\ncpus = nan\nmemory = -inf\n", "inf is no number to work with"),
        (f"a = {'[' * 900}{']' * 900}\n", "nests too deep"),
        (f"[defaults]\nenvironment = {'{a=' * 60}1{'}' * 60}\n", "nests too deep"),
        (f"[defaults]\n{'a.' * 50000}b = 1\n", "line 2: has more than 100 dots"),
        ("[defaults]\nimage = 'a\0b'\n", "line 2"),
        ('[defaults]\nhost = "a\\u0000b"\n', "holds a NUL"),
        ("[defaults]\nimage = '\udcff'\n", "line 2, column 10: not UTF-8 text"),
        ("".join(f"[models.'m {number}']\n" for number in range(30000)), "there are more problems"),
        ("[defaults]\ndata = [" + ",".join(f"'/a:b{n}'" for n in range(60000)) + "]\n", "more than the 100 that a job"),
        (f"[defaults]\nhost = '{'a' * 500000}'\n", "longer than 4096 characters"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)  # fmt: skip
def test_16_bad_settings_are_reported(repo: Path, text: str, words: str) -> None:
    (repo / "train-classifier.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    messages = train(repo)
    assert "train-classifier.toml" in messages and words in messages, messages


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


KINDS: list[Callable[[Path], None]] = [
    os.mkfifo,
    Path.mkdir,
    lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    make_huge,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("/dev/tty"),
    lambda path: path.symlink_to(path.name),
]


@pytest.mark.parametrize("make", KINDS, ids=["fifo", "folder", "socket", "huge", "zero", "tty", "loop"])
def test_16_special_files_are_reported(repo: Path, make: Callable[[Path], None]) -> None:
    """Every file that is read is such a special file, all at once."""
    names = ["train-classifier.toml", "mnist/requirements.txt", "mnist/apt-pkgs.txt", "some.env"]
    for name in names:
        make(repo / name)
    messages = train(repo, "--env-file", "some.env", XDG_CONFIG_HOME=str(repo.parent / "config"))
    for name in names:
        assert any(name in line for line in messages.splitlines()), (name, messages)
    own = repo.parent / "config" / "train-classifier"
    own.mkdir(parents=True)
    make(own / "config.toml")
    for name in names:
        with contextlib.suppress(OSError):
            (repo / name).rmdir() if name and (repo / name).is_dir() else (repo / name).unlink()
    assert "config.toml" in train(repo, XDG_CONFIG_HOME=str(repo.parent / "config"))


def test_16_bad_flags_and_variables_are_reported(repo: Path) -> None:
    flags = ["gpus", "min-vram", "timeout", "wait", "grace", "lease", "memory", "cpus", "shm-size", "pids"]
    flags += ["log-max", "push-limit", "patience"]
    messages = train(repo, *(word for flag in flags for word in (f"--{flag}", DIGITS)))
    for flag in flags:
        assert f"--{flag}: '9999" in messages, (flag, messages)
    messages = train(repo, **{options.variable(flag.replace("-", "_")): "inf" for flag in flags})
    for flag in flags:
        assert options.variable(flag.replace("-", "_")) + ": 'inf'" in messages, (flag, messages)
    assert "--repo" in train(repo, "--repo", "x" * 5000)
    assert "inventory" in train(repo, "--inventory", "x" * 5000)
    assert "output" in train(repo, "--output", "x" * 5000)
    assert "--env-file" in train(repo, "--env-file", "x" * 5000)
    assert "host" in train(repo, "--host", "x" * 50000, "--inventory", "localhost,")


def test_16_env_file_may_be_a_pipe(repo: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"A=1\n")
    os.close(writing)
    request = build.TrainRequest(model="mnist", cwd=repo, env_file=[f"/dev/fd/{reading}"])
    assert build.build(request, {}).spec.environment == {"A": "1"}
    os.close(reading)


def test_16_requirements_cannot_name_files_outside(repo: Path) -> None:
    outside = repo.parent / "outside"
    (outside / "package").mkdir(parents=True)
    (outside / "requirements.txt").write_text("six\n")
    (repo / "link").symlink_to(outside)
    (repo / "mnist" / "requirements.txt").write_text(
        f"-r ../../outside/requirements.txt\n-c {outside}/requirements.txt\n-r ../link/requirements.txt\n"
        f"a @ file://{outside}/package\nb @ FILE:{outside}/package\ngit+file://{outside}/package\n./link/package\n"
        f"--find-links ../outside\n--find-links file://{outside}\n--index-url file:{outside}\n--find-links link\n"
        f"c @ {outside}/package\n"
    )
    messages = train(repo)
    for line in range(1, 13):
        assert f"mnist/requirements.txt:{line}:" in messages, (line, messages)
    (repo / "mnist" / "requirements.txt").unlink()
    for name in ("requirements.txt", "pyproject.toml", "apt-pkgs.txt"):
        (repo / "mnist" / name).symlink_to("/etc/passwd")
        messages = train(repo)
        assert "leads out of the repository" in messages and "root:" not in messages
        (repo / "mnist" / name).unlink()


LARGE = {
    "settings": (settings_file.MOST_BYTES, lambda content, _: settings_file.parse(content)),
    "env file": (env_file.MOST_BYTES, lambda content, _: env_file.parse(content, "an.env", {"A": "1"})),
    "requirements": (requirements_file.MOST_BYTES, lambda content, folder: parsed(requirements_file, "requirements.txt", content, folder)),
    "project": (project_file.MOST_BYTES, lambda content, folder: parsed(requirements_file, "pyproject.toml", content, folder)),
    "apt": (apt_file.MOST_BYTES, lambda content, folder: parsed(apt_file, "apt-pkgs.txt", content, folder)),
}  # fmt: skip


def parsed(module: Any, name: str, content: bytes, folder: Path) -> None:
    (folder / "mnist").mkdir(exist_ok=True)
    (folder / "mnist" / name).write_bytes(content)
    problems = module.parse(folder, "mnist").problems
    assert all(len(problem) <= 400 for problem in problems) and len(problems) <= 21


@pytest.mark.parametrize("kind", LARGE)
def test_16_large_files_are_parsed_in_bounded_time(tmp_path: Path, kind: str) -> None:
    """Files of the largest accepted size that repeat one text."""
    max_bytes, parse = LARGE[kind]
    for begin, part, end in (
        ("A=x", " ", "y"), ("", "A\n", ""), ("", "a.", "=1"), ("", f"a{'.b' * 99}=1\n", ""), ("[defaults]\n", "k=1\n", ""),
        ("a", "[", "]"), ("", "\\\n", ""), ("", '"', ""), ("A='", "x\n", "'"), ("a[", "a,", "]"), ("a", "=", ","),
        ("a", "==1,", ";"), ("A=", " #", ""), ("--index-url", " ", "="), ("a @ ", "x ", ";"), ("a", "-_.", "!"),
        ("", "[models.a]\n", ""), ("", "\r", ""), ("a(", "==", ")"), ("", "-r x\n", ""), ("", "export ", "A"),
    ):  # fmt: skip
        for content in (
            begin + part * (max_bytes // len(part) // 2) + end,
            (begin + part * (40000 // len(part)) + end + "\n") * 20,
        ):
            began = time.process_time()
            with contextlib.suppress(BadInput):
                parse(content[:max_bytes].encode(), tmp_path)
            assert time.process_time() - began < MOST_CPU, (kind, begin, part)
