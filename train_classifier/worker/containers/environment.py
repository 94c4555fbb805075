"""A model's Python packages as an environment: built once by uv in the image, found by what defines it."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pkgutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core import requirements_file
from train_classifier.core.errors import BadInput, NoEnvironment, NotReady
from train_classifier.core.job import SCHEMA
from train_classifier.core.locks import hold
from train_classifier.worker.containers import image as images
from train_classifier.worker.containers import place
from train_classifier.worker.containers.environment_build import (
    Builder,
    NeedsBuilding,
    Plan,
    cache_of,
    find_nearest,
)
from train_classifier.worker.containers.image import Image
from train_classifier.worker.state.files import read_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host

#: An environment of another recipe is another environment.
RECIPE = 2
#: Where a container finds the environment.
MOUNTED = "/opt/train-classifier/environment"
ACTIVATION = "train-classifier.pth"
#: Distributions of which the image's own copy is never replaced, and never doubled.
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

    #: Of everything that defines it; "" when the image alone will do.
    hash: str
    #: `name==version` of every package that the job sees, the image's included; sorted.
    packages: tuple[str, ...]
    #: docker.types.Mount objects.
    mounts: tuple[Any, ...]
    #: Environment variables to set.
    variables: dict[str, str]


def prepare(
    client: Any,
    host: Host,
    store: Store,
    image: Image,
    workspace: Path,
    model: str,
    repository: str,
    job: Optional[Job],
    say: Callable[[str], None],
    check_cancel: Callable[[], None],
) -> Environment:
    """Return the environment of MODEL/requirements.txt over an image, built when it is not there yet.

    A hit starts no container. Built once even when two jobs ask at once. Wheels alone make an environment for
    everybody; one in which something was built is that of `repository` (its key) alone. Raises BadInput for a
    file that is wrong, NoEnvironment with uv's own words when it cannot be built, NotReady without uv.
    """
    asked = requirements_file.parse(workspace, model)
    if asked.problems:
        raise BadInput(*asked.problems)
    lines = list(asked.lines)
    # The seed's sample imports distutils, which Python 3.12 dropped and Debian splits off; setuptools has it.
    needs_distutils = not image.distutils and not any(_name(line) == "setuptools" for line in lines)
    if needs_distutils:
        lines.append("setuptools")
    if not lines:
        return Environment("", _listed(image.packages, {}), (), {})
    plan = Plan(
        lines=tuple(lines),
        constraints=asked.constraints,
        frozen=tuple(f"{name}=={image.packages[name]}" for name in FROZEN if name in image.packages),
        options=asked.options,
        paths=asked.paths,
        workspace=workspace,
        variables=_variables(host),
        source=_source("install_requirements.py"),
    )
    if not asked.lines and not host.uv.exists():
        # Nothing was asked for: a host without uv can do that much.
        say(f"setuptools is not installed ({host.uv} is missing): a model that imports distutils will fail")
        return Environment("", _listed(image.packages, {}), (), {})
    builder = Builder(client, host, store, image, plan, host.job_user(), job, say, check_cancel)
    owners = ("", repository) if plan.may_share() else (repository,)
    hashes = {owner: _key(host, image, plan, owner) for owner in owners}
    for key in hashes.values():
        # Held while it is looked at and marked as used, so that `clean` cannot take it in between.
        with hold(_lock(store, key), shared=True, check=check_cancel):
            record = _use(store.envs / key)
        if record is not None:
            return _activated(store.envs / key, image, record)
    if not asked.lines:
        say(f"Python {image.python_version} of the image lacks distutils: adding setuptools")
    for owner, key in hashes.items():
        try:
            with hold(_lock(store, key), check=check_cancel):
                record = _use(store.envs / key) or _make(builder, key, owner)
            return _activated(store.envs / key, image, record)
        except NeedsBuilding:
            continue
        except NoEnvironment as error:
            if asked.lines:
                raise
            # Nothing was asked for: most models do without distutils.
            say(f"setuptools is not installed ({error.reason}): a model that imports distutils will fail")
            return Environment("", _listed(image.packages, {}), (), {})
    raise AssertionError("whatever needs building was built")


def _lock(store: Store, key: str) -> Path:
    return store.locks / f"environment-{key}.lock"


def _make(builder: Builder, key: str, owner: str) -> dict[str, Any]:
    """Build beside its place and rename it there; the environment's lock is held. Raises NeedsBuilding."""
    store, image, account = builder.store, builder.image, builder.account
    temporary = store.builds / f".{key}.tmp"
    if os.path.lexists(temporary):
        # A build that was killed; nobody else can be here, the lock says so.
        images.remove_orphans(builder.client, str(temporary))
        place.remove(account, temporary)
    defined = {
        **builder.plan.definition(),
        "image": image.id,
        "python": image.python_version,
        "repository": owner,
    }
    try:
        nearest = find_nearest(store, defined)
        lock = store.locks / f"{cache_of(store, image, owner).name}.lock"
        # Nobody removes uv's cache from under a build.
        with hold(lock, shared=True, check=builder.check_cancel):
            os.utime(lock)
            packages = builder.install(temporary, nearest, owner)
        record = {"schema": SCHEMA, "hash": key, "definition": defined, "packages": packages}
        place.finish(account, temporary, store.envs / key, (ACTIVATION, _activation(image)), record)
    except BaseException:
        with contextlib.suppress(NotReady):
            place.remove(account, temporary)
        raise
    return record


def _complete(folder: Path) -> Optional[dict[str, Any]]:
    """Return the record of an environment that was finished; the rename makes it appear at once and whole."""
    record = read_json(folder / place.RECORD)
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None


def _use(folder: Path) -> Optional[dict[str, Any]]:
    """Return the record of an environment if it is there, marked as used now: used last is cleaned last."""
    record = _complete(folder)
    if record is not None:
        os.utime(folder / place.RECORD, follow_symlinks=False)
    return record


def _activated(folder: Path, image: Image, record: dict[str, Any]) -> Environment:
    from docker.types import Mount

    site = folder / place.SITE
    # The engine follows links, with all its rights.
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

    site.addsitedir reads the environment's own .pth files, which PYTHONPATH does not; what it appended moves
    before the image's first folder of packages.
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
    return (pkgutil.get_data("train_classifier.worker.containers.inside", name) or b"").decode()


def _variables(host: Host) -> dict[str, str]:
    """Return what a build gets of the host's environment, with pip's index settings in uv's words."""
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


def _key(host: Host, image: Image, plan: Plan, repository: str) -> str:
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
