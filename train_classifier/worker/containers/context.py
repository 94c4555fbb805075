"""What every step of a job works with, in one object; a check of the host has one too, without a job."""

import dataclasses
import os
from typing import Any, Callable, Optional

from train_classifier.worker.containers import engine
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host


@dataclasses.dataclass(frozen=True)
class Context:
    """The engine, the host, its state folder, and for whom a step works."""

    #: A docker.DockerClient.
    client: Any
    host: Host
    store: Store
    #: None for a check of the host.
    job: Optional[Job] = None
    #: Gets a line that says what is being done.
    say: Callable[[str], None] = lambda _: None
    #: Called while something is waited for; raises what ends the job.
    check_cancel: Callable[[], None] = lambda: None

    def labels(self, kind: str, gpus: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the labels of a container or an image of this kind (engine.labels)."""
        job, folder = (self.job.id, str(self.job.dir)) if self.job else ("", "")
        return engine.labels(kind, job=job, uid=os.geteuid(), folder=folder, gpus=gpus)
