"""The repository's own package in a job: its metadata, its scripts, and the file that has its version.

An environment is shared by all jobs and has only the path to their copies of the code; what follows from the
version of one job is written for that job.
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO, Callable

from train_classifier.core import regular_file
from train_classifier.core.project import git_version
from train_classifier.core.project.own_package import CONSOLE, UNKNOWN_VERSION, OwnPackage
from train_classifier.core.project.tables import normal_name
from train_classifier.core.text import printable
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import build_folder, local_packages
from train_classifier.worker.environments.environment_build import BUILD, PACKAGE
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.state.files import O_FOLDER, make_folder, write_bytes
from train_classifier.worker.system import program

#: What `direct_url.json` says of a package that was built from the repository itself.
REPOSITORY = f"file://{BUILD}/{build_folder.WORK}"
MOST_BYTES = 4 << 20
MOST_MODULES = 10000
#: Most bytes of all modules that a build made and a job gets.
MOST_MODULE_BYTES = 1 << 30
SCRIPT = "#!{python}\nimport sys\nfrom {module} import {first}\nsys.exit({name}())\n"


def add(
    context: Context, image: Image, environment: Environment, package: OwnPackage, workspace: Path
) -> Environment:
    """Return the environment with what the job's own package has, written into the job's folder."""
    from docker.types import Mount

    assert context.job is not None, "only a job has a package"
    version = _version(context, package, workspace)
    folder = context.job.run / "package"
    if folder.is_dir():
        shutil.rmtree(folder)
    _write_metadata(make_folder(folder, 0o755), package, version)
    scripts = make_folder(folder / "bin", 0o755)
    for group, name, target in package.entry_points:
        if group == CONSOLE:
            module, _, attribute = target.partition(":")
            text = SCRIPT.format(
                python=environment.python, module=module, first=attribute.partition(".")[0], name=attribute
            )
            write_bytes(scripts / name, text.encode(), 0o755, sync=False)
    name = normal_name(package.name)
    others = [line for line in environment.packages if line.partition("==")[0] != name]
    path = environment.variables.get("PATH", image.search_path)
    return dataclasses.replace(
        environment,
        packages=tuple(sorted([*others, f"{name}=={version}"])),
        mounts=(*environment.mounts, Mount(PACKAGE, str(folder), type="bind", read_only=True)),
        variables={**environment.variables, "PATH": f"{PACKAGE}/bin:{path}"},
    )


def _write_metadata(folder: Path, package: OwnPackage, version: str) -> None:
    info = make_folder(folder / f"{package.name.replace('-', '_')}-{version}.dist-info", 0o755)
    groups: dict[str, list[str]] = {}
    for group, name, target in package.entry_points:
        groups.setdefault(group, [f"[{group}]"]).append(f"{name} = {target}")
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {version}\n",
        "INSTALLER": "train-classifier\n",
        "entry_points.txt": "".join("\n".join([*lines, "", ""]) for lines in groups.values()),
    }
    for file, text in files.items():
        write_bytes(info / file, text.encode(), 0o644, sync=False)


def _version(context: Context, package: OwnPackage, workspace: Path) -> str:
    """Return the version of this job's package; write the file of the job's copy that has it."""
    assert context.job is not None
    if package.git is None:
        return package.version
    version = local_packages.version_of_job(context, package.git)
    if version is None:
        version = UNKNOWN_VERSION
        context.note(
            f"the version of package {package.name} is {version}: git has no tag of a version "
            "(a shallow clone has no tags: fetch them, with actions/checkout by fetch-depth: 0)"
        )
    if package.git.file:
        repository = context.job.spec().repository
        text = git_version.file_text(package.git, version, repository.description or "")
        request = {"workspace": str(workspace), "file": package.git.file, "text": text}
        problem = program.call(context.host.job_user(), write_version_part, request)["problem"]
        if problem:
            context.note(f"{package.git.file} with the version cannot be written: {problem}")
    return version


@program.part
def write_version_part(request: dict[str, Any]) -> dict[str, Any]:
    """Replace a file of the workspace. The request: `workspace`, `file`, `text`."""
    try:
        _replace(
            request["workspace"], request["file"], io.BytesIO(request["text"].encode("utf-8", "replace"))
        )
    except (OSError, ValueError) as error:
        return {"problem": getattr(error, "strerror", None) or str(error)}
    return {"problem": ""}


def add_built_files(context: Context, environment: Environment, workspace: Path) -> None:
    """Add the modules that the repository's build made (compiled ones, `_version.py`) to the job's copy.

    The job imports a package at the top from its copy, which has only what was pushed. The environment was
    built from the same content.
    """
    site = context.store.envs / environment.hash / build_folder.SITE
    request = {"site": str(site), "workspace": str(workspace)}
    answer = program.call(context.host.job_user(), add_built_part, request, check=context.check_cancel)
    for key, what in (("names", "added to"), ("too_large", "too large for")):
        if answer[key]:
            names = ", ".join(answer[key])
            context.note(f"modules that the repository's build made are {what} the job's copy: {names}")


@program.checked_part
def add_built_part(request: dict[str, Any], check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Add what the package built from the workspace has more than it; return the first names.

    The request: `site`, `workspace`. What lies in folders that the workspace does not have, the job imports
    from the environment. The build may have made links to files of this account: they are not followed out
    of the environment.
    """
    names: list[str] = []
    too_large: list[str] = []
    inside, bytes_left = os.path.realpath(request["site"]), MOST_MODULE_BYTES
    for site in (Path(request["site"]), *Path(request["site"]).glob("lib/python3.*/site-packages")):
        for info in site.glob("*.dist-info"):
            for path in _built_modules(info, inside):
                check()
                if "/" not in path or os.path.lexists(os.path.join(request["workspace"], path)):
                    continue
                with contextlib.suppress(OSError, ValueError):
                    with open(regular_file.open_followed(site / path, within=inside), "rb") as source:
                        size = os.fstat(source.fileno()).st_size
                        if size > bytes_left:
                            too_large.append(printable(path)[:200])
                            continue
                        _replace(request["workspace"], path, source)
                    bytes_left -= size
                    names.append(printable(path)[:200])
    return {"names": names[:10], "too_large": too_large[:10]}


def _built_modules(info: Path, inside: str) -> list[str]:
    """Return the modules of a package that was built from the repository itself."""
    try:
        url = regular_file.read(info / "direct_url.json", MOST_BYTES, within=inside)
        address = json.loads(url).get("url")
        lines = regular_file.read(info / "RECORD", MOST_BYTES, within=inside).decode().splitlines()
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    paths = [line.partition(",")[0] for line in lines] if address == REPOSITORY else []
    return [path for path in paths if path.endswith((".so", ".py"))][:MOST_MODULES]


def _replace(workspace: str, file: str, content: BinaryIO) -> None:
    """Replace a file of the workspace; no link is followed. Raises OSError, ValueError."""
    *folders, name = file.split("/")
    if ".." in folders or name in ("", ".", ".."):
        raise ValueError("it is no file of the repository")
    with contextlib.ExitStack() as stack:
        descriptor = os.open(workspace, O_FOLDER)
        stack.callback(os.close, descriptor)
        for folder in folders:
            descriptor = os.open(folder or ".", O_FOLDER, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=descriptor)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o644, dir_fd=descriptor), "wb") as target:
            shutil.copyfileobj(content, target)
