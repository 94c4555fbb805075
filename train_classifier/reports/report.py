"""The report of a job that ended: facts, metrics, curves, the end of the log."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from train_classifier.core.errors import ExitCode
from train_classifier.core.job import in_order
from train_classifier.core.metrics import number
from train_classifier.core.text import SHORTEST_S, show_bytes, show_seconds, without_escapes
from train_classifier.reports import chart_data

#: Most metrics that are listed; metrics.json may hold any number.
MAX_METRICS = 100
#: Most lines of the log that are shown.
MAX_LINES = 200

SENTENCES = {
    ExitCode.TRAINED: "trained",
    ExitCode.BUG: "failed because of a bug in train-classifier",
    ExitCode.BAD_INPUT: "was refused",
    ExitCode.NOT_READY: "did not start: the host is not ready",
    ExitCode.FAILED: "failed",
    ExitCode.TIMED_OUT: "reached its time limit",
    ExitCode.CANCELLED: "was cancelled",
    ExitCode.NOTHING_DELIVERED: "trained, but delivered no artefacts",
    ExitCode.NO_GPU: "found no GPU",
    ExitCode.NO_ENVIRONMENT: "did not start: its environment could not be built",
    ExitCode.LOST: "was lost",
    ExitCode.OUT_OF_TOUCH: "may still run: the connection to its host is lost",
}


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
    def code(self) -> ExitCode:
        """How it ended."""
        try:
            return ExitCode(int(self.result["exit_code"]))
        except (KeyError, TypeError, ValueError):
            return ExitCode.BUG

    @property
    def succeeded(self) -> bool:
        """Whether the job succeeded."""
        return self.code is ExitCode.TRAINED

    def headline(self) -> str:
        """Return the outcome as one sentence without a full stop, the model's name in front."""
        return f"{self.result.get('model') or 'The job'} {SENTENCES[self.code]}"

    def facts(self) -> list[tuple[str, str]]:
        """Return the most important facts as label and value; unknown ones are left out."""
        result, manifest = self.result, self.manifest
        repository = _mapping(manifest.get("repository"))
        commit = str(repository.get("commit") or "")[:12]
        if commit and repository.get("dirty"):
            commit += " with changes"
        archive = _mapping(result.get("archive"))
        image = _mapping(result.get("image"))
        facts = [
            ("Model", str(result.get("model") or "")),
            ("Repository", " ".join(filter(None, (str(repository.get("name") or ""), commit)))),
            ("Job", str(result.get("id") or "")),
            ("Host", self.host or str(_mapping(manifest.get("host")).get("name") or "")),
            ("GPU", self._gpus()),
            ("Image", str(image.get("reference") or "")),
            ("Duration", self._durations()),
            ("Exit", self._exit()),
            ("Artefacts", show_bytes(archive["bytes"]) if _is_number(archive.get("bytes")) else "none"),
            ("SHA-256", str(archive.get("sha256") or "")),
            ("Left out", self._omissions()),
        ]
        return [(label, value) for label, value in facts if value]

    def _omissions(self) -> str:
        """Return what could not be delivered or read."""
        remarks = self.result.get("remarks")
        words = [str(remark) for remark in remarks] if isinstance(remarks, list) else []
        columns = chart_data.unreadable_columns(self.history)
        if columns:
            words.append(f"curves without a number: {', '.join(columns)}")
        return "; ".join(words)[:1000]

    def _gpus(self) -> str:
        value = self.result.get("gpus")
        gpus = [_mapping(gpu) for gpu in value] if isinstance(value, list) else []
        if not gpus:
            return "none, trained on the CPU" if self.succeeded else "none"
        names = [str(gpu.get("name") or gpu.get("uuid") or "GPU") for gpu in gpus]
        counted = ", ".join(
            f"{name} (\u00d7{names.count(name)})" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        )
        check = _mapping(self.result.get("gpu_check"))
        return counted if check.get("proven") else f"{counted} (framework: not proven)"

    def _durations(self) -> str:
        times = {**_mapping(self.result.get("seconds")), **self.seconds}
        phases = in_order({name: value for name, value in times.items() if _is_number(value) and value >= 0})
        parts = [f"{name} {show_seconds(value)}" for name, value in phases.items() if value >= SHORTEST_S]
        return f"{show_seconds(sum(phases.values()))}: {', '.join(parts)}" if parts else ""

    def _exit(self) -> str:
        words = [f"{int(self.code)} ({self.result.get('outcome') or 'unknown'})"]
        status, signal = self.result.get("training_exit_status"), self.result.get("signal")
        if status is not None and not self.succeeded:
            words.append(f"the model's exit status is {status}")
        if signal:
            words.append(f"killed by {signal}")
        memory = _mapping(self.result.get("out_of_memory"))
        if _is_number(memory.get("limit_bytes")):
            words.append(f"out of memory at {show_bytes(memory['limit_bytes'])}")
        return ", ".join(words)

    def failure_texts(self) -> list[str]:
        """Return reason, hint and detail of a job that did not end well."""
        if self.succeeded:
            return []
        parts = (str(self.result.get(key) or "") for key in ("reason", "hint", "detail"))
        return [part for part in parts if part.strip()]

    def metrics(self) -> list[tuple[str, str]]:
        """Return the final metrics as name and value."""
        metrics = _mapping(self.result.get("metrics")).items()
        rows = [(str(name)[:80], f"{value:.6g}") for name, value in metrics if _is_number(value)]
        return rows[:MAX_METRICS]

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
        for line in map(_clean, reversed(lines[-MAX_LINES:])):
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


def _clean(line: str) -> str:
    """Return a line as a terminal would show it, at most 2000 characters."""
    line = without_escapes(line).rstrip("\r").rpartition("\r")[2]
    line = "".join(letter if letter.isprintable() or letter == "\t" else "�" for letter in line)
    return line if len(line) <= 2000 else line[:2000] + "…"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return number(value) is not None
