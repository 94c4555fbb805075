"""Environments in the state folder: found by what defines them, built once, and mounted into containers."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.job import SCHEMA
from train_classifier.core.locks import hold
from train_classifier.worker.containers import engine
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import build_folder, git_requirements
from train_classifier.worker.environments.environment_build import (
    MOUNTED,
    Builder,
    NeedsBuilding,
    find_nearest,
)
from train_classifier.worker.environments.environment_plan import EnvironmentPlan
from train_classifier.worker.state.files import read_json
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host

IMAGE, ISOLATED = "image", "isolated"
#: Part of the hash: another recipe makes another environment.
RECIPE = 3
ACTIVATION = "train-classifier.pth"


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a container needs to have the model's packages, and what the manifest says of them."""

    #: Hash of everything that defines the environment; "" when the image alone is sufficient.
    hash: str
    #: `name==version` of every package that the job sees; sorted.
    packages: tuple[str, ...]
    #: docker.types.Mount objects.
    mounts: tuple[Any, ...]
    #: Environment variables to set.
    variables: dict[str, str]
    #: The interpreter.
    python: str
    #: `image` or `isolated`, and why.
    kind: str = IMAGE
    reason: str = ""
    #: Environment variables that others may replace.
    defaults: dict[str, str] = dataclasses.field(default_factory=dict)
    #: The files of the repository that ask for the packages.
    files: tuple[str, ...] = ()
    #: Addresses of the git repositories that the requirements name, each with its commit.
    repositories: tuple[str, ...] = ()
    #: Packages that were built with the environment's own packages, since they import undeclared ones.
    unisolated: tuple[str, ...] = ()


def _hashes(host: Host, image: Image, plan: EnvironmentPlan, repository: str) -> dict[str, str]:
    """Return the hash of each usable environment by its owner ("": all repositories), first choice first."""
    owners = ("", repository) if plan.may_share() else (repository,)
    return {owner: _key(host, image, plan, owner) for owner in owners}


def find(context: Context, image: Image, plan: EnvironmentPlan, repository: str) -> Optional[Environment]:
    """Return the environment of a plan, marked as used; None when it is not there."""
    for key in _hashes(context.host, image, plan, repository).values():
        folder = context.store.envs / key
        # Held while the environment is read and marked as used, so that `clean` does not remove it.
        with hold(_lock(context.store, key), shared=True, check=context.check_cancel):
            record = _use(folder)
        if record is not None:
            return _activated(folder, image, record)
    return None


def find_pinned(context: Context, image: Image, key: str, repository: str) -> Optional[Environment]:
    """Return the environment of this hash, marked as used; None when it is gone or of another image.

    One in which something was built is used by its own repository alone.
    """
    folder = context.store.envs / key
    with hold(_lock(context.store, key), shared=True, check=context.check_cancel):
        record = _use(folder)
    definition = record["definition"] if record is not None else {}
    if record is None or definition["image"] != image.id or definition["repository"] not in ("", repository):
        return None
    return _activated(folder, image, record)


def build(context: Context, image: Image, plan: EnvironmentPlan, repository: str, reason: str) -> Environment:
    """Return the environment of a plan, built if it is not there. Raises NoEnvironment."""
    builder = Builder(context, image, plan, context.host.job_user())
    for owner, key in _hashes(context.host, image, plan, repository).items():
        folder = context.store.envs / key
        try:
            with hold(_lock(context.store, key), check=context.check_cancel):
                record = _use(folder) or _make(builder, key, owner, reason)
        except NeedsBuilding:
            continue
        return _activated(folder, image, record)
    raise AssertionError("whatever needs building was built")


def fitting_pythons(
    context: Context, image: Image, plan: EnvironmentPlan, repository: str, wheels_only: bool
) -> list[str]:
    """Return the versions of Python for which the requirements of a plan have a solution."""
    builder = Builder(context, image, plan, context.host.job_user())
    key = _key(context.host, image, plan, repository)
    context.say(f"looking for a version of Python for which {plan.file} has a solution")
    lock = hold(_lock(context.store, key), check=context.check_cancel)
    with lock, _build_folder(builder, key, repository) as temporary:
        fitting = builder.fitting_pythons(temporary, repository, wheels_only)
        build_folder.remove(builder.account, temporary)
    return fitting


def _lock(store: Store, key: str) -> Path:
    return store.locks / f"environment-{key}.lock"


@contextlib.contextmanager
def _build_folder(builder: Builder, key: str, owner: str) -> Iterator[Path]:
    """Give the path of a temporary folder for a build, which is removed after an error.

    The caller holds the lock of the environment; the lock of uv's cache is held, so that `clean` keeps it.
    """
    context, account = builder.context, builder.account
    temporary = context.store.builds / f".{key}.tmp"
    if os.path.lexists(temporary):
        # A killed build left this folder; because of the lock no other build uses it.
        engine.remove_build_containers(context.client, str(temporary))
        build_folder.remove(account, temporary)
    lock = context.store.locks / f"{builder.cache(owner).name}.lock"
    try:
        with hold(lock, shared=True, check=context.check_cancel):
            os.utime(lock)
            yield temporary
    except BaseException:
        with contextlib.suppress(NotReady):
            build_folder.remove(account, temporary)
        raise


def _make(builder: Builder, key: str, owner: str, reason: str) -> dict[str, Any]:
    """Build in a temporary folder, then rename it; the caller holds the lock. Raises NeedsBuilding."""
    image, account, store = builder.image, builder.account, builder.context.store
    defined = {
        **builder.plan.definition(owner),
        "image": image.id,
        "python": image.python_version,
        "repository": owner,
    }
    with _build_folder(builder, key, owner) as temporary:
        built = builder.install(temporary, find_nearest(store, defined), owner)
        record = {
            "schema": SCHEMA,
            "hash": key,
            "definition": defined,
            "packages": built.packages,
            "unisolated": built.unisolated,
            "kind": ISOLATED if builder.plan.isolated else IMAGE,
            "reason": reason,
        }
        activation = (ACTIVATION, "" if builder.plan.isolated else _activation(image))
        build_folder.publish(account, temporary, store.envs / key, activation, record)
    return record


def _complete(folder: Path) -> Optional[dict[str, Any]]:
    """Return the record of a finished environment; the rename makes it appear complete in one step."""
    record = read_json(folder / build_folder.RECORD)
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None


def _use(folder: Path) -> Optional[dict[str, Any]]:
    """Return the record of an existing environment, marked as used now, so that `clean` removes it last."""
    record = _complete(folder)
    if record is not None:
        os.utime(folder / build_folder.RECORD, follow_symlinks=False)
    return record


def _activated(folder: Path, image: Image, record: dict[str, Any]) -> Environment:
    from docker.types import Mount

    site = folder / build_folder.SITE
    # The engine would follow links with its own rights, which are more than the job's.
    if site.is_symlink() or (folder / ACTIVATION).is_symlink():
        raise NotReady(f"the environment {folder} was tampered with: it holds links", "remove that folder")
    mounts = [Mount(MOUNTED, str(site), type="bind", read_only=True)]
    addresses = git_requirements.addresses(record["definition"]["lines"])
    origins: dict[str, Any] = {
        "repositories": tuple(map(git_requirements.without_login, addresses)),
        "unisolated": tuple(record.get("unisolated", ())),
    }
    if record["kind"] == ISOLATED:
        # The image's own settings would bring its packages and its frameworks' CUDA back.
        names = ("PYTHONPATH", "LD_LIBRARY_PATH") if image.frameworks else ("PYTHONPATH",)
        defaults = dict.fromkeys(names, "")
        return Environment(
            record["hash"],
            list_packages({}, record["packages"]),
            tuple(mounts),
            {"PATH": f"{MOUNTED}/bin:{image.search_path}", "VIRTUAL_ENV": MOUNTED},
            f"{MOUNTED}/bin/python",
            ISOLATED,
            record["reason"],
            defaults,
            **origins,
        )
    mounts.append(
        Mount(f"{image.site[0]}/{ACTIVATION}", str(folder / ACTIVATION), type="bind", read_only=True)
    )
    variables = {"PATH": f"{MOUNTED}/bin:{image.search_path}"} if (site / "bin").is_dir() else {}
    listed = list_packages(image.packages, record["packages"])
    return Environment(
        record["hash"], listed, tuple(mounts), variables, image.python, IMAGE, record["reason"], **origins
    )


def _activation(image: Image) -> str:
    """Return the line that puts the environment before the image's own packages.

    site.addsitedir reads the environment's own .pth files, which PYTHONPATH does not. The paths that it
    appends are moved before the image's first folder of packages.
    """
    first = image.site[0]
    return (
        f"import sys, site; n = len(sys.path); site.addsitedir({MOUNTED!r}); "
        "new = sys.path[n:]; del sys.path[n:]; "
        f"i = sys.path.index({first!r}) if {first!r} in sys.path else n; sys.path[i:i] = new\n"
    )


def list_packages(base: dict[str, str], own: dict[str, str]) -> tuple[str, ...]:
    """Return `name==version` of the packages of an image and of an environment over it; sorted."""
    return tuple(f"{name}=={version}" for name, version in sorted({**base, **own}.items()))


class NoUv(NotReady):
    """The host has no uv that works."""


def uv_version(host: Host) -> str:
    """Return the version of the host's uv. Raises NoUv."""
    return _version_of(host.uv)


@functools.cache
def _version_of(uv: Path) -> str:
    hint = "run the role training_host on this host"
    try:
        process = subprocess.run(
            [str(uv), "--version"], capture_output=True, text=True, timeout=30, check=True,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise NoUv(f"{uv} is missing", hint) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoUv(f"{uv} does not work: {error}", hint) from error
    return process.stdout.strip()


def _key(host: Host, image: Image, plan: EnvironmentPlan, repository: str) -> str:
    indexes = {name: value for name, value in plan.variables.items() if name.startswith(("UV_", "PIP_"))}
    defining = {
        "recipe": RECIPE,
        "image": image.id,
        "python": image.python_version,
        "architecture": image.architecture,
        "uv": uv_version(host),
        "indexes": indexes,
        "repository": repository,
        **plan.definition(repository),
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:40]
