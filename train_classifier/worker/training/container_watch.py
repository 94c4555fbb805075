"""A running container: its end, as distinct from the engine's end, and signals to it."""

import dataclasses
import signal
import threading
import time
from typing import Any, Optional

from train_classifier.core.errors import Lost, TrainClassifierError
from train_classifier.worker.containers import engine, helper
from train_classifier.worker.containers.helper import KILLED_STATUS
from train_classifier.worker.system.cgroup import ControlGroup
from train_classifier.worker.training.container import explain

#: SIGKILL, SIGTERM, and the engine's own status for a container that it has lost.
STOPPED_STATUSES = (KILLED_STATUS, 143, 255)
#: Seconds that a signal waits for an unreachable engine; the loop that sends it has other checks to do.
SIGNAL_RETRY_S = 5.0


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a container ended."""

    status: int
    out_of_memory: bool
    #: The engine's own message, mostly empty.
    error: str
    #: Stopped by `docker stop` or an engine that shut down, not by this worker or by itself.
    from_outside: bool


class Running(threading.Thread):
    """A started container; its own thread waits for its end, also during restarts of the engine."""

    def __init__(self, container: Any) -> None:
        super().__init__(name="container", daemon=True)
        self.container = container
        self.group: Optional[ControlGroup] = None
        self.ended = threading.Event()
        self.engine_outage = threading.Event()
        self.engine_identity = engine.process_identity()
        #: Whether this worker sent a signal.
        self.signalled = False
        self.ending: Optional[Ending] = None
        self.failure: Optional[TrainClassifierError] = None

    def begin(self) -> None:
        """Start the container. Raises what `explain` returns, and Lost."""
        import docker.errors

        try:
            engine.retry(lambda: helper.start_once(self.container))
        except docker.errors.NotFound as error:
            raise Lost("the job's container was removed by somebody before it started") from error
        except docker.errors.APIError as error:
            raise explain(error) from error
        try:
            engine.retry(self.container.reload)
        except Exception as error:
            # The model runs already: the job is lost, as when the engine goes away later.
            if not engine.is_outage(error):
                raise
            raise Lost("the container engine went away", detail=str(error)) from error
        self.group = ControlGroup(int(self.container.attrs["State"].get("Pid") or 0))
        self.start()

    def run(self) -> None:
        """Wait for the end of the container: `ending` describes it, or `failure` is why it is unknown."""
        import docker.errors

        try:
            self.ending = self._watch()
        except docker.errors.NotFound:
            self.failure = Lost("the job's container vanished: somebody removed it, or the engine lost it")
        except Exception as error:
            self.failure = Lost("the container engine went away", detail=str(error))
        finally:
            self.ended.set()

    def _watch(self) -> Ending:
        import requests.exceptions

        while True:
            try:
                # The wait ends after the client's timeout: check the state, then wait again.
                self.container.wait(timeout=45)
            except requests.exceptions.ReadTimeout:
                pass
            except requests.exceptions.RequestException:
                # Another form of the timeout, or the engine is unreachable: the state below shows which.
                time.sleep(0.2)
            engine.retry(self.container.reload, on_outage=self.engine_outage.set)
            state = self.container.attrs["State"]
            if state["Status"] in ("exited", "dead"):
                outside = False
                unexpected = not state.get("OOMKilled") and not self.signalled
                if unexpected and state["ExitCode"] in STOPPED_STATUSES:
                    outside = self._was_stopped_from_outside()
                    if not outside:
                        state = helper.final_state(self.container, self.engine_outage.set)
                return Ending(
                    int(state["ExitCode"]),
                    bool(state.get("OOMKilled")),
                    str(state.get("Error") or ""),
                    outside,
                )

    def _was_stopped_from_outside(self) -> bool:
        """Tell whether the container was stopped from outside: by `docker stop`, or an engine shutting down.

        The engine records each signal that it sends as an event, and loses the events when it restarts.
        """
        # In the past, so that the stream ends by itself; whole seconds would lose the latest events.
        now = f"{time.time():.9f}"
        filters = {"container": self.container.id, "event": "kill"}
        client = self.container.client
        events = engine.retry(
            lambda: list(client.events(since=1, until=now, filters=filters, decode=True)),
            on_outage=self.engine_outage.set,
        )
        if engine.process_identity() != self.engine_identity:
            self.engine_outage.set()
        return bool(events) or self.engine_outage.is_set()

    def send(self, name: str, limit_s: float = SIGNAL_RETRY_S) -> bool:
        """Send a signal, and tell whether it arrived; a container that has ended meanwhile is fine.

        False: the engine is unreachable. Only the watching thread reports its end, never a failed signal.
        """
        import docker.errors

        self.signalled = True
        try:
            engine.retry(lambda: self.container.kill(signal=name), limit_s=limit_s)
        except docker.errors.APIError as error:
            # 404: gone; 409: not running any more.
            return error.status_code in (404, 409)
        except Exception as error:
            if not engine.is_outage(error):
                raise
            return False
        return True


def signal_of(status: int) -> Optional[str]:
    """Return the name of the signal of an exit status over 128; None if there is no such signal."""
    try:
        return signal.Signals(status - 128).name
    except ValueError:
        return None
