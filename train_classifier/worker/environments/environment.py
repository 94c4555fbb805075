"""A model's Python packages as an environment: built once by uv in the image, existing by what defines it."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pkgutil
import subprocess
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import requirements_file
from train_classifier.core.errors import BadInput, NoEnvironment, NotReady
from train_classifier.core.job import SCHEMA
from train_classifier.core.locks import hold
from train_classifier.worker.containers import engine
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import build_folder
from train_classifier.worker.environments.environment_build import (
    Builder,
    EnvironmentPlan,
    NeedsBuilding,
    cache_of,
    find_nearest,
)
from train_classifier.worker.state.files import read_json
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host

#: Part of the hash: another recipe makes another environment.
RECIPE = 2
#: Where a container finds the environment.
MOUNTED = "/opt/train-classifier/environment"
ACTIVATION = "train-classifier.pth"
#: Distributions whose copy in the image is never replaced or duplicated.
FROZEN = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tf-nightly",
    "torch",
    "jax",
    "jaxlib",
    "keras",
    "numpy",
)
#: Index settings of pip, and what uv calls them.
INDEX_SETTINGS = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_TRUSTED_HOST": "UV_INSECURE_HOST", "PIP_NO_INDEX": "UV_NO_INDEX",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a container needs to have the model's packages, and what the manifest says of them."""

    #: Hash of everything that defines the environment; "" when the image alone is sufficient.
    hash: str
    #: `name==version` of every package that the job sees, the image's included; sorted.
    packages: tuple[str, ...]
    #: docker.types.Mount objects.
    mounts: tuple[Any, ...]
    #: Environment variables to set.
    variables: dict[str, str]


def prepare(context: Context, image: Image, workspace: Path, model: str, repository: str) -> Environment:
    """Return the environment of MODEL/requirements.txt over an image, built when it is not there yet.

    An existing environment is returned without starting a container. Two jobs at the same time build it once.
    An environment of wheels alone is shared by all repositories; one in which something was built is used by
    `repository` (its key) alone. Raises BadInput for a wrong file, NoEnvironment with uv's own message when
    it cannot be built, NotReady without uv.
    """
    requirements = requirements_file.parse(workspace, model)
    if requirements.problems:
        raise BadInput(*requirements.problems)
    plan = _plan(context.host, image, workspace, requirements)
    image_alone = Environment("", _listed(image.packages, {}), (), {})
    if not plan.lines:
        return image_alone
    if requirements.lines:
        hashes = _hashes(context.host, image, plan, repository)
        return _find(context, image, hashes) or _build(context, image, plan, hashes)
    # The model requires no packages, and most models do not use distutils: a missing uv is no error.
    problem = f"{context.host.uv} is missing"
    if context.host.uv.exists():
        hashes = _hashes(context.host, image, plan, repository)
        existing = _find(context, image, hashes)
        if existing is not None:
            return existing
        context.say(f"Python {image.python_version} of the image lacks distutils: adding setuptools")
        try:
            return _build(context, image, plan, hashes)
        except NoEnvironment as error:
            problem = error.reason
    context.say(f"setuptools is not installed ({problem}): a model that imports distutils will fail")
    return image_alone


def _plan(
    host: Host, image: Image, workspace: Path, requirements: requirements_file.Requirements
) -> EnvironmentPlan:
    lines = list(requirements.lines)
    # The original action's sample imports distutils, which Python 3.12 dropped and Debian splits off.
    if not image.distutils and not any(_name(line) == "setuptools" for line in lines):
        lines.append("setuptools")
    return EnvironmentPlan(
        lines=tuple(lines),
        constraints=requirements.constraints,
        frozen=tuple(f"{name}=={image.packages[name]}" for name in FROZEN if name in image.packages),
        options=requirements.options,
        paths=requirements.paths,
        workspace=workspace,
        variables=_variables(host),
        source=_source("install_requirements.py"),
    )


def _hashes(host: Host, image: Image, plan: EnvironmentPlan, repository: str) -> dict[str, str]:
    """Return the hash of each usable environment by its owner ("": all repositories), first choice first."""
    owners = ("", repository) if plan.may_share() else (repository,)
    return {owner: _key(host, image, plan, owner) for owner in owners}


def _find(context: Context, image: Image, hashes: dict[str, str]) -> Optional[Environment]:
    for key in hashes.values():
        folder = context.store.envs / key
        # Held while the environment is read and marked as used, so that `clean` does not remove it.
        with hold(_lock(context.store, key), shared=True, check=context.check_cancel):
            record = _use(folder)
        if record is not None:
            return _activated(folder, image, record)
    return None


def _build(context: Context, image: Image, plan: EnvironmentPlan, hashes: dict[str, str]) -> Environment:
    builder = Builder(context, image, plan, context.host.job_user())
    for owner, key in hashes.items():
        folder = context.store.envs / key
        try:
            with hold(_lock(context.store, key), check=context.check_cancel):
                record = _use(folder) or _make(builder, key, owner)
        except NeedsBuilding:
            continue
        return _activated(folder, image, record)
    raise AssertionError("whatever needs building was built")


def _lock(store: Store, key: str) -> Path:
    return store.locks / f"environment-{key}.lock"


def _make(builder: Builder, key: str, owner: str) -> dict[str, Any]:
    """Build in a temporary folder, then rename it; the caller holds the lock. Raises NeedsBuilding."""
    context, image, account = builder.context, builder.image, builder.account
    store = context.store
    temporary = store.builds / f".{key}.tmp"
    if os.path.lexists(temporary):
        # A killed build left this folder; because of the lock no other build uses it.
        engine.remove_build_containers(context.client, str(temporary))
        build_folder.remove(account, temporary)
    defined = {
        **builder.plan.definition(),
        "image": image.id,
        "python": image.python_version,
        "repository": owner,
    }
    try:
        nearest = find_nearest(store, defined)
        lock = store.locks / f"{cache_of(store, image, owner).name}.lock"
        # The lock prevents the removal of uv's cache during a build.
        with hold(lock, shared=True, check=context.check_cancel):
            os.utime(lock)
            packages = builder.install(temporary, nearest, owner)
        record = {"schema": SCHEMA, "hash": key, "definition": defined, "packages": packages}
        build_folder.publish(account, temporary, store.envs / key, (ACTIVATION, _activation(image)), record)
    except BaseException:
        with contextlib.suppress(NotReady):
            build_folder.remove(account, temporary)
        raise
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
    mounts = (
        Mount(MOUNTED, str(site), type="bind", read_only=True),
        Mount(f"{image.site[0]}/{ACTIVATION}", str(folder / ACTIVATION), type="bind", read_only=True),
    )
    variables = {"PATH": f"{MOUNTED}/bin:{image.search_path}"} if (site / "bin").is_dir() else {}
    return Environment(record["hash"], _listed(image.packages, record["packages"]), mounts, variables)


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


def _listed(base: dict[str, str], own: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}=={version}" for name, version in sorted({**base, **own}.items()))


def _name(line: str) -> str:
    match = requirements_file.REQUIREMENT.match(line.partition(" --")[0].strip())
    return match["name"].lower().replace("_", "-") if match else ""


def _source(name: str) -> str:
    return (pkgutil.get_data("train_classifier.worker.environments.inside", name) or b"").decode()


def _variables(host: Host) -> dict[str, str]:
    """Return the host's variables for a build, with pip's index settings also under uv's names."""
    variables = dict(host.environment)
    for pip, uv in INDEX_SETTINGS.items():
        if pip in variables:
            variables.setdefault(uv, variables[pip])
    return variables


def uv_version(host: Host) -> str:
    """Return the version of the host's uv. Raises NotReady when it does not work."""
    hint = "run the role training_host on this host"
    try:
        done = subprocess.run(
            [str(host.uv), "--version"], capture_output=True, text=True, timeout=30, check=True,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise NotReady(f"{host.uv} is missing: Python packages cannot be installed", hint) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NotReady(f"{host.uv} does not work: {error}", hint) from error
    return done.stdout.strip()


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
        **plan.definition(),
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:40]
