"""The training: start the container, follow it to its end, stop it on request, and return its outcome."""

import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from train_classifier.core.errors import Lost, TimedOut, TrainClassifierError, TrainingFailed
from train_classifier.core.job import JobSpec
from train_classifier.core.options import show_option
from train_classifier.core.text import show_seconds
from train_classifier.worker.containers.helper import KILLED_STATUS
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.cgroup import Memory, host_kills
from train_classifier.worker.system.host import Account
from train_classifier.worker.training import container
from train_classifier.worker.training.container_watch import (
    SIGNAL_RETRY_S,
    Ending,
    Running,
    signal_of,
)
from train_classifier.worker.training.log import LogFile, Pump, make_fifo
from train_classifier.worker.training.stop_reasons import Watch
from train_classifier.worker.training.usage import Sampler

POLL_S = 0.1


class Training:
    """One run of the model; `facts` are the entries of result.json about its end; `note` adds a remark.

    `meanwhile` is called once, when the model runs: for what a worker that waits can do in advance.
    """

    def __init__(
        self,
        job: Job,
        spec: JobSpec,
        account: Account,
        watch: Watch,
        say: Callable[[str], None],
        note: Callable[[str], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.job = job
        self.account = account
        self.spec = spec
        self.watch = watch
        self.say = say
        self.note = note
        self.meanwhile = meanwhile
        self._idle_is_noted = False
        self.facts: dict[str, Any] = {}
        #: Number of the kernel's kills on the whole host when the model's own counters were last read.
        self._host_kills: Optional[int] = None

    def run(self, created: Any, secrets: Mapping[str, str], gpus: list[str], nvidia_smi: str) -> None:
        """Run a created container to its end.

        Raises TrainingFailed, TimedOut, Cancelled or Lost; returns when the model ended with status 0.
        """
        fifo = self.job.run / "out"
        make_fifo(fifo, self.account, 0o200)
        if secrets:
            make_fifo(self.job.run / "secrets", self.account, 0o400)
        hidden = [value.encode("utf-8", "surrogateescape") for value in secrets.values()]
        log = LogFile(self.job.log, self.spec.log_max_bytes)
        pump = Pump(fifo, log, hidden)
        pump.on_error = self._report_log_error
        pump.start()
        running = Running(created)
        self._host_kills = host_kills()
        sampler: Optional[Sampler] = None
        try:
            running.begin()
            if secrets:
                threading.Thread(
                    target=container.write_secrets,
                    args=(self.job.run / "secrets", secrets, running.ended),
                    daemon=True,
                ).start()
            assert running.group is not None
            sampler = Sampler(self.job.usage, running.group, gpus, nvidia_smi)
            sampler.start()
            self.meanwhile()
            stopped, memory = self._follow(running, pump, sampler)
        finally:
            if sampler is not None:
                sampler.stop()
            # After a failure the wait for the engine is over: a later command removes the container.
            if running.ending is None:
                running.send("KILL", limit_s=0.0 if running.failure is not None else SIGNAL_RETRY_S)
            pump.finish()
            log.close()
        self._raise_end(running, stopped, memory)

    def _report_log_error(self, error: OSError) -> None:
        self.say(f"the log cannot be written: {error.strerror or error}")

    def _follow(
        self, running: Running, pump: Pump, sampler: Sampler
    ) -> tuple[Optional[TrainClassifierError], Memory]:
        """Wait for the end; return why this worker stopped it, if it did, and the last memory counters."""
        assert running.group is not None
        began = time.monotonic()
        memory = Memory()
        stopped: Optional[TrainClassifierError] = None
        terminated = False
        kill_at: Optional[float] = None
        while True:
            ended = running.ended.wait(POLL_S)
            kills = host_kills()
            current = running.group.memory()
            if current.used is not None:
                self._host_kills = kills
            memory = Memory(current.used, current.peak, max(current.kills, memory.kills))
            if ended:
                return stopped, memory
            now = time.monotonic()
            if stopped is None:
                stopped = self._reason_to_stop(now - began, pump) or self._look_at_gpus(sampler)
                if stopped is not None:
                    self.say(f"stopping: {stopped.reason}")
            if stopped is not None and not terminated:
                # Repeated until it arrives, because the engine may be unreachable.
                terminated = running.send("TERM")
                kill_at = now + self.spec.grace_s
            elif kill_at is not None and now > kill_at:
                running.send("KILL")
                kill_at = now + 30

    def _reason_to_stop(self, elapsed: float, pump: Pump) -> Optional[TrainClassifierError]:
        if not pump.is_alive():
            # Without a reader of the FIFO, the model would block forever and keep its GPU.
            return TrainClassifierError(f"a bug in the worker: its log stopped: {pump.failure}", "report it")
        try:
            self.watch.check()
        except TrainClassifierError as cause:
            return cause
        limit = self.spec.timeout_s
        if limit is not None and elapsed > limit:
            return TimedOut(
                f"training was stopped after its time limit of {limit:g} s",
                f"raise {show_option('timeout')}, or go on from the checkpoints with {show_option('resume')}",
            )
        return None

    def _look_at_gpus(self, sampler: Sampler) -> Optional[TrainClassifierError]:
        """Report GPUs that the model does not use; return why the job is to end if it uses none for long."""
        idle = sampler.idle_s()
        limit, most = self.spec.idle_warning_s, self.spec.max_idle_s
        if limit is not None and not self._idle_is_noted:
            unused = [seconds for seconds in idle.values() if seconds >= limit]
            if unused:
                self._idle_is_noted = True
                cards = (
                    "its GPU" if len(sampler.gpus) == 1 else f"{len(unused)} of its {len(sampler.gpus)} GPUs"
                )
                self.note(f"the job has not used {cards} for {show_seconds(min(unused))}")
        if most is None or not idle or len(idle) < len(sampler.gpus) or min(idle.values()) < most:
            return None
        cards = "its GPU" if len(sampler.gpus) == 1 else "any of its GPUs"
        return TimedOut(
            f"the job was stopped because it had not used {cards} for {show_seconds(most)}",
            f"raise {show_option('max_idle')}, or train without a GPU: {show_option('gpus')} 0",
        )

    def _raise_end(self, running: Running, stopped: Optional[TrainClassifierError], memory: Memory) -> None:
        ending = running.ending
        if ending is not None:
            self.facts = {
                "training_exit_status": ending.status,
                "signal": signal_of(ending.status),
                "out_of_memory": self._out_of_memory(ending, memory, stopped is not None),
            }
        if stopped is not None:
            raise stopped
        if running.failure is not None:
            raise running.failure
        assert ending is not None
        if ending.status == 0:
            return
        if ending.from_outside:
            raise Lost(
                "the job's container was stopped from outside: the container engine was restarted, or "
                "somebody ran docker stop",
                "switch on live-restore in the engine's settings (role docker_engine does)",
            )
        raise self._failure(ending)

    def _out_of_memory(
        self, ending: Ending, memory: Memory, stopped: bool
    ) -> Optional[dict[str, Optional[int]]]:
        """Return limit and peak if, by its counters, the kernel killed the model for lack of memory."""
        limit, peak = self.spec.memory_bytes, memory.peak
        # If a model is killed at its limit, its counters may disappear with its group before they are read.
        probably = ending.status == KILLED_STATUS and limit is not None and self._killed_meanwhile()
        if not (ending.out_of_memory or memory.kills or (probably and not stopped)):
            return None
        # The kernel kills at the limit: the last bytes may have come between two readings.
        if limit is not None and (ending.out_of_memory or memory.kills):
            peak = limit
        return {"limit_bytes": limit, "peak_bytes": peak}

    def _killed_meanwhile(self) -> bool:
        """Tell whether the kernel killed a process on this host, of the model or not, for lack of memory."""
        return self._host_kills != host_kills()

    def _failure(self, ending: Ending) -> TrainingFailed:
        status, name = ending.status, self.facts["signal"]
        if self.facts["out_of_memory"]:
            usage = self.facts["out_of_memory"]
            limit, peak = usage["limit_bytes"], usage["peak_bytes"]
            predicate = "ran out of memory"
            if status == KILLED_STATUS and not ending.out_of_memory:
                predicate = "was killed, probably out of memory"
            return TrainingFailed(
                f"the model {predicate} (limit {_mib(limit)}, peak {_mib(peak)}): exit status {status}",
                f"raise {show_option('memory')}, or let the model use less",
            )
        if status == KILLED_STATUS:
            hint = "by itself or by somebody on the host; the kernel's counters show no lack of memory"
            if self._killed_meanwhile():
                hint = "by itself, by somebody, or by the kernel: some process of the host had no memory left"
            return TrainingFailed(
                f"the model was killed: exit status {status} ({name})", hint, ending.error or None
            )
        ended = f"the model ended with exit status {status}" + (f" ({name})" if name else "")
        return TrainingFailed(ended, "its last lines are in the log", ending.error or None)


def _mib(count: Optional[int]) -> str:
    return "none" if count is None else f"{count / (1 << 20):.0f} MiB"
