"""Which Python packages a model gets: over the image's own, or isolated from them, and for which reason."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from train_classifier.core import requirements_file
from train_classifier.core.errors import BadInput, NoEnvironment
from train_classifier.core.options import show_option
from train_classifier.core.requirements_file import Requirements
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.containers.plain_image import nearest_python
from train_classifier.worker.environments import (
    environment_plan,
    git_requirements,
    index_credentials,
    job_package,
    local_packages,
)
from train_classifier.worker.environments.build_failures import (
    NoCommonSolution,
    NotInstallable,
    PythonConflict,
    python_span,
)
from train_classifier.worker.environments.environment_build import program_text
from train_classifier.worker.environments.environment_plan import EnvironmentPlan
from train_classifier.worker.environments.stored_environments import (
    IMAGE,
    ISOLATED,
    Environment,
    NoUv,
    build,
    find,
    find_pinned,
    fitting_pythons,
    list_packages,
)
from train_classifier.worker.system.host import Host

AUTO = "auto"
#: PyTorch's own index of builds for the CPU.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
#: Index settings of pip, and what uv calls them.
INDEX_SETTINGS = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_TRUSTED_HOST": "UV_INSECURE_HOST", "PIP_NO_INDEX": "UV_NO_INDEX",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EnvironmentRequest:
    """What decides about the environment of a job, beside its files."""

    model: str
    #: Key of the repository.
    repository: str
    #: `auto`, `image` or `isolated`.
    kind: str = AUTO
    with_gpu: bool = False
    #: The model's variables; builds get some of them.
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: Hash of the environment of the job that this one repeats, with the same files.
    pinned: Optional[str] = None


def prepare(context: Context, image: Image, workspace: Path, request: EnvironmentRequest) -> Environment:
    """Return the environment of a model over an image, built when it is not there yet.

    An existing environment is returned without starting a container, unless git repositories are named
    without a commit, which is then looked up. Two jobs at the same time build it once.
    An environment of wheels alone is shared by all repositories; one in which something was built is used by
    one repository alone. Raises BadInput for a wrong file, NoEnvironment with uv's own message when
    it cannot be built, NotReady without uv.
    """
    requirements = requirements_file.parse(workspace, request.model)
    if requirements.problems:
        raise BadInput(*requirements.problems)
    own = f"{request.model}/{requirements_file.REQUIREMENTS}"
    is_own = requirements.files[:1] in ((), (own,))
    if not is_own:
        context.note(f"{own} is missing: the packages are those of {requirements.files[0]}")
    if requirements.package:
        package, folder = requirements.package.name, requirements.package.folder
        context.note(f"package {package} is imported from {folder or 'the top'} of the job's own copy")
    try:
        chosen = _find_pinned(context, image, request)
        chosen = chosen or _choose(context, image, workspace, request, requirements)
    except NoEnvironment as error:
        # The file may be for other purposes than this model.
        way_out = None if is_own else f"write what the model needs into {own} (empty: the image's packages)"
        error.hint = "; or ".join(filter(None, (error.hint, way_out))) or None
        raise
    if requirements.package:
        chosen = job_package.add(context, image, chosen, requirements.package, workspace)
    elif "." in requirements.paths:
        job_package.add_built_files(context, chosen, workspace)
    return dataclasses.replace(chosen, files=requirements.files)


def _find_pinned(context: Context, image: Image, request: EnvironmentRequest) -> Optional[Environment]:
    """Return the environment of the job that this one repeats; None for another job, and where it is gone."""
    if not request.pinned:
        return None
    existing = find_pinned(context, image, request.pinned, request.repository)
    if existing is None:
        context.note("the environment of the repeated job is not here: it is made anew")
    return existing


def _choose(
    context: Context, image: Image, workspace: Path, request: EnvironmentRequest, requirements: Requirements
) -> Environment:
    """Return the environment of these requirements, of the first kind that is possible."""
    variables = _variables(context.host)
    requirements = git_requirements.resolve(context, image, requirements, variables)
    settings = {
        "variables": variables,
        "source": program_text("install_requirements.py"),
        "build_variables": environment_plan.build_variables(request.variables),
        # Hashed once: local packages may be large.
        "paths_digest": local_packages.digest_of_paths(workspace, requirements.paths, context.check_cancel),
    }
    over_image = environment_plan.over_image(
        image.packages, image.distutils, workspace, requirements, settings
    )
    if request.kind != ISOLATED and requirements.is_empty:
        return _prepare_distutils(context, image, over_image, request)
    if request.kind == IMAGE:
        return _prepare_one(context, image, over_image, request, "as asked")
    isolated = environment_plan.isolated(
        request.model, image.distutils, workspace, requirements, settings, request.with_gpu
    )
    if request.kind == ISOLATED:
        isolated = dataclasses.replace(isolated, is_requested=True)
        reason = f"Python {image.python_version} is required" if image.plain else "as asked"
        return _prepare_one(context, image, isolated, request, reason)
    for plan in (over_image, isolated):
        existing = find(context, image, plan, request.repository)
        if existing is not None:
            return existing
    try:
        return build(
            context, image, over_image, request.repository, f"{requirements.name} agrees with the image"
        )
    except NoCommonSolution as error:
        cause = f"{requirements.name} {error.cause}"
    except NotInstallable as error:
        _ask_for_python(context, image, isolated, request, error)
        raise
    context.say(f"{cause}: an isolated environment is tried")
    return _build_or_explain_python(context, image, isolated, request, cause)


def _prepare_distutils(
    context: Context, image: Image, plan: EnvironmentPlan, request: EnvironmentRequest
) -> Environment:
    """Return the environment of a model without requirements: the image, with distutils."""
    image_alone = Environment(
        "", list_packages(image.packages, {}), (), {}, image.python, reason="no requirements"
    )
    if not plan.lines:
        return image_alone
    # Most models do not use distutils: a uv that is missing or does not work is no error.
    try:
        existing = find(context, image, plan, request.repository)
        if existing is not None:
            return existing
        context.say(f"Python {image.python_version} of the image lacks distutils: adding setuptools")
        return build(context, image, plan, request.repository, "no requirements")
    except (NoUv, NoEnvironment) as error:
        problem = error.reason
    context.note(f"setuptools is not installed ({problem}): a model that imports distutils will fail")
    return image_alone


def _prepare_one(
    context: Context, image: Image, plan: EnvironmentPlan, request: EnvironmentRequest, reason: str
) -> Environment:
    existing = find(context, image, plan, request.repository)
    return existing or _build_or_explain_python(context, image, plan, request, reason)


def _build_or_explain_python(
    context: Context, image: Image, plan: EnvironmentPlan, request: EnvironmentRequest, reason: str
) -> Environment:
    """Build. Raises PythonConflict after a conflict that is only about the version of Python."""
    try:
        return build(context, image, plan, request.repository, reason)
    except NotInstallable as error:
        _ask_for_python(context, image, plan, request, error)
        raise


def _ask_for_python(
    context: Context, image: Image, plan: EnvironmentPlan, request: EnvironmentRequest, error: NotInstallable
) -> None:
    """Raise PythonConflict if only other versions of Python than the image's have a solution.

    After a failed build of a package these are the versions for which every package has a wheel.
    """
    if plan.lock:
        return
    own = image.short_version
    wheels_only = not isinstance(error, NoCommonSolution)
    fitting = fitting_pythons(context, image, plan, request.repository, wheels_only)
    if not fitting or own in fitting:
        return
    version = nearest_python(fitting, image)
    raise PythonConflict(
        f"{plan.file} needs Python {python_span(fitting)}; image {image.reference} has Python {own}",
        f'set python = "{version}" in train-classifier.toml, or give {show_option("python")} {version}',
        f"or keep Python {own}: {error.hint}" if wheels_only and error.hint else "",
        error.detail,
        fitting,
    ) from error


def description(environment: Environment, image: Image) -> str:
    """Return one line for people: an environment's kind, why, what it replaces, how it was built."""
    changed = []
    for line in environment.packages if environment.kind == IMAGE else ():
        name, _, version = line.partition("==")
        if image.packages.get(name, version) != version:
            changed.append(f"{name} {image.packages[name]} by {version}")
    replaced = f"; replaced: {', '.join(changed)}" if changed else ""
    names = ", ".join(environment.unisolated)
    built = f"; built with the environment's own packages: {names}" if names else ""
    return f"kind {environment.kind} ({environment.reason}){replaced}{built}"


def unused_cuda(environment: Environment, image: Image, model: str) -> str:
    """Return what to write for a PyTorch without the CUDA that this environment has; "" where it has none.

    A lock is installed as it was made.
    """
    names = [line.partition("==")[0] for line in environment.packages]
    cuda = [name for name in names if name.startswith("nvidia-") and name not in image.packages]
    # Without a file, torch was added because the model imports it.
    file = environment.files[0] if environment.files else ""
    if not cuda or "torch" not in names or file.endswith(requirements_file.LOCK):
        return ""
    own = f"{model}/{requirements_file.REQUIREMENTS}"
    place = f"in {file}" if file.endswith(".txt") else f"and the packages in {own}"
    return (
        f"torch brings its CUDA ({len(cuda)} packages of some GB), and this host has no GPU: the line "
        f"--extra-index-url {CPU_INDEX} {place} installs one without (not where lines have hashes)"
    )


def _variables(host: Host) -> dict[str, str]:
    """Return the host's variables for a build, with pip's index settings also under uv's names."""
    variables = dict(host.environment)
    for pip, uv in INDEX_SETTINGS.items():
        if pip in variables:
            variables.setdefault(uv, variables[pip])
    return index_credentials.put_logins(variables)
