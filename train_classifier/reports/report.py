"""The report of a job that ended: facts, metrics, curves, the end of the log."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from train_classifier.core.errors import ExitCode
from train_classifier.core.report import curves, document, facts, page
from train_classifier.core.report.log_end import clean_line
from train_classifier.core.text import show_bytes
from train_classifier.reports import chart_data

#: Most lines of the log that are shown.
MAX_LINES = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The files of a job, as they came from the host. All but the result may be missing."""

    #: result.json.
    result: Mapping[str, Any]
    #: manifest.json.
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: Texts of history.csv and usage.csv, and the last part of log.txt with secrets masked.
    history: str = ""
    usage: str = ""
    log: str = ""
    #: Whether the log is longer than that.
    log_is_cut: bool = False
    #: Seconds of the controller's own phases (push, fetch), beside those in the result.
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    #: Name of the host in the inventory, if it differs from that in the manifest.
    host: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the job succeeded."""
        return facts.exit_code(self.result) is ExitCode.TRAINED

    def headline(self) -> str:
        """Return the outcome as one sentence without a full stop, the model's name in front."""
        return facts.headline(self.result)

    def facts(self) -> list[tuple[str, str]]:
        """Return the most important facts as label and value; unknown ones are left out."""
        result, manifest = self.result, self.manifest
        archive = facts.mapping(result.get("archive"))
        size = archive.get("bytes")
        rows = [
            ("Model", str(result.get("model") or "")),
            ("Repository", facts.repository(manifest)),
            ("Job", str(result.get("id") or "")),
            ("Host", self.host or str(facts.mapping(manifest.get("host")).get("name") or "")),
            ("GPU", facts.gpus(result)),
            ("Image", str(facts.mapping(result.get("image")).get("reference") or "")),
            ("Duration", facts.durations(result, self.seconds)),
            ("Exit", facts.ending(result)),
            ("Artefacts", show_bytes(size) if size is not None and facts.is_number(size) else "none"),
            ("SHA-256", str(archive.get("sha256") or "")),
            ("Left out", self._omissions()),
        ]
        return [(label, value) for label, value in rows if value]

    def _omissions(self) -> str:
        """Return what could not be delivered or read."""
        words = facts.remarks(self.result)
        columns = curves.unreadable_columns(self.history)
        if columns:
            words.append(f"curves without a number: {', '.join(columns)}")
        return "; ".join(words)[:1000]

    def failure_texts(self) -> list[str]:
        """Return reason, hint and detail of a job that did not end well."""
        return facts.failure_texts(self.result)

    def metrics(self) -> list[tuple[str, str]]:
        """Return the final metrics as name and value."""
        return facts.metrics(self.result)

    def page(self) -> bytes:
        """Return the report as a page, of a job that has no archive with one."""
        table = curves.from_csv(self.history)
        records = document.JobRecords(
            result=self.result,
            manifest={"host": {"name": self.host}, **self.manifest},
            usage=self.usage,
            log=self.log,
            log_is_cut=self.log_is_cut,
            tables=[("artefacts/history.csv", table)] if table else [],
        )
        return page.render(document.build(records))

    @functools.cached_property
    def charts(self) -> list[chart_data.Chart]:
        """The learning curves, then what the job used."""
        return chart_data.history(self.history) + chart_data.usage(self.usage)

    def tail(self, max_bytes: int) -> str:
        """Return the log's last lines, without colours and control characters, in `max_bytes` of UTF-8.

        A first line says how many lines are left out before.
        """
        lines = self.log.replace("\r\n", "\n").rstrip("\n").split("\n")
        shown_lines: list[str] = []
        # Room for the line with the number of missing lines.
        space = max_bytes - 60
        for line in map(clean_line, reversed(lines[-MAX_LINES:])):
            space -= len(line.encode()) + 1
            if space < 0:
                break
            shown_lines.append(line)
        if not any(shown_lines):
            return ""
        missing = len(lines) - len(shown_lines)
        if self.log_is_cut:
            # The total number of lines is not known here.
            head = ["… earlier lines are in log.txt"]
        else:
            head = [f"… {missing} earlier line{'s' if missing > 1 else ''}, see log.txt"] if missing else []
        return "\n".join([*head, *reversed(shown_lines)])
