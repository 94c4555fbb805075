"""Say what runs on this host and must not be cut, as JSON; as root, changing nothing. Python 3.9.

A worker holds its job's lock, and its ticket, open from its start until the result is written: while it
builds, waits for a GPU, trains and packs. So the kernel names the jobs of every account, wherever their state
lies. The engine adds containers whose worker is dead, and the process list what GitHub runners do.
"""

import http.client
import json
import re
import socket
import sys
import urllib.parse
from pathlib import Path

SOCKET = "/var/run/docker.sock"
ID = r"(\d{8}-\d{6}-[0-9a-f]{8})"
#: What a worker has open, and what its command line ends with (also before it has opened anything).
OPEN = re.compile(rf"/(?:jobs/{ID}/lock|queue/\d+-{ID}\.json)\Z")
FOLDER = re.compile(rf"/.*/jobs/{ID}\Z")
RUNNER = re.compile(r"/(github-runner@[^/\n]+)\.service")


class Engine(http.client.HTTPConnection):
    """HTTP over the engine's socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def text(path):
    """Return a file of /proc; empty when its process has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processes():
    """Yield the folder in /proc and the command line of each process but kernel threads."""
    for process in Path("/proc").glob("[0-9]*"):
        words = text(process / "cmdline").split("\0")[:-1]
        if words:
            yield process, words


def opened(process):
    """Yield what a process has open."""
    try:
        files = list((process / "fd").iterdir())
    except OSError:
        return
    for file in files:
        try:
            yield str(file.readlink())
        except OSError:
            continue


def look():
    """Return jobs, the listeners of our runners, and whether processes say that the engine has containers."""
    jobs, listeners, engine = set(), set(), False
    for process, words in processes():
        program = [Path(word).name for word in words[:2]]
        if program[0] == "dockerd" or (program[0].startswith("containerd-shim") and "moby" in words):
            engine = True
        unit = RUNNER.search(text(process / "cgroup")) if "Runner." in "".join(program) else None
        if "Runner.Worker" in program:
            jobs.add(f"a workflow job of {unit[1] if unit else 'a GitHub runner'}")
        elif "Runner.Listener" in program and unit:
            listeners.add(unit[1])
        found = [OPEN.search(path) for path in opened(process)] + [FOLDER.match(word) for word in words]
        jobs.update(next(filter(None, match.groups())) for match in found if match)
    return jobs, listeners, engine


def containers():
    """Return the names of the jobs that containers of ours belong to, or their own. Raises OSError."""
    wanted = urllib.parse.quote(json.dumps({"label": ["train-classifier=1"]}))
    connection = Engine("localhost", timeout=20)
    try:
        connection.request("GET", f"/containers/json?filters={wanted}")
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(body.decode("utf-8", "replace").strip()[:200])
    return {
        one["Labels"].get("train-classifier.job") or f"the container {one['Names'][0].lstrip('/')}"
        for one in json.loads(body)
    }


def main():
    """Look, and print."""
    jobs, listeners, engine = look()
    problem = ""
    try:
        jobs |= containers()
    except OSError as error:
        # Without engine and shims there are no containers to ask for.
        problem = str(error) if engine else ""
    json.dump({"jobs": sorted(jobs), "listeners": sorted(listeners), "problem": problem}, sys.stdout)


if __name__ == "__main__":
    main()
