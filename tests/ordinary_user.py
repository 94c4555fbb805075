"""Run a function as a user who is not root, which reads and writes everything."""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534
#: On a host that the roles prepared, only who may train reads its settings.
SETTINGS = Path("/var/lib/train-classifier/host.json")


def as_ordinary_user(act: Callable[[], list[str]]) -> list[str]:
    """Return what `act` returns in a child process without privileges; the parent's own user when it is not root.

    What `act` imports must be imported already: that user may not be able to read this interpreter's folders.
    """
    if os.geteuid():
        return act()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.setgroups([SETTINGS.stat().st_gid] if SETTINGS.exists() else [])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with os.fdopen(writer, "w") as answer:
                json.dump(act(), answer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with wait status {status}"
    result: list[str] = json.loads(text)
    return result
