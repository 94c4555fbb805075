"""A plain image of a version of Python, for a repository that does not run with the image's."""

import dataclasses
from collections.abc import Sequence
from typing import Optional

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.job import JobSpec
from train_classifier.core.options import show_option
from train_classifier.worker.containers import image
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.system.host import Host

#: Of Docker's own registry; the engine's `registry-mirrors` serve it, too.
DEFAULT = "python:{version}-slim"
#: What the role training_host makes without a registry: the Pythons of Debian 12 and 13.
BOOTSTRAPPED = ("3.11", "3.13")


def resolve(context: Context, spec: JobSpec, with_gpu: bool) -> Image:
    """Return the image of a job; a plain one where the job's has no Python that it runs with.

    What only the repository's files ask for stops no job: without a plain image it gets the usual one.
    Raises as `image.resolve` does, and NoEnvironment for a `python` that cannot be had.
    """
    usual = image.resolve(context, spec, with_gpu)
    own = usual.short_version
    pythons = (spec.python,) if spec.python else spec.required_pythons
    if not pythons or own in pythons:
        return usual
    required = f"Python {' or '.join(pythons)} is required, image {usual.reference} has {own}"
    if spec.image or spec.environment_kind == "image":
        if spec.python:
            raise NoEnvironment(required, f"choose an image with that Python, or {_use_own(own)}")
        context.note(f"{required}, which is taken as asked")
        return usual
    nearest = nearest_python(pythons, usual)
    reference = reference_for(context.host, nearest)
    context.note(f"{required}: taking image {reference}")
    try:
        return _plain(context, dataclasses.replace(spec, image=reference), nearest)
    except NoEnvironment as error:
        if spec.python:
            raise NoEnvironment(error.reason, _way_out(error.hint, nearest, own), error.detail) from error
        context.note(f"{error.reason}: image {usual.reference} is taken, with Python {own}")
        return usual


def _use_own(version: str) -> str:
    return f"take the Python of the usual image: {show_option('python')} {version}"


def reference_for(host: Host, version: str) -> str:
    """Return the reference of the plain image of a version of Python.

    For 3.10 it is `python3.10` in `images` of host.json, else `python` there with 3.10 for `{version}`.
    """
    images = host.images
    return images.get(f"python{version}") or images.get("python", DEFAULT).replace("{version}", version)


def nearest_python(pythons: Sequence[str], usual: Image) -> str:
    """Return the version of Python that is nearest to an image's."""
    return min(pythons, key=lambda version: abs(int(version.partition(".")[2]) - usual.version[1]))


def _way_out(hint: Optional[str], version: str, own: str) -> str:
    """Return what to do without the plain image of a version; `hint` is that of the failed pull."""
    if hint == image.BOOTSTRAP:
        made = f'make it on this host with the role training_host (training_host_pythons: ["{version}"])'
        hint = made if version in BOOTSTRAPPED else None
    return "; or ".join(filter(None, (hint, how_to_name(version), _use_own(own))))


def how_to_name(version: str) -> str:
    """Return how to name an image with a version of Python."""
    option = show_option("image")
    return f"name an image with Python {version} by {option} or in training_host_images (python{version})"


def _plain(context: Context, spec: JobSpec, version: str) -> Image:
    plain = image.resolve(context, spec, False)
    if plain.short_version != version:
        raise NoEnvironment(
            f"image {plain.reference} has Python {plain.python_version}, not {version}",
            "correct `images` in host.json",
        )
    return dataclasses.replace(plain, plain=True)
