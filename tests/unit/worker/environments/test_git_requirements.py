"""Git repositories in requirements: what the servers say of their commits, and what becomes of the lines."""

from __future__ import annotations

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from git_commands import git

from train_classifier.core.errors import BadInput, NoEnvironment
from train_classifier.core.requirements_file import Requirements
from train_classifier.worker.containers import inside_answer
from train_classifier.worker.environments import git_requirements

PROGRAM = Path(git_requirements.__file__).parent / "inside" / "resolve_repositories.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Image:
    """What a message needs of an image."""

    reference = "image:1"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two commits: the first has tag v1 and branch old, the second is the default branch's."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "1")
    git(folder, "tag", "-a", "v1", "-m", "v1")
    git(folder, "branch", "feature/old")
    git(folder, "commit", "-q", "--allow-empty", "-m", "2")
    return folder


def ask(*pairs: tuple[object, str], **variables: str) -> Any:
    """Run the program as a container does; returns what the worker reads."""
    questions = json.dumps([[str(address), name] for address, name in pairs])
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM)], check=True, capture_output=True,
        env={**os.environ, **variables, "TRAIN_CLASSIFIER_REPOSITORIES": questions},
    )  # fmt: skip
    return inside_answer.read(done.stdout)


def test_branches_tags_and_the_default_branch_have_their_commits(repository: Path) -> None:
    first, second = git(repository, "rev-parse", "HEAD~"), git(repository, "rev-parse", "HEAD")
    names = ("", "main", "v1", "feature/old", "refs/tags/v1", "HEAD", second.upper(), "${WHICH}", first[:9])
    commits = ask(*((repository, name) for name in names), WHICH="v1")["commits"]
    assert commits == [second, second, first, first, first, second, second, first, ""]


def test_unknown_revision_and_missing_repository_are_told(repository: Path, tmp_path: Path) -> None:
    assert ask((repository, ""), (repository, "v2")) == {
        "failed": 1, "reason": "it has no branch or tag 'v2'", "cause": "no revision",
    }  # fmt: skip
    missing = ask((tmp_path / "none", ""))
    assert missing["failed"] == 0
    assert "does not appear to be a git repository" in missing["reason"]
    assert ask((repository, ""), PATH=str(tmp_path))["cause"] == "no git"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (f"yes '{'a' * 40}\trefs/heads/main'", "longer than"),
        ("printf 'abc\\trefs/heads/main\\n%s refs/heads/main\\n' " + "a" * 40, "no branch or tag"),
    ],
)
def test_servers_answer_is_bounded_and_checked(tmp_path: Path, output: str, reason: str) -> None:
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\n{output}\n")
    program.chmod(0o755)
    result = ask(("https://h/x", "main"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert reason in result["reason"]


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("git+https://h/a/b.git", f"git+https://h/a/b.git@{COMMIT}"),
        (
            "b[x] @ git+https://u:${P}@h/a/b@v1#egg=b&subdirectory=python ; python_version > '3'",
            f"b[x] @ git+https://u:${{P}}@h/a/b@{COMMIT}#egg=b&subdirectory=python ; python_version > '3'",
        ),
        ("git+ssh://git@h/a/b@feature/x#egg=b", f"git+ssh://git@h/a/b@{COMMIT}#egg=b"),
    ],
)
def test_commit_takes_the_place_of_the_revision(
    line: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        git_requirements, "_look_up", lambda _context, _image, _file, pairs, _: [COMMIT] * len(pairs)
    )
    requirements = Requirements(lines=("six", line), constraints=(line,))
    resolved = git_requirements.resolve(None, None, requirements, {})  # type: ignore[arg-type]
    assert (resolved.lines, resolved.constraints) == (("six", target), (target,))
    # A commit is not looked up again.
    monkeypatch.setattr(git_requirements, "_look_up", None)
    assert git_requirements.resolve(None, None, resolved, {}) == resolved  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (("git+https://h/a@--upload-pack=x",), "is not a valid name of a branch or tag"),
        (tuple(f"git+https://h/{number}" for number in range(30)), "more than 20"),
        ((f"git+https://h/{'a' * 3000}",), "is too long"),
    ],
)
def test_addresses_that_git_is_not_asked_are_refused(lines: tuple[str, ...], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        git_requirements.resolve(None, None, Requirements(lines=lines), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({"commits": ["x"]}, "cannot be read"),
        ({"commits": [COMMIT, COMMIT]}, "cannot be read"),
        ([], "cannot be read"),
        ({"failed": 7}, "cannot be read"),
        ({"failed": 0, "cause": "no git"}, "image:1 has no git"),
        ({"failed": 0, "reason": "fatal: https://me:pass@word@h/a: 403"}, r"repository git\+https://h/a of"),
        (
            {"failed": 0, "reason": "it has no branch or tag 'x'", "cause": "no revision"},
            "no branch or tag 'x'",
        ),
    ],
)
def test_answer_of_the_container_is_untrusted(result: Any, sentence: str) -> None:
    output = inside_answer.MARK + json.dumps(result).encode()
    # A password may hold an @: the last one ends the login.
    pairs = [("git+https://me:pass@word@h/a", "x")]
    with pytest.raises(NoEnvironment, match=sentence) as raised:
        git_requirements._commits(Image(), "requirements.txt", pairs, 0, output)  # type: ignore[arg-type]
    assert "word" not in str(raised.value.to_dict())


def test_both_programs_take_logins_out_of_addresses_alike() -> None:
    """Each is sent alone, so each has the function."""
    inside = Path(git_requirements.__file__).parent / "inside"
    functions = {
        (inside / name).read_text().partition("def put_git_login")[2].partition("\n\n\n")[0]
        for name in ("install_requirements.py", "resolve_repositories.py")
    }
    assert len(functions) == 1 and "extraHeader" in functions.pop()


LOGINS = """
import sys
put = {}
exec(sys.stdin.read(), put)
import os, subprocess
for address in sys.argv[1:]:
    address = put["put_git_login"](address)
for name in ("o/a.git", "o/b", "o/c", "o/below/d", "o/submodule", "top"):
    subprocess.run(["git", "ls-remote", address.rpartition("/")[0].rpartition("/")[0] + "/" + name], capture_output=True)
"""


def test_each_repository_gets_one_login(tmp_path: Path) -> None:
    """Real git at a server: GitHub refuses a request with two."""
    asked: dict[str, list[str]] = {}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins = self.headers.get_all("Authorization", [])
            asked[self.path.partition("/info")[0]] = [
                base64.b64decode(word.split()[1]).decode() for word in logins
            ]
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_TERMINAL_PROMPT": "0"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ("me:1 o/a.git", "me:1 o/b", "me:2 o/c@v1", "me:3 o/below/d", "me:4 top", "me:1 o/a.git")
        addresses = [
            f"http://{login}@127.0.0.1:{server.server_port}/{path}" for login, path in map(str.split, words)
        ]
        subprocess.run(
            [sys.executable, "-c", LOGINS, *addresses],
            input=PROGRAM.read_text().rpartition("\nmain()")[0], text=True, check=True, env=environment,
        )  # fmt: skip
        server.shutdown()
    assert asked == {
        "/o/a.git": ["me:1"], "/o/b": ["me:1"], "/o/c": ["me:2"], "/o/below/d": ["me:3"], "/o/submodule": ["me:1"],
        "/top": ["me:4"],
    }  # fmt: skip
