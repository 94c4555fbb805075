"""The report as one HTML page: it loads nothing, runs no script, and has a light and a dark style."""

from html import escape

from train_classifier.reports.chart_data import Chart
from train_classifier.reports.chart_drawing import COLOURS, svg
from train_classifier.reports.report import Report

#: Bytes of the log's tail.
MAX_LOG = 256 << 10

#: A browser loads and runs nothing, regardless of the content of names and the log.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1f2328; --soft: #59636e; --rule: #d1d9e0; --back: #ffffff; --card: #f6f8fa;
  --good: #1a7f37; --bad: #cf222e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6edf3; --soft: #9198a1; --rule: #3d444d; --back: #0d1117; --card: #151b23;
    --good: #3fb950; --bad: #f85149;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; color: var(--text); background: var(--back);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif;
}
h1 { font-size: 1.6rem; margin: 0 0 1.25rem; }
h1::before {
  content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .5em; border-radius: 50%;
  background: var(--bad);
}
h1.good::before { background: var(--good); }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
table { border-collapse: collapse; }
th, td { padding: .3rem 1.5rem .3rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--rule); }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; }
.reason { margin: 1.5rem 0; padding: 4px 1rem; background: var(--card); border-left: 4px solid var(--bad); }
.reason p { margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.charts {
  display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
}
figure, pre { padding: 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 6px; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; }
.mid { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: .5rem; }
.legend span::before {
  content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px;
  background: currentColor;
}
.legend b { font-weight: 400; color: var(--text); overflow-wrap: anywhere; }
pre {
  max-height: 40rem; overflow: auto;
  font: 12.5px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace;
}
"""


def render(report: Report) -> str:
    """Return the page as text, to be written as UTF-8."""
    colours = "".join(
        f".c{index} {{ stroke: {colour}; }} .k{index} {{ color: {colour}; }}\n"
        for index, colour in enumerate(COLOURS)
    )
    title = escape(report.headline())
    body = [f"<h1{' class=good' if report.succeeded else ''}>{title}</h1>"]
    failure = report.failure_texts()
    if failure:
        body.append(
            f'<div class="reason">{"".join(f"<p>{escape(part[:20000])}</p>" for part in failure)}</div>'
        )
    rows = "".join(
        f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in report.facts()
    )
    body.append(f"<table>{rows}</table>")
    metrics = report.metrics()
    if metrics:
        rows = "".join(
            f'<tr><th>{escape(name)}</th><td class="number">{escape(value)}</td></tr>'
            for name, value in metrics
        )
        body.append(f"<h2>Final metrics</h2><table>{rows}</table>")
    charts = report.charts
    if charts:
        body.append(f'<h2>Curves</h2><div class="charts">{"".join(map(_figure, charts))}</div>')
    tail = report.tail(MAX_LOG)
    if tail:
        body.append(f"<h2>End of the log</h2><pre>{escape(tail)}</pre>")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{colours}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    # File names may be invalid UTF-8, but the page must be valid.
    return page.encode("utf-8", "replace").decode()


def _figure(chart: Chart) -> str:
    names = "".join(
        f'<span class="k{index}"><b>{escape(series.name)}</b></span>'
        for index, series in enumerate(chart.series)
    )
    return (
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{svg(chart)}"
        f'<div class="legend">{names}</div></figure>'
    )
