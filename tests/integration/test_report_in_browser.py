"""The report in a real browser: it is drawn, says nothing on the console, loads nothing, and runs nothing of a job.

With SCREENSHOTS=FOLDER it also writes what it sees: each report light, dark, on a phone and on paper.
"""

import importlib.resources
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from report_samples import HOSTILE, SAMPLES

from train_classifier.core.errors import TROUBLESHOOTING
from train_classifier.core.report import page as report_page

#: All in one process, which starts one browser.
pytestmark = pytest.mark.xdist_group("report_in_browser")
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
#: How many pixels of each chart have a colour: lines do, axes and grid are grey.
DRAWN = """() => [...document.querySelectorAll('.plot canvas')].map((canvas) => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    const [red, green, blue] = [pixels[at], pixels[at + 1], pixels[at + 2]];
    if (pixels[at + 3] > 100 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) count++;
  }
  return count;
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if not program:
        pytest.skip("no browser: apt-get install chromium-headless-shell")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(browser: Browser) -> Iterator["Pages"]:
    shown = Pages(browser)
    yield shown
    shown.context.close()


class Pages:
    """One tab, which shows reports and remembers what it said and asked for."""

    def __init__(self, browser: Browser) -> None:
        self.context = browser.new_context(viewport=DESK, color_scheme="light", offline=True)  # type: ignore[arg-type]
        self.tab: Page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", self._say)
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.tab.on("request", self._ask)

    def _say(self, message: ConsoleMessage) -> None:
        self.messages.append(message.text)

    def _ask(self, request: Request) -> None:
        if not request.url.startswith("data:image/"):
            self.requests.append(request.url)

    def show(self, document: dict[str, Any], folder: Path) -> Page:
        self.messages, self.requests = [], []
        path = folder / "report.html"
        path.write_bytes(report_page.render(document))
        self.tab.emulate_media(color_scheme="light")
        self.tab.set_viewport_size(DESK)  # type: ignore[arg-type]
        self.tab.goto(path.as_uri())
        return self.tab


@pytest.mark.parametrize("name", SAMPLES)
def test_report_is_drawn_and_accessible(name: str, pages: Pages, tmp_path: Path) -> None:
    document = SAMPLES[name]()
    tab = pages.show(document, tmp_path)
    assert tab.locator("h1").text_content() == document["title"] == tab.title()
    # Also where the lines of one kind take several charts.
    titles = [
        (chart.get("file"), chart["title"], chart["x"]) for chart in document["curves"] + document["usage"]
    ]
    assert len(titles) == len(set(titles)), titles
    counts = tab.evaluate(DRAWN)
    assert len(counts) == len(document["curves"]) + len(document["usage"])
    assert all(count > 30 for count in counts), counts
    # No chart is wider than its card, over which it would be drawn.
    assert tab.evaluate(
        "() => [...document.querySelectorAll('.uplot')].every((plot) => plot.offsetWidth <= plot.parentElement.offsetWidth)"
    )
    assert tab.locator("img").count() == len(document["images"])
    assert tab.evaluate(
        "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    )
    axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        photograph(tab, f"{name}-{scheme}")
        # By the debugger: the page's own policy allows no other script.
        tab.evaluate(axe)
        audit = tab.evaluate("() => axe.run()")
        assert audit["passes"]
        serious = [fault for fault in audit["violations"] if fault["impact"] in ("serious", "critical")]
        assert not serious, [(fault["id"], fault["nodes"][0]["html"][:300]) for fault in serious]
    tab.emulate_media(color_scheme="light")
    tab.set_viewport_size(PHONE)  # type: ignore[arg-type]
    tab.wait_for_function(
        "() => [...document.querySelectorAll('.uplot')].every((plot) => plot.offsetWidth <= 360)"
    )
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 360
    photograph(tab, f"{name}-phone")
    assert (pages.messages, pages.requests) == ([], [(tmp_path / "report.html").as_uri()])


def photograph(tab: Page, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        tab.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def test_text_of_a_job_runs_nothing(pages: Pages, tmp_path: Path) -> None:
    """Whatever stands in the data: also where a link, an image or a number is expected."""
    document = SAMPLES["failed"]()
    document["facts"].append(
        {"title": HOSTILE, "rows": [["Commit", {"link": "javascript:window.attacked=1", "text": HOSTILE}]]}
    )
    document["facts"][-1]["rows"].append(["Commit", {"link": "https://example.org/a/commit/1", "text": "1"}])
    document["images"] = [
        {"name": HOSTILE, "kind": "svg+xml", "data": "PHN2Zz4="},
        {"name": HOSTILE, "kind": "png", "data": 'x"onerror="window.attacked=1'},
    ]
    document["comparison"] = {
        "columns": [HOSTILE],
        "runs": [{"job": HOSTILE, "outcome": HOSTILE, "values": [HOSTILE]}],
    }
    document |= {"jobs": [HOSTILE], "different": [[HOSTILE, HOSTILE], HOSTILE], "same": [[HOSTILE, HOSTILE]]}
    tab = pages.show(document, tmp_path)
    assert tab.evaluate("() => window.attacked") is None
    assert tab.locator("img").count() == 0
    links = tab.locator("a").evaluate_all("links => links.map((link) => link.href)")
    commit = "https://github.com/octocat/classifiers/commit/0c7e5a5f1f4b" + "0" * 28
    assert links == [f"{TROUBLESHOOTING}failed", commit, "https://example.org/a/commit/1"]
    assert tab.locator("script").count() == 3
    # The policy holds for a script that gets into the page in any way.
    tab.evaluate(
        "() => { const node = document.createElement('script'); node.textContent = 'window.attacked = 1'; document.body.append(node); }"
    )
    assert tab.evaluate("() => window.attacked") is None
    assert "Content Security Policy" in "".join(pages.messages)


def test_chart_reacts(pages: Pages, tmp_path: Path) -> None:
    """A drag enlarges, a double click goes back, a name hides its line; paper gets charts of its own width."""
    tab = pages.show(SAMPLES["good"](), tmp_path)
    plot = tab.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".u-over").bounding_box()
    assert box
    before = plot.screenshot()
    tab.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 60, steps=3)
    tab.mouse.up()
    tab.mouse.move(5, 5)
    enlarged = plot.screenshot()
    assert enlarged != before
    plot.locator(".u-over").dblclick()
    tab.mouse.move(5, 5)
    assert plot.screenshot() == before
    plot.locator(".u-series .u-label", has_text="val_loss").click()
    assert plot.locator(".u-series.u-off").count() == 1
    tab.emulate_media(media="print")
    photograph(tab, "good-print")
    tab.emulate_media(media="screen")
    assert pages.messages == []


def test_compared_job_has_one_colour_in_all_charts(pages: Pages, tmp_path: Path) -> None:
    chart = {"x": "epoch", "y": "loss", "file": "", "note": "", "ends": [None, None]}
    lines = [
        {"name": job, "x": [0, 1], "y": [1.0, 0.5], "values": [1, 0, 1, 1, 0, 0.5]} for job in ("a", "b")
    ]
    document = SAMPLES["good"]() | {"jobs": ["a", "b"], "different": [["loss", "1", "2"]], "same": []}
    document["curves"] = [
        {**chart, "title": "of both", "lines": lines},
        {**chart, "title": "of b", "lines": lines[1:]},
    ]
    tab = pages.show(document, tmp_path)
    markers = tab.locator(".u-series", has_text="b").locator(".u-marker")
    colours = markers.evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).borderTopColor)")
    assert len(colours) == 2 and len(set(colours)) == 1
    assert pages.messages == []
