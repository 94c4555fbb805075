"""What a repeat of a job needs, and what of it this host no longer has."""

import base64
import contextlib
import dataclasses
import zlib
from typing import Any, Optional

from train_classifier.core.errors import BadInput, NotReady
from train_classifier.core.job import ENVIRONMENT_HASH, IMAGE_ID, JobSpec, PinnedImage
from train_classifier.core.options import PYTHONS
from train_classifier.worker.containers import engine, image, plain_image
from train_classifier.worker.state import files, results
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host
from train_classifier.worker.transfer import rsync


def look(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return the specification of a job that repeats another one, and what of that one is gone.

    `files` and `fingerprint` are those of its push; `has_files`: the mirror still has them. `gone` has a
    sentence for the image and one for the environment if this host lacks them. Raises BadInput.
    """
    job = store.find(request.get("id"))
    if job.is_foreign:
        raise BadInput(f"job {job.id} is of an earlier version of train-classifier, and cannot be repeated")
    spec = job.spec()
    used_image, environment_hash = _used(job)
    pin, gone = _pin(host, used_image)
    is_built = environment_hash is None or host.is_submit_host or (store.envs / environment_hash).is_dir()
    if not is_built:
        gone.append("its environment is gone: it is built anew, and what has no exact version may be newer")
    fingerprint = _content(job, "fingerprint").decode("ascii", "replace")
    is_named = bool(spec.image) or pin is None or _is_usual(host, spec, pin.reference)
    again = dataclasses.replace(
        spec,
        rerun_of=job.id,
        pinned_image=pin,
        pinned_environment=environment_hash,
        # Where the host's own image is another one now.
        image=spec.image if pin is None or is_named else pin.reference,
        # These belong to the command that made the first job.
        group=None,
        max_parallel=None,
        dependency=None,
        lease_s=None,
    )
    return {
        "id": job.id,
        "spec": again.to_dict(),
        "files": base64.b64encode(zlib.compress(_content(job, "files"))).decode("ascii"),
        "fingerprint": fingerprint,
        "has_files": rsync.holds(store.mirror(spec.repository.key), fingerprint),
        "gone": gone,
    }


def _content(job: Job, name: str) -> bytes:
    """Return a record of the job's push; b"" where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return files.read_bytes(job.dir / name, rsync.LIST_BYTES)
    return b""


def _used(job: Job) -> tuple[dict[str, Any], Optional[str]]:
    """Return the image that a job had, {} if unknown, and the hash of its environment."""
    # Of a job on a node of a cluster, the submit host has the manifest alone.
    records = [results.read_facts(job)]
    with contextlib.suppress(NotReady):
        records.append(files.read_json(job.manifest) or {})
    used: dict[str, Any] = {}
    for record in records[::-1]:
        used.update({name: record[name] for name in ("image", "environment") if record.get(name)})
    key = str((used.get("environment") or {}).get("hash") or "")
    return used.get("image") or {}, key if ENVIRONMENT_HASH.match(key) else None


def _pin(host: Host, used: dict[str, Any]) -> tuple[Optional[PinnedImage], list[str]]:
    """Return how to take the same image again, and a sentence if this host lacks it."""
    reference, digest, base = (str(used.get(name) or "") for name in ("reference", "digest", "base"))
    if not reference or not IMAGE_ID.match(base):
        return None, []
    pin = PinnedImage(reference, base, digest if IMAGE_ID.match(digest) else None)
    if host.is_submit_host or _is_here(base):
        return pin, []
    if pin.digest:
        return pin, [f"image {reference} is gone: it is pulled again by its digest"]
    return pin, [f"image {reference} is gone, which came from no registry: the one of today is taken"]


def _is_here(identity: str) -> bool:
    """Tell whether the engine has an image; also where it does not answer, which the job's check says."""
    try:
        client = engine.connect()
    except NotReady:
        return True
    import docker.errors

    try:
        client.images.get(identity)
    except docker.errors.ImageNotFound:
        return False
    except docker.errors.DockerException:
        return True
    return True


def _is_usual(host: Host, spec: JobSpec, reference: str) -> bool:
    """Tell whether a job without an image of its own can get this one."""
    usual = {image.reference_for(host, spec, with_gpu) for with_gpu in (True, False)}
    return reference in usual | {plain_image.reference_for(host, version) for version in PYTHONS}
