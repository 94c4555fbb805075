"""Print one table of every host's checks, and write it as JSON for machines."""

from __future__ import annotations

import json
import tempfile
import textwrap
from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

COLOURS = {
    "ok": "green",
    "warn": "bright yellow",
    "fail": "red",
    "not proven": "bright yellow",
    "skip": "cyan",
}
#: Columns that a message gets, however long the names before it are.
LEAST_MESSAGE = 30


class ActionModule(ActionBase):
    """`host_check_table: results={host: {rows, ready}} json=PATH`."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Print the table, write it as JSON, and count the ready hosts."""
        result = super().run(tmp, task_vars)
        results = self._task.args["results"]
        display = Display()
        lines = [("HOST", "CHECK", "STATUS", "MESSAGE")]
        for host, checks in results.items():
            lines += [(host, row["name"], row["status"], row["message"]) for row in checks["rows"]]
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        display.display("")
        for *cells, message in lines:
            start = "".join(cell.ljust(width) + "  " for cell, width in zip(cells, widths, strict=True))
            text = textwrap.fill(
                message,
                max(display.columns, len(start) + LEAST_MESSAGE),
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_long_words=False,
                break_on_hyphens=False,
            )
            display.display(text or start.rstrip(), color=COLOURS.get(cells[2]))
        for host, checks in results.items():
            for row in checks["rows"]:
                if row["status"] in ("fail", "warn") and row.get("hint"):
                    display.display(f"{host}: {row['name']}: {row['hint']}", color=COLOURS[row["status"]])
        ready = [host for host, one in results.items() if one["ready"]]
        display.display(f"{len(ready)} of {len(results)} hosts ready for training")
        report = {"schema": 1, "ready": len(ready) == len(results), "hosts": results}
        path = self._task.args.get("json")
        if path:
            target = Path(path).expanduser().absolute()
            with tempfile.NamedTemporaryFile(
                "w", dir=target.parent, prefix=f".{target.name}.", delete=False
            ) as file:
                json.dump(report, file, indent=2, sort_keys=True)
                file.write("\n")
            Path(file.name).chmod(0o644)
            Path(file.name).replace(target)
        result.update(changed=False, report=report)
        return result
