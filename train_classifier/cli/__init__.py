"""The command line: the only place that prints and exits."""

import sys


def main() -> None:
    """Run the command and exit with its code."""
    from train_classifier.cli.app import run

    sys.exit(run(sys.argv[1:]))
