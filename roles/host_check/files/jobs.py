"""Print what runs on this host and must not be interrupted, as JSON. Runs as root by Python 3.9.

A worker's command line ends with its job's folder, from its start until the result is written: while it
builds, waits for a GPU, trains and packs; so does its stop hook's. What holds a job's lock or ticket open
counts, too, whatever it is called. So the kernel names the jobs of every account, wherever their state lies.
The engine adds containers whose worker is dead, and the process list what GitHub runners do.
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
#: What a worker has open (a root without CAP_SYS_PTRACE sees its own alone), and a word of its command line.
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


def processes_of_jobs():
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
        matches = [OPEN.search(path) for path in opened(process)] + [FOLDER.match(word) for word in words]
        jobs.update(next(filter(None, match.groups())) for match in matches if match)
    return jobs, listeners, engine


def containers():
    """Return the names of the jobs that containers of ours belong to, or their own. Raises OSError."""
    filters = urllib.parse.quote(json.dumps({"label": ["train-classifier=1"]}))
    connection = Engine("localhost", timeout=20)
    try:
        connection.request("GET", f"/containers/json?filters={filters}")
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(body.decode("utf-8", "replace").strip()[:200])
    return {
        item["Labels"].get("train-classifier.job") or f"the container {item['Names'][0].lstrip('/')}"
        for item in json.loads(body)
    }


def main():
    """Print jobs, listeners and the engine's problem."""
    jobs, listeners, engine = processes_of_jobs()
    problem = ""
    try:
        jobs |= containers()
    except OSError as error:
        # Without engine and shims there are no containers to ask for.
        problem = str(error) if engine else ""
    json.dump({"jobs": sorted(jobs), "listeners": sorted(listeners), "problem": problem}, sys.stdout)


if __name__ == "__main__":
    main()
