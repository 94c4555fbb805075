"""The repository as a package that jobs import from their own copy, as far as its files say all of it."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import regular_file
from train_classifier.core.project import git_version, package_sources, poetry, project_file, setup_files
from train_classifier.core.project.git_version import GitVersion
from train_classifier.core.project.package_sources import PackageSources
from train_classifier.core.project.project_file import MOST_BYTES
from train_classifier.core.project.setup_files import NotStatic
from train_classifier.core.project.tables import table_at, texts

PROJECT = "pyproject.toml"
#: Build back ends of packages that are Python code alone, unless the settings below say otherwise.
_SETUPTOOLS = ("setuptools.build_meta", "setuptools.build_meta:__legacy__")
_BACK_ENDS = (
    *_SETUPTOOLS, "hatchling.build", "flit_core.buildapi", "flit.buildapi",
    "poetry.core.masonry.api", "pdm.backend", "uv_build",
)  # fmt: skip
#: Settings with which a build makes or moves modules, or says more than the file.
_BUILD_SETTINGS = (
    ("build-system", "backend-path"), ("tool", "setuptools", "ext-modules"),
    ("tool", "setuptools", "cmdclass"), ("tool", "setuptools", "script-files"), ("tool", "poetry", "build"),
    ("tool", "pdm", "build"), ("tool", "uv", "build-backend"),
    ("tool", "setuptools-rust"), ("tool", "versioningit"),
)  # fmt: skip
#: Settings of hatchling that make or move no module, by their table.
_HATCH_SETTINGS = {
    ("build",): {"targets", "hooks", "include", "exclude", "artifacts"},
    ("build", "hooks"): {"vcs"},
    ("build", "targets", "wheel"):
        {"packages", "include", "exclude", "only-include", "sources", "artifacts", "hooks"},
    ("build", "targets", "wheel", "hooks"): {"vcs"},
    ("metadata", "hooks"): {"vcs", "fancy-pypi-readme"},
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\Z")
_VERSION = re.compile(
    r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}(?:(?:a|b|rc)[0-9]{1,9})?(?:\.post[0-9]{1,9})?(?:\.dev[0-9]{1,9})?"
    r"(?:\+[a-z0-9]{1,40}(?:\.[a-z0-9]{1,40}){0,5})?\Z"
)
_GROUP = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*\Z")
#: A name that is a file of its own for a script, and an object of a module.
_SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
#: Extras may stand behind an object; they mean nothing any more.
_OBJECT = re.compile(
    r"(?P<object>[A-Za-z_]\w*(?:\.\w+)*(?::[A-Za-z_]\w*(?:\.\w+)*)?)(?:\s*\[[^\]]*\])?\Z", re.ASCII
)
CONSOLE = "console_scripts"
#: Modules of a package that have its `__version__`.
_VERSION_MODULES = ("__init__", "_version", "version", "__version__", "__about__")
#: The version of a package that nothing says.
UNKNOWN_VERSION = "0+unknown"
MOST_ENTRY_POINTS = 1000
#: Most characters of name and version together: they make the name of a folder.
MOST_NAMED = 200


#: What reading a repository raises where its text alone does not say enough.
_NOT_READ = (NotStatic, OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError)


@dataclasses.dataclass(frozen=True)
class OwnPackage:
    """The repository as a package that jobs import from their own copy."""

    name: str
    version: str
    #: The folder of its modules, relative to the repository: "", "src" or another.
    folder: str
    #: Group, name and object of each entry point.
    entry_points: tuple[tuple[str, str, str], ...] = ()
    #: How the version of each job is made from git.
    git: Optional[GitVersion] = None


@dataclasses.dataclass(frozen=True)
class Metadata:
    """A package and what it requires."""

    package: OwnPackage
    #: The files that say it, relative to the repository.
    files: tuple[str, ...]
    #: Dependencies by extra; "" for those without one.
    dependencies: dict[str, tuple[str, ...]]
    #: Where the dependencies without an extra come from; None where only uv itself knows it.
    sources: Optional[PackageSources]
    #: Files of requirements that have further dependencies.
    dependency_files: tuple[str, ...] = ()


def read(root: Path) -> Optional[Metadata]:
    """Return the repository as a package; None if only its build says all that belongs to it."""
    try:
        return _Reader(root).metadata()
    except _NOT_READ:
        return None


def unread_dependencies(root: Path) -> str:
    """Return the file whose dependencies count only for `-e .`; "" where there is none."""
    try:
        reader = _Reader(root)
    except _NOT_READ:
        return "setup.py" if os.path.lexists(root / "setup.py") else ""
    files = [file for file in reader.files if file != PROJECT]
    return files[-1] if files and reader.setup.get("install_requires") else ""


class _Reader:
    """Reads one repository. Any exception means: it has to be built."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[str] = []
        #: Of all files together: Python needs seconds for a few large ones.
        self.bytes_left = MOST_BYTES
        self.requires = project_file.read(self.text(PROJECT) or "")
        self.tables = self.requires.tables
        self.project = table_at(self.tables, "project")
        self.settings = table_at(self.tables, "tool", "setuptools")
        if "packages" in table_at(self.tables, "tool", "poetry"):
            self.settings = poetry.packages(table_at(self.tables, "tool", "poetry"))
        self.back_end = table_at(self.tables, "build-system").get("build-backend", _SETUPTOOLS[0])
        self.dynamic = set(texts(self.project.get("dynamic", [])))
        #: What setup.py says, else setup.cfg.
        self.setup: dict[str, Any] = {}
        if self.back_end in _SETUPTOOLS:
            self.setup = setup_files.read_config(self.text("setup.cfg") or "")
            script = setup_files.read_setup(self.text("setup.py") or "setup()")
            self.setup.update({key: value for key, value in script.items() if value})
            if "install_requires" in self.setup and not self.requires.dependencies:
                # The file that lists the dependencies is named in messages.
                source = "setup.py" if script.get("install_requires") else "setup.cfg"
                self.files.sort(key=lambda file: file != source)

    def text(self, name: str) -> Optional[str]:
        """Return the text of a file of the repository, None when it is missing."""
        try:
            data = regular_file.read(self.root / name, self.bytes_left, within=os.path.realpath(self.root))
        except FileNotFoundError:
            return None
        self.bytes_left -= len(data)
        self.files += [name] if name in (PROJECT, "setup.py", "setup.cfg") else []
        return data.decode("utf-8-sig")

    def metadata(self) -> Metadata:
        """Return the package."""
        self.check_build()
        name = self.project.get("name") or self.setup.get("name") or ""
        if not _NAME.match(name):
            raise NotStatic
        folder = self.folder(name)
        is_dynamic = self.is_dynamic("version")
        git = git_version.settings(self.tables, self.setup) if is_dynamic else None
        version = self.dynamic_version(name, folder) if is_dynamic else self.project.get("version", "")
        if not is_dynamic and not _VERSION.match(version):
            raise NotStatic
        if git or not _VERSION.match(version):
            version = UNKNOWN_VERSION
        if len(name) + len(version) > MOST_NAMED:
            raise NotStatic
        dependencies, files = self.dependencies()
        package = OwnPackage(name, version, folder, self.entry_points(), git)
        known: Optional[PackageSources] = self.requires.sources
        if self.requires.sources_problem:
            known = None
        elif not self.requires.dependencies:
            # Those of setup.py and setup.cfg.
            known = package_sources.read(self.tables, list(dependencies[""]), "")
        return Metadata(package, tuple(dict.fromkeys(self.files)), dependencies, known, files)

    def is_dynamic(self, *names: str) -> bool:
        """Tell whether not `project` but the back end's own settings have one of these fields."""
        return not self.project or bool(self.dynamic & set(names))

    def check_build(self) -> None:
        """Raise NotStatic where a build makes or moves modules."""
        hatch = table_at(self.tables, "tool", "hatch")
        wheel = table_at(hatch, "build", "targets", "wheel")
        places = [
            place for key in ("packages", "only-include", "sources") for place in texts(wheel.get(key, []))
        ]
        if (
            self.back_end not in _BACK_ENDS
            or any(name in table_at(self.tables, *parents) for *parents, name in _BUILD_SETTINGS)
            or any(set(table_at(hatch, *keys)) - usual for keys, usual in _HATCH_SETTINGS.items())
            or not all(re.fullmatch(r"(?:src/)?[A-Za-z0-9_]+", place) for place in places)
        ):
            raise NotStatic

    def folder(self, name: str) -> str:
        """Return the folder of the modules."""
        packages: Any = self.settings.get("packages", self.setup.get("packages"))
        if isinstance(packages, dict):
            where = table_at(packages, "find").get("where", ["."])
            packages = ("find", where[0]) if len(where) == 1 and set(packages) <= {"find"} else ()
        modules = self.settings.get("py-modules", self.setup.get("py_modules")) or []
        package_dir = self.settings.get("package-dir") or self.setup.get("package_dir") or {}
        moved = {key: os.path.normpath(place) for key, place in package_dir.items()}
        base = moved.pop("", ".")
        if isinstance(packages, tuple):
            where = os.path.normpath(packages[1]) if len(packages) == 2 else ""
            # setuptools takes the folder in which it finds packages as that of all.
            if moved or base not in (".", where):
                raise NotStatic
            return self.checked_folder(where, [])
        if not packages and not modules:
            if moved:
                raise NotStatic
            return self.checked_folder(base, []) if base != "." else self.usual_folder(name)
        tops = {package.partition(".")[0] for package in texts(packages or [])}
        parents = {os.path.dirname(moved[top]) or "." if top in moved else base for top in tops} or {base}
        renamed = any(os.path.basename(place) != key for key, place in moved.items())
        if renamed or len(parents) > 1 or set(moved) - tops or (modules and parents != {base}):
            raise NotStatic
        return self.checked_folder(parents.pop(), [*tops, *(f"{module}.py" for module in texts(modules))])

    def checked_folder(self, folder: str, names: list[str]) -> str:
        """Return a folder that is one of the repository, is reached without a link, and has these entries."""
        real = os.path.realpath(self.root)
        path = os.path.normpath(os.path.join(real, folder))
        if (
            os.path.commonpath([real, path]) != real
            or path != os.path.realpath(path)
            or not os.path.isdir(path)
            or not folder.isprintable()
            or not all(os.path.exists(os.path.join(path, name)) for name in names)
        ):
            raise NotStatic
        return "" if folder == "." else folder

    def usual_folder(self, name: str) -> str:
        """Return the folder in which build back ends look for modules."""
        source = self.root / "src"
        has_source = (
            source.is_dir() and not source.is_symlink() and not os.path.lexists(source / "__init__.py")
        )
        module = _module_name(name)
        for folder in ("src", "") if has_source else ("",):
            for each in (module, module.lower()):
                path = self.root / folder / each
                if os.path.isfile(path / "__init__.py") or os.path.isfile(f"{path}.py"):
                    return folder
        # Modules of another name than the project's are found in src/ alone: at the top they may be anywhere.
        if has_source:
            return "src"
        raise NotStatic

    def dynamic_version(self, name: str, folder: str) -> str:
        """Return the version that a file of the repository has; "" when none says it plainly."""
        setting = table_at(self.settings, "dynamic", "version")
        source: Any = self.setup.get("version")
        source = next(((kind, setting[kind]) for kind in ("attr", "file") if kind in setting), source)
        if isinstance(source, str):
            return source
        kind, value = source if isinstance(source, tuple) else ("", "")
        if kind == "file":
            return (self.text(value[0] if isinstance(value, list) else value) or "").strip()
        if kind == "attr":
            dotted, _, attribute = value.rpartition(".")
            path = dotted.replace(".", "/")
            places = [(f"{path}.py", attribute), (f"{path}/__init__.py", attribute)]
        else:
            module = _module_name(name)
            files = [*(f"{module}/{each}.py" for each in _VERSION_MODULES), f"{module}.py"]
            places = [(file, "__version__") for file in files]
        paths = [(os.path.join(folder, path), attribute) for path, attribute in places]
        for tool in ("hatch", "pdm"):
            file = table_at(self.tables, "tool", tool, "version").get("path")
            if file:
                paths = [(file, "__version__"), (file, "VERSION")]
        for path, attribute in paths:
            text = self.text(path)
            version = setup_files.literal(text, attribute) if text else None
            if version is not None:
                return version
        return ""

    def dependencies(self) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        """Return dependencies by extra, and files of further ones."""
        files = self.requires.dependency_files
        own: Any = self.requires.dependencies
        if self.is_dynamic("dependencies") and not files:
            own = self.setup.get("install_requires", [])
            if self.project and not own:
                raise NotStatic
            if not isinstance(own, tuple) or own[:1] != ("file",):
                own = setup_files.requirement_lines(own)
            if isinstance(own, tuple) and own[:1] == ("file",):
                files = tuple(name.strip() for name in re.split(r"[,\n]", own[1]))
                own = []
        lists = {"": tuple(texts(list(own)))}
        extras = self.project.get("optional-dependencies", {})
        if self.is_dynamic("optional-dependencies"):
            extras = self.setup.get("extras_require", {})
        for extra, values in extras.items():
            if extra.startswith(":"):
                raise NotStatic
            # `name:marker` is a marker of old; a file or a text is left to the build.
            if isinstance(values, list) and ":" not in extra:
                lists[extra] = tuple(setup_files.requirement_lines(texts(values)))
        return lists, files

    def entry_points(self) -> tuple[tuple[str, str, str], ...]:
        """Return group, name and object of each entry point."""
        groups: dict[str, dict[str, str]] = {}
        if self.is_dynamic("scripts", "entry-points"):
            for group, lines in self.setup.get("entry_points", {}).items():
                pairs = [lines] if isinstance(lines, str) else lines
                groups[group] = dict(line.split("=", 1) for line in pairs if line.strip())
        for group, name in ((CONSOLE, "scripts"), ("gui_scripts", "gui-scripts")):
            groups.setdefault(group, {}).update(self.project.get(name, {}))
        groups.update(self.project.get("entry-points", {}))
        entry_points = [
            (group, name.strip(), _OBJECT.match(target.strip()))
            for group, points in groups.items()
            for name, target in points.items()
        ]
        for group, name, target in entry_points:
            is_script = group in (CONSOLE, "gui_scripts")
            is_name = _SCRIPT.match(name) if is_script else name.isprintable() and "=" not in name
            if not is_name or not _GROUP.match(group) or target is None:
                raise NotStatic
        if len(entry_points) > MOST_ENTRY_POINTS:
            raise NotStatic
        return tuple(
            sorted((group, name, target["object"]) for group, name, target in entry_points if target)
        )


def _module_name(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name)
