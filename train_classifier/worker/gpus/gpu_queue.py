"""The host-wide queue for GPUs: jobs of all users get GPUs in order of submission.

The first ticket that needs GPUs waits until it can get all of them. A ticket whose job is still being
prepared is skipped after 30 s, so that a slow build does not leave a GPU idle.
"""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core.errors import NoGpu, NotReady, TimedOut
from train_classifier.core.locks import try_lock
from train_classifier.core.options import show_option
from train_classifier.core.text import show_seconds
from train_classifier.worker.containers import engine
from train_classifier.worker.gpus import devices
from train_classifier.worker.gpus.devices import Discovery, Gpu
from train_classifier.worker.gpus.tickets import (
    TICKET,
    InvalidFile,
    QueueEntry,
    create_file,
    live_and_dead,
    locked,
    next_number,
    open_ticket,
    read_ticket,
    write_ticket,
)
from train_classifier.worker.system.host import Host, account_name, boot_id, uptime

#: Seconds after which a job that is still preparing is skipped.
PREPARING_S = 30.0
#: Seconds for which another process may use the memory of a GPU that is free in the queue: the memory of a
#: killed job is released with a delay.
FOREIGN_USE_S = 20.0
POLL_S = 0.25
#: Seconds between two calls of nvidia-smi.
LOOK_S = 2.0


def enqueue(
    folder: Path, *, job: str, model: str, directory: Path, want: int, min_vram_mib: Optional[int]
) -> Path:
    """Create and return the ticket of a job that is being submitted; its worker claims it within 30 s.

    Raises NotReady when the queue's folder is missing or closed to this user.
    """
    uid = os.geteuid()
    with locked(folder):
        number = next_number(folder)
        path = folder / f"{number:012d}-{job}.json"
        entry = QueueEntry(
            path=path, number=number, job=job, model=model, user=account_name(uid), uid=uid,
            dir=str(directory), want=want, min_vram_mib=min_vram_mib, state="new", gpus=[],
            since=time.time(), since_boot=uptime(), boot=boot_id(),
        )  # fmt: skip
        try:
            descriptor = create_file(path)
        except OSError as error:
            raise NotReady(f"no ticket can be made in the queue {folder}: {error.strerror}") from error
        try:
            write_ticket(descriptor, entry)
        finally:
            os.close(descriptor)
    return path


def remove_ticket(folder: Path, job: str) -> None:
    """Remove a job's ticket that no process holds: its submission failed, or its worker is dead.

    The caller must remove the job's container before. A held ticket stays.
    """
    if not folder.is_dir():
        return
    with locked(folder):
        live, dead = live_and_dead(folder)
        for entry in (*dead, *(entry for entry in live if entry.state == "new")):
            # Another user's ticket may name any job.
            if entry.job == job and os.geteuid() in (0, entry.uid):
                entry.path.unlink(missing_ok=True)


def snapshot(folder: Path) -> list[QueueEntry]:
    """Return the live tickets in order. Raises NotReady when the queue cannot be used."""
    with locked(folder):
        return live_and_dead(folder)[0]


class Ticket:
    """The worker's own place in the queue, held until `release` or the end of the process."""

    def __init__(self, folder: Path, descriptor: int, entry: QueueEntry) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._entry = entry
        self.gpus: tuple[Gpu, ...] = ()

    @classmethod
    def claim(cls, folder: Path, job: str) -> "Ticket":
        """Claim the ticket that `enqueue` created, as the job's worker; the job is preparing from now on.

        Raises NotReady when it is gone: the worker was so late that the ticket counted as dead.
        """
        with locked(folder):
            for name in sorted(os.listdir(folder)):
                match = TICKET.match(name)
                if not match or match[2] != job:
                    continue
                path = folder / name
                try:
                    descriptor = open_ticket(path, os.O_RDWR)
                except (FileNotFoundError, InvalidFile):
                    continue
                if os.fstat(descriptor).st_uid != os.geteuid():
                    # Any user of Docker can create a file of this name.
                    os.close(descriptor)
                    continue
                entry = None
                with contextlib.suppress(InvalidFile):
                    entry = read_ticket(path, descriptor)
                if entry is None or not try_lock(descriptor):
                    os.close(descriptor)
                    raise NotReady(f"the ticket {path} of job {job} is held by another process or damaged")
                ticket = cls(folder, descriptor, entry)
                ticket._change("preparing")
                return ticket
        raise NotReady(f"job {job} has lost its place in the queue {folder}", "start the job again")

    @property
    def entry(self) -> QueueEntry:
        """Return the data of the ticket, as other processes read it."""
        return self._entry

    def _change(self, state: str, gpus: tuple[str, ...] = ()) -> None:
        entry = dataclasses.replace(
            self._entry, state=state, gpus=list(gpus), since=time.time(), since_boot=uptime(), boot=boot_id()
        )
        write_ticket(self._descriptor, entry)
        self._entry = entry

    def wait(
        self,
        client: Any,
        host: Host,
        limit_s: Optional[float],
        say: Callable[[str], None],
        check_cancel: Callable[[], None],
    ) -> tuple[Gpu, ...]:
        """Wait for this job's turn and its GPUs, and return them; the job has them until `release`.

        Raises TimedOut after `limit_s` seconds, NoGpu when the host cannot provide the GPUs.
        """
        with locked(self._folder, check_cancel):
            self._change("waiting")
        turn = _Turn(self, client, host)
        began = uptime()
        reported = ""
        query = True
        while True:
            check_cancel()
            # Engine and driver may answer slowly: query them never under the lock, and only when needed.
            if query:
                turn.refresh()
            with locked(self._folder, check_cancel):
                reading = turn.read_queue(fresh=query)
                if reading.granted:
                    self._change("granted", tuple(card.uuid for card in reading.granted))
            turn.clean(reading.dead)
            if reading.granted:
                self.gpus = reading.granted
                return reading.granted
            if reading.query and not query:
                query = True
                continue
            query, message = reading.query, reading.message
            if message != reported:
                reported = message
                say(message)
            if limit_s is not None and uptime() - began >= limit_s:
                raise TimedOut(
                    f"waited {show_seconds(limit_s)} for a GPU",
                    f"wait longer with {show_option('wait')}, or ask for fewer GPUs",
                    message,
                )
            time.sleep(POLL_S)

    def release(self) -> None:
        """Leave the queue; the job's container must be gone. Harmless when called twice."""
        if self._descriptor < 0:
            return
        try:
            with locked(self._folder):
                self._entry.path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclasses.dataclass(frozen=True)
class _Reading:
    """The result of one reading of the queue."""

    #: The GPUs that this job has from now on.
    granted: tuple[Gpu, ...] = ()
    #: Without GPUs: what the job waits for.
    message: str = ""
    #: Tickets of dead holders, whose containers are to be removed.
    dead: tuple[QueueEntry, ...] = ()
    #: The tickets show that it is this job's turn: query driver and engine before the next reading.
    query: bool = False


class _Turn:
    """The state of one waiting job between two readings of the queue."""

    def __init__(self, ticket: Ticket, client: Any, host: Host) -> None:
        self.ticket = ticket
        self.client = client
        self.host = host
        self.discovery = Discovery()
        self.discovered = float("-inf")
        #: GPUs that running containers of this program use.
        self.container_cards: set[str] = set()
        self.foreign_use_since: Optional[float] = None

    def refresh(self) -> None:
        """Query driver and engine. A container that starts later has a live ticket with its GPUs."""
        if uptime() - self.discovered > LOOK_S:
            self.discovery = devices.discover(self.host)
            self.discovered = uptime()
        self.container_cards = self._cards_of_containers()

    def read_queue(self, fresh: bool) -> _Reading:
        """Read the queue, whose lock is held; `fresh`: driver and engine were queried just now."""
        own = self.ticket.entry
        live, dead = live_and_dead(self.ticket._folder, own.path)
        dead_with_gpus: tuple[QueueEntry, ...] = ()
        for entry in dead:
            if not entry.gpus:
                entry.path.unlink(missing_ok=True)
            else:
                dead_with_gpus += (entry,)
        before = [
            entry
            for entry in live
            if entry.path.name < own.path.name and entry.state != "granted" and entry.want > 0
        ]
        first = [entry for entry in before if not _is_skipped(entry)]
        granted = [entry for entry in live if entry.state == "granted"]
        if first:
            return _Reading(message=self._message(granted, first), dead=dead_with_gpus)
        devices.gpu_count(own.want, self.discovery)
        devices.require_vram(own.want, self.discovery, own.min_vram_mib)
        assigned = {uuid for entry in (*granted, *dead_with_gpus) for uuid in entry.gpus}
        free = [
            card
            for card in self.discovery.gpus
            if card.uuid not in assigned and devices.big_enough(card, own.min_vram_mib)
        ]
        if len(free) < own.want:
            self.foreign_use_since = None
            return _Reading(message=self._message(granted, []), dead=dead_with_gpus)
        if not fresh:
            return _Reading(dead=dead_with_gpus, query=True)
        free = [card for card in free if card.uuid not in self.container_cards]
        # Unused cards first.
        chosen = sorted(
            (card for card in free if devices.free_enough(card, own.min_vram_mib)),
            key=lambda card: (bool(card.busy_by), card.index),
        )[: own.want]
        if len(chosen) == own.want:
            return _Reading(granted=tuple(sorted(chosen, key=lambda card: card.index)), dead=dead_with_gpus)
        if len(free) >= own.want:
            message = self._memory_in_use(free, own.min_vram_mib or 0)
            return _Reading(message=message, dead=dead_with_gpus, query=True)
        self.foreign_use_since = None
        return _Reading(message=self._message(granted, []), dead=dead_with_gpus, query=True)

    def _cards_of_containers(self) -> set[str]:
        label = f"{engine.LABEL}.gpus"
        containers = engine.retry(
            lambda: self.client.containers.list(
                filters={"label": label, "status": "running"}, ignore_removed=True
            )
        )
        own_job = self.ticket.entry.job
        for container in filter(engine.is_leftover, containers):
            engine.remove(container)
        return {
            uuid
            for container in containers
            if container.labels.get(f"{engine.LABEL}.job") != own_job and not engine.is_leftover(container)
            for uuid in container.labels.get(label, "").split(",")
        }

    def _memory_in_use(self, free: list[Gpu], floor: int) -> str:
        """Return who uses the memory of a GPU that no job has; raise NoGpu when they use it for too long."""
        card = next(card for card in free if not devices.free_enough(card, floor))
        users = devices.show_users(card) or "a process that nvidia-smi does not name"
        sentence = (
            f"GPU {card.index} has {card.memory_free_mib} MiB free, {floor} are asked for; "
            f"it is used by {users}, which is no job of train-classifier"
        )
        self.foreign_use_since = self.foreign_use_since or uptime()
        if uptime() - self.foreign_use_since > FOREIGN_USE_S:
            raise NoGpu(sentence, f"stop that process, or ask for less with {show_option('min_vram')}")
        return sentence

    def _message(self, granted: list[QueueEntry], before: list[QueueEntry]) -> str:
        parts = [
            f"job {entry.job} ({entry.model}) of {entry.user} has it since {_hour(entry.since)}"
            for entry in granted
        ]
        if len(before) == 1:
            entry = before[0]
            parts.append(f"job {entry.job} ({entry.model}) of {entry.user} is before this one")
        elif before:
            parts.append(f"{len(before)} jobs are before this one")
        if not parts:
            parts.append("a container of a job that ended still holds it")
        return "waiting for a GPU: " + "; ".join(parts)

    def clean(self, dead: tuple[QueueEntry, ...]) -> None:
        """Remove the containers of dead holders, then their tickets."""
        for entry in dead:
            self._remove_containers(entry)
            with locked(self.ticket._folder):
                # Check again that it is dead: another process may have cleaned it meanwhile.
                _, still_dead = live_and_dead(self.ticket._folder, self.ticket.entry.path)
                if any(ticket.path == entry.path for ticket in still_dead):
                    entry.path.unlink(missing_ok=True)

    def _remove_containers(self, entry: QueueEntry) -> None:
        """Remove a dead job's containers that have its GPUs; a ticket may name a job that is running."""
        if any(ticket.job == entry.job for ticket in snapshot(self.ticket._folder)):
            return
        label = {"label": f"{engine.LABEL}.job={entry.job}"}
        containers = engine.retry(
            lambda: self.client.containers.list(all=True, filters=label, ignore_removed=True)
        )
        for container in containers:
            if set(entry.gpus) & set(container.labels.get(f"{engine.LABEL}.gpus", "").split(",")):
                engine.remove(container)


def _is_skipped(entry: QueueEntry) -> bool:
    return entry.state in ("new", "preparing") and entry.age() > PREPARING_S


def _hour(seconds: float) -> str:
    return time.strftime("%H:%M", time.localtime(seconds))


def jobs_of_gpus(folder: Path, discovery: Discovery) -> dict[str, str]:
    """Return the job that has each GPU, by UUID, for people."""
    return {
        uuid: f"job {entry.job} ({entry.model}) of {entry.user} since {_hour(entry.since)}"
        for entry in snapshot(folder)
        if entry.state == "granted"
        for uuid in entry.gpus
        if any(card.uuid == uuid for card in discovery.gpus)
    }
