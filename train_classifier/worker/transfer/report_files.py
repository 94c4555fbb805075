"""The report of a job: what the packer takes for it from the results, and the page report.html.

A model wrote these files: they are read within limits of bytes, files and time, and shown only as numbers and
as images whose content was checked.
"""

import heapq
import io
import os
import stat
import time
from typing import Any, BinaryIO, Optional

from train_classifier.core.report import curves, document, images, page
from train_classifier.core.report.curves import Curves
from train_classifier.core.report.document import JobRecords
from train_classifier.core.text import show_bytes
from train_classifier.worker.transfer.artefacts import Artefact

#: Seconds of processor time for reading what a report shows: neither packing nor a busy host takes from them.
MAX_SECONDS = 3.0
#: Most files of each kind that are shown, and that are opened at all.
MAX_TABLES, MAX_IMAGES, MAX_OPENED = 12, 12, 200
#: Bytes of all images, before they are encoded.
MAX_IMAGE_BYTES = 900 << 10
#: Bytes of a table in which its head must end, and of a file of JSON lines.
MAX_HEAD, MAX_JSON = 1 << 16, 8 << 20
MAX_LOG = 256 << 10
#: Names of images that people look for first.
FIRST = ("confusion", "matrix", "results", "curve", "roc", "sample", "pred")

TABLES = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
IMAGES = (".png", ".jpg", ".jpeg")


class ReportFiles:
    """Takes curves and images from the entries that are packed."""

    def __init__(self) -> None:
        self._seconds = 0.0
        #: When the entry was begun that is read now.
        self._since = 0.0
        self._opened = 0
        self._not_opened = 0
        self._tables: list[tuple[str, Curves]] = []
        #: Of all images the best: rank, name, size and content.
        self._images: list[tuple[int, int, str, images.ImageSize, bytes]] = []
        self._image_count = 0
        self.notes: list[str] = []

    def add(self, entry: Artefact) -> None:
        """Take what an entry has for the report. Never raises: without it the report shows less."""
        name = entry.path.lower()
        is_events = "tfevents" in os.path.basename(name)
        kinds = (*TABLES, *JSON_LINES, *IMAGES, "trainer_state.json")
        if not (is_events or name.endswith(kinds)) or not stat.S_ISREG(entry.stat.st_mode):
            return
        if not entry.stat.st_size:
            return
        if self._opened >= MAX_OPENED or self._seconds > MAX_SECONDS:
            self._not_opened += 1
            return
        self._opened += 1
        self._since = time.thread_time()
        try:
            with entry.open() as file:
                if name.endswith(IMAGES):
                    self._add_image(entry.path, file)
                else:
                    self._add_table(entry.path, file, is_events)
        except OSError:
            return
        finally:
            self._seconds += time.thread_time() - self._since

    def _is_late(self) -> bool:
        return self._seconds + time.thread_time() - self._since > MAX_SECONDS

    def _add_table(self, name: str, file: BinaryIO, is_events: bool) -> None:
        if len(self._tables) >= MAX_TABLES:
            self.notes.append(f"the curves of {name} are not shown: there are more than {MAX_TABLES} files")
            return
        if is_events:
            # Few models leave one, and every import delays the end of a job.
            from train_classifier.core.report import event_files

            table = event_files.read(file, os.fstat(file.fileno()).st_size, self._is_late)
        elif name.lower().endswith(TABLES):
            table = self._csv(file)
        else:
            table = curves.from_json_lines(file.read(MAX_JSON).decode("utf-8", "replace"), self._is_late)
        if table is not None and any(len(points) > 1 for points in table.lines.values()):
            self._tables.append((name, table))
            return
        if name == "artefacts/history.csv":
            self.notes.append("history.csv has no curve: it needs a column epoch and at least two rows")

    def _csv(self, file: BinaryIO) -> Optional[Curves]:
        head = file.readline(MAX_HEAD)
        # Without an axis it is any table, which may be large.
        if curves.from_csv(head.decode("utf-8", "replace")) is None:
            return None
        file.seek(0)
        return curves.from_csv(curves.thinned(file, self._is_late).decode("utf-8", "replace"))

    def _add_image(self, name: str, file: BinaryIO) -> None:
        data = file.read(images.MAX_BYTES + 1)
        size = images.check(data)
        if size is None:
            if len(data) > images.MAX_BYTES:
                self.notes.append(f"{name} is not shown: it is larger than {show_bytes(images.MAX_BYTES)}")
            return
        self._image_count += 1
        base = os.path.basename(name).lower()
        rank = next((index for index, word in enumerate(FIRST) if word in base), len(FIRST))
        # The worst is the smallest: heapq removes that.
        heapq.heappush(self._images, (-rank, -self._image_count, name, size, data))
        if len(self._images) > MAX_IMAGES:
            heapq.heappop(self._images)

    def _chosen_images(self) -> list[tuple[str, images.ImageSize, bytes]]:
        chosen, space = [], MAX_IMAGE_BYTES
        for _, _, name, size, data in sorted(self._images, reverse=True):
            if len(data) <= space:
                space -= len(data)
                chosen.append((name, size, data))
        if len(chosen) < self._image_count:
            self.notes.append(f"{len(chosen)} of {self._image_count} images are shown")
        return chosen

    def page(self, result: dict[str, Any], manifest: dict[str, Any], log: BinaryIO, usage: BinaryIO) -> bytes:
        """Return report.html; the files are those of the job's records, from their beginning."""
        log_size = log.seek(0, os.SEEK_END)
        log.seek(max(log_size - MAX_LOG, 0))
        text = log.read(MAX_LOG).decode("utf-8", "replace")
        is_cut = log_size > MAX_LOG
        shown = self._chosen_images()
        if self._not_opened:
            self.notes.append(f"{self._not_opened} more tables and images are not shown")
        records = JobRecords(
            result=result,
            manifest=manifest,
            usage=curves.thinned(usage).decode("utf-8", "replace"),
            # The first line of a part is a part of a line.
            log=text.partition("\n")[2] if is_cut else text,
            log_is_cut=is_cut,
            # history.csv comes first, as the file that the documentation names.
            tables=sorted(self._tables, key=lambda table: table[0] != "artefacts/history.csv"),
            images=shown,
            notes=self.notes[:20],
        )
        return page.render(document.build(records))


def write(request: dict[str, Any], files: ReportFiles, manifest: dict[str, Any], notes: list[str]) -> None:
    """Write report.html into the descriptor `report` of the packer's request.

    `result` of the request is that of the job; what the packer decided, in `manifest`, takes precedence.
    """
    result = {**request["result"], **{key: manifest[key] for key in ("outcome", "exit_code", "metrics")}}
    if result["outcome"] != request["result"].get("outcome"):
        result["reason"] = "the model succeeded, but wrote nothing new into its folders of results"
    files.notes.extend(notes)
    records = request["records"]
    with _record(records.get("log.txt")) as log, _record(records.get("usage.csv")) as usage:
        content = files.page(result, manifest, log, usage)
    with open(os.dup(request["report"]), "wb") as file:
        file.write(content)


def _record(descriptor: Optional[int]) -> BinaryIO:
    if descriptor is None:
        return io.BytesIO()
    file = open(os.dup(descriptor), "rb")  # noqa: SIM115
    file.seek(0)
    return file
