"""Write the metrics of train-classifier for Prometheus' node-exporter, by a timer. Python 3.9.

    collector.py COUNTERS METRICS

COUNTERS is the file of its counters, METRICS the one that node-exporter reads. Root alone
writes to their folders.

The jobs of an account lie in a folder of its own. A child that has become that account reads them, so that
root opens nothing there. A child that is nobody, in the group docker, reads the queue. What a child prints is
text of a stranger: bounded in time and size. Only known words, numbers and names of models become labels.
"""

import contextlib
import grp
import json
import math
import os
import pwd
import re
import select
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path("/var/lib/train-classifier")
JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}\Z")
TICKET = re.compile(r"[0-9]{12}-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}\.json\Z")
MODEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
UUID = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
OUTCOMES = (
    "trained", "bug", "bad-input", "not-ready", "failed", "timed-out", "cancelled", "nothing-delivered",
    "no-gpu", "no-environment", "lost", "out-of-touch",
)  # fmt: skip
PHASES = ("image", "packages", "environment", "queue", "gpu-check", "training", "artefacts")
TICKET_STATES = ("new", "preparing", "waiting", "granted")
#: What stands for everything that has no label of its own; no model has such a name.
OTHER = "(other)"

#: Most accounts, and most models of one account that have a label of their own.
MOST_ACCOUNTS = 200
MOST_MODELS = 20
#: Of one account: most jobs that are known, that are read, and that are counted in one run.
MOST_JOBS = 5_000
MOST_READ = 2_000
MOST_FINISHED = 500
MOST_TICKETS = 1_000
MOST_GPUS = 64
#: Bytes of a file of a job, and of what a child prints.
MOST_BYTES = 1 << 20
MOST_OUTPUT = 4 << 20
#: Bytes of our own counters.
MOST_COUNTERS = 64 << 20
#: Seconds that a child may take, and nvidia-smi, which is slow without persistence.
CHILD_S = 20.0
PROGRAM_S = 60.0
#: Seconds that a phase can have taken.
MOST_SECONDS = 366 * 86400.0


# The children


def read_json(folder, name, most=MOST_BYTES):
    """Return the object in a regular file of an open folder; {} where there is none."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return {}
        try:
            data = json.loads(file.read(most))
        except (ValueError, RecursionError):
            return {}
    return data if isinstance(data, dict) else {}


@contextlib.contextmanager
def opened(path, folder=None):
    """Open a folder, no link in an open folder; yields None where there is none."""
    descriptor, flags = None, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags | (0 if folder is None else os.O_NOFOLLOW), dir_fd=folder)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def list_jobs(state, counted):
    """Return the jobs of this account: the ids of all, what those left that are not counted, and the disk."""
    answer = {"ids": [], "finished": [], "unfinished": []}
    with opened(state) as folder:
        if folder is None:
            return answer
        disk = os.fstatvfs(folder)
        answer["free"], answer["size"] = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    with opened(os.path.join(state, "jobs")) as jobs:
        names = sorted(filter(JOB_ID.match, os.listdir(jobs)))[-MOST_JOBS:] if jobs is not None else []
        answer["ids"] = [name for name in names if name in counted]
        for name in [name for name in reversed(names) if name not in counted][:MOST_READ]:
            with opened(name, jobs) as job:
                # Jobs of the first release belong to the account that trained: root passes them over.
                if job is not None and os.fstat(job).st_uid == os.geteuid():
                    add_job(answer, name, job)
    return answer


def add_job(answer, name, job):
    """Add one job that is not counted yet."""
    result, status = read_json(job, "result.json"), read_json(job, "status.json")
    model = result.get("model") or status.get("model")
    if result.get("outcome"):
        if len(answer["finished"]) < MOST_FINISHED:
            gpus = result.get("gpus")
            entry = {
                "id": name,
                "model": model,
                "outcome": result["outcome"],
                "seconds": result.get("seconds"),
            }
            answer["finished"].append({**entry, "gpus": len(gpus) if isinstance(gpus, list) else 0})
    elif status.get("state") in ("submitted", "running"):
        phase, times = status.get("phase"), status.get("times")
        since = times.get(phase) if isinstance(times, dict) and isinstance(phase, str) else None
        begin = since[0] if isinstance(since, list) and since else status.get("submitted")
        answer["unfinished"].append({"phase": phase, "since": begin})


def list_tickets(queue):
    """Return the tickets of the queue whose worker lives, in their order."""
    tickets = []
    with opened(queue) as folder:
        names = sorted(filter(TICKET.match, os.listdir(folder))) if folder is not None else []
        # A worker holds a lock on its ticket. The kernel's list is asked: trying the lock could disturb it.
        locked = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines()}
        for name in names[:MOST_TICKETS]:
            try:
                file = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError:
                continue
            data = read_json(folder, name) if str(file.st_ino) in locked else {}
            if data:
                entry = {key: data.get(key) for key in ("model", "state", "gpus", "since")}
                tickets.append({**entry, "uid": file.st_uid})
    return {"tickets": tickets}


# What the children print


def ask(verb, request, uid, gid):
    """Return the object that a child prints which has become an account; None where it does not answer.

    The account may stop, trace or kill the child.
    """
    # A file: a child that does not read would block a pipe.
    with tempfile.TemporaryFile() as question:
        question.write(json.dumps(request).encode())
        question.seek(0)
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", os.path.abspath(__file__), verb],
                stdin=question, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
                env={"LC_ALL": "C.UTF-8"}, user=uid, group=gid, extra_groups=[],
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
    try:
        data = read_all(child.stdout.fileno(), time.monotonic() + CHILD_S)
    finally:
        child.kill()
        child.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(data)
        return answer if isinstance(answer, dict) else None
    return None


def read_all(descriptor, deadline):
    """Return what comes through a pipe; b"" if that is too much or takes too long."""
    data = b""
    while select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return data
        data += part
        if len(data) > MOST_OUTPUT:
            break
    return b""


def items(answer, key, most):
    """Return a list of objects from an answer."""
    values = answer.get(key)
    return [value for value in values[:most] if isinstance(value, dict)] if isinstance(values, list) else []


def number(value, most):
    """Return a number from 0 to `most`, None for anything else."""
    if type(value) not in (int, float) or not 0 <= value <= most:
        return None
    return float(value)


def word(value, known):
    """Return a known word, or the word for all others."""
    return value if isinstance(value, str) and value in known else OTHER


# Counters


def empty_counters():
    """Return the counters of an account that has not been seen before."""
    return {"counted": [], "models": [], "jobs": {}, "phases": {}, "gpu_seconds": {}}


def count(counters, answer):
    """Add the jobs that have ended since the last run."""
    ids = answer.get("ids")
    there = {name for name in ids if isinstance(name, str)} if isinstance(ids, list) else set()
    counted = {name for name in counters["counted"] if name in there}
    for job in items(answer, "finished", MOST_FINISHED):
        name = job.get("id")
        if not isinstance(name, str) or not JOB_ID.match(name) or name in counted:
            continue
        counted.add(name)
        model = label_of_model(counters, job.get("model"))
        key = f"{model} {word(job.get('outcome'), OUTCOMES)}"
        counters["jobs"][key] = counters["jobs"].get(key, 0) + 1
        seconds = job.get("seconds") if isinstance(job.get("seconds"), dict) else {}
        for phase in PHASES:
            took = number(seconds.get(phase), MOST_SECONDS)
            if took is not None:
                total, jobs = counters["phases"].get(phase, (0.0, 0))
                counters["phases"][phase] = [round(total + took, 3), jobs + 1]
        held = (number(seconds.get(phase), MOST_SECONDS) or 0.0 for phase in ("gpu-check", "training"))
        used = sum(held) * (number(job.get("gpus"), MOST_GPUS) or 0)
        if used:
            counters["gpu_seconds"][model] = round(counters["gpu_seconds"].get(model, 0.0) + used, 3)
    counters["counted"] = sorted(counted)[-MOST_JOBS:]


def label_of_model(counters, model):
    """Return a model's label: the first models of an account have their own, so that nobody can make more."""
    if not isinstance(model, str) or not MODEL.match(model):
        return OTHER
    if model not in counters["models"] and len(counters["models"]) < MOST_MODELS:
        counters["models"].append(model)
    return model if model in counters["models"] else OTHER


# The metrics

#: Type and description of each metric.
FAMILIES = {
    "account_read": ("gauge", "Whether the jobs of the account could be read."),
    "collector_timestamp_seconds": ("gauge", "When these metrics were collected."),
    "disk_floor_bytes": ("gauge", "Free space below which no job starts."),
    "drained": ("gauge", "Whether the host is out of service."),
    "gpu_info": ("gauge", "The GPUs."),
    "gpu_job": ("gauge", "1 for each GPU that a job has."),
    "gpu_memory_bytes": ("gauge", "Memory of the GPU."),
    "gpu_memory_used_bytes": ("gauge", "Memory of the GPU that is in use."),
    "gpu_pci_devices": ("gauge", "GPUs of NVIDIA on the PCI bus."),
    "gpu_power_watts": ("gauge", "Power that the GPU draws."),
    "gpu_seconds_total": ("counter", "GPUs of ended jobs times the seconds for which the jobs had them."),
    "gpu_temperature_celsius": ("gauge", "Temperature of the GPU."),
    "gpu_utilization_ratio": ("gauge", "Share of the time in which the GPU computed, from 0 to 1."),
    "gpus": ("gauge", "GPUs that the driver shows."),
    "job_phase_age_seconds": ("gauge", "How long the oldest job of the phase has been in it."),
    "job_phase_seconds": ("summary", "How long the phases of ended jobs took; queue is the wait for GPUs."),
    "jobs": ("gauge", "Jobs that have not ended, by phase."),
    "jobs_total": ("counter", "Jobs that have ended."),
    "queue_jobs": ("gauge", "Jobs with a ticket of the queue for GPUs, by state."),
    "queue_wait_seconds": ("gauge", "How long the job has waited that waits longest for GPUs."),
    "runner_up": ("gauge", "Whether the service of a GitHub runner runs."),
    "state_free_bytes": ("gauge", "Free space for the state folder of the account."),
    "state_size_bytes": ("gauge", "Size of the file system with the state folder of the account."),
}


class Metrics:
    """The text that node-exporter reads."""

    def __init__(self):
        self.lines = {}

    def add(self, family, value, suffix="", **labels):
        """Add one value of a metric."""
        shown = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
        line = f"{suffix}{'{' + shown + '}' if shown else ''} {value:.15g}"
        self.lines.setdefault(family, []).append(line)

    def text(self):
        """Return all of it."""
        parts = []
        for family, lines in sorted(self.lines.items()):
            name, (kind, help_text) = f"train_classifier_{family}", FAMILIES[family]
            parts += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *(name + line for line in lines)]
        return "\n".join(parts) + "\n"


def escaped(text):
    """Return the value of a label, without control characters: a newline would begin another metric."""
    shown = "".join(letter for letter in str(text)[:128] if letter.isprintable())
    return shown.replace("\\", "\\\\").replace('"', '\\"')


def add_counters(metrics, user, counters):
    """Add what is counted over all jobs of an account."""
    for key, jobs in sorted(counters["jobs"].items()):
        model, outcome = key.split(" ")
        metrics.add("jobs_total", jobs, user=user, model=model, outcome=outcome)
    for phase, (seconds, jobs) in sorted(counters["phases"].items()):
        metrics.add("job_phase_seconds", seconds, "_sum", user=user, phase=phase)
        metrics.add("job_phase_seconds", jobs, "_count", user=user, phase=phase)
    for model, seconds in sorted(counters["gpu_seconds"].items()):
        metrics.add("gpu_seconds_total", seconds, user=user, model=model)


def add_account(metrics, user, answer, now):
    """Add what an account's state folder says now; `answer` is None if it could not be read."""
    metrics.add("account_read", answer is not None, user=user)
    answer = answer or {}
    phases = {}
    for job in items(answer, "unfinished", MOST_READ):
        since = number(job.get("since"), now)
        ages = phases.setdefault(word(job.get("phase"), PHASES), [])
        ages.append(now - since if since is not None else 0.0)
    for phase, ages in sorted(phases.items()):
        metrics.add("jobs", len(ages), user=user, phase=phase)
        metrics.add("job_phase_age_seconds", max(ages), user=user, phase=phase)
    for key in ("free", "size"):
        value = number(answer.get(key), 1 << 62)
        if value is not None:
            metrics.add(f"state_{key}_bytes", value, user=user)


def add_queue(metrics, answer, uuids, now, accounts):
    """Add the queue for GPUs, and which job has which card.

    `uuids` are the cards that exist, `accounts` the counters of each account, which have its models.
    """
    tickets = items(answer, "tickets", MOST_TICKETS)
    states = [word(ticket.get("state"), TICKET_STATES) for ticket in tickets]
    for state in TICKET_STATES:
        metrics.add("queue_jobs", states.count(state), state=state)
    waits = [number(ticket.get("since"), now) for ticket in tickets if ticket.get("state") == "waiting"]
    metrics.add("queue_wait_seconds", max((now - since for since in waits if since is not None), default=0.0))
    owners = {}
    for ticket in tickets:
        gpus = ticket.get("gpus") if ticket.get("state") == "granted" else None
        for uuid in gpus[:MOST_GPUS] if isinstance(gpus, list) else []:
            if isinstance(uuid, str) and uuid in uuids:
                owners.setdefault(uuid, ticket)
    for uuid, ticket in sorted(owners.items()):
        user = account_name(ticket.get("uid"))
        model = label_of_model(accounts[user], ticket.get("model")) if user in accounts else OTHER
        metrics.add("gpu_job", 1, uuid=uuid, user=user, model=model)


def account_name(uid):
    """Return the name of an account, its number without one."""
    if type(uid) is not int or not 0 <= uid < 1 << 32:
        return OTHER
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


#: What nvidia-smi is asked for: field, metric, factor to the unit of the metric.
GPU_FIELDS = (
    ("utilization.gpu", "gpu_utilization_ratio", 0.01),
    ("memory.used", "gpu_memory_used_bytes", 1 << 20),
    ("memory.total", "gpu_memory_bytes", 1 << 20),
    ("temperature.gpu", "gpu_temperature_celsius", 1),
    ("power.draw", "gpu_power_watts", 1),
)


def run(*command):
    """Return what a program of the host prints; None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_S, check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[:MOST_OUTPUT].decode("utf-8", "replace") if done.returncode == 0 else None


def add_gpus(metrics):
    """Add the cards as the driver and the PCI bus see them; return their UUIDs."""
    fields = ",".join(["index", "uuid", "name", *(field for field, *_ in GPU_FIELDS)])
    answer = run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits") or ""
    uuids = []
    for line in answer.splitlines()[:MOST_GPUS]:
        index, uuid, name, *values = [cell.strip() for cell in line.split(",")] + [""] * 3
        if not index.isdigit() or not UUID.match(uuid) or uuid in uuids:
            continue
        uuids.append(uuid)
        metrics.add("gpu_info", 1, uuid=uuid, index=index, name=name)
        for (_, metric, factor), text in zip(GPU_FIELDS, values):
            # A card that does not measure something says [N/A].
            with contextlib.suppress(ValueError):
                if math.isfinite(float(text)):
                    metrics.add(metric, float(text) * factor, uuid=uuid)
    metrics.add("gpus", len(uuids))
    metrics.add("gpu_pci_devices", count_pci_gpus())
    return uuids


def count_pci_gpus(devices=Path("/sys/bus/pci/devices")):
    """Return how many display controllers of NVIDIA the PCI bus has."""
    count = 0
    for device in devices.glob("*"):
        with contextlib.suppress(OSError):
            is_nvidia = (device / "vendor").read_text().strip() == "0x10de"
            count += is_nvidia and (device / "class").read_text().startswith("0x03")
    return count


def add_host(metrics, settings, now):
    """Add what concerns the host as a whole."""
    floor = number(settings.get("disk_floor_bytes", 5 << 30), 1 << 62)
    metrics.add("disk_floor_bytes", floor or 0.0)
    metrics.add("drained", os.path.lexists(ROOT / "drain"))
    wants = Path("/etc/systemd/system/multi-user.target.wants")
    for unit in sorted(path.name for path in wants.glob("github-runner@*.service"))[:MOST_GPUS]:
        state = run("systemctl", "show", "--property=ActiveState", "--value", unit) or ""
        runner = unit[len("github-runner@") : -len(".service")]
        metrics.add("runner_up", state.strip() == "active", runner=runner)
    metrics.add("collector_timestamp_seconds", now)


# The run


def state_folder(settings, account):
    """Return the state folder of an account, as the worker finds it."""
    configured = settings.get("state_dir")
    if isinstance(configured, str) and configured and (account.pw_uid == 0 or "{user}" in configured):
        return configured.replace("{user}", account.pw_name)
    return str(
        ROOT / "state" if account.pw_uid == 0 else Path(account.pw_dir, ".local/state/train-classifier")
    )


def accounts_that_train(docker):
    """Return root and the members of the group docker."""
    accounts = {0: pwd.getpwuid(0)}
    for name in docker.gr_mem if docker else []:
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            accounts.setdefault(account.pw_uid, account)
    return list(accounts.values())[:MOST_ACCOUNTS]


def load(path, most=MOST_BYTES):
    """Return the object in a file of root's; {} where there is none."""
    with opened(path.parent) as folder:
        return read_json(folder, path.name, most) if folder is not None else {}


def write(path, text, mode):
    """Replace a file at once: node-exporter never reads half of one."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "w") as file:
        file.write(text)
    new.replace(path)


def counters_of(saved, user):
    """Return the counters of an account from the file, where they are whole."""
    counters = (saved.get("accounts") or {}).get(user)
    return (
        counters
        if isinstance(counters, dict) and counters.keys() == empty_counters().keys()
        else empty_counters()
    )


def collect(counters_file, metrics_file):
    """Ask everybody, count, and write the metrics."""
    os.umask(0o022)
    now, metrics = time.time(), Metrics()
    settings, saved = load(ROOT / "host.json"), load(counters_file, MOST_COUNTERS)
    try:
        docker = grp.getgrnam("docker")
    except KeyError:
        docker = None
    kept = {}
    for account in accounts_that_train(docker):
        user = account.pw_name
        counters = kept[user] = counters_of(saved, user)
        request = {"state": state_folder(settings, account), "counted": counters["counted"]}
        answer = ask("jobs", request, account.pw_uid, account.pw_gid)
        if answer is not None:
            count(counters, answer)
        add_account(metrics, user, answer, now)
        add_counters(metrics, user, counters)
    uuids = add_gpus(metrics)
    queue = settings.get("queue_dir")
    request = {"queue": queue if isinstance(queue, str) else str(ROOT / "queue")}
    answer = ask("queue", request, pwd.getpwnam("nobody").pw_uid, docker.gr_gid) if docker else None
    if answer is not None:
        add_queue(metrics, answer, uuids, now, kept)
    add_host(metrics, settings, now)
    # First the counters: a run that is killed in between shows them late, and counts nothing twice.
    write(counters_file, json.dumps({"schema": 1, "accounts": kept}), 0o600)
    write(metrics_file, metrics.text(), 0o644)


def main(arguments):
    """Collect, or answer as a child."""
    if arguments[0] not in ("jobs", "queue"):
        collect(*map(Path, arguments))
        return
    request = json.load(sys.stdin)
    if arguments[0] == "jobs":
        answer = list_jobs(request["state"], set(request["counted"]))
    else:
        answer = list_tickets(request["queue"])
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
