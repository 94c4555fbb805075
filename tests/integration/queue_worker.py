"""What a worker does with the queue, as a process of its own for test_queue: waits, holds its GPUs, leaves."""

import json
import os
import sys
import time
from pathlib import Path

from train_classifier.worker.containers.engine import connect
from train_classifier.worker.gpus.gpu_queue import Ticket
from train_classifier.worker.system.host import Host


def work(folder: Path, job: str, marks: Path, hold: float) -> None:
    """Wait for the job's GPUs, hold them for `hold` seconds, leave."""
    ticket = Ticket.claim(folder, job)
    client = connect()
    cards = ticket.wait(
        client, Host.load(), None, lambda text: print(text, flush=True), check_cancel=lambda: None
    )
    for card in cards:
        # Fails when another process is on this GPU.
        os.close(os.open(marks / card.uuid, os.O_CREAT | os.O_EXCL))
    granted = {"job": job, "at": ticket.entry.since_boot, "number": ticket.entry.number}
    print("granted", json.dumps([card.uuid for card in cards]), flush=True)
    time.sleep(hold)
    for card in cards:
        (marks / card.uuid).unlink()
    ticket.release()
    with (marks / "order").open("a") as order:
        order.write(json.dumps(granted) + "\n")


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))
