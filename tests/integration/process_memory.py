"""What the memory of the processes of a `loopback.world.World` grows to."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from loopback.world import World

#: Our own processes may not grow past this.
MOST_MEMORY = 200 << 20


class Memory:
    """Samples the peak memory of every process that belongs to a world: controller, ssh, rsync, worker.

    It also counts the event files of Ansible that there are at one time.
    """

    def __init__(self, world: World) -> None:
        self._folder = os.fsencode(str(world.folder))
        self._temp = world.temp
        #: Processes of before are no part of what the world starts.
        self._others = {path for path in Path("/proc").iterdir() if path.name.isdigit()}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        #: Command line to bytes.
        self.peaks: dict[str, int] = {}
        self.event_files = 0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            processes = {path for path in Path("/proc").iterdir() if path.name.isdigit()}
            # A number may be used again.
            self._others &= processes
            for entry in processes - self._others:
                # A process may end while it is looked at.
                with contextlib.suppress(OSError):
                    self._sample(entry)
            # Folders may be removed at the same time.
            with contextlib.suppress(OSError):
                self.event_files = max(self.event_files, len(list(self._temp.glob("**/job_events/*"))))

    def _sample(self, entry: Path) -> None:
        command = (entry / "cmdline").read_bytes()
        if self._folder not in command and self._folder not in (entry / "environ").read_bytes():
            return
        name = command.replace(b"\0", b" ").decode("utf-8", "replace")
        for line in (entry / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.peaks[name] = max(self.peaks.get(name, 0), int(line.split()[1]) << 10)

    def assert_flat(self) -> None:
        """No process of ours grew past the limit, and there was one to look at."""
        assert self.peaks, "no process was seen"
        assert not {name[:160]: peak >> 20 for name, peak in self.peaks.items() if peak > MOST_MEMORY}
