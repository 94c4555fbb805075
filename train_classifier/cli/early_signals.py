"""Sends an interrupt again that Python has ignored."""

import _thread
import os
import signal
import sys
import time
from typing import Any


def resend_lost_interrupts() -> None:
    """Send a signal again if Python ignored its KeyboardInterrupt because it could not be raised there.

    A callback of a weak reference is such a place, and every import has some. The signal's number is the
    exception's argument; without one it is SIGINT.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        lost = unraisable.exc_value
        if not isinstance(lost, KeyboardInterrupt):
            before(unraisable)
            return
        number = lost.args[0] if lost.args else signal.SIGINT
        # In another thread, because this code still runs inside that callback.
        _thread.start_new_thread(_send, (number,))

    sys.unraisablehook = hook


def _send(number: int) -> None:
    time.sleep(0.01)
    os.kill(os.getpid(), number)
