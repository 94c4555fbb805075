"""Builds an environment in containers: the input of uv, what each step can write, what failures mean.

A first container installs wheels by name from the host's own indexes, with a uv cache that all repositories
with this image share: nothing is built, and no installed code runs. A second container compiles the installed
modules, and can write only to the environment. If something must be built, or if the model's files name other
sources, one container does everything, with a cache that only that repository uses.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NoReturn, Optional

from train_classifier.core import requirements_file
from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers import answer, engine, helper
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import build_folder, index_logins
from train_classifier.worker.state.files import make_leaf, read_json
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Account

PURPOSE = "the build of the environment (requirements.txt)"
#: Where a build finds the parts of its folder, uv's cache, uv, and the host's CA bundle.
BUILD = "/train-classifier/build"
CACHE = "/train-classifier/uv-cache"
UV = "/train-classifier/uv"
CA = "/train-classifier/ca.pem"
#: Options of a requirements file that name no package source and build nothing.
SHARED_OPTIONS = {"--require-hashes", "--pre", "--only-binary"}
#: Messages of uv after which another try, with builds allowed, would fail in the same way.
UNREACHABLE = re.compile(
    r"valid authentication credentials|401 Unauthorized|403 Forbidden|error sending request|dns error"
    r"|[Cc]onnection refused|timed out|network timeout|before message length|error decoding response body"
    r"|Hash mismatch"
)


class NeedsBuilding(Exception):
    """A package has to be built, or wheels alone give no solution."""


@dataclasses.dataclass(frozen=True)
class EnvironmentPlan:
    """What an environment is to hold."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...]
    #: The image's frameworks and NumPy: constraints that name the image's side of a conflict.
    frozen: tuple[str, ...]
    options: tuple[str, ...]
    #: Local packages, relative to the workspace.
    paths: tuple[str, ...]
    workspace: Path
    #: Environment of the build.
    variables: dict[str, str]
    #: The program that runs in the image.
    source: str

    def may_share(self) -> bool:
        """Tell whether wheels by name from the host's own indexes could satisfy the plan.

        uv's cache identifies an index by a hash that is easy to forge, and a local wheel by its path and
        time: a source that a checkout names is never used with a shared cache.
        """
        named = [*self.lines, *self.constraints]
        options = {option.partition(" ")[0] for option in self.options}
        return (
            not self.paths
            and options <= SHARED_OPTIONS
            and not any("${" in line or "://" in line or "@" in line for line in named)
        )

    def definition(self) -> dict[str, Any]:
        """Return the part of an environment's definition that the model's files make up."""
        return {
            "lines": sorted(self.lines),
            "constraints": sorted([*self.constraints, *self.frozen]),
            "options": list(self.options),
            "paths": requirements_file.digest_of_paths(self.workspace, self.paths) if self.paths else "",
        }


def find_nearest(store: Store, defined: dict[str, Any]) -> Optional[Path]:
    """Return the environment with the largest part of the required lines and no other line.

    `clean` may remove it before it is used: the build then starts from nothing.
    """
    best: Optional[Path] = None
    most = 0
    for path in store.envs.glob("[0-9a-f]*/environment.json"):
        record = read_json(path) or {}
        other = record.get("definition", {})
        same = all(other.get(key) == defined[key] for key in defined if key != "lines")
        lines = other.get("lines", [])
        if same and not defined["paths"] and set(lines) < set(defined["lines"]) and len(lines) > most:
            best, most = path.parent, len(lines)
    return best


@dataclasses.dataclass(frozen=True)
class Builder:
    """Builds the environment of a plan over an image, as an account."""

    context: Context
    image: Image
    plan: EnvironmentPlan
    account: Account

    def install(self, folder: Path, nearest: Optional[Path], repository: str) -> dict[str, str]:
        """Make `folder`/site, and return the packages in it by name.

        With `repository` "" only wheels are installed, with the shared cache, which may raise NeedsBuilding.
        Otherwise packages are built as needed, with a cache of that repository. Raises NoEnvironment with
        uv's own message.
        """
        shared = not repository
        cache = make_leaf(cache_of(self.context.store, self.image, repository), self.account)
        count = len(self.plan.lines)
        self.context.say(
            ("installing" if shared else "building and installing")
            + f" {count} requirement{'s' if count != 1 else ''}"
            + (" over a similar environment" if nearest else "")
        )
        entries, problem = index_logins.entries_for(self.plan.variables)
        request = {
            "nearest": f"{nearest}/{build_folder.SITE}" if nearest else None,
            "paths": list(self.plan.paths),
            "workspace": str(self.plan.workspace),
            "open": None if shared else str(cache),
        }
        build_folder.create(self.account, folder, self._files(shared, entries), request)
        status, output = self._run(
            folder,
            [self.image.python, "-c", self.plan.source, f"{BUILD}/{build_folder.INPUT}/plan.json"],
            mounts=self._mounts(folder, cache, shared),
            environment=self._environment(bool(entries)),
        )
        text = output.decode("utf-8", "replace")
        if status != 0:
            if shared and not UNREACHABLE.search(text):
                raise NeedsBuilding
            explain(self.image, self.plan, status, text, problem)
        packages, sources = _read(output)
        if sources:
            raise NeedsBuilding
        if shared:
            self._compile(folder)
        return packages

    def _files(self, shared: bool, entries: str) -> dict[str, str]:
        inputs = f"{BUILD}/{build_folder.INPUT}"
        plan = {
            "uv": UV,
            "shared": shared,
            "site": f"{BUILD}/{build_folder.SITE}",
            "requirements": f"{inputs}/requirements.txt",
            "constraints": f"{inputs}/constraints.txt",
            "repository": f"{BUILD}/{build_folder.WORK}",
        }
        files = {
            "plan.json": json.dumps(plan),
            "requirements.txt": "\n".join([*self.plan.options, *self.plan.lines, ""]),
            "constraints.txt": "\n".join([*self.plan.constraints, *self.plan.frozen, ""]),
        }
        return {**files, "netrc": entries} if entries else files

    def _mounts(self, folder: Path, cache: Path, shared: bool) -> list[Any]:
        from docker.types import Mount

        inputs = f"{BUILD}/{build_folder.INPUT}"
        mounts = [
            Mount(CACHE, str(cache), type="bind"),
            Mount(f"{BUILD}/{build_folder.SITE}", str(folder / build_folder.SITE), type="bind"),
            Mount(inputs, str(folder / build_folder.INPUT), type="bind", read_only=True),
            Mount(UV, str(self.context.host.uv), type="bind", read_only=True),
        ]
        if not shared:
            mounts.append(Mount(f"{BUILD}/{build_folder.WORK}", str(folder / build_folder.WORK), type="bind"))
        if self.context.host.ca_bundle is not None:
            mounts.append(Mount(CA, str(self.context.host.ca_bundle), type="bind", read_only=True))
        return mounts

    def _environment(self, logged_in: bool) -> dict[str, str]:
        variables = {
            **self.plan.variables,
            "HOME": "/tmp",
            "UV_CACHE_DIR": CACHE,
            "UV_NO_CONFIG": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
        }
        if self.context.host.ca_bundle is not None:
            variables.update(SSL_CERT_FILE=CA)
        if logged_in:
            variables.update(NETRC=f"{BUILD}/{build_folder.INPUT}/netrc")
        return variables

    def _compile(self, folder: Path) -> None:
        """Compile what was installed: Python starts without site, so that no .pth file of it is read."""
        from docker.types import Mount

        site = f"{BUILD}/{build_folder.SITE}"
        # Modules for other versions of Python do not compile, which is not an error.
        self._run(
            folder,
            [self.image.python, "-I", "-S", "-m", "compileall", "-q", "-q", "-j", "0", site],
            mounts=[Mount(site, str(folder / build_folder.SITE), type="bind")],
            network=False,
        )

    def _run(self, folder: Path, program: list[str], **options: Any) -> tuple[int, bytes]:
        limits = self.context.host.limits(PURPOSE)
        build = helper.Helper(
            self.image.id,
            program,
            user=self.account,
            labels={**self.context.labels("build"), engine.BUILD_FOLDER: str(folder)},
            limits=limits,
            **options,
        )
        try:
            return helper.run_helper(self.context, build, say=True)
        except TimeoutError as error:
            raise helper.LimitReached(
                f"the requirements were not installed within {limits.timeout_s:.0f} s", "build_timeout_s"
            ) from error


def cache_of(store: Store, image: Image, repository: str) -> Path:
    """Return uv's cache for an image, or for one repository in that image.

    The image's own Python can write to the cache during a build, and any checkout may name an image.
    """
    own = f"-repository-{repository}" if repository else ""
    return store.uv_caches / f"image-{image.base.rpartition(':')[2][:32]}{own}"


def _read(output: bytes) -> tuple[dict[str, str], list[Any]]:
    """Return the packages that a build installed, and those that must be built. Raises NoEnvironment."""
    result = answer.read(output)
    if isinstance(result, dict) and isinstance(result.get("sources"), list):
        packages = answer.packages(result.get("packages"))
        if packages is not None:
            return packages, result["sources"]
    raise NoEnvironment(
        "the last output of the environment's build cannot be read",
        "the image or a package of the build writes into this output: try another --image",
        output[-2000:].decode("utf-8", "replace"),
    )


def explain(image: Image, plan: EnvironmentPlan, status: int, output: str, netrc: str = "") -> NoReturn:
    """Raise NoEnvironment with uv's message, and for a conflict name the packages of the image.

    `netrc` describes what is wrong with the caller's netrc file, if anything is.
    """
    lines = [line.rstrip() for line in output.splitlines()]
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    detail = "\n".join(lines[start:][-40:]).strip()
    sentence = " ".join(part.strip() for part in lines[start:])
    if re.search(r"valid authentication credentials|401 Unauthorized|403 Forbidden", sentence):
        raise NoEnvironment(
            "the package index requires a login, or rejected this one",
            netrc
            or "add it to ~/.netrc of your account on the host: machine NAME login NAME password WORD; it is "
            "sent to the indexes that host.json names (environment), not to those of requirements.txt",
            detail,
        )
    unknown = re.findall(r"[Bb]ecause (\S+) was not found in the package registry", sentence)
    if unknown:
        raise NoEnvironment(
            f"requirement {', '.join(dict.fromkeys(unknown))} is not in the package index (requirements.txt)",
            "correct the name in requirements.txt",
            detail,
        )
    clashing = [
        pin
        for pin in plan.frozen
        if re.search(rf"(?<![\w.-]){re.escape(pin.partition('==')[0])}(?![\w-])", sentence)
    ]
    pins = ", ".join(clashing)
    if "No solution found" in sentence and clashing:
        raise NoEnvironment(
            f"requirements.txt conflicts with image {image.reference}: the image's own {pins} "
            "cannot be replaced",
            f"ask in requirements.txt for versions that work with {pins}, or choose another --image",
            detail,
        )
    if "No solution found" in sentence:
        raise NoEnvironment("requirements.txt has no solution", "see the message of uv", detail)
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
    first = lines[start] if lines else f"exit status {status}"
    raise NoEnvironment(f"requirements.txt cannot be installed: {first}", detail=detail)
