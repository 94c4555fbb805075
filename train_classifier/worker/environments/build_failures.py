"""What the messages of uv mean: the reason of a failed build, and what to do about it."""

import re
from collections.abc import Sequence
from typing import NoReturn, Optional

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.options import show_option
from train_classifier.core.requirements_file import place_to_edit
from train_classifier.core.text import hide_logins, short
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments.environment_plan import EnvironmentPlan
from train_classifier.worker.system import debian_names

#: Messages of uv after which another try, with builds allowed, would fail in the same way.
UNREACHABLE = re.compile(
    r"valid authentication credentials|401 Unauthorized|403 Forbidden|error sending request|dns error"
    r"|[Cc]onnection refused|timed out|network timeout|before message length|error decoding response body"
    r"|Hash mismatch"
)
#: The package that uv could not build.
NOT_BUILT = re.compile(r"Failed to (?:download and )?build:? `([A-Za-z0-9][A-Za-z0-9._-]{0,100})(?:==| @ )")
NO_SOLUTION = "No solution found"
#: uv says that a version with sources alone was left out.
SOURCES_LEFT_OUT = re.compile(r"usable wheels|building from source is disabled|no wheels")

#: Most characters of a line that is quoted as the reason.
MOST_CHARACTERS = 400


class NotInstallable(NoEnvironment):
    """The requirements cannot be installed for this Python."""


class NoCommonSolution(NotInstallable):
    """No versions satisfy all requirements. `cause` says why in a few words."""

    def __init__(self, reason: str, hint: str, detail: str, cause: str) -> None:
        super().__init__(reason, hint, detail)
        self.cause = cause


class PythonConflict(NoEnvironment):
    """Other versions of Python than the image's have a solution; `pythons` has them, the oldest first.

    `choice` is how to choose one of them, `other` what to do without it.
    """

    def __init__(
        self, reason: str, choice: str, other: str, detail: Optional[str], pythons: Sequence[str]
    ) -> None:
        super().__init__(reason, "; ".join(filter(None, (choice, other))), detail)
        self.choice = choice
        self.other = other
        self.pythons = tuple(pythons)


def is_final(output: str) -> bool:
    """Tell whether a build of wheels alone failed for a reason that builds would not change."""
    if NO_SOLUTION in output:
        return not SOURCES_LEFT_OUT.search(output)
    return bool(UNREACHABLE.search(output))


def explain(
    image: Image, plan: EnvironmentPlan, status: int, output: str, netrc: str = "", model: str = "MODEL"
) -> NoReturn:
    """Raise NoEnvironment with uv's message, and for a conflict name the packages of the image.

    `netrc` describes what is wrong with the caller's netrc file, if anything is; `model` is for the hint.
    """
    lines = [line.rstrip() for line in hide_logins(output).splitlines()]
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    detail = "\n".join(lines[start:][-40:]).strip()
    sentence = " ".join(part.strip() for part in lines[start:])
    _explain_unset_variables(plan, detail)
    if re.search(r"valid authentication credentials|401 Unauthorized|403 Forbidden", sentence):
        raise NoEnvironment(
            "the package index requires a login, or rejected this one",
            netrc
            or "add it to ~/.netrc of your account on the host: machine NAME login NAME password WORD; it is "
            "sent to the indexes that host.json names (environment), not to those of requirements.txt",
            detail,
        )
    unknown = re.findall(r"[Bb]ecause (\S+) was not found in the package registry", sentence)
    if unknown and not set(unknown) & set(image.packages):
        raise NoEnvironment(
            f"requirement {', '.join(dict.fromkeys(unknown))} is not in the package index ({plan.file})",
            f"correct the name in {place_to_edit(plan.file)}",
            detail,
        )
    if re.search(r"[Gg]it executable not found", sentence):
        raise NoEnvironment(
            f"{plan.file} names a git repository, and image {image.reference} has no git",
            "add the line git to apt-pkgs.txt",
            detail,
        )
    if NO_SOLUTION in sentence:
        _explain_conflict(image, plan, sentence, detail)
    _explain_network(sentence, detail)
    # Imported here because every job imports this module, and few builds fail.
    from train_classifier.worker.system import failure_causes

    chosen = "" if plan.file == "requirements.txt" else plan.file
    circumstances = failure_causes.Circumstances(model, chosen_file=chosen)
    cause = failure_causes.find("\n".join(lines[start:]), circumstances, in_build=True)
    if cause is not None:
        failure = NotInstallable(f"{plan.file} cannot be installed: {cause.reason}", cause.hint, detail)
        failure.topic = cause.topic
        raise failure
    module = re.search(r"ModuleNotFoundError: No module named '([A-Za-z0-9_]{1,100})[.']", sentence)
    if module:
        name = debian_names.distribution(module[1])
        line = "the line " if plan.file.endswith(".txt") else ""
        package = f"{line}{name}" if name else "the Python package that has it"
        raise NotInstallable(
            f"{plan.file} cannot be installed: the build of a package imports {module[1]}, which is missing",
            f"add {package} to {place_to_edit(plan.file)}",
            detail,
        )
    _explain_unknown(image, plan, lines[start:], status, detail)


def _explain_unset_variables(plan: EnvironmentPlan, detail: str) -> None:
    texts = (*plan.lines, *plan.constraints, *plan.options)
    names = {name for text in texts for name in re.findall(r"\$\{([A-Z0-9_]{1,100})\}", text)}
    unset = sorted(names - set(plan.variables))[:10]
    if unset:
        shown = ", ".join(f"${{{name}}}" for name in unset)
        raise NoEnvironment(
            f"{plan.file} names {shown}, which builds on this host do not have",
            "set it for the host (role variable training_host_environment), or write the address without it",
            detail,
        )


def _explain_unknown(
    image: Image, plan: EnvironmentPlan, lines: list[str], status: int, detail: str
) -> NoReturn:
    # Without an error of uv, the last line says most: a traceback ends with its exception.
    reasons = [line for line in lines if line.startswith("error:")] or list(filter(None, lines))[-1:]
    reason = short(reasons[0], MOST_CHARACTERS) if reasons else f"exit status {status}"
    failed = NOT_BUILT.search(" ".join(lines))
    hint = (
        f"read the build's own message; or require a version of {failed[1]} that has a wheel for Python "
        f"{image.short_version} in {place_to_edit(plan.file)}"
        if failed
        else None
    )
    raise NotInstallable(f"{plan.file} cannot be installed: {reason}", hint, detail)


def _explain_conflict(image: Image, plan: EnvironmentPlan, sentence: str, detail: str) -> NoReturn:
    clashing = [
        plan.aliases.get(name, name)
        for name in (*plan.pins, *plan.excluded)
        if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", sentence)
    ]
    if not clashing:
        raise NoCommonSolution(
            f"{plan.file} has no solution",
            f"change the versions that the message of uv names in {place_to_edit(plan.file)}",
            detail,
            "has no solution over the image",
        )
    own = {name: version for name, version in plan.pins.items() if name not in plan.aliases}
    named = set(own) & set(clashing) or set(own)
    pins = ", ".join(f"{name}=={version}" for name, version in own.items() if name in named)
    raise NoCommonSolution(
        f"{plan.file} conflicts with image {image.reference}: the image's own {pins} cannot be replaced",
        f"choose another {show_option('image')}, set {show_option('environment_kind')} isolated, or require "
        f"versions that work with {pins} in {place_to_edit(plan.file)}",
        detail,
        f"conflicts with the image's {pins}",
    )


def _explain_network(sentence: str, detail: str) -> None:
    if re.search(
        r"Failed to fetch|error sending request|dns error|[Cc]onnection refused|timed out", sentence
    ):
        raise NoEnvironment(
            "the package index cannot be reached",
            "check the host's network, its proxies and CA bundle (environment, ca_bundle in host.json)",
            detail,
        )
    if re.search(r"network timeout|before message length|error decoding response body", sentence):
        raise NoEnvironment(
            "the package index ended the connection during a download",
            "submit the job again; if this happens again, check the host's network and its proxies",
            detail,
        )


def python_span(versions: list[str]) -> str:
    """Return versions of Python for people: `3.8 to 3.10`, `3.9`, or `3.8 or 3.10`."""
    minors = [int(version.partition(".")[2]) for version in versions]
    if len(minors) == 1:
        return versions[0]
    if minors == list(range(minors[0], minors[-1] + 1)):
        return f"{versions[0]} to {versions[-1]}"
    return " or ".join(versions)
