"""Debian packages of a model as a layer over its image: made by run and commit, found by its content."""

import dataclasses
import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import apt_file
from train_classifier.core.errors import BadInput, NoEnvironment
from train_classifier.core.locks import hold
from train_classifier.worker.containers import engine, helper
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image, find_local, probe
from train_classifier.worker.system.host import Host

#: Part of the tag: another recipe makes another layer.
RECIPE = 1
REPOSITORY = "train-classifier/packages"
BASE = f"{engine.LABEL}.base"
CONTENT = f"{engine.LABEL}.packages"
#: On a tmpfs, so that mount points below it do not become part of the layer.
SCRATCH = "/tmp/train-classifier"
# `Pattern-Only`: a missing name is unknown, and is not used as a regular expression for other names.
_SCRIPT = f"""set -e
. {SCRATCH}/environment
command -v apt-get >/dev/null || {{ echo 'E: no apt-get in this image'; exit 100; }}
options='-o Acquire::Retries=3 -o Acquire::http::Timeout=60 -o Acquire::https::Timeout=60'
options="$options -o Acquire::Languages=none -o APT::Cmd::Pattern-Only=true"
[ -e {SCRATCH}/ca.pem ] && options="$options -o Acquire::https::CAInfo={SCRATCH}/ca.pem"
[ -d {SCRATCH}/sources ] && options="$options -o Dir::Etc::SourceList=/dev/null" &&
    options="$options -o Dir::Etc::SourceParts={SCRATCH}/sources"
DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND
apt-get $options update
apt-get $options install -y --no-install-recommends -- "$@"
apt-get clean
rm -rf /var/lib/apt/lists/*
"""


def layer(context: Context, base: Image, workspace: Path, model: str) -> Image:
    """Return the image with the packages of MODEL/apt-pkgs.txt; `base` itself when there are none.

    Two jobs at the same time build it once. Raises BadInput for a wrong list, NoEnvironment with apt's own
    line when it cannot be built.
    """
    packages = apt_file.parse(workspace, model)
    if packages.problems:
        raise BadInput(*packages.problems)
    if not packages.names:
        return base
    tag = _tag(base, packages.names)
    key = tag.rpartition(":")[2]
    image = find_local(context.client, tag)
    if image is None:
        with hold(context.store.locks / f"packages-{key}.lock", check=context.check_cancel):
            image = find_local(context.client, tag)
            if image is None:
                scratch = context.store.environments / f".packages-{key}"
                # Remove the leftovers of a killed build.
                engine.remove_build_containers(context.client, str(scratch))
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(0o700)
                try:
                    _build(context, base, packages.names, tag, scratch)
                finally:
                    shutil.rmtree(scratch)
                image = find_local(context.client, tag)
    if image is None:
        raise NoEnvironment(f"the layer {tag} was removed while it was built", "start the job again")
    layered = probe(context, image, base.reference)
    return dataclasses.replace(layered, digest=base.digest, base=base.base, plain=base.plain)


def _tag(base: Image, names: Sequence[str]) -> str:
    """Return the name of the layer that has these packages over a base."""
    key = hashlib.sha256(json.dumps([RECIPE, base.id, list(names)]).encode()).hexdigest()[:32]
    return f"{REPOSITORY}:{key}"


def _nearest(client: Any, base: Image, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the image to start from, and the packages that it has: the largest part of `names`."""
    best: tuple[str, tuple[str, ...]] = (base.id, ())
    for candidate in listed(client, base=base.id):
        has = tuple(((candidate.get("Labels") or {}).get(CONTENT) or "").split())
        # An image from a registry may have the same labels; only the tag shows that it was made here.
        if _tag(base, has) not in (candidate.get("RepoTags") or ()):
            continue
        if has and set(has) <= set(names) and len(has) > len(best[1]):
            best = (candidate["Id"], has)
    return best


def _build(context: Context, base: Image, names: tuple[str, ...], tag: str, scratch: Path) -> None:
    client = context.client
    limits = context.host.limits("the installation of the Debian packages (apt-pkgs.txt)")
    start, has = _nearest(client, base, names)
    missing = [name for name in names if name not in has]
    plural = "s" if len(missing) != 1 else ""
    context.say(f"installing {len(missing)} Debian package{plural}: {' '.join(missing)}")
    inspection = engine.retry(lambda: client.api.inspect_image(base.id), context.check_cancel)
    config = inspection["Config"] or {}
    installation = helper.Helper(
        start,
        ["/bin/sh", "-c", f"set -- {shlex.join(missing)}\n{_SCRIPT}", "train-classifier"],
        # The engine merges the container's settings into the committed image. So the script is the entry
        # point, which the commit restores, and the command stays the image's own.
        command=config.get("Cmd") or [],
        # An empty user is root, and stays empty in the layer.
        as_root=bool(config.get("User")),
        # The layer keeps the base's value of this variable; without one, it would get the value set here.
        hide_gpus=any(line.startswith("NVIDIA_VISIBLE_DEVICES=") for line in config.get("Env") or ()),
        mounts=_mounts(context.host, scratch),
        labels={**context.labels("build"), engine.BUILD_FOLDER: str(scratch)},
        limits=limits,
        options={"working_dir": ""},
    )
    container = helper.create_helper(context, installation)
    try:
        status, output = helper.run_created(context, container, limits, say=True)
        if status != 0:
            _fail(base, missing, status, output.decode("utf-8", "replace"))
        labels = {
            **(config.get("Labels") or {}),
            **context.labels("image"),
            engine.BUILD_FOLDER: "",
            BASE: base.id,
            CONTENT: " ".join(names),
        }
        final = {**config, "Entrypoint": config.get("Entrypoint") or [], "Labels": labels}
        _commit(context, container, tag, final, f"Debian packages: {' '.join(names)}")
    except TimeoutError as error:
        raise helper.LimitReached(
            f"the Debian packages were not installed within {limits.timeout_s:.0f} s: {' '.join(missing)}",
            "build_timeout_s",
        ) from error
    finally:
        engine.remove(container)


def _commit(context: Context, container: Any, tag: str, config: dict[str, Any], message: str) -> None:
    """Commit the container as `tag`, only once, and without a time limit: gigabytes take minutes."""
    repository, _, version = tag.partition(":")

    def commit() -> None:
        # Before an outage the engine may have made the commit without answering.
        if find_local(context.client, tag) is not None:
            return
        client = engine.connect(timeout=None)
        try:
            client.api.commit(container.id, repository=repository, tag=version, conf=config, message=message)
        finally:
            client.close()

    check = context.check_cancel
    engine.run_in_thread(lambda: engine.retry(commit, check), check)


def _mounts(host: Host, scratch: Path) -> list[Any]:
    """Return the mounts of a build: the host's proxies, CA bundle and sources; none ends in the layer."""
    from docker.types import Mount

    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(host.environment.items())]
    (scratch / "environment").write_text("\n".join([*lines, ""]), encoding="utf-8")
    mounts = [
        Mount(SCRATCH.rpartition("/")[0], None, type="tmpfs"),
        Mount(f"{SCRATCH}/environment", str(scratch / "environment"), type="bind", read_only=True),
    ]
    if host.ca_bundle is not None:
        mounts.append(Mount(f"{SCRATCH}/ca.pem", str(host.ca_bundle), type="bind", read_only=True))
    if host.apt_sources is not None:
        text = host.apt_sources.read_text(encoding="utf-8", errors="replace")
        form = "sources" if any(line.lower().startswith("types:") for line in text.splitlines()) else "list"
        target = f"{SCRATCH}/sources/host.{form}"
        mounts.append(Mount(target, str(host.apt_sources), type="bind", read_only=True))
    return mounts


def _fail(base: Image, missing: list[str], status: int, output: str) -> None:
    """Raise NoEnvironment with apt's own line."""
    lines = [line.strip() for line in output.splitlines()]
    errors = [line for line in lines if line.startswith("E: ")]
    network = [
        line for line in lines if line.startswith(("W: Failed to fetch", "E: Failed to fetch", "Err:"))
    ]
    listed = " ".join(missing)
    detail = "\n".join((network[:5] + errors or lines)[-20:])
    if "no apt-get in this image" in output:
        raise NoEnvironment(
            f"image {base.reference} has no apt-get, so apt-pkgs.txt cannot be installed ({listed})",
            "use an image made from Debian or Ubuntu",
        )
    if network:
        raise NoEnvironment(
            f"the package mirror cannot be reached, so these are not installed: {listed}",
            "check the host's network, its proxies and apt sources (environment, apt_sources in host.json)",
            detail,
        )
    unknown = [
        name for name in missing if any(f"package {name.partition('=')[0]}" in line for line in errors)
    ]
    if unknown:
        raise NoEnvironment(
            f"Debian package not found for {base.reference}: {', '.join(unknown)} (apt-pkgs.txt)",
            "correct the name in apt-pkgs.txt",
            detail,
        )
    first = errors[0] if errors else f"exit status {status}"
    raise NoEnvironment(f"apt-get could not install {listed}: {first}", detail=detail)


def listed(client: Any, uid: Optional[int] = None, base: Optional[str] = None) -> list[dict[str, Any]]:
    """Return the engine's summaries of the package layers of an account, or over a base.

    The SDK's own list inspects each image again, and fails when one was removed meanwhile.
    """
    labels = [f"{engine.LABEL}=1", f"{engine.LABEL}.kind=image"]
    labels += [f"{engine.LABEL}.uid={uid}"] if uid is not None else []
    labels += [f"{engine.LABEL}.base={base}"] if base is not None else []
    images: list[dict[str, Any]] = engine.retry(lambda: client.api.images(filters={"label": labels}))
    return images


def remove(names: Sequence[str]) -> bool:
    """Remove an image by its tags; False when it is in use. Large layers take minutes: no time limit."""
    import docker.errors

    client = engine.connect(timeout=None)
    try:
        for name in names:
            client.images.remove(name)
    except docker.errors.APIError as error:
        # 409: a container, perhaps of another user, was made from it.
        if error.status_code in (404, 409):
            return False
        raise
    finally:
        client.close()
    return True
