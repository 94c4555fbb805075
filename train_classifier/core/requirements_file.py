"""The requirements of a model: of its requirements.txt and the files it includes, or of its project.

They are read without installing.

Used on the controller (what is wrong there is refused before the host is touched) and by the worker (which
builds from the flattened lines). Standard library, Python 3.9. The format is pip's:
https://pip.pypa.io/en/stable/reference/requirements-file-format/
"""

import codecs
import collections
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from train_classifier.core import regular_file
from train_classifier.core.project import lock_file, own_package, poetry, project_file, toml_reader
from train_classifier.core.project.own_package import PROJECT, Metadata, OwnPackage
from train_classifier.core.project.package_index import PackageIndex
from train_classifier.core.project.package_sources import PackageSources
from train_classifier.core.project.project_file import Project
from train_classifier.core.project.tables import table_at
from train_classifier.core.text import hide_logins, printable

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
# A version does not begin like an operator: else each clause could be read in two ways.
_CLAUSE = r"(?:===|~=|==|!=|<=|>=|<|>)\s*[^\s,;()<>=!~][^\s,;()]*"
_SPECIFIER = rf"{_CLAUSE}(?:\s*,\s*{_CLAUSE})*(?:\s*,)?"
#: A requirement by name, as PEP 508 has it. No two `\s*` meet: a long run of blanks is read once.
REQUIREMENT = re.compile(
    rf"(?P<name>{NAME})(?:\s*\[(?:\s*{NAME}(?:\s*,\s*{NAME})*)?\s*\])?"
    rf"(?:\s*(?:@\s*(?P<url>\S+)|\(\s*{_SPECIFIER}\s*\)|{_SPECIFIER}))?(?:\s*;\s*\S.*)?\s*\Z"
)
# A match starts only at the first of several blanks; otherwise a long run of them takes quadratic time.
_PER_REQUIREMENT = re.compile(r"(?<!\s)\s+--?(?:hash|global-option|config-settings?|C)(?:[= ]|\Z)")
_OPTION = re.compile(
    r"(?P<long>--[a-z-]+)(?:(?:\s*=\s*|\s+)(?P<value>.*))?\Z|(?P<short>-[a-zA-Z])[\s=]*(?P<rest>.*)\Z",
    re.DOTALL,
)
#: Before an option that follows another one on the same line.
_NEXT_OPTION = re.compile(r"(?<!\s)\s+(?=-)")
_MARKER = re.compile(r"(?<!\s)\s*;(?:\s|\Z)")
_REPOSITORY = re.compile(r"(?:git|hg|svn|bzr)\+")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: A local path in the form of a URL, also after the name of a version control system.
_FILE_URL = re.compile(r"(?:[a-z0-9.-]+\+)?file:", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]")
#: What ssh and git write as an address, and pip does not take.
_SSH_ADDRESS = re.compile(r"(?:^| )git\+(?P<host>[\w.-]+@[\w.-]+):(?P<path>[^\s/]\S*)\Z")
#: Where a package of uv.lock comes from.
_LOCK_SOURCE = re.compile(r"^source = \{ (?P<kind>[a-z]+) = \"(?P<place>[^\"\n]*)\"", re.MULTILINE)
#: The repository itself, with extras.
_ITSELF = re.compile(r"\./?(?:\[(?P<extras>[A-Za-z0-9._, -]*)\])?\Z")
_LOCAL_SOURCES = ("directory", "editable", "path", "virtual")
#: Options that uv and pip both know; True for those that take a value.
OPTIONS = {
    "--index-url": True, "--extra-index-url": True, "--find-links": True, "--no-index": False,
    "--no-binary": True, "--only-binary": True, "--prefer-binary": False, "--require-hashes": False,
    "--editable": True, "--pre": False, "--trusted-host": True, "--use-feature": True,
}  # fmt: skip
SHORT = {
    "-i": "--index-url",
    "-f": "--find-links",
    "-r": "--requirement",
    "-c": "--constraint",
    "-e": "--editable",
}
INDEXES = ("--index-url", "--extra-index-url")
#: pip's own switches: they mean nothing to uv, and leaving them out changes no result.
IGNORED = ("--use-feature", "--prefer-binary")
NO_OPTION = "no requirements file can have this option: remove it"
#: Options of pip's command line that people write behind a requirement.
_MISPLACED = re.compile(r" (?P<option>(?:-[a-zA-Z]|--[a-z][a-z-]+)(?:[ =].*)?)\Z")
#: Lines that people write and no requirements file has, and what to write instead.
_ADVICE = (
    (r"[!%]?(?:python3? -m )?pip3? install ", "write what follows pip install, one requirement a line"),
    (r"Package Version\Z|-+ -+\Z", "this is the table of pip list: pip freeze prints what such a file has"),
    (
        rf"({NAME})=([^=\s]+)=\S+\Z",
        "this is conda's list: write {0}=={1}, as pip list --format=freeze does",
    ),
    (rf"({NAME}) ?= ?(\d[\w.+*]*)\Z", "write {0}=={1}"),
    (rf"({NAME}) v?(\d[\w.+]*)\Z", "write {0}=={1}"),
    (r"[\"'](.*)[\"']\Z", "write it without quotation marks"),
    (r"-(?: [A-Za-z0-9]|\Z)", "write it without the dash"),
    (r".*=[><]", "write >= or <="),
    (rf"{NAME}(?: ?, ?| ){NAME}(?:[ ,]|\Z)", "write one requirement a line"),
)
REQUIREMENTS = "requirements.txt"
MOST_FILES = 100
MOST_BYTES = 4 << 20
#: Most lines of all files together, most characters of one line, and most problems that are reported.
MOST_LINES = 20000
MOST_LINE = 1 << 16
MOST_PROBLEMS = 20
#: Most characters of a line that are looked at for advice.
MOST_ADVISED = 300
#: Files that are read when there is no requirements.txt, and one that is not.
LOCK = "uv.lock"
POETRY_LOCK = "poetry.lock"
CONDA = ("environment.yml", "environment.yaml")
#: Other files that say what is required: of conda under other names, of other tools with what writes ours.
_OTHER_CONDA = re.compile(r"(?:env|environment|conda)[\w.-]{0,60}\.ya?ml\Z")
OTHER_TOOLS = {"Pipfile": ", as pipenv requirements > {} does", "pixi.toml": ""}
_OTHER_REQUIREMENTS = re.compile(r"(?:reqs?|requirements?)(?:[-_.][\w.-]{0,60})?\.(?:txt|in)\Z")
#: Most names of a folder that are looked at for them.
MOST_NAMES = 2000
MOST_READ = 10


@dataclasses.dataclass(frozen=True)
class Requirements:
    """A model's requirements, flattened. Paths are relative to the repository."""

    #: The files that were read; the one that was chosen is first.
    files: tuple[str, ...] = ()
    #: Local packages and folders of packages that they name.
    paths: tuple[str, ...] = ()
    #: Requirements by name, URL or path, in order.
    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    #: Index options, in order; also uv's `--index`: what it has is taken from nowhere else.
    options: tuple[str, ...] = ()
    #: Indexes of single packages, by the names in `lines`.
    indexes: tuple[PackageIndex, ...] = ()
    problems: tuple[str, ...] = ()
    #: What people should know of the files.
    notes: tuple[str, ...] = ()
    #: The uv.lock that all packages come from; then there are no lines.
    lock: str = ""
    #: The repository as a package that is imported from each job's own copy; its dependencies are in lines.
    package: Optional[OwnPackage] = None

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is required."""
        return not self.lines and not self.lock and not self.package

    @property
    def name(self) -> str:
        """Return the chosen file for messages; every requirements.txt has the same name."""
        file = self.files[0] if self.files else REQUIREMENTS
        return REQUIREMENTS if file.endswith(f"/{REQUIREMENTS}") else file


def place_to_edit(file: str) -> str:
    """Return where people change what a file requires: uv makes its lock from the project's file."""
    return "pyproject.toml, then run uv lock" if file.endswith("uv.lock") else file


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[str] = []
        self.started: set[tuple[str, bool]] = set()
        self.paths: list[str] = []
        self.lines: list[str] = []
        self.constraints: list[str] = []
        self.options: dict[str, None] = {}
        self.indexes: dict[PackageIndex, None] = {}
        self.problems: list[str] = []
        self.line_count = 0
        self.notes: list[str] = []
        self.lock = ""
        self.package: Optional[OwnPackage] = None
        #: Why a pyproject.toml gives no packages, although it names some.
        self.unread_tables = ""
        #: The pyproject.toml is no TOML, or no file that can be read.
        self.is_broken = False
        #: The extras of the repository whose dependencies are in `lines`; "" for those without an extra.
        self.own_lists: set[str] = set()

    def inside(self, path: str, where: str, subject: str) -> str:
        """Return `path` relative to the repository; "" after recording why it is refused."""
        if os.path.isabs(path):
            self.problems.append(
                f"{where}: {subject} {path!r} is an absolute path; only paths inside the repository work"
            )
            return ""
        relative = os.path.normpath(path)
        real_root = os.path.realpath(self.root)
        try:
            real = os.path.realpath(os.path.join(real_root, relative))
        except ValueError:
            # It holds a NUL, or half of a character.
            self.problems.append(f"{where}: {subject} {path!r} is no path")
            return ""
        climbs = relative.startswith("..") and (relative == ".." or relative.startswith("../"))
        if climbs or not (real == real_root or real.startswith(real_root + os.sep)):
            self.problems.append(f"{where}: {subject} {path!r} leads out of the repository")
            return ""
        if not os.path.exists(real):
            self.problems.append(f"{where}: {subject} {path!r} does not exist in the repository")
            return ""
        return relative

    def text(self, relative: str, location: str, most_bytes: int = MOST_BYTES) -> str:
        """Return the text of a file; "" after recording why it cannot be read."""
        try:
            data = regular_file.read(self.root / relative, most_bytes, within=os.path.realpath(self.root))
            return decode(data)
        except UnicodeDecodeError:
            self.problems.append(f"{location}: {relative} is not text in UTF-8: save it as UTF-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.problems.append(f"{location}: {relative} cannot be read: {reason}")
        return ""

    def read(self, relative: str, constraint: bool, location: str) -> None:
        if (relative, constraint) in self.started:
            return
        self.started.add((relative, constraint))
        if len(self.started) > MOST_FILES:
            self.problems.append(f"{location}: more than {MOST_FILES} requirement files")
            return
        problems = len(self.problems)
        text = self.text(relative, location)
        if len(self.problems) > problems:
            return
        if relative not in self.files:
            self.files.append(relative)
        for number, line in logical_lines(text):
            self.line_count += 1
            if self.line_count > MOST_LINES:
                self.problems.append(f"{relative}:{number}: more than {MOST_LINES} lines in all")
                return
            if len(self.problems) > MOST_PROBLEMS:
                return
            location = f"{relative}:{number}"
            if "\0" in line:
                self.problems.append(f"{location}: the line holds a NUL: save the file as UTF-8")
            elif len(line) > MOST_LINE:
                self.problems.append(f"{location}: the line is longer than {MOST_LINE} characters")
            else:
                self.line(line, relative, location, constraint)

    def project(self, relative: str, requirements: str) -> None:
        """Read the dependencies of a pyproject.toml; `requirements` is the file that can take its place."""
        text = self.text(relative, relative, project_file.MOST_BYTES)
        self.is_broken = bool(self.problems)
        try:
            project = project_file.read(text, os.path.dirname(relative))
        except ValueError as error:
            self.is_broken = self.is_broken or isinstance(error, toml_reader.NotToml)
            self.problems.append(f"{relative}: {error}; {_instead(requirements)}")
            return
        if not project.dependencies and not project.dependency_files:
            self.unread_tables = self.unread_tables or _optional(relative, project, requirements)
            return
        self.files.append(relative)
        if relative == PROJECT and self.own_project:
            self.package = self.own_project.package
        lock = os.path.join(os.path.dirname(relative), LOCK)
        if os.path.lexists(self.root / lock):
            if self.inside(lock, lock, "the file"):
                self.locked(relative, lock, requirements, project.dependencies)
            return
        if project.sources_problem:
            self.problems.append(f"{relative}: {project.sources_problem}; {_instead(requirements)}")
            return
        if project.is_poetry:
            self.note_differences(relative, project, requirements)
        self.sources(relative, project.sources)
        self.dependencies(relative, project.sources.dependencies)
        self.include_all(project.dependency_files, relative)

    def note_differences(self, relative: str, project: Project, requirements: str) -> None:
        """Say what Poetry itself would do in another way."""
        lock = os.path.join(os.path.dirname(relative), POETRY_LOCK)
        if os.path.lexists(self.root / lock):
            self.notes.append(
                f"{lock} is not used: packages get the newest versions that {relative} allows; "
                f"poetry export -o {requirements} writes the locked ones"
            )
        names = poetry.names_with_prereleases(project.tables["tool"]["poetry"])
        if names:
            self.notes.append(
                f"{relative} allows pre-releases of {', '.join(names[:5])}: one is installed only where no "
                "release fits; require its version to have a newer one"
            )

    def sources(self, relative: str, sources: PackageSources) -> None:
        """Take what a pyproject.toml says of where its packages come from."""
        self.options.update(dict.fromkeys(sources.options))
        self.indexes.update(dict.fromkeys(sources.indexes))
        for text in sources.constraints:
            if self.is_requirement(text, relative):
                self.line(text, relative, relative, True)

    def unread_files(self, model: str, own: str) -> None:
        """Say which files of the repository look as if they named packages, where none is read."""
        for name in (*CONDA, *OTHER_TOOLS):
            advice = OTHER_TOOLS.get(name, "").format(own)
            self.problems += [
                f"{path} is not read; {_instead(own)}{advice}"
                for path in (f"{model}/{name}", name)
                if os.path.lexists(self.root / path)
            ]
        others = sorted(path for folder in ("", "requirements", model) for path in self.similar_files(folder))
        if others and not self.problems:
            more = ", …" if len(others) > 3 else ""
            advice = _instead(own)
            if others[0].endswith((".txt", ".in")):
                advice = f"write the line -r {os.path.relpath(others[0], model)} into {own}"
            self.notes.append(f"no packages are installed: {', '.join(others[:3])}{more} not read; {advice}")
        elif self.unread_tables and not self.problems:
            self.notes.append(f"no packages are installed: {self.unread_tables}")

    def similar_files(self, folder: str) -> list[str]:
        """Return the files of a folder with names like those of files that say what is required."""
        real = os.path.realpath(self.root)
        if folder and os.path.realpath(self.root / folder) != os.path.join(real, folder):
            # It is a link, and may lead to the folders of others.
            return []
        try:
            with os.scandir(self.root / folder) as entries:
                names = [entry.name for entry in itertools.islice(entries, MOST_NAMES)]
        except OSError:
            return []
        paths = [(name, os.path.join(folder, name)) for name in names if name.isprintable()]
        conda = [path for name, path in paths if name not in CONDA and _OTHER_CONDA.match(name)][:MOST_READ]
        return [
            path
            for name, path in paths
            if _OTHER_REQUIREMENTS.match(name)
            or (folder == "requirements" and name.endswith(".txt"))
            or (path in conda and self.is_of_conda(path))
        ]

    def is_of_conda(self, path: str) -> bool:
        """Tell whether a file is an environment of conda; others have such names, too."""
        try:
            within = os.path.realpath(self.root)
            text = regular_file.read(self.root / path, project_file.MOST_BYTES, within=within)
        except (OSError, ValueError):
            return False
        return re.search(rb"^dependencies:\s*$", text, re.MULTILINE) is not None

    def include_all(self, files: tuple[str, ...], relative: str) -> None:
        """Read the files of requirements that the metadata of a project names."""
        for file in files:
            self.include(file, relative, relative, False, file)

    def dependencies(self, relative: str, dependencies: tuple[str, ...]) -> None:
        """Take the dependencies that a pyproject.toml lists."""
        if len(dependencies) > MOST_LINES:
            self.problems.append(f"{relative}: more than {MOST_LINES} dependencies")
            return
        for text in dependencies:
            if self.is_requirement(text, relative):
                self.line(text, relative, relative, False)

    def is_requirement(self, text: str, relative: str) -> bool:
        """Tell whether a text of a pyproject.toml is a requirement; record it as a problem if it is none."""
        if text.isprintable() and len(text) <= MOST_LINE and REQUIREMENT.match(_single_blanks(text)):
            return True
        self.problems.append(f"{relative}: not a requirement: {text!r}")
        return False

    def own_package(self, extras: str) -> bool:
        """Take the repository as a package, with its dependencies; False if it has to be built."""
        metadata = self.own_project
        names = ["", *(name.strip() for name in extras.split(",") if name.strip())]
        if metadata is None or not set(names) <= set(metadata.dependencies):
            return False
        if metadata.sources is None or (len(names) > 1 and metadata.sources.more_for_extras):
            return False
        self.package = metadata.package
        self.files += [file for file in metadata.files if file not in self.files]
        source = metadata.files[0]
        if not self.own_lists:
            self.include_all(metadata.dependency_files, source)
            self.sources(PROJECT, metadata.sources)
        for name in names:
            if name not in self.own_lists:
                self.own_lists.add(name)
                own = metadata.dependencies[name] if name else metadata.sources.dependencies
                self.dependencies(source, own)
        return True

    @functools.cached_property
    def own_project(self) -> Optional[Metadata]:
        """The repository as a package; None if it has to be built."""
        metadata = own_package.read(self.root)
        if metadata is None:
            return None
        # An extra that asks for others of the same package is left to a build.
        itself = re.compile(rf"{re.escape(metadata.package.name)}\s*\[", re.IGNORECASE)
        extras = {
            name: texts
            for name, texts in metadata.dependencies.items()
            if not name or not any(map(itself.match, texts))
        }
        return dataclasses.replace(metadata, dependencies=extras)

    def locked(self, project: str, lock: str, requirements: str, dependencies: tuple[str, ...]) -> None:
        """Take the packages from the uv.lock of a project."""
        self.lock = lock
        self.files.insert(0, lock)
        self.paths += [project, lock]
        registries: collections.Counter[str] = collections.Counter()
        text = self.text(lock, lock)
        changed = lock_file.changed_names(text, dependencies)
        if changed:
            names = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
            self.notes.append(
                f"{lock} is installed as it is, and is older than {project} ({names}): run uv lock"
            )
        for source in _LOCK_SOURCE.finditer(text):
            place = source["place"]
            if not place.isprintable():
                self.problems.append(f"{lock}: a source holds a control character: {place!r}")
            elif source["kind"] == "registry" and _URL.match(place):
                registries[place] += 1
            elif source["kind"] == "registry" or (source["kind"] in _LOCAL_SOURCES and place != "."):
                self.problems.append(
                    f"{lock}: packages of {place!r} cannot be installed from it; {_instead(requirements)}"
                )
        # Most packages come from the default index, for which a host may have its own.
        for place, _ in registries.most_common()[1:]:
            self.option(f"--extra-index-url {place}", lock, lock, False)

    def line(self, line: str, relative: str, location: str, constraint: bool) -> None:
        if line.startswith("-"):
            for part in _NEXT_OPTION.split(line):
                self.option(part, relative, location, constraint)
            return
        itself = _ITSELF.match(line)
        if itself and not constraint and self.own_package(itself["extras"] or ""):
            return
        hashes = _PER_REQUIREMENT.search(line)
        head = line[: hashes.start()].rstrip() if hashes else line
        match = REQUIREMENT.match(_single_blanks(head))
        if head.endswith(_ARCHIVES) and not (match and match["url"]):
            match = None
        path = match["url"] or "" if match else head.split(" ;")[0].split(" --")[0].strip()
        problem = _misplaced(match, head)
        if problem:
            self.problems.append(f"{location}: {problem}")
            return
        extras = path.find("[", path.rfind("]", 0, -1) + 1) if path.endswith("]") else -1
        bare = path[:extras] if extras >= 0 else path
        if _FILE_URL.match(path) or _WINDOWS_PATH.match(path):
            instead = "write it relative to the repository"
            if match:
                instead = f"pip freeze prints it under conda: write {match['name']}==VERSION"
            self.problems.append(f"{location}: {path!r} is a path of one machine; {instead}")
            return
        is_local = bool(path) and not _URL.match(path) and "${" not in path
        if is_local and (match or "/" in bare or bare.startswith(".") or bare.endswith(_ARCHIVES)):
            local_path = self.inside(bare, location, "the local package")
            if not local_path:
                return
            if constraint:
                self.problems.append(f"{location}: a constraint cannot be a local path: {line!r}")
                return
            self.paths.append(local_path)
        elif not match and not _URL.match(path) and "${" not in path:
            self.problems.append(f"{location}: not a requirement: {line!r}{_advice(line)}")
            return
        (self.constraints if constraint else self.lines).append(line)

    def option(self, line: str, relative: str, location: str, constraint: bool) -> None:
        match = _OPTION.match(line)
        name = (match["long"] or match["short"]) if match else line.split()[0]
        value = (match["value"] or match["rest"] or "").strip() if match else ""
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        name = SHORT.get(name, name)
        if name in INDEXES:
            # pip uses such an index whether or not the marker behind it holds.
            value = _MARKER.split(value, maxsplit=1)[0]
        if name == "--editable" and value:
            # Nobody edits an environment: without -e the same code is installed.
            self.line(_not_editable(value), relative, location, constraint)
        elif name in ("--requirement", "--constraint"):
            self.include(value, relative, location, constraint or name == "--constraint", line)
        elif name not in OPTIONS:
            advice = _advice(line) or f"; {NO_OPTION}"
            self.problems.append(f"{location}: unknown option {line.split()[0]!r}{advice}")
        elif OPTIONS[name] and not value:
            self.problems.append(f"{location}: {line!r} lacks its value")
        elif name not in IGNORED:
            if _FILE_URL.match(value):
                self.problems.append(f"{location}: {line!r} names a path of one machine; write it relative")
                return
            if name == "--find-links" and not _URL.match(value) and "${" not in value:
                # As for pip: beside the file, else from where pip is started.
                beside = os.path.join(os.path.dirname(relative), value)
                is_beside = os.path.exists(os.path.join(self.root, beside))
                local_path = self.inside(beside if is_beside else value, location, "the folder of")
                if not local_path:
                    return
                self.paths.append(local_path)
                value = local_path
            text = f"{name} {value}" if OPTIONS[name] else name
            self.options[text] = None

    def include(self, value: str, relative: str, location: str, constraint: bool, line: str) -> None:
        if not value:
            self.problems.append(f"{location}: {line!r} lacks its file")
        elif _URL.match(value):
            self.problems.append(f"{location}: {line!r}: only files inside the repository can be included")
        else:
            path = os.path.join(os.path.dirname(relative), value)
            local_path = self.inside(path, location, f"{line!r}:")
            if local_path:
                self.read(local_path, constraint, location)


def _single_blanks(text: str) -> str:
    """Return the text for REQUIREMENT, which would try every part of a long run of blanks."""
    return re.sub(r"\s+", " ", text)


def _misplaced(match: "Optional[re.Match[str]]", head: str) -> str:
    """Return why a line that pip cannot install is refused, "" if nothing is known about it."""
    text = _single_blanks(head)[:MOST_ADVISED]
    if re.match(r"[!%]?(?:python3? -m )?pip3? |[\"'].*[\"']\Z", text):
        return f"not a requirement: {text!r}{_advice(text)}"
    option, address = _MISPLACED.search(text), _SSH_ADDRESS.search(text)
    if not match and option:
        name = option["option"].replace("=", " ").split()[0]
        is_known = name in OPTIONS or name in SHORT
        advice = "write it on a line of its own" if is_known else NO_OPTION
        return f"{option['option']!r} behind a requirement: {advice}"
    if address:
        return f"{text!r} is no address for pip: write git+ssh://{address['host']}/{address['path']}"
    if re.match(r"https?://\S+\.git(?:@\S*)?\Z", text):
        return f"{text!r} is no archive: write git+{text}"
    if match and match["name"].lower() == "python":
        return f'{text!r}: Python is no package: write python = "3.N" into train-classifier.toml instead'
    if re.match(r"pkg[-_]resources==0\.0\.0\Z", text):
        return f"{text!r} is no package, though pip freeze of some systems prints it: remove the line"
    return ""


def _advice(line: str) -> str:
    """Return what to write instead of a line, "" if nothing is known."""
    text = _single_blanks(line)[:MOST_ADVISED]
    for pattern, advice in _ADVICE:
        match = re.match(pattern, text)
        if match:
            return "; " + advice.format(*match.groups())
    return ""


def _instead(requirements: str) -> str:
    return f"write the packages into {requirements} (empty: those of the image)"


def _not_editable(value: str) -> str:
    """Return the requirement that installs what `-e VALUE` names: a path, or `NAME @ git+https://…`."""
    if not _REPOSITORY.match(value):
        outside = value.startswith((".", "/")) or _FILE_URL.match(value) or _WINDOWS_PATH.match(value)
        return value if outside else f"./{value}"
    url, _, fragment = value.partition("#")
    parts = dict(part.partition("=")[::2] for part in fragment.split("&"))
    name = re.match(rf"{NAME}(?:\[[^\]]*\])?", parts.get("egg", ""))
    folder = f"#subdirectory={parts['subdirectory']}" if parts.get("subdirectory") else ""
    return f"{name[0]} @ {url}{folder}" if name else f"{url}{folder}"


def decode(data: bytes) -> str:
    """Return a file's text; it may begin with any byte order mark. Raises UnicodeDecodeError."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8")


def shortened(problem: str) -> str:
    """Return the sentence on one line and without logins, shortened if it quotes a very long text."""
    problem = printable(hide_logins(problem))
    return problem if len(problem) <= 400 else f"{problem[:397]}..."


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty: continuations joined, comments removed."""
    pending, began = "", 0
    for number, raw in enumerate([*re.split(r"\r\n|\r|\n", text), ""], 1):
        line = re.sub(r"(^|\s)#.*\Z", "", raw)
        began = began if pending else number
        # A comment ends a continuation, as in pip.
        if line.endswith("\\") and line == raw:
            pending += line[:-1]
            continue
        joined, pending = (pending + line).strip(), ""
        if joined:
            yield began, joined
    if pending.strip():
        yield began, pending.strip()


def _optional(relative: str, project: Project, requirements: str) -> str:
    """Return what a pyproject.toml without dependencies has in other tables; "" without such."""
    extras = [
        name for name in table_at(project.tables, "project", "optional-dependencies") if name.isprintable()
    ]
    if extras:
        return (
            f"{relative} has only optional dependencies ({', '.join(extras[:5])}); write the line "
            f"-e .[{extras[0][:100]}] into {requirements}"
        )
    if table_at(project.tables, "tool", "pixi", "dependencies"):
        return f"tool.pixi in {relative} is not read; {_instead(requirements)}"
    return ""


def _instead_of_project(reader: _Reader) -> _Reader:
    """Return a reader of the requirements.txt beside a pyproject.toml that is not followed, if any."""
    name = REQUIREMENTS
    other = _Reader(reader.root)
    if not os.path.lexists(reader.root / name) or not other.inside(name, name, "the file"):
        return reader
    other.read(name, False, name)
    problem = reader.problems[0].partition("; write the packages")[0]
    other.notes.append(f"{name} is used instead of {problem}")
    return other


def parse(root: Path, model: str) -> Requirements:
    """Read the requirements of a model of the repository at `root`. Never raises.

    The first of these counts that is there: MODEL/requirements.txt, MODEL/pyproject.toml, pyproject.toml,
    requirements.txt, setup.py with setup.cfg; all but a requirements.txt only with dependencies. A uv.lock
    beside a pyproject.toml says which versions. The repository's pyproject.toml, if it is TOML but cannot be
    followed, gives way to the requirements.txt beside it.
    """
    reader = _Reader(Path(root))
    own = f"{model}/{REQUIREMENTS}"
    for start in (own, f"{model}/{PROJECT}", PROJECT, REQUIREMENTS):
        chosen = os.path.lexists(reader.root / start) and reader.inside(start, start, "the file")
        if chosen and start.endswith(REQUIREMENTS):
            reader.read(chosen, False, start)
        elif chosen:
            reader.project(chosen, own)
        if start == PROJECT and reader.problems and not reader.is_broken:
            reader = _instead_of_project(reader)
        if reader.files or reader.problems:
            break
    else:
        reader.unread_files(model, own)
        metadata = reader.own_project
        has_setup = metadata is not None and bool(metadata.dependencies[""] or metadata.dependency_files)
        if has_setup:
            reader.own_package("")
        unread = "" if has_setup else own_package.unread_dependencies(reader.root)
        if unread:
            reader.notes.append(
                f"the dependencies in {unread} are not installed: write the line -e . into {REQUIREMENTS} "
                f"(or make {own} an empty file, if the image's packages are enough)"
            )
    problems = [shortened(problem) for problem in reader.problems[:MOST_PROBLEMS]]
    if len(reader.problems) > MOST_PROBLEMS:
        problems.append("there are more problems; mend these first")
    return Requirements(
        files=tuple(reader.files),
        paths=tuple(dict.fromkeys(reader.paths)),
        lines=tuple(dict.fromkeys(reader.lines)),
        constraints=tuple(dict.fromkeys(reader.constraints)),
        options=tuple(reader.options),
        indexes=tuple(reader.indexes),
        problems=tuple(problems),
        notes=tuple(map(shortened, reader.notes)),
        lock=reader.lock,
        package=reader.package,
    )
