"""A uv.lock that was not made from the pyproject.toml beside it."""

import pytest

from train_classifier.core.project import lock_file

LOCK = """version = 1

[[package]]
name = "attrs"
version = "1"
source = { registry = "https://index.example/simple" }

[[package]]
name = "my-thing"
source = { virtual = "." }
dependencies = [
    { name = "attrs" },
]

[package.metadata]
requires-dist = [
    { name = "attrs", specifier = "==23.*" },
    { name = "elsewhere", git = "https://git.example/a" },
    { name = "requests", extras = ["socks"], marker = "python_full_version < '3.13'", specifier = ">=2.0rc1,<3" },
    { name = "tomli", marker = "extra == 'b'" },
]
provides-extras = ["b"]

[[package]]
name = "six"
"""
SAME = ("Attrs == 23.*", "requests[Socks] <3, >=2.0-rc1 ; python_version < '3.13'", "elsewhere")


@pytest.mark.parametrize(
    ("dependencies", "names"),
    [
        (SAME, []), ((*SAME, "idna"), ["idna"]), (SAME[1:], ["attrs"]), (("attrs>=23", *SAME[1:]), ["attrs"]),
        ((SAME[0], "requests (>=2.0rc1,<3)", SAME[2]), ["requests"]), ((*SAME, "tomli"), ["tomli"]),
        ((*SAME[:2], "elsewhere @ git+https://git.example/b"), []),
    ],
)  # fmt: skip
def test_names_that_changed(dependencies: tuple[str, ...], names: list[str]) -> None:
    assert lock_file.changed_names(LOCK, dependencies) == names


@pytest.mark.parametrize(
    "lock",
    [
        "", LOCK.replace("virtual", "registry"), LOCK.replace('"==23.*" }', '"==23.*'), LOCK.replace("{ name", "{ no"),
        LOCK.replace('specifier = "==23.*"', "specifier = 1"), LOCK.replace('["socks"]', '[1]'),
        LOCK.replace("provides", f"x = '{'a' * (1 << 18)}'\nprovides"),
    ],
)  # fmt: skip
def test_lock_that_cannot_be_read_says_nothing(lock: str) -> None:
    assert lock_file.changed_names(lock, ("idna",)) == []
