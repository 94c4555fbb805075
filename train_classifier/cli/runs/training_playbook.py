"""The training playbook of one run, in its own thread."""

import contextlib
import json
import os
import queue
import signal
import threading
from pathlib import Path
from typing import Any, Protocol

from train_classifier.ansible_bridge import event_socket, playbook
from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.controller.temp_files import private_folder


class PlayListener(Protocol):
    """The receiver of the events of the playbook's steps: a Reporter that also answers questions."""

    def event(self, event: str, **fields: Any) -> None:
        """Take one event."""

    def log(self, data: bytes) -> None:
        """Take the next bytes of the log."""

    def answer(self, question: Any) -> Any:
        """Answer a step. The first step asks for the order; before that the host is not changed."""


class Play:
    """One run of playbooks/train.yml, and the socket that its steps connect to."""

    def __init__(self, listener: PlayListener, inbox: "queue.SimpleQueue[tuple[str, Any]]") -> None:
        """Make the folder. `inbox` gets ("done", Outcome) or ("crash", exception) at the playbook's end."""
        self._inbox = inbox
        self._cancelled = threading.Event()
        self._over = threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._folder = self._cleanup.enter_context(private_folder())
        #: The file from which the steps read the order.
        self.order_file = self._folder / "order.json"
        self.order_file.touch(0o600)
        self._sink = event_socket.Sink(self._folder / "sink", listener, listener.answer)
        self._thread: threading.Thread | None = None

    def start(self, inventory: str | None, limit: str | None) -> None:
        """Start the playbook in its own thread."""
        self._thread = threading.Thread(
            target=self._run, args=(inventory, limit), daemon=True, name="playbook"
        )
        self._thread.start()

    def end(self, patience: float) -> None:
        """Pass on the events that have arrived, kill a running playbook, and wait `patience` seconds."""
        over = self._over.is_set()
        self._sink.close(drain=over)
        if not over:
            self._cancelled.set()
            kill_playbook()
            if self._thread:
                self._thread.join(patience)
        self._cleanup.close()

    def _run(self, inventory: str | None, limit: str | None) -> None:
        folder = self._folder
        try:
            private = folder / "ansible"
            private.mkdir(mode=0o700)
            if inventory is None:
                inventory, limit = str(folder / "inventory.json"), None
                local = {"all": {"hosts": {inventories.THIS_MACHINE: {"ansible_connection": "local"}}}}
                Path(inventory).write_text(json.dumps(local))
            outcome = playbook.run(
                "train.yml",
                private,
                inventory=inventory,
                limit=limit,
                variables={
                    "training_job_host": "all",
                    "training_job_request_file": str(self.order_file),
                },
                # A file that no plugin can read is an error, not an empty inventory.
                environment={
                    event_socket.VARIABLE: str(folder / "sink"),
                    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
                    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
                    # Leftovers of a killed Ansible are removed with the folder of this run.
                    "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
                },
                cancelled=self._cancelled.is_set,
            )
            self._over.set()
            self._inbox.put(("done", outcome))
        except BaseException as error:
            self._over.set()
            self._inbox.put(("crash", error))


def kill_playbook() -> None:
    """Kill the playbook and all processes below it.

    They are stopped first: a process that is killed alone may leave a child that can no longer be found.
    """
    family: set[int] = set()
    while more := set(playbook_processes()) - family:
        for process in more:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        family |= more
    for process in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def playbook_processes() -> list[int]:
    """Return our children that run ansible-playbook, and all processes below them."""
    parents: dict[int, int] = {}
    named: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"ansible-playbook" in (entry / "cmdline").read_bytes():
                named.add(int(entry.name))
    processes = {process for process in named if parents.get(process) == os.getpid()}
    while more := {process for process, parent in parents.items() if parent in processes} - processes:
        processes |= more
    return sorted(processes)
