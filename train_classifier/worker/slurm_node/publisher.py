"""Publishes what a job writes on its node into the shared folder while it runs, and brings back a cancel."""

import contextlib
import os
import threading
import time
from typing import Any, Optional

from train_classifier.core.regular_file import open_regular
from train_classifier.worker.slurm import shared_folder
from train_classifier.worker.state.files import read_json, write_bytes, write_json
from train_classifier.worker.state.store import Job

#: Seconds between two looks at the local log and status.
LOCAL_S = 0.1
#: Seconds between two looks at the shared folder, each a request to its server.
SHARED_S = 1.0
#: Seconds between two signs of life.
ALIVE_S = 10.0
BLOCK = 1 << 20


class Publisher(threading.Thread):
    """Copies log and status of a job from this node; a shared folder that fails is tried again."""

    def __init__(self, local: Job, shared: Job, own: dict[str, Any], requests: Optional[Job] = None) -> None:
        super().__init__(name="publisher", daemon=True)
        self.local = local
        self.shared = shared
        #: Its folder has the stop file.
        self.requests = requests or shared
        #: Fields of status.json that differ in the shared folder.
        self.own = own
        #: Why publishing failed the last time; None when it worked.
        self.problem: Optional[OSError] = None
        #: The submit host has ended the job: Slurm told it that this node or this worker is lost.
        self.is_superseded = False
        self._version: Optional[int] = None
        self._lease: Optional[int] = None
        self._stop_request: Optional[tuple[bytes, int]] = None
        self._next_look = self._next_sign = float("-inf")
        self._ending = threading.Event()

    def run(self) -> None:
        """Publish until `finish`."""
        while not self._ending.wait(LOCAL_S):
            self.publish()

    def finish(self) -> None:
        """Stop the thread; the caller publishes the rest."""
        self._ending.set()
        if self.is_alive():
            self.join()

    def publish(self) -> bool:
        """Publish what is new; False when the shared folder cannot be written now."""
        try:
            self._look()
            if not self.is_superseded:
                self._copy_log()
                self._copy_status()
        except OSError as error:
            self.problem = error
            return False
        self.problem = None
        return True

    def _copy_log(self) -> None:
        try:
            source = open_regular(self.local.log)
        except FileNotFoundError:
            return
        with open(source, "rb", buffering=0) as log:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            size = os.fstat(log.fileno()).st_size
            target = os.open(self.shared.log, flags, 0o600) if size else -1
            if target < 0:
                return
            try:
                # An interrupted write may have left a part of a block.
                done = os.fstat(target).st_size
                log.seek(done)
                while done < size:
                    block = log.read(min(BLOCK, size - done))
                    if not block:
                        return
                    done += os.pwrite(target, block, done)
                    log.seek(done)
            finally:
                os.close(target)

    def _copy_status(self) -> None:
        status = read_json(self.local.dir / "status.json")
        # The state `finished` comes last, when results are there.
        if not status or status["version"] == self._version or status["state"] == "finished":
            return
        write_json(self.shared.dir / "status.json", {**status, **self.own})
        self._version = status["version"]

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._next_sign:
            self._next_sign = now + ALIVE_S
            write_json(self.shared.dir / shared_folder.ALIVE_FILE, {"time": time.time()})
        if now < self._next_look:
            return
        self._next_look = now + SHARED_S
        request = shared_folder.stop_request(self.requests)
        # A second one stops the packing that follows the first.
        if request is not None and request != self._stop_request:
            self._stop_request = request
            write_bytes(self.local.cancel, request[0])
        if os.path.lexists(self.shared.dir / "result.json"):
            self.is_superseded = True
            if not self.local.cancel.exists():
                write_bytes(self.local.cancel, b"the submit host, for which this job is lost")
        self._copy_lease()

    def _copy_lease(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            descriptor = open_regular(self.shared.lease)
            try:
                mark = os.fstat(descriptor).st_mtime_ns
            finally:
                os.close(descriptor)
            if mark != self._lease:
                self._lease = mark
                os.utime(self.local.lease)
