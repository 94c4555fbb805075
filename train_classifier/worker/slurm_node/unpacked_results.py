"""Results that a job leaves unpacked are copied into the shared folder if it has room: `fetch` packs them."""

import os
import signal
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import Cancelled, NotReady, TrainClassifierError
from train_classifier.core.text import show_bytes
from train_classifier.worker.slurm_node.publisher import Publisher
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import change_mark, make_folder
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account, Host


def bring(local: Job, shared: Job, account: Account, host: Host, publisher: Publisher) -> Optional[str]:
    """Copy the workspace into the shared folder; return why it stays on this node, None when it is there.

    A cancel or a signal ends the copy: it may be as large as this node's disk, and the job holds its cards.
    """
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    earlier_request = change_mark(local.cancel)

    def check() -> None:
        publisher.publish()
        if signals or publisher.is_superseded or change_mark(local.cancel) != earlier_request:
            raise Cancelled("the job was asked to end")

    try:
        _empty(shared.workspace, account)
        size = file_trees.disk_usage(account, local.workspace)
        file_system = os.statvfs(shared.dir)
        room = file_system.f_bavail * file_system.f_frsize - host.disk_floor_bytes
        if size > room:
            raise NotReady(
                f"they have {show_bytes(size)}, the shared folder has room for {show_bytes(max(room, 0))}"
            )
        file_trees.copy(account, local.workspace, shared.workspace, check)
    except TrainClassifierError as error:
        _empty(shared.workspace, account)
        return f"{error.reason}: {error.detail}" if error.detail else error.reason
    return None


def left_on_node(result: dict[str, Any], folder: Path, node: str, why: str) -> dict[str, Any]:
    """Return the result of a job whose unpacked results are not in the shared folder."""
    text = f"these results stay on {node}, in {folder} ({why})"
    hint = f"copy them from there; train-classifier clean --host {node} removes them"
    unpacked = {name: value for name, value in result.items() if name != "unpacked"}
    if not result["reason"]:
        return {**unpacked, "remarks": [*result.get("remarks", ()), f"{text}: {hint}"]}
    return {**unpacked, "reason": f"{result['reason']}; {text}", "hint": hint}


def _empty(folder: Path, account: Account) -> None:
    file_trees.remove(account, folder)
    make_folder(folder, 0o755)
