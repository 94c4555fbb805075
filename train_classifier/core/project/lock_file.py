"""Whether a uv.lock was made from the pyproject.toml beside it, without a resolver."""

import re
from typing import Any

from train_classifier.core.project import toml_reader
from train_classifier.core.project.project_file import MOST_BYTES
from train_classifier.core.project.tables import normal_name, table_at

_OWN = re.compile(r"^source = \{ (?:virtual|editable) = \"\.\" \}$", re.MULTILINE)
_REQUIREMENT = re.compile(r"\s*(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^\]]*)\])?(?P<rest>[^;]*)")
#: uv writes versions in their usual form.
_WORDS = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc", "v": ""}
#: Where a package comes from that is not found by its name.
_PLACES = ("git", "url", "path", "directory", "editable", "virtual", "index")
Requirement = tuple[str, tuple[str, ...], tuple[str, ...]]


def changed_names(lock: str, dependencies: tuple[str, ...]) -> list[str]:
    """Return the names that the lock requires in another way than the dependencies; [] if it does not say."""
    package = next((part for part in lock.split("\n[[package]]\n")[1:] if _OWN.search(part)), None)
    if package is None or len(package) > MOST_BYTES:
        return []
    try:
        listed = table_at(toml_reader.read(package), "package", "metadata").get("requires-dist", [])
        locked = {
            _locked(entry) for entry in listed if not re.search(r"\bextra ==", str(entry.get("marker", "")))
        }
    except (ValueError, AttributeError, TypeError, KeyError):
        return []
    # Of a package from elsewhere the place is not compared.
    elsewhere = {
        normal_name(str(entry.get("name", "")))
        for entry in listed
        if any(place in entry for place in _PLACES)
    }
    required = {_required(text) for text in dependencies}
    return sorted({name for name, *_ in locked ^ required if name not in elsewhere})


def _locked(entry: dict[str, Any]) -> Requirement:
    extras = tuple(sorted(map(normal_name, entry.get("extras", []))))
    return normal_name(entry["name"]), extras, _clauses(entry.get("specifier", ""))


def _required(text: str) -> Requirement:
    match = _REQUIREMENT.match(text)
    if match is None:
        return text, (), ()
    extras = tuple(
        sorted(normal_name(name.strip()) for name in (match["extras"] or "").split(",") if name.strip())
    )
    return normal_name(match["name"]), extras, _clauses(match["rest"].strip(" ()"))


def _clauses(text: str) -> tuple[str, ...]:
    """Return the clauses of a range in one form, sorted."""
    parts = (re.findall(r"[<>=!~]+|[0-9]+|[a-z]+|\*", clause.lower()) for clause in text.split(","))
    return tuple(sorted(".".join(_WORDS.get(word, word) for word in part) for part in parts if part))
