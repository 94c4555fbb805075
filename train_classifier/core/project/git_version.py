"""Versions that tools make from git: setuptools-scm, hatch-vcs, pdm and versioneer.

A host gets no .git: the controller says what `git describe` says, and the version is made from it.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import regular_file
from train_classifier.core.job import DESCRIPTION
from train_classifier.core.project.project_file import MOST_BYTES
from train_classifier.core.project.tables import table_at

#: Tools that take the version of a package from git.
_TOOLS = re.compile(rb"setuptools[-_]scm|use_scm_version|hatch[-_]vcs|versioneer|source\s{0,9}=\s{0,9}.scm\b")

_TAG = re.compile(
    r"(?:[A-Za-z][\w./]{0,99}[-_/])?v?(?P<release>[0-9]{1,9}(?:\.[0-9]{1,9}){0,5})"
    r"(?:[-._]?(?P<stage>alpha|beta|preview|pre|a|b|rc|c)[-._]?(?P<number>[0-9]{0,9}))?"
    r"(?P<post>\.post[0-9]{1,9})?(?:\+[\w.-]*)?\Z",
    re.ASCII | re.IGNORECASE,
)
#: Names of pre-releases, as PEP 440 writes them.
_STAGES = {"alpha": "a", "beta": "b", "preview": "rc", "pre": "rc", "c": "rc"}
_SCM, _VERSIONEER = "setuptools-scm", "versioneer"
_SCHEMES = ("guess-next-dev", "post-release", "no-guess-dev", "only-version")
_LOCAL_SCHEMES = ("node-and-date", "node-and-timestamp", "dirty-tag", "no-local-version")
_SCM_FILE = """# Written by train-classifier as setuptools-scm would.
__version__ = version = {version!r}
__version_tuple__ = version_tuple = {parts!r}
__commit_id__ = commit_id = {commit!r}
"""
_VERSIONEER_FILE = """# Written by train-classifier as versioneer would.
_FACTS = {{"version": {version!r}, "full-revisionid": {commit!r}, "dirty": {dirty!r}}}


def get_versions():
    return {{**_FACTS, "error": None, "date": None}}
"""
#: Forms of a template of one's own that are followed.
_FIELDS = re.compile(r"\{(version|version_tuple)(?:!([rs]))?\}")


@dataclasses.dataclass(frozen=True)
class GitVersion:
    """How a package's version is made from git."""

    tool: str = _SCM
    scheme: str = _SCHEMES[0]
    local_scheme: str = _LOCAL_SCHEMES[0]
    tag_prefix: str = ""
    #: The file of the package that has the version, relative to the repository, and its template.
    file: str = ""
    template: str = ""


def is_used(root: Path) -> bool:
    """Tell whether the files of a repository name a tool that takes the version from git."""
    for name in ("pyproject.toml", "setup.py", "setup.cfg"):
        try:
            text = regular_file.read(root / name, MOST_BYTES, within=os.path.realpath(root))
        except (OSError, ValueError):
            continue
        if _TOOLS.search(text):
            return True
    return False


def settings(tables: dict[str, Any], setup: dict[str, Any]) -> Optional[GitVersion]:
    """Return how a project makes its version from git, None if it does not.

    `setup` has the keywords of setup(), and the section of versioneer.
    """
    tool = table_at(tables, "tool")
    versioneer = table_at(tool, _VERSIONEER) or setup.get(_VERSIONEER)
    if versioneer:
        prefix = _first(versioneer, "tag_prefix").strip("\"'")
        return GitVersion(_VERSIONEER, tag_prefix=prefix, file=_file(versioneer, "versionfile_source"))
    hatch = table_at(tool, "hatch")
    requires = table_at(tables, "build-system").get("requires") or []
    is_simple = any(re.match(r"setuptools[-_]scm\s*\[.*simple", text) for text in requires)
    if is_simple or "setuptools_scm" in tool:
        options = table_at(tool, "setuptools_scm")
    elif setup.get("use_scm_version"):
        options = table_at(setup, "use_scm_version")
    elif table_at(hatch, "version").get("source") == "vcs":
        hook = table_at(hatch, "build", "hooks", "vcs")
        wheel_hook = table_at(hatch, "build", "targets", "wheel", "hooks", "vcs")
        options = {**(hook or wheel_hook), **table_at(hatch, "version", "raw-options")}
    elif table_at(tool, "pdm", "version").get("source") == "scm":
        options = table_at(tool, "pdm", "version")
    else:
        return None
    return GitVersion(
        _SCM,
        _one_of(_SCHEMES, options.get("version_scheme")),
        _one_of(_LOCAL_SCHEMES, options.get("local_scheme")),
        file=_file(options, "version_file", "version-file", "write_to"),
        template=_first(options, "version_file_template", "write_to_template", "template"),
    )


def _one_of(words: tuple[str, ...], value: Any) -> str:
    """Return a scheme; the usual one where a project has one of its own, which is not read."""
    return value if value in words else words[0]


def _first(options: dict[str, Any], *names: str) -> str:
    return next((options[name] for name in names if isinstance(options.get(name), str)), "")


def _file(options: dict[str, Any], *names: str) -> str:
    file = _first(options, *names)
    return file if file.isprintable() and len(file) <= 1000 else ""


def version(git: GitVersion, description: str, date: str) -> Optional[str]:
    """Return the version for what `git describe --long --dirty` says; None when the tag is no version.

    `date` (YYYYMMDD) stands in the version of a changed checkout.
    """
    match = DESCRIPTION.match(description)
    if match is None or not match["tag"].startswith(git.tag_prefix):
        return None
    tag = _TAG.match(match["tag"][len(git.tag_prefix) :])
    if tag is None:
        return None
    base, distance, node = _base(tag), int(match["distance"]), f"g{match['commit']}"
    dirty = bool(match["dirty"])
    if git.tool == _VERSIONEER:
        changed = ".dirty" if dirty else ""
        return f"{base}+{distance}.{node}{changed}" if distance or dirty else base
    if not distance and not dirty:
        return base
    if git.scheme == "guess-next-dev":
        base = f"{_next(base)}.dev{distance}"
    elif git.scheme == "no-guess-dev" and ".post" in base:
        return None
    elif git.scheme != "only-version":
        base = f"{base}.post1.dev{distance}" if git.scheme == "no-guess-dev" else f"{base}.post{distance}"
    if git.local_scheme == "no-local-version":
        return base
    if git.local_scheme == "dirty-tag":
        return f"{base}+dirty" if dirty else base
    return f"{base}+{node}.d{date}" if dirty else f"{base}+{node}"


def _base(tag: "re.Match[str]") -> str:
    """Return the version of a tag in its normal form: 1.2rc1 for 1.2-rc.1."""
    stage = (tag["stage"] or "").lower()
    before = f"{_STAGES.get(stage, stage)}{tag['number'] or 0}" if stage else ""
    return f"{tag['release']}{before}{(tag['post'] or '').lower()}"


def _next(base: str) -> str:
    """Return the version after one: its last number is one higher."""
    head, number = re.fullmatch(r"(.*?)([0-9]+)", base).groups()  # type: ignore[union-attr]
    return f"{head}{int(number) + 1}"


def file_text(git: GitVersion, text: str, description: str) -> str:
    """Return the content of the file that has a version in the package."""
    match = DESCRIPTION.match(description)
    commit = match["commit"] if match else None
    if git.tool == _VERSIONEER:
        dirty = bool(match and match["dirty"])
        return _VERSIONEER_FILE.format(version=text, commit=commit, dirty=dirty)
    public, _, local = text.partition("+")
    numbers = tuple(int(part) if part.isdigit() else part for part in public.split("."))
    parts = (*numbers, local) if local else numbers
    if git.template:
        # Not str.format: a template may ask for any attribute, and for any width.
        values = {"version": text, "version_tuple": parts}
        return _FIELDS.sub(lambda field: (repr if field[2] == "r" else str)(values[field[1]]), git.template)
    if git.file.endswith(".py"):
        return _SCM_FILE.format(version=text, parts=parts, commit=f"g{commit}" if commit else None)
    return text
