"""The repository's own package in a job: its metadata, its scripts, and the file that has its version.

An environment is shared by all jobs and has only the path to their copies of the code; what follows from the
version of one job is written for that job.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

from train_classifier.core.project import git_version
from train_classifier.core.project.own_package import CONSOLE, UNKNOWN_VERSION, OwnPackage
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import local_packages
from train_classifier.worker.environments.environment_build import PACKAGE
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.state.files import O_FOLDER, make_folder, write_bytes
from train_classifier.worker.system import program

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
    name = re.sub(r"[-_.]+", "-", package.name).lower()
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
        text = git_version.file_text(
            package.git, version, repository.description or "", bool(repository.dirty)
        )
        request = {"workspace": str(workspace), "file": package.git.file, "text": text}
        problem = program.call(context.host.job_user(), write_version_part, request)["problem"]
        if problem:
            context.note(f"{package.git.file} with the version cannot be written: {problem}")
    return version


@program.part
def write_version_part(request: dict[str, Any]) -> dict[str, Any]:
    """Replace a file of the workspace; no link is followed. The request: `workspace`, `file`, `text`."""
    *folders, name = request["file"].split("/")
    if ".." in folders or not name or name in (".", ".."):
        return {"problem": "it is no file of the repository"}
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(request["workspace"], O_FOLDER)
            stack.callback(os.close, descriptor)
            for folder in folders:
                descriptor = os.open(folder or ".", O_FOLDER, dir_fd=descriptor)
                stack.callback(os.close, descriptor)
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=descriptor)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, 0o644, dir_fd=descriptor), "wb") as file:
                file.write(request["text"].encode("utf-8", "replace"))
        except (OSError, ValueError) as error:
            return {"problem": getattr(error, "strerror", None) or str(error)}
    return {"problem": ""}
