"""Image references: which are well formed, by the grammar of the distribution project."""

import re
from typing import Optional

# https://github.com/distribution/reference, reference.go
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])"
_REFERENCE = re.compile(
    rf"(?:{_HOST}(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z",
    re.ASCII,
)
_ID = re.compile(r"sha256:[0-9a-f]{64}\Z")


def problem(reference: str) -> Optional[str]:
    """Return what is wrong with an image reference as a sentence, None when it is well formed."""
    if len(reference) <= 512 and (_REFERENCE.match(reference) or _ID.match(reference)):
        return None
    hint = ""
    if reference != reference.lower():
        hint = "; names of repositories are lower case"
    return f"image {reference!r} is not an image reference, such as tensorflow/tensorflow:2.17.0-gpu{hint}"


def repository(reference: str) -> str:
    """Return a reference without its tag and digest."""
    name = reference.partition("@")[0]
    return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name


def is_local(reference: str) -> bool:
    """Tell whether a name is one that this host gives to its own images: layers, and images of the role.

    On Docker's own registry another user could own such a name.
    """
    name = reference
    for prefix in ("index.docker.io/", "docker.io/", "registry-1.docker.io/"):
        name = name[len(prefix) :] if name.startswith(prefix) else name
    return name.startswith("train-classifier/")
