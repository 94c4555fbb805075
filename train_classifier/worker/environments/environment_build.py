"""Builds an environment in containers: the input of uv, and what each step can write.

A first container installs wheels by name from the host's own indexes, with a uv cache that all repositories
with this image share: nothing is built, and no installed code runs. If something must be built, or if the
model's files name other sources, the first container does that too, with a cache that only that repository
uses. A second container compiles the installed modules, and can write only to the environment.
"""

import dataclasses
import hashlib
import json
import math
import os
import pkgutil
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.job import WORKSPACE
from train_classifier.core.options import PYTHONS, show_option
from train_classifier.core.project import git_version
from train_classifier.core.project.own_package import UNKNOWN_VERSION
from train_classifier.core.text import hide_logins
from train_classifier.worker.containers import engine, helper, inside_answer
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import (
    build_failures,
    build_folder,
    index_credentials,
    local_packages,
)
from train_classifier.worker.environments.environment_plan import EnvironmentPlan
from train_classifier.worker.state.files import make_leaf, read_json
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Account

PURPOSE = "the build of the environment (requirements.txt)"
#: Where a container finds the environment. An isolated one is built there: its programs name this path.
MOUNTED = "/opt/train-classifier/environment"
#: Where a job has the metadata and the scripts of the repository's own package.
PACKAGE = "/opt/train-classifier/package"
#: Where a build finds the parts of its folder, uv's cache, uv, and the host's CA bundle.
BUILD = "/train-classifier/build"
CACHE = "/train-classifier/uv-cache"
UV = "/train-classifier/uv"
CA = "/train-classifier/ca.pem"
#: The requirements that have indexes of their own; uv knows such a file by this name.
INDEXED = "pyproject.toml"


class NeedsBuilding(Exception):
    """A package has to be built, or wheels alone give no solution."""


def find_nearest(store: Store, defined: dict[str, Any]) -> Optional[Path]:
    """Return the environment with the largest part of the required lines and no other line.

    `clean` may remove it before it is used: the build then starts from nothing.
    """
    best: Optional[Path] = None
    most = 0
    for path in store.envs.glob("[0-9a-f]*/environment.json"):
        record = read_json(path) or {}
        definition = record.get("definition", {})
        # These are keys only where there is one.
        keys = {*defined, "own_package", "build_variables", "indexes"} - {"lines"}
        lines = definition.get("lines", [])
        if (
            all(definition.get(key) == defined.get(key) for key in keys)
            and not defined["paths"]
            and not defined["isolated"]
            and set(lines) < set(defined["lines"])
            and len(lines) > most
        ):
            best, most = path.parent, len(lines)
    return best


@dataclasses.dataclass(frozen=True)
class Builder:
    """Builds the environment of a plan over an image, as an account."""

    context: Context
    image: Image
    plan: EnvironmentPlan
    account: Account

    def install(self, folder: Path, nearest: Optional[Path], repository: str) -> "Built":
        """Make `folder`/site, and return what is in it.

        With `repository` "" only wheels are installed, with the shared cache, which may raise NeedsBuilding.
        Otherwise packages are built as needed, with a cache of that repository. Raises NoEnvironment with
        uv's own message.
        """
        count = len(self.plan.lines)
        subject = self.plan.lock or f"{count} requirement{'s' if count != 1 else ''}"
        if self.plan.lines == ("setuptools",):
            # Added by us for distutils; the model has no requirements.
            subject = "setuptools"
        self.context.say(
            f"{'building and installing' if repository else 'installing'} {subject}"
            + (" over a similar environment" if nearest else "")
        )
        status, output, netrc_problem = self._run_uv(folder, nearest, repository, {})
        text = output.decode("utf-8", "replace")
        if status != 0:
            if not repository and not build_failures.is_final(text):
                raise NeedsBuilding
            model = self.context.job.spec().model if self.context.job else "MODEL"
            build_failures.explain(self.image, self.plan, status, text, netrc_problem, model)
        built = _read(output)
        # With a repository everything was built: an answer that says otherwise is forged.
        if built.sources and not repository:
            raise NeedsBuilding
        self._compile(folder)
        return built

    def cache(self, repository: str) -> Path:
        """Return uv's cache for this build: for one image, with `repository` for that repository in it.

        The image's own Python can write to the cache during a build, and any checkout may name an image. uv
        keeps a built package under its name and version alone, whatever it was built with.
        """
        name = f"image-{self.image.base.rpartition(':')[2][:32]}"
        if repository:
            name += f"-repository-{repository}"
            variables = (f"{name}={value}" for name, value in sorted(self.plan.build_variables.items()))
            built_with = "\n".join([*self.plan.framework_lines(), *variables])
            name += (
                f"-{hashlib.sha256(built_with.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
                if built_with
                else ""
            )
        return self.context.store.uv_caches / name

    def fitting_pythons(self, folder: Path, repository: str, wheels_only: bool) -> list[str]:
        """Return the versions of Python for which the requirements have a solution."""
        question = {"pythons": PYTHONS, "wheels_only": wheels_only}
        _, output, _ = self._run_uv(folder, None, repository, question)
        result = inside_answer.read(output)
        fitting = result.get("pythons") if isinstance(result, dict) else None
        return [version for version in PYTHONS if isinstance(fitting, list) and version in fitting]

    def _run_uv(
        self, folder: Path, nearest: Optional[Path], repository: str, question: dict[str, Any]
    ) -> tuple[int, bytes, str]:
        """Run the program in the image; return status, output, and what is wrong with the caller's netrc.

        `question`: `pythons`, of which it only tells for which there is a solution, and `wheels_only`.
        """
        cache = make_leaf(self.cache(repository), self.account)
        entries, problem = index_credentials.entries_for(self.plan.variables)
        request = {
            "nearest": f"{nearest}/{build_folder.SITE}" if nearest else None,
            "paths": list(self.plan.paths),
            "workspace": str(self.plan.workspace),
            "open": str(cache) if repository else None,
        }
        files = self._files(not repository, entries, question)
        build_variables = self.plan.build_variables if repository else {}
        build_folder.create(self.account, folder, files, request, self.context.check_cancel)
        status, output = self._run(
            folder,
            [self.image.python, "-c", self.plan.source, f"{BUILD}/{build_folder.INPUT}/plan.json"],
            mounts=self._mounts(folder, cache, not repository),
            environment={**build_variables, **self._environment(bool(entries))},
        )
        return status, output, problem

    def _site(self) -> str:
        return MOUNTED if self.plan.isolated else f"{BUILD}/{build_folder.SITE}"

    def _files(self, shared: bool, entries: str, question: dict[str, Any]) -> dict[str, str]:
        inputs, work = f"{BUILD}/{build_folder.INPUT}", f"{BUILD}/{build_folder.WORK}"
        indexed = self.plan.indexed_text()
        plan = {
            "uv": UV,
            "shared": shared,
            "isolated": self.plan.isolated,
            "site": self._site(),
            "requirements": f"{inputs}/requirements.txt",
            "indexed": f"{inputs}/{INDEXED}" if indexed else "",
            "constraints": f"{inputs}/constraints.txt",
            "options": self.plan.command_line(),
            "build_constraints": self.plan.build_constraints(),
            "preferred": self.plan.preferred,
            "by_name": not self.plan.hashed(),
            "pins": self.plan.frozen(),
            "package": self._package(),
            "aliases": self.plan.aliases,
            "repository": work,
            # The folder of a project whose uv.lock says what is installed.
            "project": f"{work}/{os.path.dirname(self.plan.lock)}" if self.plan.lock else "",
            "pythons": (),
            **question,
        }
        files = {
            "plan.json": json.dumps(plan),
            "requirements.txt": self.plan.requirements_text(work),
            "constraints.txt": self.plan.constraints_text(),
            **({INDEXED: indexed} if indexed else {}),
        }
        return {**files, "netrc": entries} if entries else files

    def _package(self) -> Optional[dict[str, Any]]:
        """Return the repository as a package, and where a job has its metadata and its modules."""
        package = self.plan.package
        if package is None:
            return None
        path = os.path.normpath(f"{WORKSPACE}/{package.folder}")
        version = "" if package.git else package.version
        return {"name": package.name, "version": version, "paths": [PACKAGE, path]}

    def _mounts(self, folder: Path, cache: Path, shared: bool) -> list[Any]:
        from docker.types import Mount

        inputs = f"{BUILD}/{build_folder.INPUT}"
        mounts = [
            Mount(CACHE, str(cache), type="bind"),
            Mount(self._site(), str(folder / build_folder.SITE), type="bind"),
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
            "GIT_TERMINAL_PROMPT": "0",
            "UV_CACHE_DIR": CACHE,
            "UV_NO_CONFIG": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
        }
        if self.context.host.ca_bundle is not None:
            variables.update(SSL_CERT_FILE=CA, GIT_SSL_CAINFO=CA)
        if "." in self.plan.paths and git_version.is_used(self.plan.workspace):
            version = local_packages.version_of_job(self.context, git_version.GitVersion())
            variables.setdefault("SETUPTOOLS_SCM_PRETEND_VERSION", version or UNKNOWN_VERSION)
        if logged_in:
            variables.update(NETRC=f"{BUILD}/{build_folder.INPUT}/netrc")
        return variables

    def _compile(self, folder: Path) -> None:
        """Compile what was installed: Python starts without site, so that no .pth file of it is read."""
        from docker.types import Mount

        site = self._site()
        processes = math.ceil(self.context.host.limits(PURPOSE).cpus)
        self._run(
            folder,
            [self.image.python, "-I", "-S", "-c", program_text("compile_modules.py"), site, str(processes)],
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


def program_text(name: str) -> str:
    """Return the text of a program that runs in images."""
    package = "train_classifier.worker.environments.inside"
    return (pkgutil.get_data(package, name) or b"").decode()


@dataclasses.dataclass(frozen=True)
class Built:
    """What a build made."""

    #: Versions by name.
    packages: dict[str, str]
    #: What must be built, where it must not be.
    sources: list[Any]
    #: Packages that were built with those of the environment.
    unisolated: list[str]


def _read(output: bytes) -> Built:
    """Return what a build says that it made. Raises NoEnvironment."""
    result = inside_answer.read(output)
    if isinstance(result, dict) and isinstance(result.get("sources"), list):
        packages = inside_answer.packages(result.get("packages"))
        unisolated = result.get("unisolated")
        if packages is not None and isinstance(unisolated, list):
            names = [name for name in unisolated if isinstance(name, str) and inside_answer.PLAIN.match(name)]
            return Built(packages, result["sources"], names)
    raise NoEnvironment(
        "the last output of the environment's build cannot be read",
        f"the image or a package of the build writes into this output: try another {show_option('image')}",
        hide_logins(output.decode("utf-8", "replace"))[-2000:],
    )
