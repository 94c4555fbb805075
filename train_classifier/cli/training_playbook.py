"""The training playbook of one run, in its own thread: it starts while the request is still checked."""

import contextlib
import json
import os
import queue
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from train_classifier.ansible_bridge import event_socket, playbook
from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.controller.temp_files import private_folder
from train_classifier.core import regular_file
from train_classifier.core.errors import BadInput
from train_classifier.request import flags

#: Seconds to wait for the end of a killed Ansible.
GONE_S = 5.0


class Attendant(Protocol):
    """The receiver of the events of the playbook's steps: a Reporter that also answers questions."""

    def event(self, event: str, **fields: Any) -> None:
        """Take one event."""

    def log(self, data: bytes) -> None:
        """Take the next bytes of the log."""

    def answer(self, question: Any) -> Any:
        """Answer a step. The first step asks for the order; before that the host is not changed."""


class Play:
    """One run of playbooks/train.yml, and the socket that its steps connect to. A context manager.

    Ansible needs half a second until its first step, which asks for the order before it connects to the
    host. So it may be started before there is an order: its steps wait until `attend` is called.
    """

    def __init__(self) -> None:
        #: ("done", Outcome) or ("crash", exception) when the playbook ends; the attendant may post too.
        self.inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._for: tuple[str | None, str | None] | None = None
        self._attendant: Attendant | None = None
        self._attended = threading.Event()
        self._abandoned = threading.Event()
        self._over = threading.Event()
        self._held = contextlib.ExitStack()
        self._folder = Path()
        self._listener: event_socket.Sink | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Play":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def order_file(self) -> Path:
        """The file from which the steps read the order."""
        return self._folder / "order.json"

    def foresee(
        self,
        environ: Mapping[str, str],
        repo: str | None,
        inventory: str | None,
        host: str | None,
        own_settings: Path | None = None,
    ) -> None:
        """Start the playbook for the host that these flags seem to mean, if a quick check finds one."""
        host = host if host is not None else environ.get(flags.variable_of("host")) or None
        settings = b""
        try:
            where = inventories.source(inventory, environ, Path.cwd())
            repository = Path(repo or environ.get(flags.variable_of("repo")) or ".")
            for path in (repository / flags.SETTINGS_FILE, own_settings):
                with contextlib.suppress(FileNotFoundError):
                    settings += regular_file.read(path, flags.MOST_SETTINGS) if path else b""
        except (BadInput, OSError, ValueError):
            return
        # The settings may name the host, and a host without an inventory is an error: the full check decides.
        if (host is None and b"host" in settings) or (host is not None and where is None):
            return
        self.start(where, host)

    def start(self, inventory: str | None, limit: str | None) -> None:
        """Start the playbook, unless it already runs for the same inventory and limit."""
        if self._thread is not None:
            if self._for == (inventory, limit):
                return
            self.end()
            # Threads of the old playbook keep the old objects.
            self.inbox, self._attendant = queue.SimpleQueue(), None
            self._attended, self._abandoned, self._over = (threading.Event() for _ in range(3))
        self._for = inventory, limit
        self._folder = self._held.enter_context(private_folder())
        self.order_file.touch(0o600)
        self._listener = event_socket.Sink(self._folder / "sink", self, self.answer)
        self._thread = threading.Thread(
            target=self._play, args=(self.inbox, self._over, inventory, limit), daemon=True, name="playbook"
        )
        self._thread.start()

    def attend(self, attendant: Attendant) -> None:
        """Connect the steps to `attendant`; it also gets the events that are waiting."""
        self._attendant = attendant
        self._attended.set()

    def end(self, patience: float = GONE_S) -> None:
        """Pass on the events that have arrived, kill a running playbook, and wait `patience` seconds."""
        if self._thread is None:
            return
        over = self._over.is_set()
        if not over:
            self._abandoned.set()
            self._attended.set()
            kill_family("ansible-playbook")
            self._thread.join(patience)
        if self._listener is not None:
            self._listener.close(drain=over)
        self._held.close()
        self._thread = None

    # The sink's side: a Reporter that waits until `attend` is called.

    def event(self, event: str, **fields: Any) -> None:
        """Pass an event on."""
        self._heard().event(event, **fields)

    def log(self, data: bytes) -> None:
        """Pass log bytes on."""
        self._heard().log(data)

    def answer(self, question: Any) -> Any:
        """Pass a question on."""
        return self._heard().answer(question)

    def _heard(self) -> Attendant:
        self._attended.wait()
        if self._attendant is None or self._abandoned.is_set():
            raise ConnectionError("nobody attends to the playbook any more")
        return self._attendant

    def _play(
        self,
        inbox: "queue.SimpleQueue[tuple[str, Any]]",
        over: threading.Event,
        inventory: str | None,
        limit: str | None,
    ) -> None:
        folder, order = self._folder, self.order_file
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
                    "training_job_request_file": str(order),
                },
                # A file that no plugin can read is an error, not an empty inventory.
                environment={
                    event_socket.VARIABLE: str(folder / "sink"),
                    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
                    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
                    # Leftovers of a killed Ansible are removed with the folder of this run.
                    "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
                },
                cancelled=self._abandoned.is_set,
            )
            over.set()
            inbox.put(("done", outcome))
        except BaseException as error:
            over.set()
            inbox.put(("crash", error))


def kill_family(program: str) -> None:
    """Kill our children that run `program`, and all processes below them.

    They are stopped first: a process that is killed alone may leave a child that can no longer be found.
    """
    family: set[int] = set()
    while more := set(descendants(program)) - family:
        for process in more:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        family |= more
    for process in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def descendants(program: str) -> list[int]:
    """Return our children that run `program`, and all processes below them."""
    parents: dict[int, int] = {}
    named: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if program.encode() in (entry / "cmdline").read_bytes():
                named.add(int(entry.name))
    found = {process for process in named if parents.get(process) == os.getpid()}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)
