"""Runs inside an image, by the image's own Python (3.8 on), as the job's user: asks git for commits.

Sent as text (`python3 -c`), so it imports nothing of ours. A variable of its environment has a JSON list of
pairs: address and revision, "" for the default branch. The servers are strangers: what they answer is bounded
and checked.
"""

import base64
import json
import os
import re
import signal
import subprocess
import threading
import urllib.parse
from typing import Dict, List

#: Most bytes of an answer, and most seconds that it may take.
MOST_BYTES = 1 << 20
MOST_SECONDS = 60
COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
#: The beginning of a commit's hash, which a server cannot be asked for.
SHORT_COMMIT = re.compile(r"[0-9a-f]{7,63}\Z", re.IGNORECASE)
LINE = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\t(\S+)\Z")


class Failed(Exception):
    """A repository gave no commit."""

    cause = "not read"


class NoRevision(Failed):
    """A repository was read, and has no such branch, tag or commit."""

    cause = "no revision"


def expanded(text: str) -> str:
    """Return text with the variables in it, as uv expands them."""
    return re.sub(r"\$\{([A-Z0-9_]+)\}", lambda match: os.environ.get(match[1], match[0]), text)


# As in install_requirements.py: each program is sent alone.
def put_git_login(address: str) -> str:
    """Return the address of a git repository without its login, which git gets by its environment.

    Anyone on the host can read the command lines of processes, and so that of git. The login is for the
    repositories beside it, too: they may be its submodules.
    """
    match = re.match(r"((?:git\+)?)(https?://)([^/\s]*)@([^/\s@]+/\S*)\Z", address)
    if not match:
        return address
    login = re.sub(r"\$\{([A-Z0-9_]+)\}", lambda name: os.environ.get(name[1], name[0]), match[3])
    user, _, password = (urllib.parse.unquote(word) for word in login.partition(":"))
    header = base64.b64encode(("%s:%s" % (user, password)).encode()).decode()
    number = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
    place = match[4].partition("#")[0]
    place = place.rpartition("@")[0] or place
    # Of the values for one address git sends all, up to the last empty one: a server refuses two logins.
    for part in (os.path.dirname(place), place):
        for value in ("", "Authorization: Basic " + header):
            os.environ["GIT_CONFIG_KEY_%d" % number] = "http.%s%s/.extraHeader" % (match[2], part)
            os.environ["GIT_CONFIG_VALUE_%d" % number] = value
            number += 1
    os.environ["GIT_CONFIG_COUNT"] = str(number)
    return match[1] + match[2] + match[4]


def references(revision: str) -> "List[str]":
    """Return the references that a revision may mean: a branch comes before a tag, as for uv."""
    if revision in ("", "HEAD"):
        return ["HEAD"]
    return [revision] if revision.startswith("refs/") else ["refs/heads/" + revision, "refs/tags/" + revision]


def ask(address: str, names: "List[str]") -> "Dict[str, str]":
    """Return the hashes of the references that a repository has; a tag's commit has the suffix ^{}."""
    patterns = names + [name + "^{}" for name in names]
    process = subprocess.Popen(
        ["git", "ls-remote", "--", address, *patterns],
        cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    problems = []

    def stop() -> None:
        problems.append("it did not answer within %d s" % MOST_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(MOST_SECONDS, stop)
    timer.start()
    try:
        output = process.stdout.read(MOST_BYTES + 1)
        if len(output) > MOST_BYTES and not problems:
            problems.append("its answer is longer than %d bytes" % MOST_BYTES)
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    finally:
        timer.cancel()
    lines = output.decode("utf-8", "replace").splitlines()
    if problems or status != 0:
        raise Failed(problems[0] if problems else "\n".join(lines[-5:]))
    return {match[2]: match[1] for match in map(LINE.match, lines) if match}


def commit_of(address: str, revision: str) -> str:
    """Return the commit that a revision of a repository means now; "" for a beginning of its hash."""
    if COMMIT.match(revision.lower()):
        return revision.lower()
    names = references(revision)
    hashes = ask(address, names)
    for name in names:
        commit = hashes.get(name + "^{}") or hashes.get(name)
        if commit:
            return commit
    if SHORT_COMMIT.match(revision):
        return ""
    raise NoRevision("it has no branch or tag %r" % revision if revision else "it has no commit")


def main() -> None:
    """Print the commits, or the number of the repository that has none and why, as the last line."""
    commits: "List[str]" = []
    answer: "Dict[str, object]" = {"commits": commits}
    for address, revision in json.loads(os.environ.pop("TRAIN_CLASSIFIER_REPOSITORIES")):
        try:
            commits.append(commit_of(put_git_login(expanded(address)), expanded(revision)))
        except FileNotFoundError:
            answer = {"failed": len(commits), "reason": "", "cause": "no git"}
            break
        except Failed as error:
            answer = {"failed": len(commits), "reason": str(error)[-1000:], "cause": error.cause}
            break
    print()
    print("train-classifier:" + json.dumps(answer))


main()
