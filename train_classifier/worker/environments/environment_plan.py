"""What an environment is to hold: over an image, or isolated from the image's packages.

*Over an image*, the frameworks of the image stay as they are. Every other package may differ, as long as all
packages together agree. *Isolated*, the environment is complete: nothing of the image can be imported.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import requirements_file
from train_classifier.core.project import package_index
from train_classifier.core.project.own_package import OwnPackage
from train_classifier.core.project.package_index import PackageIndex
from train_classifier.core.project.tables import normal_name
from train_classifier.core.requirements_file import Requirements
from train_classifier.worker.environments import index_credentials, model_imports

#: The distributions of each framework, by the name of its module.
FRAMEWORKS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly"),
    "torch": ("torch",),
    "jax": ("jax", "jaxlib"),
    "keras": ("keras",),
}
#: Distributions of one module that take each other's place; the first two have fewer modules than the others.
OPENCV = (
    "opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
NIGHTLY = "tf-nightly"
#: What `python -m venv` put into each environment before Python 3.12. Packages of that time import what
#: setuptools has no more: pkg_resources since 82 (TensorFlow Hub), a name in it since 70 (PyTorch 1.10).
OLD_SETUPTOOLS = ("setuptools<82", "setuptools<70 ; python_version < '3.12'")
#: The extra that brings a framework's own CUDA, and how the names of packages begin that bring it, too.
CUDA_EXTRAS = {"tensorflow": ("and-cuda", "nvidia-"), "jax": ("cuda12", "jax-cuda")}
#: Options of a requirements file that name no package source and build nothing.
SHARED_OPTIONS = {"--require-hashes", "--pre", "--only-binary"}
#: Options of pip's files that uv has only on its command line.
ON_COMMAND_LINE = {"--pre": "--prerelease", "--trusted-host": "--allow-insecure-host"}
#: Variables that builds of packages read; none of them says how uv, git or TLS work.
_BUILD_VARIABLE = re.compile(
    r"(?!UV_|PIP_|GIT_|SSL_|PYTHON|LD_|CMAKE_TLS_)(?:MAX_JOBS|TORCH_CUDA_ARCH_LIST|CUDAARCHS|CC|CXX|(?:C|CXX|CPP|LD)FLAGS"
    r"|CMAKE_[A-Z_]{1,60}|NVCC_(?:APPEND|PREPEND)_FLAGS|FORCE_CUDA"
    r"|[A-Z][A-Z0-9]{0,40}_(?:[A-Z0-9]{1,40}_)?(?:BUILD|SKIP|FORCE|CUDA)(?:_[A-Z0-9_]{1,80})?)\Z"
)
_TRUSTED_HOST = re.compile(r"(?:https?://)?(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?\Z")
#: Indexes of the host besides the default one: they come first, so that nobody can publish a name of theirs.
HOST_INDEXES = ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX_STRATEGY")


@dataclasses.dataclass(frozen=True)
class EnvironmentPlan:
    """What an environment is to hold."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...]
    options: tuple[str, ...]
    #: Local packages, relative to the workspace.
    paths: tuple[str, ...]
    workspace: Path
    #: Environment of the build.
    variables: dict[str, str]
    #: The program that runs in the image.
    source: str
    #: Hash of the content of `paths`; "" without any.
    paths_digest: str
    #: Indexes of single packages.
    indexes: tuple[PackageIndex, ...] = ()
    #: Variables of the model that builds of packages get, too.
    build_variables: dict[str, str] = dataclasses.field(default_factory=dict)
    #: The file that asks for the packages, for messages.
    file: str = requirements_file.REQUIREMENTS
    #: The uv.lock that all packages come from, among `paths`.
    lock: str = ""
    #: The repository as a package: the environment has its metadata and a path, each job has its code.
    package: Optional[OwnPackage] = None
    isolated: bool = False
    #: Requirements that are left out where they have no solution with all others.
    preferred: tuple[str, ...] = ()
    #: The job asks for this kind; otherwise it is found by a conflict.
    is_requested: bool = False
    #: The image's frameworks, and the names that stand for them: they are never replaced.
    pins: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Distributions that count as installed, each with the one of the image that is the same module.
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Distributions that the environment must not have.
    excluded: tuple[str, ...] = ()

    def may_share(self) -> bool:
        """Tell whether wheels by name from the host's own indexes could satisfy the plan.

        uv's cache identifies an index by a hash that is easy to forge, and a local wheel by its path and
        time: a source that a checkout names is never used with a shared cache.
        """
        requirements = [*self.lines, *self.constraints]
        options = {option.partition(" ")[0] for option in self.options}
        return (
            not self.paths
            and not self.indexes
            and options <= SHARED_OPTIONS
            and not any("${" in line or "://" in line or "@" in line for line in requirements)
        )

    def hashed(self) -> bool:
        """Tell whether each requirement must have a hash: then no requirement can be added."""
        return "--require-hashes" in self.options

    def definition(self, repository: str) -> dict[str, Any]:
        """Return the part of an environment's definition that the model's files and variables make up.

        Where a `repository` is the owner, packages are built, so the variables of builds count.
        """
        variables = self.build_variables if repository else {}
        return {
            **({"build_variables": variables} if variables else {}),
            # The record of an environment names the file, in its reason.
            **({} if self.file == requirements_file.REQUIREMENTS else {"file": self.file}),
            **({"own_package": self._own_package()} if self.package else {}),
            **({"indexes": list(map(dataclasses.astuple, self.indexes))} if self.indexes else {}),
            **({"preferred": list(self.preferred)} if self.preferred else {}),
            "isolated": self.isolated,
            "asked": self.is_requested,
            "lines": sorted(self.lines),
            "constraints": sorted([*self.constraints, *self.frozen(), *self.excluded]),
            "options": list(self.options),
            "paths": self.paths_digest,
        }

    def _own_package(self) -> list[str]:
        """Return what an environment has of the repository's package; a version from git is each job's."""
        package = self.package
        assert package is not None
        return [package.name, package.folder, "" if package.git else package.version]

    def frozen(self) -> list[str]:
        """Return the frameworks of the image as requirements."""
        return [f"{name}=={version}" for name, version in self.pins.items()]

    def requirements_text(self, folder: str) -> str:
        """Return the text of the requirements file for uv; `folder` has copies of the local packages."""
        options = []
        for option in self.options:
            name, _, value = option.partition(" ")
            if name == "--find-links" and value in self.paths:
                option = f"{name} {folder}/{value}"
            if name == "--index":
                option = f"--extra-index-url {value}"
            if name not in ON_COMMAND_LINE:
                options.append(option)
        lines = [line for line in self.lines if not self._has_index(line)]
        return "\n".join([*options, *lines, ""])

    def indexed_text(self) -> str:
        """Return a pyproject.toml of the lines whose packages have indexes of their own; "" without any."""
        lines = list(filter(self._has_index, self.lines))
        names = set(map(name_of, lines))
        indexes = [index for index in self.indexes if index.package in names]
        return package_index.project_file(lines, indexes) if lines else ""

    def _has_index(self, line: str) -> bool:
        """Tell whether the package of a line has an index of its own: without an address and hashes."""
        match = requirements_file.REQUIREMENT.match(line) if self.indexes else None
        return bool(match and not match["url"] and normal_name(match["name"]) in self._with_index)

    @functools.cached_property
    def _with_index(self) -> frozenset[str]:
        return frozenset(index.package for index in self.indexes)

    def constraints_text(self) -> str:
        """Return the text of the constraints file for uv."""
        constraints = [*self.constraints, *(f"{name}<0" for name in self.excluded)]
        if self.package and not self.package.git:
            # A requirement of another package by this name means the repository, too.
            constraints.append(f"{self.package.name}=={self.package.version}")
        if self.hashed():
            # Without requirements by name, constraints at least keep the frameworks.
            constraints += self.frozen()
        return "\n".join([*constraints, ""])

    def framework_lines(self) -> list[str]:
        """Return the frameworks that the file asks for in one version, as `name==version`."""
        names = "|".join(name for names in FRAMEWORKS.values() for name in names)
        exact = re.compile(rf"({names})\s*==\s*([^\s;,*]+)\s*(?:;|\s|\Z)", re.IGNORECASE)
        matches = map(exact.match, self.lines)
        return sorted({f"{match[1].lower()}=={match[2]}" for match in matches if match})

    def build_constraints(self) -> list[str]:
        """Return the frameworks that a package must be built with if it asks for them to be built."""
        pinned = [line for line in self.framework_lines() if line.partition("==")[0] not in self.pins]
        return [] if self.hashed() else [*self.frozen(), *pinned]

    def command_line(self) -> list[str]:
        """Return the options of uv's command line.

        Of several indexes uv takes the first that has a package, in any version. With an index of its own in
        a requirements file, the best version of all is taken, as by pip.
        """
        options = []
        hosts = index_credentials.hosts_of(self.variables)
        for option in self.options:
            name, _, value = option.partition(" ")
            trusted = _TRUSTED_HOST.match(value.lower()) if name == "--trusted-host" else None
            # Whether an index of the host is verified is not for a checkout to say: also not by `*`.
            if name == "--pre" or (trusted and trusted["host"] not in hosts):
                options += [ON_COMMAND_LINE[name], value or "allow"]
        more = any(option.startswith("--extra-index-url ") for option in self.options)
        if more and not any(self.variables.get(name) for name in HOST_INDEXES):
            options += ["--index-strategy", "unsafe-best-match"]
        return options


def build_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those of the model's variables that builds of packages get, too."""
    return {name: value for name, value in variables.items() if _BUILD_VARIABLE.match(name)}


def over_image(
    packages: Mapping[str, str],
    distutils: bool,
    workspace: Path,
    requirements: Requirements,
    build: Mapping[str, Any],
) -> EnvironmentPlan:
    """Return the plan of an environment over an image that has `packages`; `build`: variables and source."""
    pins: dict[str, str] = {}
    aliases: dict[str, str] = {}
    excluded: list[str] = []
    for names in FRAMEWORKS.values():
        installed = [name for name in names if name in packages]
        pins.update({name: packages[name] for name in installed})
        if names != FRAMEWORKS["tensorflow"] or not installed:
            continue
        for name in set(names) - {NIGHTLY} - set(installed):
            aliases[name] = installed[0]
            pins[name] = packages[installed[0]]
        # A nightly version is not the image's release.
        excluded += [NIGHTLY] if NIGHTLY not in installed else []
    installed = [name for name in OPENCV if name in packages]
    for name in OPENCV if installed else ():
        if name not in installed and ("contrib" not in name or "contrib" in installed[-1]):
            aliases[name] = installed[-1]
    return EnvironmentPlan(
        **_common(distutils, workspace, requirements, ()),
        **build,
        pins=pins,
        aliases=aliases,
        excluded=tuple(excluded),
    )


def isolated(
    model: str,
    distutils: bool,
    workspace: Path,
    requirements: Requirements,
    build: Mapping[str, Any],
    with_gpu: bool,
) -> EnvironmentPlan:
    """Return the plan of a complete environment. A framework that the model imports is added to it.

    Files with hashes are installed as they are written.
    """
    added: list[str] = []
    if not _has_hashes(requirements):
        named = set(map(name_of, requirements.lines))
        imported = model_imports.top_modules(workspace, model)
        added = [
            module
            for module, names in FRAMEWORKS.items()
            if module in imported
            and not named & set(names)
            and not (module == "keras" and _has_keras(named | imported))
        ]
    plan = EnvironmentPlan(**_common(distutils, workspace, requirements, added), **build, isolated=True)
    if _has_hashes(requirements):
        return plan
    plan = dataclasses.replace(plan, preferred=OLD_SETUPTOOLS)
    if not with_gpu:
        return plan
    names = tuple(map(name_of, requirements.lines))
    return dataclasses.replace(plan, lines=tuple(_with_cuda(line, names) for line in plan.lines))


def _has_keras(names: Iterable[str]) -> bool:
    """Tell whether TensorFlow, which brings Keras, is among the names."""
    return bool(set(FRAMEWORKS["tensorflow"]) & set(names))


def _common(
    distutils: bool, workspace: Path, requirements: Requirements, added: Iterable[str]
) -> dict[str, Any]:
    lines = [*requirements.lines, *added]
    # The original action's sample imports distutils, which Python 3.12 dropped and Debian splits off.
    if (
        not distutils
        and "setuptools" not in map(name_of, lines)
        and "--require-hashes" not in requirements.options
    ):
        lines.append("setuptools")
    return {
        "lines": tuple(lines),
        "constraints": requirements.constraints,
        "options": requirements.options,
        "indexes": requirements.indexes,
        "paths": requirements.paths,
        "workspace": workspace,
        "file": requirements.name,
        "lock": requirements.lock,
        "package": requirements.package,
    }


def _has_hashes(requirements: Requirements) -> bool:
    return (
        bool(requirements.lock)
        or "--require-hashes" in requirements.options
        or any(" --hash" in line for line in requirements.lines)
    )


def _with_cuda(line: str, names: tuple[str, ...]) -> str:
    """Return a requirement of a framework with the extra for its CUDA, unless a name brings that."""
    match = re.match(r"(tensorflow|jax)\s*(?=[=<>!~;]|\Z)", line, re.IGNORECASE)
    if not match:
        return line
    extra, brings = CUDA_EXTRAS[match[1].lower()]
    if any(name.startswith(brings) for name in names):
        return line
    return f"{match[1]}[{extra}]{line[match.end() :]}"


def name_of(line: str) -> str:
    """Return the normalised name of the distribution that a line asks for; "" when it has none."""
    match = requirements_file.REQUIREMENT.match(line.partition(" --")[0].strip())
    return normal_name(match["name"]) if match else ""
