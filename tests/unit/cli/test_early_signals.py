"""An interrupt that Python could not raise is sent again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train_classifier
from train_classifier.core.errors import ExitCode

LOST = """
import signal, sys, time, weakref

from train_classifier.cli.early_signals import resend_lost_interrupts

def stop(number, frame):
    raise KeyboardInterrupt(number)

class Thing:
    pass

if {again}:
    resend_lost_interrupts()
if {ours}:
    signal.signal({number}, stop)
thing = Thing()
kept = weakref.ref(thing, lambda _: signal.raise_signal({number}))
try:
    del thing
    time.sleep({seconds})
    print("lost")
except KeyboardInterrupt as caught:
    print("caught", *map(int, caught.args))
"""


def run(**values: object) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", LOST.format(**values)], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_python_ignores_an_interrupt_that_it_cannot_raise() -> None:
    assert run(again=False, ours=True, number=2, seconds=0.3)[0] == "lost\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_lost_interrupt_is_sent_again(number: int) -> None:
    assert run(again=True, ours=True, number=int(number), seconds=60) == (f"caught {int(number)}\n", "")


def test_interrupt_of_pythons_own_handler_is_sent_again() -> None:
    assert run(again=True, ours=False, number=2, seconds=60) == ("caught\n", "")


def test_other_errors_are_reported_as_before() -> None:
    program = (
        "import weakref; from train_classifier.cli.early_signals import resend_lost_interrupts; resend_lost_interrupts()\n"
        "class Thing: pass\nthing = Thing(); kept = weakref.ref(thing, lambda _: 1 / 0); del thing"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in done.stderr


def test_interrupt_while_modules_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "rich_click.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "train_classifier", "list"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(train_classifier.__file__).parents[1]}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.CANCELLED, "", "")
