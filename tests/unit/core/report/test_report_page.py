"""The page of the reports: built as scripts/report-page says, and it holds any document as text."""

from __future__ import annotations

import html.parser
import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from train_classifier.core.report import curves, document, event_files, images, page

ROOT = Path(__file__).parents[4]
EVENTS = ROOT / "tests" / "unit" / "data" / "events.out.tfevents.1"


def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("report_page", str(ROOT / "scripts/report-page"))
    spec = importlib.util.spec_from_loader("report_page", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_page_is_built_from_its_sources() -> None:
    """uPlot itself is compared where npm is, in the next test."""
    report_page = script()
    assert report_page.build(report_page.from_page()) == page.PAGE.read_text(encoding="utf-8"), (
        "run scripts/report-page"
    )


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is missing: uPlot is not compared with its package")
def test_uplot_is_that_of_its_package() -> None:
    report_page = script()
    try:
        uplot = report_page.from_npm()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm ci failed: {error.stderr.strip().splitlines()[-1:]}")
    assert uplot == report_page.from_page()


class _Elements(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_page_loads_nothing() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    elements = _Elements(text).elements
    assert not [attributes for _, attributes in elements if {"src", "href"} & set(attributes)]
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and re.sub(r"'sha256-[\w+/=]+'", "HASH", policy) == (
        "default-src 'none'; script-src HASH HASH; style-src HASH; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\(|@import|\.innerHTML|insertAdjacent|document\.write|\beval\b", text)
    assert len(text) < 100_000


def test_document_comes_back_as_it_was() -> None:
    hostile = "</script><!-- \u2028\u2029 \ud800 & \0"
    shown = {"title": hostile, "notes": [hostile]}
    assert page.document_of(page.render(shown)) == shown
    # Numbers that no page of ours has, and that no JSON can hold.
    odd = page.document_of(page.MARK.encode() + b'{"y":[1e999,-1e999,NaN,1.5]}</script>')
    assert odd == {"y": [None, None, None, 1.5]} and page.document_of(page.render(odd)) == odd
    for other in (
        b"",
        b"<html>",
        page.MARK.encode() + b"[",
        page.MARK.encode() + b"[1]</script>",
        b"x" * (5 << 20),
    ):
        assert page.document_of(other) is None


def test_page_stays_below_its_limit() -> None:
    image = {"name": "a", "data": "A" * (700 << 10)}
    shown = {"title": "x", "notes": [], "images": [image] * 4, "curves": [{"y": [1.5] * 100_000}] * 3}
    content = page.render(shown)
    assert len(content) <= page.MAX_PAGE
    kept = page.document_of(content)
    assert (
        kept and kept["images"] and len(kept["images"]) < 4 and "images are not all shown" in kept["notes"][0]
    )


def test_scalars_of_event_files_are_read() -> None:
    """The file was written by tensorboard 2.21: as PyTorch writes scalars, as TensorFlow does, and histograms."""
    with EVENTS.open("rb") as file:
        table = event_files.read(file, EVENTS.stat().st_size)
    assert table
    assert table.lines["Loss/train"] == [(step, pytest.approx(2 / (step + 1))) for step in range(5)]
    assert table.lines["epoch_accuracy"] == [(step, pytest.approx(0.2 * step)) for step in range(5)]
    assert set(table.lines) == {"Loss/train", "epoch_accuracy"}
    charts = document.build(document.JobRecords(result={}, tables=[("events", table)]))["curves"]
    assert [chart["title"] for chart in charts] == ["Loss", "Metrics"]


def test_page_of_the_longest_texts_stays_below_its_limit() -> None:
    """Each letter takes twelve bytes in the document."""
    long = "\U0001f600" * 100_000
    table = curves.Curves("epoch", {f"{n}{long[:58]}": [(x, x / 3) for x in range(3000)] for n in range(100)})
    size = images.ImageSize("png", 1, 1)
    manifest = {
        "arguments": [long] * 1000, "submitter": long, "resumed_from": long, "environment_variables": [long] * 100, "secrets": [long] * 100,
        "data": {long: long}, "repository": {"name": long, "commit": long}, "host": {"name": long, "os": long, "kernel": long},
        "environment": {"python": long, "packages": [f"torch=={long}"]}, "image": {"reference": long}, "gpus": [{"driver": long}],
    }  # fmt: skip
    result = {
        "exit_code": 4, "outcome": long, "model": long, "id": long, "reason": long, "hint": long, "detail": long, "signal": long,
        "remarks": [long] * 100, "metrics": {f"{n}{long}": n for n in range(200)}, "gpus": [{"name": long}], "seconds": {long: 1},
    }  # fmt: skip
    records = document.JobRecords(
        result=result, manifest=manifest, log=long.replace("\U0001f600" * 100, "\U0001f600" * 100 + "\n"),
        tables=[(long, table)] * 12, images=[(long, size, bytes(75_000))] * 12, notes=[long] * 20,
    )  # fmt: skip
    content = page.render(document.build(records))
    assert len(content) <= page.MAX_PAGE
    kept = page.document_of(content)
    assert kept and len(kept["facts"]) == 3 and kept["log"] and kept["metrics"]
