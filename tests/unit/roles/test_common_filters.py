"""The reasons that the rescue of tasks with the network gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[3] / "plugins/filter/common.py"
spec = importlib.util.spec_from_file_location("common_filters", PATH)
assert spec and spec.loader
common = importlib.util.module_from_spec(spec)
spec.loader.exec_module(common)

DOCKER = 'Error response from daemon: Get "https://registry.example.org/v2/": dial tcp 192.0.2.1:443: connect: connection refused'


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"stderr": f"{DOCKER}\n", "msg": "non-zero return code"}, DOCKER),
        (
            {"stderr": "Reading lists\nW: Failed to fetch http://a/InRelease\nE: Some index files failed to download.\n"},
            "W: Failed to fetch http://a/InRelease E: Some index files failed to download",
        ),
        (
            {"stdout": "Looking in indexes: https://user:secret@index/simple\nCollecting uv", "stderr": "ERROR: No matching distribution"},
            "ERROR: No matching distribution Looking in indexes: https://index/simple",
        ),
        ({"msg": "Request failed: <urlopen error [Errno 111] Connection refused>"}, "Request failed: <urlopen error [Errno 111] Connection refused>"),
        ({"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "stderr": "E: no space"}]}, "E: no space"),
        (
            {"stdout": "Unpacking rsync ...\ndpkg: error processing archive rsync.deb (--unpack):\n unable to open: Read-only file system\n", "stderr": "E: Sub-process /usr/bin/dpkg returned an error code (1)"},
            "E: Sub-process /usr/bin/dpkg returned an error code (1) unable to open: Read-only file system",
        ),
        ({}, "no reason given"),
    ],
)  # fmt: skip
def test_reason_is_one_line_of_the_program_without_logins(result: dict[str, object], reason: str) -> None:
    assert common.fetch_reason(result) == reason


def test_reason_has_a_bounded_length() -> None:
    assert len(common.fetch_reason({"stderr": "E: x " * 10_000})) <= common.MOST_OF_REASON + 1
