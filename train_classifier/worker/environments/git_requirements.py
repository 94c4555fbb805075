"""Git repositories that requirements name without a commit: the commit is looked up before anything else.

So it is a part of what defines the environment: a branch that went on gives another one. Git runs in a
container of the image, as the job's user and with the limits of a build.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from train_classifier.core.errors import BadInput, NoEnvironment
from train_classifier.core.requirements_file import Requirements
from train_classifier.core.text import clean, hide_logins, printable, short
from train_classifier.worker.containers import helper, inside_answer
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments.environment_build import CA, program_text

PURPOSE = "looking up the commits of git repositories"
#: The address of a repository in a requirement, up to its fragment.
_ADDRESS = re.compile(r"(?:\A|@)\s*(git\+(?:https?|ssh)://[^\s#]+)")
_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
#: What git allows in the name of a branch or tag, and the variables that uv expands.
_REVISION = re.compile(r"(?!-)(?:[^\x00-\x20\x7f~^:?*\[\\${}]|\$\{[A-Z0-9_]+\})+\Z")
MOST_REPOSITORIES = 20
MOST_CHARACTERS = 2000


def resolve(
    context: Context, image: Image, requirements: Requirements, variables: Mapping[str, str]
) -> Requirements:
    """Return the requirements with a commit for each git repository; `variables`: environment of the build.

    A beginning of a commit's hash stays as it is. Raises BadInput, NoEnvironment.
    """
    lines = (*requirements.lines, *requirements.constraints)
    parts = {address: _split(address) for address in addresses(lines)}
    unresolved = {address: pair for address, pair in parts.items() if not _COMMIT.match(pair[1].lower())}
    if not unresolved:
        return requirements
    pairs = list(unresolved.values())
    _check(requirements.name, pairs)
    commits = _look_up(context, image, requirements.name, pairs, variables)
    targets = {
        address: f"{repository}@{commit}"
        for (address, (repository, _)), commit in zip(unresolved.items(), commits)
        if commit
    }
    return dataclasses.replace(
        requirements,
        lines=tuple(_with_commit(line, targets) for line in requirements.lines),
        constraints=tuple(_with_commit(line, targets) for line in requirements.constraints),
    )


def addresses(lines: Iterable[str]) -> list[str]:
    """Return the addresses of git repositories, `git+https://…@REVISION`, each once."""
    matches = map(_ADDRESS.search, lines)
    return list(dict.fromkeys(match[1] for match in matches if match))


def without_login(text: str) -> str:
    """Return text without the logins in its addresses."""
    return re.sub(r"://[^/\s]*@", "://", hide_logins(text))


def _split(address: str) -> tuple[str, str]:
    """Return repository and revision of an address; the revision is "" for the default branch."""
    scheme, mark, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    path, _, revision = path.rpartition("@") if "@" in path else (path, "", "")
    return f"{scheme}{mark}{authority}{slash}{path}", revision


def _with_commit(line: str, targets: Mapping[str, str]) -> str:
    match = _ADDRESS.search(line)
    if not match or match[1] not in targets:
        return line
    return line[: match.start(1)] + targets[match[1]] + line[match.end(1) :]


def _check(file: str, pairs: list[tuple[str, str]]) -> None:
    """Raise BadInput for addresses and revisions that are not passed to git."""
    if len(pairs) > MOST_REPOSITORIES:
        raise BadInput(
            f"{file} names {len(pairs)} git repositories without a commit, more than {MOST_REPOSITORIES}: "
            "write commits behind the @ of the others"
        )
    for repository, revision in pairs:
        if len(repository) + len(revision) > MOST_CHARACTERS:
            raise BadInput(f"{file}: the address {_shown(repository)} is too long")
        if revision and not _REVISION.match(revision):
            raise BadInput(
                f"{file}: {_shown(revision)} is not a valid name of a branch or tag of {_shown(repository)}"
            )


def _shown(text: str) -> str:
    return short(printable(without_login(text)), 200)


def _look_up(
    context: Context, image: Image, file: str, pairs: list[tuple[str, str]], variables: Mapping[str, str]
) -> list[str]:
    """Return the commit of each repository and revision; "" for a beginning of a commit's hash."""
    from docker.types import Mount

    bundle = context.host.ca_bundle
    environment = {**variables, "HOME": "/tmp", **({"GIT_SSL_CAINFO": CA} if bundle else {})}
    # Git must fail where it would ask for a login.
    environment.update(GIT_TERMINAL_PROMPT="0", GIT_ASKPASS="true", GIT_SSH_COMMAND="ssh -o BatchMode=yes")
    environment.update(GIT_ALLOW_PROTOCOL="http:https:ssh", LC_ALL="C")
    count = len(pairs)
    context.say(f"asking {count} git repositor{'ies' if count != 1 else 'y'} for the commit")
    limits = context.host.limits(PURPOSE)
    questions = [(repository.removeprefix("git+"), revision) for repository, revision in pairs]
    environment["TRAIN_CLASSIFIER_REPOSITORIES"] = json.dumps(questions)
    container = helper.Helper(
        image.id,
        [image.python, "-I", "-c", program_text("resolve_repositories.py")],
        user=context.host.job_user(),
        labels=context.labels("build"),
        limits=limits,
        mounts=[Mount(CA, str(bundle), type="bind", read_only=True)] if bundle else [],
        environment=environment,
    )
    try:
        status, output = helper.run_helper(context, container)
    except TimeoutError as error:
        raise helper.LimitReached(
            f"the git repositories gave no commit within {limits.timeout_s:.0f} s",
            "build_timeout_s",
        ) from error
    return _commits(image, file, pairs, status, output)


def _commits(image: Image, file: str, pairs: list[tuple[str, str]], status: int, output: bytes) -> list[str]:
    """Return the commits of an answer, which is untrusted. Raises NoEnvironment."""
    result = inside_answer.read(output)
    result = result if status == 0 and isinstance(result, dict) else {}
    commits, failed = result.get("commits"), result.get("failed")
    if isinstance(failed, int) and 0 <= failed < len(pairs):
        _refuse(image, file, pairs[failed][0], result)
    if (
        isinstance(commits, list)
        and len(commits) == len(pairs)
        and all(isinstance(commit, str) and (not commit or _COMMIT.match(commit)) for commit in commits)
    ):
        return commits
    raise NoEnvironment(
        f"the commits of the git repositories in {file} cannot be read",
        "name a commit: git+https://…@COMMIT",
        clean(without_login(output.decode("utf-8", "replace")))[-2000:],
    )


def _refuse(image: Image, file: str, repository: str, result: dict[str, Any]) -> NoReturn:
    if result.get("cause") == "no git":
        raise NoEnvironment(
            f"{file} names a git repository, and image {image.reference} has no git",
            "add the line git to apt-pkgs.txt",
        )
    reason = clean(without_login(str(result.get("reason"))))[:1000]
    name = _shown(repository)
    if result.get("cause") == "no revision":
        raise NoEnvironment(
            f"the git repository {name} of {file}: {short(reason, 200)}",
            "correct the branch or tag behind the @ of the line",
        )
    raise NoEnvironment(
        f"the git repository {name} of {file} cannot be read",
        "check its address, and whether this host reaches it and may read it without a login",
        reason,
    )
