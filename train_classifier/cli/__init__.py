"""The command line. Only the command line and the GitHub action print and exit."""

import os
import sys

from train_classifier.cli.early_signals import resend_lost_interrupts


def main() -> None:
    """Run the command and exit with its code."""
    _make_streams_usable()
    # pip takes the release candidate that Ubuntu 22.04 packages for 3.11.
    if sys.version_info < (3, 11, 0, "final"):
        print(
            "train-classifier needs Python 3.11 or newer, as released: this is", sys.version, file=sys.stderr
        )
        sys.exit(3)
    resend_lost_interrupts()
    try:
        from train_classifier.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # While modules are imported. As ExitCode.CANCELLED, whose import may be what was interrupted.
        code = 6
    sys.exit(code)


def _make_streams_usable() -> None:
    """Make the standard streams usable, regardless of how this process was started.

    The number of a closed stream would go to the next opened file, and the log would be written into that.
    A character that the encoding lacks is shown as a question mark.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
