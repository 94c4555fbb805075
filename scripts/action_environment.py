"""Find or make the Python environment of the action, then run its step.

Standard library only, run by any Python 3.11 or newer. The environment lies in the runner's tool cache and
holds what requirements.lock names, nothing else: our own code runs from the action's folder, where nothing is
written.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ACTION = Path(__file__).resolve().parent.parent
#: Version and hashes of the uv that is brought in where a runner has none.
UV = ACTION / "scripts" / "requirements-uv.lock"
#: What role training_host leaves on a host: its settings, and the uv that they name if no other.
HOST_JSON = Path("/var/lib/train-classifier/host.json")
HOST_UV = Path("/var/lib/train-classifier/bin/uv")
#: Failures of a tool that another folder may not have.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
#: Environments of other locks are removed after this time without use.
UNUSED_S = 30 * 86400


class Refused(Exception):
    """What cannot be done, and what to do about it."""


def environment_name() -> str:
    """Return the name of the environment: it changes with the lock, the interpreter and the machine."""
    digest = hashlib.sha256((ACTION / "requirements.lock").read_bytes())
    base = os.path.realpath(sys.executable)
    digest.update("\0".join([sys.version, base, platform.machine()]).encode())
    return f"{sys.version_info[0]}.{sys.version_info[1]}-{digest.hexdigest()[:16]}"


def caches() -> Iterator[Path]:
    """Yield the folders that may hold environments, best first."""
    for variable in ("RUNNER_TOOL_CACHE", "AGENT_TOOLSDIRECTORY"):
        if os.environ.get(variable):
            yield Path(os.environ[variable], "train-classifier")
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"], "train-classifier", "action")
    elif os.environ.get("HOME"):
        yield Path(os.environ["HOME"], ".cache", "train-classifier", "action")
    if os.environ.get("RUNNER_TEMP"):
        yield Path(os.environ["RUNNER_TEMP"], "train-classifier-environment")


def is_private(folder: Path) -> bool:
    """Say whether nobody but this user and root can have put anything there."""
    try:
        information = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(information.st_mode)
        and information.st_uid in (0, os.geteuid())
        and not information.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def find(name: str) -> Path | None:
    """Return the environment if it is there and whole."""
    for cache in caches():
        environment = cache / name
        if is_private(cache) and is_private(environment) and (environment / "bin" / "python").exists():
            return environment
    return None


def make(name: str) -> Path:
    """Make the environment in the first folder that can hold it. A second process waits for the first.

    Raises Refused.
    """
    problems = []
    for cache in caches():
        try:
            cache.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not is_private(cache):
                raise PermissionError(f"{cache} belongs to another user, or others may write to it")
            lock = os.open(cache / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Not core.locks: the package is on no path before its environment exists.
                fcntl.flock(lock, fcntl.LOCK_EX)
                environment = cache / name
                if not (is_private(environment) and (environment / "bin" / "python").exists()):
                    remove_unused(cache, name)
                    build(cache, name)
                return environment
            finally:
                os.close(lock)
        except OSError as error:
            problems.append(str(error))
    raise Refused(
        "No folder can hold the action's Python packages: "
        + ("; ".join(problems) or "RUNNER_TOOL_CACHE, XDG_CACHE_HOME, HOME and RUNNER_TEMP name none")
        + ". Give the runner a tool cache that is writable and has room."
    )


def build(cache: Path, name: str) -> None:
    """Build in a temporary folder and rename it into place.

    Raises Refused, and OSError where another folder may serve.
    """
    print(f"Preparing the action's Python packages in {cache} (once for each version)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=cache))
    try:
        target = folder / "environment"
        uv = shutil.which("uv") or host_uv() or install_uv(folder)
        run([uv, "venv", "--no-project", "--relocatable", "--python", sys.executable, str(target)], cache)
        install = [uv, "pip", "install", "--python", str(target / "bin" / "python"), "--require-hashes"]
        lock = str(ACTION / "requirements.lock")
        run([*install, "--only-binary", ":all:", "--compile-bytecode", "-r", lock], cache)
        shutil.rmtree(cache / name, ignore_errors=True)
        target.chmod(0o755)
        target.rename(cache / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def host_uv() -> str | None:
    """Return the uv that role training_host put on this host, if root alone can have put it there."""
    settings = Path(os.environ.get("TRAIN_CLASSIFIER_HOST_JSON") or HOST_JSON)
    uv: object = str(HOST_UV)
    try:
        if os.path.lexists(settings):
            if not is_owned_by_root(settings):
                return None
            uv = json.loads(settings.read_text(encoding="utf-8")).get("uv", uv)
        # The resolved path: a link that is changed later does not change what is run.
        real = os.path.realpath(str(uv))
        return real if is_owned_by_root(Path(real)) and os.access(real, os.X_OK) else None
    except (OSError, ValueError, AttributeError):
        return None


def is_owned_by_root(file: Path) -> bool:
    """Say whether root alone can have put a file there: it and every folder above are root's."""
    file = Path(os.path.realpath(file))
    for path in (file, *file.parents):
        information = path.lstat()
        # In a folder such as /tmp nobody can replace what is root's.
        shared = information.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = stat.S_ISDIR(information.st_mode) and information.st_mode & stat.S_ISVTX
        if information.st_uid != 0 or (shared and not sticky):
            return False
    return stat.S_ISREG(file.lstat().st_mode)


def install_uv(folder: Path) -> str:
    """Install uv into a private environment and return its path. Raises Refused and OSError as `run` does."""
    tool = folder / "uv"
    hint = "Install it: apt-get install python3-venv (or install uv)."
    run([sys.executable, "-I", "-m", "venv", str(tool)], folder, hint)
    pip = [str(tool / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    run([*pip, "--disable-pip-version-check", "--require-hashes", "-r", str(UV)], folder)
    return str(tool / "bin" / "uv")


def run(
    command: list[str], folder: Path, hint: str = "Can this runner reach its Python index? See PIP_INDEX_URL."
) -> None:
    """Run a tool of the build; a signal to this process ends it, too.

    Raises Refused with its last lines, OSError where they say that `folder` is full or read-only.
    """
    environment = {**os.environ, "UV_NO_CONFIG": "1", "UV_HTTP_TIMEOUT": "180", "UV_NO_PROGRESS": "1"}
    for uv_name, pip_name in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("UV_INDEX", "PIP_EXTRA_INDEX_URL")):
        if environment.get(pip_name):
            environment.setdefault(uv_name, environment[pip_name])
    # Where the machine trusts more than the distribution does, our tools trust it, too.
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    if any(Path("/usr/local/share/ca-certificates").glob("*.crt")) and Path(bundle).exists():
        environment.setdefault("SSL_CERT_FILE", bundle)
        environment.setdefault("PIP_CERT", bundle)
    for prefix in ("TRAIN_CLASSIFIER_", "TRAIN_CLASSIFIER_INPUT_"):
        environment.pop(f"{prefix}SLACK_WEBHOOK", None)
    environment.pop("SLACK_IDENTIFIER", None)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        output_text = output.decode("utf-8", "replace").strip()
        # As Rust and Python say it.
        for number in re.findall(r"(?:os error |\[Errno )([0-9]{1,3})[)\]]", output_text):
            if int(number) in FULL:
                raise OSError(int(number), os.strerror(int(number)), str(folder))
        last = output_text.splitlines()[-12:]
        tool = " ".join([Path(command[0]).name, *command[1:3]])
        raise Refused(
            "\n".join([f"The action's Python packages could not be installed ({tool}). {hint}", *last])
        )


def remove_unused(cache: Path, name: str) -> None:
    """Remove what killed builds of this environment left, and environments that nothing uses any more."""
    for folder in cache.glob(f".{name}.new-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in cache.glob("[0-9]*.[0-9]*-*"):
        with contextlib.suppress(OSError):
            if folder.name != name and folder.stat().st_mtime < time.time() - UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)


def show_error(message: str) -> None:
    """Say why the step failed, as an annotation."""
    first, _, rest = message.partition("\n")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        print(f"::error title=train-classifier::{escaped}", flush=True)
    else:
        print(first, rest, sep="\n", file=sys.stderr, flush=True)


def stop(number: int, _frame: object) -> None:
    """End the build by an exception, which cleans up."""
    raise KeyboardInterrupt(number)


def fail(code: int, status: str, message: str) -> int:
    """Report a failure before the step began, and return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    show_error(message)
    remove_old_archive()
    if os.environ.get("GITHUB_OUTPUT"):
        with contextlib.suppress(OSError), Path(os.environ["GITHUB_OUTPUT"]).open("a") as file:
            file.write(f"status={status}\nexit-code={code}\nmetrics={{}}\n")
    return code


def remove_old_archive() -> None:
    """Remove the archive of an earlier run: a step that fails must not deliver it again."""
    sys.path.insert(0, str(ACTION))
    from train_classifier.github_action import old_archive

    try:
        old_archive.remove(old_archive.archive_path(os.environ, Path.cwd()))
    except (OSError, ValueError) as error:
        print(f"An archive of an earlier run may still be there: {error}", flush=True)


def main() -> int:
    """Run the step in this process, or return an exit code where that fails."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        name = environment_name()
        environment = find(name) or make(name)
        with contextlib.suppress(OSError):
            os.utime(environment)
        execute_step(environment)
    except Refused as refused:
        return fail(3, "not-ready", str(refused))
    except KeyboardInterrupt:
        return fail(6, "cancelled", "Cancelled before the job was started.")
    except OSError as error:
        return fail(3, "not-ready", f"The action cannot be started: {error}")
    except Exception as bug:
        traceback.print_exc(file=sys.stdout)
        message = f"A bug in train-classifier ({type(bug).__name__}): please report it with this log."
        return fail(1, "bug", message)
    raise AssertionError("exec returned")


def execute_step(environment_folder: Path) -> None:
    """Replace this process by the step. Raises OSError where that fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ACTION),
        # The caller's repository is no place to import from; the action's folder is none to write to.
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    for variable in ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONPYCACHEPREFIX", "VIRTUAL_ENV"):
        environment.pop(variable, None)
    python = str(environment_folder / "bin" / "python")
    # Handled signals turn into the default ones at exec; blocked ones wait for the step to be ready.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    os.execve(python, [python, "-m", "train_classifier.github_action.step", *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
