"""Each address that a failure prints leads to an entry of the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from train_classifier.cli.commands import doctor
from train_classifier.core.errors import (
    DOCS,
    OUTCOMES,
    TROUBLESHOOTING,
    ExitCode,
    TrainClassifierError,
    from_dict,
    link_of,
)
from train_classifier.worker.system.failure_causes import CAUSES

ROOT = Path(__file__).resolve().parents[3]
ENTRIES = [*(OUTCOMES[code] for code in ExitCode if code), *(cause.topic for cause in CAUSES)]


def test_each_outcome_and_each_cause_has_one_entry() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    anchors = re.findall(r'^### ([a-z-]+)$|^\| <a id="([a-z0-9-]+)"></a>', page, flags=re.MULTILINE)
    assert sorted(heading or anchor for heading, anchor in anchors) == sorted(ENTRIES)


def test_addresses_are_those_of_the_site_and_fit_a_line_of_80_columns() -> None:
    site = re.search(r"^site_url: (\S+)/$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert site and site[1] == DOCS and TROUBLESHOOTING.startswith(f"{DOCS}/troubleshooting/#")
    # The terminal shows an address behind two blanks.
    assert max(len(TROUBLESHOOTING + entry) for entry in ENTRIES) <= 78
    assert f"{DOCS}/hosts/#checks" == doctor.CHECKS_PAGE
    assert '<a id="checks"></a>\n\n## Each check' in (ROOT / "docs/hosts.md").read_text(encoding="utf-8")


def test_the_entry_of_a_cause_arrives() -> None:
    error = TrainClassifierError("the model failed", code=ExitCode.FAILED)
    error.topic = "gpu-memory"
    assert from_dict(error.to_dict()).link == error.link == f"{TROUBLESHOOTING}gpu-memory"
    result = {"exit_code": 4, "link": error.link}
    assert link_of(result) == error.link
    assert link_of({"exit_code": 4}) == f"{TROUBLESHOOTING}failed" and link_of({"exit_code": 0}) is None


@pytest.mark.parametrize(
    "link",
    ["https://example.org/", f"{TROUBLESHOOTING}x](https://example.org)", f"{TROUBLESHOOTING}a\n", "gpu-memory", 7, None],
)  # fmt: skip
def test_an_address_of_a_stranger_is_not_shown(link: object) -> None:
    data = {"exit_code": 4, "code": 4, "reason": "r", "link": link}
    assert link_of(data) == from_dict(data).link == f"{TROUBLESHOOTING}failed"
    for code in (None, "4", 99, 4.5, [], True):
        assert link_of({"exit_code": code, "link": link}) in (None, f"{TROUBLESHOOTING}bug")
