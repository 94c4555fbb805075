"""Where a project says that its packages come from: `[tool.uv]`, `[tool.pdm]`, `[tool.rye]`.

uv: https://docs.astral.sh/uv/concepts/projects/dependencies/, https://docs.astral.sh/uv/concepts/indexes/
"""

import dataclasses
import fnmatch
import re
from typing import Any, Optional

from train_classifier.core.project import package_index, poetry
from train_classifier.core.project.package_index import PackageIndex
from train_classifier.core.project.tables import normal_name, table_at, tables_in, texts

#: Settings of uv that change what is installed, and are followed in a uv.lock only.
_NOT_FOLLOWED = ("find-links", "no-index", "override-dependencies", "exclude-dependencies")
_PLACES = ("git", "path", "url")
_REVISIONS = ("rev", "tag", "branch", "subdirectory")
#: A marker whose value on a training host is known.
_PLATFORM = re.compile(r"(sys_platform|platform_system) ?([!=]=) ?(?:'(\w{1,40})'|\"(\w{1,40})\")\Z")
_NAMED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(\[[^\]]*\])?")
#: Most sources of all packages together.
MOST_SOURCES = 1000
#: Most comparisons of packages with patterns, and most characters of a name or a pattern: they take time.
MOST_MATCHES = 50_000
MOST_NAME = 200


@dataclasses.dataclass(frozen=True)
class PackageSources:
    """Where the packages of a project come from."""

    #: The dependencies, with the address of each that is not from an index.
    dependencies: tuple[str, ...] = ()
    indexes: tuple[PackageIndex, ...] = ()
    #: Options of a requirements file, and `--index`: an index that is asked before the usual one.
    options: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    #: Dependencies of extras have sources that are not in it.
    more_for_extras: bool = False


def read(tables: dict[str, Any], dependencies: list[str], folder: str) -> PackageSources:
    """Return where the dependencies of the project in a folder of the repository come from.

    Raises ValueError with a phrase for what cannot be followed.
    """
    uv = table_at(tables, "tool", "uv")
    for name in _NOT_FOLLOWED:
        if name in uv:
            raise ValueError(f"tool.uv.{name} cannot be followed without uv.lock")
    reader = _Reader(dependencies, folder)
    reader.uv_indexes(uv)
    reader.uv_sources(table_at(uv, "sources"))
    reader.pdm_sources(tables_in(table_at(tables, "tool", "pdm").get("source")))
    for source in tables_in(table_at(tables, "tool", "rye").get("sources")):
        option = "--index-url" if source.get("name") == "default" else "--extra-index-url"
        address = package_index.checked_address(source.get("url"), "tool.rye.sources")
        reader.options.append(f"{option} {address}")
    return PackageSources(
        tuple(reader.dependencies),
        tuple(reader.indexes),
        tuple(reader.options),
        tuple(texts(uv.get("constraint-dependencies", []))),
        reader.more_for_extras,
    )


class _Reader:
    def __init__(self, dependencies: list[str], folder: str) -> None:
        self.dependencies = list(dependencies)
        self.folder = folder
        #: The places in the list by name: a file can name many packages, and as many sources.
        self.required: dict[str, list[int]] = {}
        for number, text in enumerate(dependencies):
            self.required.setdefault(name_in(text), []).append(number)
        #: Addresses of uv's indexes by name.
        self.addresses: dict[str, object] = {}
        self.indexes: list[PackageIndex] = []
        self.options: list[str] = []
        self.more_for_extras = False

    def uv_indexes(self, uv: dict[str, Any]) -> None:
        """Take the indexes that uv knows by name, and those that all packages may come from."""
        for index in tables_in(uv.get("index", [])):
            name = str(index.get("name", ""))
            # One of another format has files beside each other, and no folder for each package.
            address = index.get("url") if index.get("format", "simple") == "simple" else "of files"
            self.addresses[name] = address
            if index.get("explicit") is not True:
                option = "--index-url" if index.get("default") is True else "--index"
                checked = package_index.checked_address(address, f"tool.uv.index {name[:100]!r}")
                self.options.append(f"{option} {checked}")
        if "index-url" in uv:
            address = package_index.checked_address(uv["index-url"], "tool.uv.index-url")
            self.options.append(f"--index-url {address}")
        for text in texts(uv.get("extra-index-url", [])):
            self.options.append(f"--index {package_index.checked_address(text, 'tool.uv.extra-index-url')}")
        if uv.get("prerelease") == "allow":
            self.options.append("--pre")

    def uv_sources(self, sources: dict[str, Any]) -> None:
        """Take the sources of single packages."""
        count = 0
        for package, value in sources.items():
            entries = tables_in(value)
            count += len(entries)
            if count > MOST_SOURCES:
                raise ValueError(f"tool.uv.sources has more than {MOST_SOURCES} entries")
            plain = [entry for entry in entries if not {"extra", "group"} & set(entry)]
            self.more_for_extras = self.more_for_extras or len(plain) < len(entries)
            for entry in plain:
                self.uv_source(package, entry, len(plain))

    def uv_source(self, package: str, entry: dict[str, Any], count: int) -> None:
        where = f"tool.uv.sources.{package[:100]}"
        if "index" in entry:
            name = str(entry["index"])
            if name not in self.addresses:
                raise ValueError(f"{where} names the index {name[:100]!r}, which tool.uv.index lacks")
            address = package_index.checked_address(self.addresses[name], f"tool.uv.index {name[:100]!r}")
            self.indexes.append(package_index.for_package(package, address, entry.get("marker"), where))
            return
        if normal_name(package) not in self.required:
            self.more_for_extras = True
            return
        if not any(place in entry for place in _PLACES):
            raise ValueError(f"{where} cannot be followed without uv.lock")
        holds = _holds(entry["marker"]) if "marker" in entry else True
        if holds is None or (holds and count > 1):
            raise ValueError(f"{where} is for some platforms only, which cannot be followed without uv.lock")
        if holds:
            if not all(isinstance(entry.get(key, ""), str) for key in (*_PLACES, *_REVISIONS)):
                raise ValueError(f"{where} has a value that is no text")
            self.put_place(package, poetry.place(entry, self.folder))

    def put_place(self, package: str, place: str) -> None:
        """Write the address of a package into its dependencies."""
        for number in self.required.get(normal_name(package), ()):
            head, semicolon, marker = self.dependencies[number].partition(";")
            match = _NAMED.match(head.strip())
            if match and "@" not in head:
                end = f" ; {marker.strip()}" if semicolon else ""
                self.dependencies[number] = f"{match[1]}{match[2] or ''} @ {place}{end}"

    def pdm_sources(self, sources: list[dict[str, Any]]) -> None:
        """Take PDM's indexes: of those that a package may come from, the best version counts, as for pip."""
        matches = 0
        for source in sources:
            name = str(source.get("name", ""))
            if name.lower() == "pypi":
                continue
            where = f"tool.pdm.source {name[:100]!r}"
            address = package_index.checked_address(source.get("url"), where)
            patterns = source.get("include_packages", [])
            if source.get("type", "index") != "index" or not isinstance(patterns, list):
                raise ValueError(f"{where} is not followed")
            matches += len(patterns) * len(self.required)
            if matches > MOST_MATCHES:
                raise ValueError("tool.pdm.source has too many patterns of packages")
            own = [
                package
                for package in sorted(self.required)
                if len(package) <= MOST_NAME
                and any(fnmatch.fnmatchcase(package, _pattern(each)) for each in patterns)
            ]
            self.more_for_extras = self.more_for_extras or bool(patterns)
            self.indexes += [package_index.for_package(package, address, None, where) for package in own]
            if source.get("exclude_packages") != ["*"]:
                self.options.append(f"--extra-index-url {address}")


def _pattern(text: object) -> str:
    """Return a pattern of normalised names with few stars: each of them multiplies the time of a match."""
    pattern = normal_name(str(text))
    return pattern if pattern.count("*") < 3 and len(pattern) <= MOST_NAME else ""


def _holds(marker: object) -> Optional[bool]:
    """Tell whether a marker holds on a training host; None where that is not plain."""
    match = _PLATFORM.match(" ".join(str(marker).split()))
    if not match:
        return None
    value = {"sys_platform": "linux", "platform_system": "Linux"}[match[1]]
    return (value == (match[3] or match[4])) == (match[2] == "==")


def name_in(text: str) -> str:
    """Return the normalised name of the package that a dependency asks for; "" without one."""
    match = _NAMED.match(text.strip())
    return normal_name(match[1]) if match else ""
