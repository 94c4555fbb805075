"""A plain image of a version of Python, for a repository that does not run with the image's."""

import dataclasses

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.job import JobSpec
from train_classifier.worker.containers import image
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image


def resolve(context: Context, spec: JobSpec, with_gpu: bool) -> Image:
    """Return the image of a job; a plain one where the job's has no Python that it runs with.

    The plain image of 3.10 is `python3.10` in `images` of host.json, else python:3.10-slim. Raises as
    `image.resolve` does.
    """
    first = image.resolve(context, spec, with_gpu)
    own = "%d.%d" % first.version
    if not spec.pythons or own in spec.pythons:
        return first
    required = f"Python {' or '.join(spec.pythons)} is required"
    if spec.image or spec.environment_kind == "image":
        raise NoEnvironment(
            f"image {first.reference} has Python {own}, and {required}",
            f'choose an image with that Python, or set python = "{own}" in train-classifier.toml',
        )
    nearest = min(spec.pythons, key=lambda version: abs(int(version.partition(".")[2]) - first.version[1]))
    reference = context.host.images.get(f"python{nearest}") or f"python:{nearest}-slim"
    context.say(f"{required}, image {first.reference} has {own}: taking image {reference}")
    plain = image.resolve(context, dataclasses.replace(spec, image=reference), with_gpu)
    if "%d.%d" % plain.version != nearest:
        raise NoEnvironment(
            f"image {reference} has Python {plain.python_version}, not {nearest}",
            f"correct python{nearest} in images of host.json (role variable training_host_images)",
        )
    return dataclasses.replace(plain, plain=True)
