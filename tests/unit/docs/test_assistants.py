"""llms.txt and the skill for coding assistants: they are found, complete, and say what is true."""

from __future__ import annotations

import re
from pathlib import Path

import json_output
import yaml

ROOT = Path(__file__).parents[3]
SKILL = ROOT / ".agents/skills/train-classifier/SKILL.md"
#: Where the files are read without a checkout.
RAW = "https://raw.githubusercontent.com/Incuvers/train-classifier/main/"


def test_skill_has_the_form_that_assistants_read() -> None:
    """As agentskills.io writes it down."""
    _, head, text = SKILL.read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert set(fields) == {"name", "description", "license"}
    assert fields["name"] == SKILL.parent.name and len(fields["description"]) <= 1024
    assert len(text.splitlines()) < 150
    schemas = {path.name for path in json_output.FOLDER.glob("*.json")} - {"manifest.json"}
    assert set(re.findall(r"`([a-z]+\.json)`", text)) == schemas


def test_llms_txt_has_its_form_and_every_page() -> None:
    """As llmstxt.org writes it down: a title, a quotation, text, then only lists of links."""
    title, quotation, *rest = (ROOT / "llms.txt").read_text().split("\n\n")
    assert re.fullmatch(r"# [^\n]+", title)
    assert all(line.startswith("> ") for line in quotation.splitlines())
    sections = "\n\n".join(rest).split("\n## ")[1:]
    links = []
    for section in sections:
        _, _, *lines = section.strip().split("\n")
        for line in lines:
            match = re.fullmatch(r"- \[[^\]]+\]\(([^)]+)\): [^\n]+", line)
            assert match, line
            links.append(match[1])
    assert len(links) == len(set(links))
    paths = {link.removeprefix(RAW) for link in links}
    pages = {
        str(path.relative_to(ROOT))
        for folder in ("docs", "docs/schemas")
        for path in (ROOT / folder).glob("*.*")
    }
    pages = {page for page in pages if page.endswith((".md", ".json"))}
    assert paths - pages == {str(SKILL.relative_to(ROOT)), "CHANGELOG.md"}
    assert pages - paths == set()
    assert all((ROOT / path).is_file() for path in paths)
