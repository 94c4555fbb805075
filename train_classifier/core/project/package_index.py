"""An index that only some packages come from, as projects of uv, Poetry and PDM name it."""

import dataclasses
import re
from collections.abc import Iterable

from train_classifier.core.project.tables import normal_name
from train_classifier.core.text import hide_logins

#: Nothing in it is replaced by a variable of the host, or ends a text in TOML.
_ADDRESS = re.compile(r"https?://[!#-\[\]-z|~]{1,2000}\Z")
#: Names of our own: uv sends the logins in UV_INDEX_NAME_PASSWORD to whatever index has that name.
_NAME = "train-classifier-{}"


@dataclasses.dataclass(frozen=True)
class PackageIndex:
    """The index of one package; no other package comes from it by this."""

    #: The normalised name of the package.
    package: str
    address: str
    #: Where it holds, and nowhere else, the package comes from this index.
    marker: str = ""


def checked_address(address: object, where: str) -> str:
    """Return the address of an index. Raises ValueError with a phrase for what is none."""
    if not isinstance(address, str) or not _ADDRESS.match(address):
        # What is no address may have anything in its login.
        shown = hide_logins(re.sub(r"://.*@", "://***@", str(address), flags=re.DOTALL))[:100]
        raise ValueError(
            f"{where} has the address {shown!r}, and only https://… without variables is followed"
        )
    return address


def project_file(lines: Iterable[str], indexes: Iterable[PackageIndex]) -> str:
    """Return a pyproject.toml of requirements and of the indexes of their packages, for uv."""
    sources: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for index in indexes:
        name = names.setdefault(index.address, _NAME.format(len(names)))
        marker = f", marker = {_quoted(index.marker)}" if index.marker else ""
        sources.setdefault(index.package, []).append(f"{{ index = {_quoted(name)}{marker} }}")
    return "\n".join(
        [
            "[project]",
            f"name = {_quoted(_NAME.format('requirements'))}",
            'version = "0"',
            f"dependencies = [{', '.join(map(_quoted, lines))}]",
            "[tool.uv.sources]",
            *(f"{package} = [{', '.join(entries)}]" for package, entries in sources.items()),
            *(
                f"[[tool.uv.index]]\nname = {_quoted(name)}\nurl = {_quoted(address)}\nexplicit = true"
                for address, name in names.items()
            ),
            "",
        ]
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def for_package(package: str, address: str, marker: object, where: str) -> PackageIndex:
    """Return the index of a package. Raises ValueError with a phrase for what is no name or no marker."""
    name = normal_name(package)
    text = "" if marker is None else marker
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,200}[a-z0-9])?", name):
        raise ValueError(f"{where}: {package[:100]!r} is no name of a package")
    if not isinstance(text, str) or not text.isprintable() or len(text) > 2000:
        raise ValueError(f"{where} has a marker that is not read")
    return PackageIndex(name, address, text)
