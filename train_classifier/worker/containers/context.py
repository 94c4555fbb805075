"""The context object of every step of a job; a check of the host has a context without a job."""

import dataclasses
import os
from typing import Any, Callable, Optional

from train_classifier.core.text import hide_logins, printable, short
from train_classifier.worker.containers import engine
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import host_faults
from train_classifier.worker.system.host import Host

#: Most characters of a note.
MOST_CHARACTERS = 1000


@dataclasses.dataclass(frozen=True)
class Context:
    """The engine, the host, its state folder, and the job that a step works for."""

    #: A docker.DockerClient.
    client: Any
    host: Host
    store: Store
    #: None for a check of the host.
    job: Optional[Job] = None
    #: Receives a line that describes the current work.
    say: Callable[[str], None] = lambda _: None
    #: Called during a wait; raises the error that ends the job.
    check_cancel: Callable[[], None] = lambda: None

    def note(self, text: str) -> None:
        """Say something that a person should not miss: it stays in the job's status, as one line."""
        # It may quote what a build printed, and each answer to a follower has all notes.
        text = short(printable(hide_logins(" ".join(text.split()))), MOST_CHARACTERS)
        if self.job:
            with host_faults.ignore_disk_errors():
                self.job.add_note(text)
        self.say(text)

    def labels(self, kind: str, gpus: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the labels of a container or an image of this kind (engine.labels)."""
        job, folder = (self.job.id, str(self.job.dir)) if self.job else ("", "")
        return engine.labels(kind, job=job, uid=os.geteuid(), folder=folder, gpus=gpus)
