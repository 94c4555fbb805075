"""Start of the worker."""

import os
import sys


def _has_ended(folder: str) -> bool:
    """Tell whether a job's worker has ended it, as most do: then the stop hook of its unit needs no more."""
    import json

    from train_classifier.core import regular_file

    try:
        status = json.loads(regular_file.start(os.path.join(folder, "status.json"), 1 << 20))
        return bool(status["state"] == "finished")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def main() -> int:
    """Run the command that the arguments name; return the exit status."""
    # An account may have a stricter umask: containers and other accounts read what it makes.
    os.umask(0o022)
    command, *parameters = sys.argv[1:] or [""]
    # A part needs little of the worker: importing all of it takes longer than most parts do.
    if command == "part" and len(parameters) == 2 and parameters[1].isdigit():
        from train_classifier.worker.system import program

        return program.answer_call(parameters[0], int(parameters[1]))
    if command == "finish" and len(parameters) == 1 and _has_ended(parameters[0]):
        return 0
    from train_classifier.worker import api

    return api.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
