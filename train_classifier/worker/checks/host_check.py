"""The host check: the preflight of every job, and with `deep` that of `doctor`. Checks are independent."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional, Union

from train_classifier.core import options
from train_classifier.core.errors import BadInput, ExitCode, TrainClassifierError
from train_classifier.core.options import show_option
from train_classifier.worker.checks import engine_check, gpu_check
from train_classifier.worker.checks.finding import ROLE, Finding, fail, from_error, ok, skip, warn
from train_classifier.worker.containers import engine
from train_classifier.worker.gpus import devices, gpu_queue, tickets
from train_classifier.worker.gpus.devices import Discovery
from train_classifier.worker.system import launcher, program
from train_classifier.worker.system.host import Host, file_system
from train_classifier.worker.system.host_facts import host_facts

LEAST_PYTHON = (3, 9)
#: The program is newer than this; an earlier clock breaks TLS and the order of jobs.
NOT_BEFORE = 1735689600.0  # 2025-01-01
NOT_AFTER = 4102444800.0  # 2100-01-01
DRAIN = "var/lib/train-classifier/drain"
#: The program that adds the firewall's rules, and the file with its result for users other than root.
FIREWALL = "var/lib/train-classifier/bin/metadata-firewall"
FIREWALL_RESULT = "run/train-classifier/metadata"


def check(host: Host, request: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the host for a request {gpus, min_vram_mib, image, deep, state_dir}.

    Findings are returned, not raised; raises BadInput for a wrong request.
    """
    if host.is_submit_host:
        from train_classifier.worker.checks import cluster_check

        return cluster_check.check(host, request)
    requested, floor = requested_gpus(request)
    findings = [python(), engine_check.sdk()]
    info, engine_findings = engine_check.check()
    findings += engine_findings
    findings += [tool("rsync", "rsync"), uv(host)]
    state, finding = state_folder(host, request)
    findings.append(finding)
    findings += disks(host, state, info)
    findings += [clock(), drain(host)]
    discovery = Discovery() if requested == 0 else devices.discover(host)
    if requested != 0:
        findings.append(queue_folder(host, discovery))
    users = _users(host, discovery)
    job_cards = users if request.get("deep") else None
    findings += gpu_check.check(host, requested, floor, info, discovery, job_cards)
    findings += foreign_gpu_users(discovery, users)
    if request.get("deep"):
        findings.append(metadata(host))
        failed = [finding.name for finding in findings if finding.status == "fail"]
        if failed:
            findings.append(skip("container", f"not tried, because of: {', '.join(failed)}"))
        else:
            # Imported only here: no job needs it.
            from train_classifier.worker.checks import container_check

            findings += container_check.check(host, request, discovery)
    findings.sort(key=lambda finding: finding.status == "fail" and finding.code != ExitCode.NOT_READY)
    return {
        "worker": program.PROGRAM.name,
        "python": platform.python_version(),
        "host": host_facts(),
        "engine": engine_check.summary(info),
        "gpus": [
            {
                "index": card.index,
                "uuid": card.uuid,
                "name": card.name,
                "memory_total_mib": card.memory_total_mib,
                "memory_free_mib": card.memory_free_mib,
                "driver": card.driver,
                "busy_by": users.get(card.uuid) or devices.show_users(card) or None,
            }
            for card in discovery.gpus
        ],
        "queued": _queued(host, discovery),
        "launcher": launcher.find_launcher(host.caller()),
        "state_dir": str(state) if state else None,
        "checks": [finding.to_dict() for finding in findings],
        "ready": all(finding.status != "fail" for finding in findings),
    }


def requested_gpus(request: dict[str, Any]) -> tuple[Union[int, str], Optional[int]]:
    """Return the GPUs and their memory in MiB that a check asks for. Raises BadInput."""
    requested, floor = request.get("gpus", 0), request.get("min_vram_mib")
    requested = 0 if requested is None else requested
    most = options.BY_NAME["gpus"].most or 0
    if requested != "auto" and (type(requested) is not int or not 0 <= requested <= most):
        raise BadInput(f"gpus is {requested!r}, wanted 0 to {most} or auto")
    if floor is not None and (type(floor) is not int or floor < 0):
        raise BadInput(f"min_vram_mib is {floor!r}, wanted a number of MiB")
    return requested, floor


def python() -> Finding:
    """Check the Python that runs this program."""
    text = platform.python_version()
    if sys.version_info[:2] < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return fail(
            "python", f"Python {text} is too old, wanted {least} or newer", "use a newer distribution"
        )
    return ok("python", f"Python {text}")


def tool(name: str, command: str) -> Finding:
    """Check that a program is installed."""
    if shutil.which(command) is None:
        return fail(name, f"{command} is not installed", f"on the host: apt-get install {command}")
    return ok(name, f"{command} is installed")


def uv(host: Host) -> Finding:
    """Check that uv is installed; without it only models without requirements can run."""
    if not os.access(host.uv, os.X_OK):
        return warn("uv", f"{host.uv} is missing: models with a requirements.txt cannot be trained", ROLE)
    return ok("uv", str(host.uv))


def state_folder(host: Host, request: dict[str, Any]) -> tuple[Optional[Path], Finding]:
    """Check the folder for jobs: a writable local disk, with an account to run them as."""
    try:
        path = host.state_dir(request)
        host.job_user()
    except TrainClassifierError as error:
        return None, from_error("state-folder", error)
    existing = _existing(path)
    if not os.access(existing, os.W_OK | os.X_OK):
        return path, fail(
            "state-folder",
            f"{existing} cannot be written to, wanted for {path}",
            "choose another with the setting state_dir",
        )
    return path, ok("state-folder", f"{path} ({file_system(path)})")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _free_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def disks(host: Host, state: Optional[Path], info: Optional[dict[str, Any]]) -> list[Finding]:
    """Check the free space and the free inodes of the file systems of jobs and images."""
    findings: list[Finding] = []
    places = [("disk", "state folder", state)]
    # Containers, volumes and images may lie on two disks: the fuller one counts.
    engine_folders = [
        Path(folder) for folder in engine.folders(info or {}, host.root) if os.path.isdir(folder)
    ]
    if engine_folders:
        places.append(("engine-disk", "engine", min(engine_folders, key=_free_bytes)))
    for name, purpose, path in places:
        if path is None:
            continue
        path = _existing(path)
        space, free = os.statvfs(path), _free_bytes(path)
        text = f"{free / (1 << 30):.1f} GiB free for the {purpose} ({path})"
        if free < host.disk_floor_bytes:
            text += f", wanted {host.disk_floor_bytes / (1 << 30):.1f} GiB"
            findings.append(fail(name, text, "train-classifier clean, or disk_floor_bytes in host.json"))
        elif space.f_files and space.f_favail < 10000:
            text = f"{space.f_favail} inodes free for the {purpose} ({path})"
            findings.append(fail(name, text, "train-classifier clean"))
        else:
            findings.append(ok(name, text))
    return findings


def clock() -> Finding:
    """Check that the clock is in the right years."""
    now = time.time()
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if not NOT_BEFORE < now < NOT_AFTER:
        return fail(
            "clock",
            f"the host's clock says {date}",
            "set the clock, and let it be synchronised: timedatectl",
        )
    return ok("clock", date)


def drain(host: Host) -> Finding:
    """Check that the host has not been taken out of service."""
    path = host.root / DRAIN
    if not path.exists():
        return ok("drain", "the host is in service")
    reason = (gpu_check.text_of(path) or "").splitlines()
    why = f": {reason[0][:200]}" if reason else ""
    return fail("drain", f"the host is taken out of service{why}", f"on the host: rm {path}")


def metadata(host: Host) -> Finding:
    """Check that containers cannot get the machine's credentials from the metadata service of a cloud."""
    name = "metadata"
    if host.metadata_service == "allowed":
        return ok(name, "containers may use the metadata service of a cloud, as this host's settings allow")
    problem = _open_metadata(host)
    if problem is None:
        return ok(name, "containers cannot reach the metadata service of a cloud")
    return warn(
        name,
        f"containers can reach the metadata service of a cloud (169.254.169.254), if there is one: {problem}",
        f"{ROLE}; training_host_allow_metadata: true allows it to models that use the role of the machine",
    )


def _open_metadata(host: Host) -> Optional[str]:
    """Return why containers can reach the metadata service, None when they cannot."""
    result = gpu_check.text_of(host.root / FIREWALL_RESULT)
    if result is None:
        return "the firewall of this host has no rules of train-classifier"
    if result != "blocked":
        return result.partition(": ")[2][:200] or "the rules of the firewall are not known"
    if os.geteuid() != 0:
        return None
    # Only root may read the rules themselves.
    program = host.root / FIREWALL
    try:
        process = subprocess.run([program, "check"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} does not run: {error}"
    return None if process.returncode == 0 else (process.stdout + process.stderr).strip()[-200:]


def queue_folder(host: Host, discovery: Discovery) -> Finding:
    """Check the folder of the GPU queue, which jobs of all users share."""
    path, name = host.queue_dir, "queue"
    if not discovery.gpus:
        return skip(name, "not needed without a GPU")
    if not path.is_dir():
        return fail(name, f"the queue's folder {path} is missing", ROLE)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return fail(
            name,
            f"this user may not use the queue's folder {path}",
            "add the user to training_host_users and run site.yml, then log in again",
        )
    try:
        # Under the lock, because a ticket that is being created is not valid yet.
        with tickets.locked(path):
            invalid_files = tickets.invalid_files(path)
    except TrainClassifierError as error:
        return from_error(name, error)
    if invalid_files:
        problems = "; ".join(f"{file} {why}" for file, why in invalid_files[:5])
        more = f"; and {len(invalid_files) - 5} more" if len(invalid_files) > 5 else ""
        files = " ".join(shlex.quote(str(file)) for file, _ in invalid_files[:5])
        return warn(name, f"ignored in the queue: {problems}{more}", f"on the host: rm -r {files}")
    return ok(name, str(path))


def _users(host: Host, discovery: Discovery) -> dict[str, str]:
    """Return which job has which GPU."""
    if not discovery.gpus or not host.queue_dir.is_dir():
        return {}
    try:
        return gpu_queue.jobs_of_gpus(host.queue_dir, discovery)
    except TrainClassifierError:
        # The check of the queue's folder reports this.
        return {}


def _queued(host: Host, discovery: Discovery) -> Optional[int]:
    """Return how many jobs of all users wait for a GPU; None where that is not known."""
    if not discovery.gpus or not host.queue_dir.is_dir():
        return None
    try:
        return sum(entry.state != "granted" for entry in gpu_queue.snapshot(host.queue_dir))
    except TrainClassifierError:
        return None


def foreign_gpu_users(discovery: Discovery, users: dict[str, str]) -> list[Finding]:
    """Return the GPUs that are used by processes that do not belong to jobs."""
    return [
        warn(
            "gpu-users",
            f"GPU {card.index} is used by {devices.show_users(card)}, which is no job of train-classifier",
            f"jobs with {show_option('min_vram')} wait for its memory",
        )
        for card in discovery.gpus
        if card.busy_by and card.uuid not in users
    ]
