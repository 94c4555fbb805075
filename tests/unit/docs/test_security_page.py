"""docs/security.md names files and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")


def test_each_place_of_enforcement_exists() -> None:
    table = PAGE.partition("## What is enforced where")[2].partition("\n## ")[0]
    places = [row.split("|")[3] for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(places) >= 12
    for place in places:
        names = re.findall(r"`([^`]+)`", place)
        assert names, place
        for name in names:
            candidates = [ROOT / name, ROOT / "train_classifier" / f"{name}.py"]
            assert any(path.exists() for path in candidates), name


def test_every_role_variable_of_the_page_exists() -> None:
    names = set(re.findall(r"\b((?:training_host|github_runner)_[a-z_]+)\b", PAGE))
    assert len(names) >= 4
    for name in names:
        role = "training_host" if name.startswith("training_host") else "github_runner"
        assert re.search(
            rf"^{name}:", (ROOT / f"roles/{role}/defaults/main.yml").read_text(), re.MULTILINE
        ), name


def test_other_pages_point_to_it() -> None:
    for page in ("README.md", "SECURITY.md", "docs/architecture.md", "docs/hosts.md", "docs/action.md"):
        assert "security.md" in (ROOT / page).read_text(encoding="utf-8").replace("SECURITY.md", ""), page
