"""Kill -9 a process of ours on a test host at the moment a job is in a phase: killer.py JOBS PHASE VICTIM.

PHASE is one of the worker's, or one of the controller's: preflight, push, start, fetch. Runs inside the host (started
by `docker exec`), because only there is it quick enough. `controller` kills nothing: it only says when. Prints the pid
(0: nobody) once it struck; exit 1 if the phase did not come.
"""

import glob
import json
import os
import signal
import sys
import time


def processes(*words):
    """The pids whose command line has all words."""
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open("/proc/%s/cmdline" % name, "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if all(word in command for word in words) and "killer.py" not in command:
                pids.append(int(name))
    return pids


def rsync_workers(verb):
    """The worker's own process behind rsync: not the shell that started it, not rsync itself."""
    pids = []
    for pid in processes("/workers/", " %s " % verb, " -I "):
        try:
            with open("/proc/%d/cmdline" % pid, "rb") as file:
                program = file.read().partition(b"\0")[0]
        except OSError:
            continue
        if program.rpartition(b"/")[2].startswith(b"python"):
            pids.append(pid)
    return pids


def request_worker(jobs):
    """The worker that answers one request: it gets no arguments."""
    for pid in processes(os.path.dirname(jobs) + "/workers/", " -I "):
        try:
            with open("/proc/%d/cmdline" % pid, "rb") as file:
                words = file.read().rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        python = words[0].rpartition(b"/")[2].startswith(b"python")
        if python and words[-1].rpartition(b"/")[0].endswith(b"/workers"):
            return pid
    return None


def status(jobs):
    """The status of the newest job."""
    for path in sorted(glob.glob(jobs + "/*/status.json"))[-1:]:
        try:
            with open(path) as file:
                return json.load(file)
        except (OSError, ValueError):
            pass
    return {}


def phase_pid(jobs, phase):
    """The pid of the worker when the phase has come, else None."""
    if phase == "preflight":
        # The first thing that a run asks for.
        return request_worker(jobs)
    if phase == "start":
        return request_worker(jobs) if status(jobs).get("state") == "pushed" else None
    if phase == "push":
        return next(iter(rsync_workers("receive")), None)
    if phase == "fetch":
        return next(iter(rsync_workers("send")), None)
    current = status(jobs)
    if current.get("state") == "running" and current.get("phase") == phase and current.get("pid"):
        # Training has begun when the model has written to its log.
        log = "%s/%s/log.txt" % (jobs, current["id"])
        if phase != "training" or (os.path.exists(log) and os.path.getsize(log)):
            return current["pid"]
    return None


def main():
    jobs, phase, victim = sys.argv[1:]
    print("watching", flush=True)
    end = time.monotonic() + 240
    while time.monotonic() < end:
        pid = phase_pid(jobs, phase)
        if pid is not None:
            # A little into the phase, not at its first instruction; an answer takes less than the others.
            time.sleep(0.02 if phase == "start" else 0.05)
            victims = {
                "worker": [pid],
                "engine": processes("/usr/sbin/dockerd") or processes("dockerd"),
                "controller": [],
            }[victim]
            for number in victims:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            print(",".join(map(str, victims)) or "0", flush=True)
            return 0
        time.sleep(0.004)
    print("the phase did not come", flush=True)
    return 1


sys.exit(main())
