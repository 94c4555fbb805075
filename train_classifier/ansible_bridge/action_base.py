"""The base of the action plugins: the host of Ansible's connection, the order, and the reporter."""

import abc
import codecs
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from train_classifier.ansible_bridge import event_socket
from train_classifier.ansible_bridge.inventory import Target
from train_classifier.controller.events import Reporter
from train_classifier.controller.order import Order
from train_classifier.controller.temp_files import bug_error
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, NotReady, TrainClassifierError


class DisplayReporter:
    """Shows events and log through Ansible's Display, which prints at once, before the end of the task."""

    def __init__(self) -> None:
        self._display = Display()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last_line = ""
        self._last_message: str | None = None

    def event(self, event: str, **fields: Any) -> None:
        """Show the parts of an event that matter to a person."""
        if event == "message" and fields.get("level") == "warning":
            self._display.warning(fields["text"])
        elif event == "message":
            # A job's note is also its message at that time.
            self._last_message = fields["text"]
            self._display.display(fields["text"])
        elif event == "status" and fields.get("message") and fields["message"] != self._last_message:
            self._last_message = fields["message"]
            self._display.display(f"{fields.get('phase') or fields.get('state')}: {self._last_message}")
        elif event == "started":
            self._display.display(f"job {fields['id']} on {fields['host']}")
        elif event == "result":
            self.flush()
        elif event == "delivered":
            self._display.display(f"{fields['path']}: {fields['bytes']} bytes, sha256 {fields['sha256']}")

    def log(self, data: bytes) -> None:
        """Show whole lines of the log in chunks: one call for each of 200,000 lines would take a minute."""
        text = self._last_line + self._decoder.decode(data)
        lines, newline, self._last_line = text.rpartition("\n")
        if newline:
            self._display.display(lines)
        if len(self._last_line) > 1 << 16:
            self.flush()

    def flush(self) -> None:
        """Show the last line that has no newline yet."""
        if self._last_line:
            self._display.display(self._last_line)
            self._last_line = ""


class TrainingAction(ActionBase):  # type: ignore[misc]  # ansible is untyped
    """One step of the training run. A failure becomes the step's result, with this program's own message."""

    TRANSFERS_FILES = False
    _requires_connection = True
    _supports_check_mode = False

    @abc.abstractmethod
    def step(self, order: Order, host: RemoteHost, report: Reporter) -> dict[str, Any]:
        """Do the work; the return value becomes part of the task's result."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the step inside Ansible."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        path = os.environ.get(event_socket.VARIABLE)
        report: Reporter = DisplayReporter()
        try:
            if path:
                report = event_socket.SinkReporter(path)
            order = self.order(task_vars or {}, report)
            result.update({"changed": False, **self.step(order, self.host(order, task_vars or {}), report)})
        except TrainClassifierError as error:
            result.update(self._failure(error, report))
        except AnsibleError:
            raise
        except (BrokenPipeError, ConnectionError) as error:
            result.update({"failed": True, "msg": f"The train-classifier command has ended: {error}"})
        except Exception as error:
            result.update(self._failure(bug_error(error), report))
        return result

    def order(self, task_vars: Mapping[str, Any], report: Reporter) -> Order:
        """Return the order that preflight made, from its file (under the command line) or its text."""
        request = str(self._task.args["request"])
        return Order.from_json(Path(request).read_text() if request.startswith("/") else request)

    def host(self, order: Order | None, task_vars: Mapping[str, Any]) -> RemoteHost:
        """Return the host of Ansible's connection, reached exactly as Ansible would."""
        target = self.target(task_vars)
        return RemoteHost(
            target.name,
            None if target.local else target.ssh,
            python=(order.python if order else None) or target.python,
            state_dir=order.state_dir if order else target.state_dir,
            flags=order.flags if order else "",
        )

    def target(self, task_vars: Mapping[str, Any]) -> Target:
        """Return the host as Ansible reads it from the inventory. Raises NotReady for an unsupported one."""
        name = str(task_vars.get("inventory_hostname", "localhost"))
        kind = str(self._connection.transport).rpartition(".")[2]
        ssh: list[str] = []
        if kind == "ssh":
            connection = self._connection
            connection.host = connection.get_option("host") or self._play_context.remote_addr
            if connection.get_option("password") or self._play_context.password:
                raise NotReady(
                    f"{name} is reached with a password; train-classifier works with keys only.",
                    "Put a key on the host and remove ansible_password from the inventory.",
                )
            command = connection._build_command(
                connection.get_option("ssh_executable"), "ssh", connection.host
            )
            ssh = [os.fsdecode(word) for word in command]
        elif kind != "local":
            raise NotReady(
                f"{name} is reached by connection '{kind}'; train-classifier supports ssh and local.",
                "Set ansible_connection in the inventory to ssh or local.",
            )
        state_dir = self._templar.template(task_vars.get("training_job_state_dir"))
        return Target(
            name,
            local=kind == "local",
            ssh=ssh,
            state_dir=str(state_dir) if state_dir else None,
            python=self._python(task_vars),
        )

    def _python(self, task_vars: Mapping[str, Any]) -> str | None:
        python = self._templar.template(task_vars.get("ansible_python_interpreter"))
        # The implicit localhost sets the controller's own interpreter, which is not the host's.
        if not python or python == task_vars.get("ansible_playbook_python") or str(python).startswith("auto"):
            return None
        return str(python)

    def _failure(self, error: TrainClassifierError, report: Reporter) -> dict[str, Any]:
        fields = error.to_dict()
        if isinstance(report, event_socket.SinkReporter):
            # Without a listener, the task's result still holds the error.
            with contextlib.suppress(OSError):
                report.event("error", **fields)
        problems = error.problems if isinstance(error, BadInput) else [error.reason]
        parts = ["\n".join(problems), error.detail, f"→ {error.hint}" if error.hint else None, error.link]
        return {
            "failed": True,
            "msg": "\n".join(part for part in parts if part),
            "exit_code": int(error.code),
        }
