"""The image a job runs in: present or pulled, fit for this host, and what its Python has."""

import dataclasses
import hashlib
import os
import pkgutil
import platform
import posixpath
import re
import tempfile
import threading
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

from train_classifier.core import image_reference
from train_classifier.core.errors import BadInput, NoEnvironment
from train_classifier.core.job import WORKSPACE, JobSpec, PinnedImage
from train_classifier.core.options import show_option
from train_classifier.core.text import printable, short
from train_classifier.worker.containers import engine, helper, inside_answer
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.helper import Helper
from train_classifier.worker.state.files import read_json, write_json
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host

#: 2.17.0-gpu is the last that is known to find the GPU as shipped.
DEFAULT_GPU = "tensorflow/tensorflow:2.17.0-gpu"
DEFAULT_CPU = "tensorflow/tensorflow:2.17.0"
PROBE_TIMEOUT_S = 120.0
BOOTSTRAP = (
    "build an image on this host with the role training_host (training_host_image_source: bootstrap), "
    f"or choose an image of this host with {show_option('image')}"
)
#: Messages of engines and registries for a user who is not logged in.
REFUSALS = (
    "no basic auth credentials",
    "unauthorized",
    "access denied",
    "denied:",
    "authentication required",
)
STATE_DIR_HINT = ", or choose a folder that is, with the setting state_dir"
NO_SHELL = f"choose an image with a shell and Python: {show_option('image')}"
OLD_PYTHON = f"choose an image with Python 3.8 or newer: {show_option('image')}"
#: Docker's names for the architectures that `uname -m` prints.
ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
}
#: Where containers have folders of the state folder, beside the account's home.
MOUNTED_FOLDERS = (WORKSPACE, "/checkpoints", "/cache", "/train-classifier", "/opt/train-classifier")
_FIND_PYTHON = (
    "for name in python3 python; do "
    'python=$(command -v "$name") && exec "$python" -c "$TRAIN_CLASSIFIER_PROBE"; done; '
    "echo no-python; exit 64"
)


@dataclasses.dataclass(frozen=True)
class Image:
    """An image that a job can run in."""

    #: As asked for.
    reference: str
    id: str
    #: Id of the image below the layer of Debian packages; `id` without such a layer.
    base: str
    #: The registry's digest, if the image came from one; only a digest that the registry reported.
    digest: Optional[str]
    python: str
    python_version: str
    #: The interpreter's folders for packages, in the order of sys.path.
    site: tuple[str, ...]
    #: Every package of the image's Python, by normalised name.
    packages: dict[str, str]
    #: Those of tensorflow, torch, jax, keras and numpy that it has.
    frameworks: dict[str, str]
    #: Whether `import distutils.dir_util` works.
    distutils: bool
    architecture: str
    #: PATH of the image.
    search_path: str
    #: Taken for its Python, in the place of an image with frameworks.
    plain: bool = False

    @property
    def version(self) -> tuple[int, int]:
        """Return major and minor version of the image's Python."""
        major, minor = self.python_version.split(".")[:2]
        return int(major), int(minor)

    @property
    def short_version(self) -> str:
        """Return major and minor version of the image's Python as text, such as 3.11."""
        return "%d.%d" % self.version


def reference_for(host: Host, spec: JobSpec, with_gpu: bool) -> str:
    """Return the reference a job gets: its own, the host's, else the pinned default. Raises BadInput."""
    reference = (
        spec.image
        or host.images.get("gpu" if with_gpu else "cpu")
        or (DEFAULT_GPU if with_gpu else DEFAULT_CPU)
    )
    problem = image_reference.problem(reference)
    if problem:
        raise BadInput(problem)
    return reference


def resolve(context: Context, spec: JobSpec, with_gpu: bool) -> Image:
    """Return the image of a job, pulled if it is missing and probed if it is new.

    Raises BadInput for a malformed reference, NoEnvironment for an image that cannot be had or used.
    """
    reference = reference_for(context.host, spec, with_gpu)
    pin = spec.pinned_image
    image = _find_pinned(context, pin) if pin is not None and pin.reference == reference else None
    image = image or find_local(context.client, reference)
    if image is None:
        if image_reference.is_local(reference):
            # On Docker's own registry another user could own such a name.
            raise NoEnvironment(
                f"image {reference} is not on this host, and such names are never pulled", BOOTSTRAP
            )
        context.say(f"pulling image {reference}")
        _pull(context, reference)
        image = find_local(context.client, reference)
        if image is None:
            raise NoEnvironment(f"image {reference} was pulled, but the engine does not have it", BOOTSTRAP)
    return probe(context, image, reference)


def _find_pinned(context: Context, pin: PinnedImage) -> Any:
    """Return the image of a repeated job, pulled by its digest if it is missing; None when it cannot be had.

    Raises NoEnvironment when the registry no longer has it: another image is not what was asked for.
    """
    image = find_local(context.client, pin.id)
    if image is None and pin.digest is None:
        context.note(f"image {pin.reference} of the repeated job is gone: the one of today is taken")
    elif image is None:
        by_digest = f"{image_reference.repository(pin.reference)}@{pin.digest}"
        context.say(f"pulling image {by_digest}")
        try:
            _pull(context, by_digest)
        except NoEnvironment as error:
            error.hint = f"train again, with the {pin.reference} of today; {error.hint}"
            raise
        image = find_local(context.client, by_digest)
    return image


def find_local(client: Any, reference: str) -> Any:
    """Return the engine's image of this reference, None when it is not on the host."""
    import docker.errors

    try:
        return engine.retry(lambda: client.images.get(reference))
    except docker.errors.ImageNotFound:
        return None


def _pull(context: Context, reference: str) -> None:
    """Pull with the caller's own `docker login`; report progress, also after a restart of the engine."""
    import docker.errors

    tagged = reference if "@" in reference or ":" in reference.rpartition("/")[2] else f"{reference}:latest"
    stopped = threading.Event()

    def messages() -> Iterator[dict[str, Any]]:
        try:
            yield from context.client.api.pull(tagged, stream=True, decode=True)
        except docker.errors.DockerException as error:
            # As the docker command does: a helper for logins that is missing or fails counts as no login.
            if not str(error).startswith("Credentials store error"):
                raise
            context.note(f"no login is used for {reference}: {error}")
            yield from context.client.api.pull(tagged, stream=True, decode=True, auth_config={})

    def pull() -> None:
        layers: dict[str, tuple[int, int]] = {}
        reported = 0
        for message in messages():
            if stopped.is_set():
                return
            if "error" in message:
                raise _not_pulled(reference, str(message["error"]))
            detail = message.get("progressDetail") or {}
            if message.get("status") == "Downloading" and detail.get("total"):
                layers[message.get("id", "")] = (detail.get("current", 0), detail["total"])
                received = sum(current for current, _ in layers.values()) >> 20
                total_size = sum(total for _, total in layers.values()) >> 20
                if received - reported >= 100:
                    reported = received
                    context.say(f"pulling image {reference}: {received} of {total_size} MiB")

    try:
        # In a thread: otherwise a cancel would wait for the next message of a slow registry.
        check = context.check_cancel
        engine.run_in_thread(lambda: engine.retry(pull, check), check)
    except docker.errors.APIError as error:
        raise _not_pulled(reference, str(error.explanation or error)) from error
    finally:
        stopped.set()


def _not_pulled(reference: str, detail: str) -> NoEnvironment:
    """Return the failure with the registry's own message, and a hint that fits it."""
    hint = BOOTSTRAP
    if any(word in detail for word in REFUSALS):
        registry, _, path = reference.partition("/")
        command = f"docker login {registry}" if path and re.search(r"[.:]", registry) else "docker login"
        hint = f"if the image is private, log in once on the host, as the user that trains: {command}"
    elif "manifest unknown" in detail or "not found" in detail:
        hint = f"the registry has none of this name: correct {show_option('image')}, or images in host.json"
    return NoEnvironment(f"image {reference} is not on this host and cannot be pulled", hint, detail)


def probe(context: Context, image: Any, reference: str) -> Image:
    """Return the properties of a present image; one container per image id, its answer is stored.

    Raises NoEnvironment: wrong architecture, no shell, no Python; UnseenPath.
    """
    attributes = image.attrs
    host_architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    architecture = attributes.get("Architecture") or host_architecture
    system = attributes.get("Os") or "linux"
    if architecture != host_architecture or system != "linux":
        raise NoEnvironment(
            f"image {reference} is built for {system}/{architecture}, this host is linux/{host_architecture}",
            f"choose an image for linux/{host_architecture} with {show_option('image')}",
        )
    _require_outside_of_mounts(context, reference, (attributes.get("Config") or {}).get("Volumes") or ())
    path = answer_path(context.store, image.id)
    answer = read_json(path)
    if answer is None:
        require_visible_state_folder(context, image.id)
        answer = _run_probe(context, image.id, reference)
        write_json(path, answer)
    else:
        # Marks the image as used: `clean` removes the least recently used first.
        os.utime(path)
    _require_outside_of_mounts(context, reference, answer["site"])
    return Image(
        reference=reference,
        id=image.id,
        base=image.id,
        digest=_digest(reference, attributes.get("RepoDigests") or []),
        python=answer["python"],
        python_version=answer["version"],
        site=tuple(answer["site"]),
        packages=answer["packages"],
        frameworks=answer["frameworks"],
        distutils=answer["distutils"],
        architecture=architecture,
        search_path=answer["search_path"],
    )


def probe_program() -> str:
    """Return the program that an image's Python runs for the probe."""
    source = pkgutil.get_data("train_classifier.worker.containers.inside", "probe_image.py")
    return (source or b"").decode()


def answer_path(store: Store, identity: str) -> Path:
    """Return where the answer of an image is stored."""
    # A changed probe returns other properties, and the engine may not see the state folder by another path:
    # such answers have another name.
    question = hashlib.sha256(probe_program().encode() + os.fsencode(store.root))
    return store.images / f"{identity.partition(':')[2]}-{question.hexdigest()[:8]}.json"


def _require_outside_of_mounts(context: Context, reference: str, paths: Iterable[str]) -> None:
    """Check that the engine makes no folder of its own, which only root can remove, in a folder of a job.

    The paths are those of the image's volumes, and of what is mounted among its packages.
    """
    mounted = (*MOUNTED_FOLDERS, f"/home/{context.host.job_user().name}")
    for path in paths:
        place = posixpath.normpath(f"/{path.lstrip('/')}")
        if any(place.startswith(f"{folder}/") for folder in mounted):
            raise NoEnvironment(
                f"image {reference} has a volume or its packages at {short(printable(place), 200)}, "
                "in a folder of the job",
                f"choose another image: {show_option('image')}",
            )


def require_visible_state_folder(context: Context, identity: str) -> None:
    """Check that mounts of the engine show the state folder of this process. Raises UnseenPath.

    They show another machine's where this program runs in a container with the socket of its host. For this
    check a container is created, not started: the engine refuses to mount what it does not see.
    """
    from docker.types import Mount

    with tempfile.NamedTemporaryFile(dir=context.store.images, prefix=".visible-") as file:
        check = Helper(
            identity,
            ["/bin/sh"],
            labels=context.labels("probe"),
            limits=context.host.limits("the check of the state folder"),
            mounts=[Mount("/visible", file.name, "bind", read_only=True)],
            network=False,
        )
        try:
            engine.remove(helper.create_helper(context, check))
        except engine.UnseenPath as error:
            raise engine.UnseenPath(f"the state folder {context.store.root}", STATE_DIR_HINT) from error


def _run_probe(context: Context, identity: str, reference: str) -> dict[str, Any]:
    import docker.errors

    helper_container = Helper(
        identity,
        ["/bin/sh", "-c", _FIND_PYTHON],
        user=context.host.job_user(),
        environment={"TRAIN_CLASSIFIER_PROBE": probe_program(), "PYTHONDONTWRITEBYTECODE": "1"},
        labels=context.labels("probe"),
        limits=context.host.limits(f"the probe of Python in image {reference}"),
        network=False,
    )
    try:
        status, output = helper.run_helper(context, helper_container, timeout=PROBE_TIMEOUT_S)
    except docker.errors.APIError as error:
        detail = str(error.explanation or error)
        if re.search(r"/bin/sh.*(no such file|not found)", detail):
            raise NoEnvironment(f"image {reference} has no /bin/sh", NO_SHELL) from error
        raise NoEnvironment(f"image {reference} cannot be started", detail=detail) from error
    except TimeoutError as error:
        raise NoEnvironment(
            f"Python in image {reference} did not answer within {PROBE_TIMEOUT_S:.0f} s"
        ) from error
    answer = inside_answer.read(output)
    if answer is not None:
        return _validated(answer, reference)
    text = output.decode("utf-8", "replace").strip()
    if status == 64 and text.endswith("no-python"):
        raise NoEnvironment(f"image {reference} has no Python", OLD_PYTHON)
    if status == 65 and "python-too-old" in text:
        version = text.rpartition(" ")[2]
        raise NoEnvironment(f"image {reference} has Python {version}", OLD_PYTHON)
    if status == 127 and "/bin/sh" in text:
        raise NoEnvironment(f"image {reference} has no /bin/sh", NO_SHELL)
    if "exec format error" in text.lower():
        raise NoEnvironment(f"image {reference} is not built for this host's processor", detail=text[-2000:])
    raise NoEnvironment(
        f"Python in image {reference} does not work (exit status {status})", detail=text[-2000:]
    )


def _validated(answer: Any, reference: str) -> dict[str, Any]:
    """Return the answer of an image's Python after a check: it may be anything. Raises NoEnvironment."""
    try:
        packages, frameworks = (inside_answer.packages(answer[key]) for key in ("packages", "frameworks"))
        texts = [answer["python"], answer["version"], answer["search_path"], *answer["site"]]
        valid = (
            all(isinstance(text, str) and "\0" not in text for text in texts)
            and re.fullmatch(r"3\.\d{1,3}\.\d{1,3}", answer["version"])
            and isinstance(answer["site"], list)
            and all(path.startswith("/") for path in [answer["python"], *answer["site"]])
            and answer["site"]
            and packages is not None
            and frameworks is not None
        )
    except (KeyError, TypeError):
        valid = False
    if not valid:
        raise NoEnvironment(
            f"the probe of Python in image {reference} returned invalid data", detail=str(answer)[:2000]
        )
    return {
        **answer,
        "packages": packages,
        "frameworks": frameworks,
        "distutils": bool(answer.get("distutils")),
    }


def _digest(reference: str, digests: list[str]) -> Optional[str]:
    """Return the digest under which a registry knows the image by this name."""
    repository = image_reference.repository(reference)
    for prefix in ("docker.io/library/", "docker.io/"):
        repository = repository[len(prefix) :] if repository.startswith(prefix) else repository
    for entry in digests:
        name, _, digest = entry.partition("@")
        if name == repository:
            return digest
    return None
