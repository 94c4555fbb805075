"""The site of docs/ is built without a warning, has every page, and all its links lead somewhere (offline)."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from test_lint import BIN, REPOSITORY, lint


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = BIN / "zensical"
    if not program.exists():
        pytest.skip("zensical is not installed")
    # A copy: the site is written beside its configuration.
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(REPOSITORY / "mkdocs.yml", folder)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    lint(program, "build", "--strict", "--config-file", folder / "mkdocs.yml")
    return folder / "site"


class Page(HTMLParser):
    """The links of a page and what they may lead to."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names.update(filter(None, (values.get("id"), values.get("name"))))
        self.links += [value for name in ("href", "src") if (value := values.get(name))]


def test_every_page_is_in_the_navigation_once() -> None:
    def files(entries: object) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        below = entries.values() if isinstance(entries, dict) else entries
        assert isinstance(entries, dict | list)
        return [file for each in below for file in files(each)]

    text = (REPOSITORY / "mkdocs.yml").read_text().split("\ntheme:")[0]
    assert sorted(files(yaml.safe_load(text)["nav"])) == sorted(
        path.name for path in (REPOSITORY / "docs").glob("*.md")
    )


def test_links_lead_somewhere(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 20
    wrong = []
    for path, page in pages.items():
        # Its links are made by a script.
        for link in page.links if path.name != "404.html" else ():
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = path if not address.path else (path.parent / unquote(address.path)).resolve()
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(address.fragment)
            known = pages[target].names if target in pages else set()
            if not target.is_file() or (fragment and target in pages and fragment not in known):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_no_page_loads_fonts_from_elsewhere(site: Path) -> None:
    assert not [path for path in site.rglob("*.html") if "fonts.g" in path.read_text()]


def test_pictures_are_small_shown_and_load_nothing() -> None:
    pages = "\n".join(
        path.read_text() for path in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    )
    pictures = list((REPOSITORY / "docs" / "pictures").iterdir())
    assert pictures and sum(path.stat().st_size for path in pictures) < 600_000
    for picture in pictures:
        assert f"pictures/{picture.name})" in pages, picture
        if picture.suffix == ".svg":
            text = picture.read_text()
            assert "<script" not in text and not re.search(r"url\((?!#)|href=|@font-face|@import", text), (
                picture
            )
