"""Find or make the Python environment of the action, then become its step.

Standard library only, run by any Python 3.11 or newer. The environment lies in the runner's tool cache and
holds what requirements.lock names, nothing else: our own code runs from the action's folder, where nothing is
written.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ACTION = Path(__file__).resolve().parent.parent
#: The version that is brought in where a runner has no uv.
UV = "0.13.9"
#: Environments of other locks are removed once nothing has used them for so long.
UNUSED_S = 30 * 86400


class Refused(Exception):
    """What cannot be done, and what to do about it."""


def key() -> str:
    """Return the name of the environment: it changes with the lock, the interpreter and the machine."""
    digest = hashlib.sha256((ACTION / "requirements.lock").read_bytes())
    base = os.path.realpath(sys.executable)
    digest.update("\0".join([UV, sys.version, base, platform.machine()]).encode())
    return f"{sys.version_info[0]}.{sys.version_info[1]}-{digest.hexdigest()[:16]}"


def caches() -> Iterator[Path]:
    """Yield the folders that may hold environments, best first."""
    for variable in ("RUNNER_TOOL_CACHE", "AGENT_TOOLSDIRECTORY"):
        if os.environ.get(variable):
            yield Path(os.environ[variable], "train-classifier")
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") or "/nonexistent") + "/.cache"
    yield Path(home, "train-classifier", "action")
    if os.environ.get("RUNNER_TEMP"):
        yield Path(os.environ["RUNNER_TEMP"], "train-classifier-environment")


def ours(folder: Path) -> bool:
    """Say whether nobody but this user and root can have put anything there."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid in (0, os.geteuid())
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def find(name: str) -> Path | None:
    """Return the environment if it is there and whole."""
    for cache in caches():
        made = cache / name
        if ours(cache) and ours(made) and (made / "bin" / "python").exists():
            return made
    return None


def make(name: str) -> Path:
    """Make the environment in the first folder that takes it. Two at once: the second waits for the first."""
    problems = []
    for cache in caches():
        try:
            cache.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not ours(cache):
                raise PermissionError(f"{cache} belongs to another user, or others may write to it")
            lock = os.open(cache / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            problems.append(str(error))
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = cache / name
            if ours(made) and (made / "bin" / "python").exists():
                return made
            sweep(cache, name)
            build(cache, name)
            return made
        finally:
            os.close(lock)
    raise Refused(
        "No folder takes the action's Python packages: "
        + "; ".join(problems)
        + ". Give the runner a tool cache that it may write to."
    )


def build(cache: Path, name: str) -> None:
    """Build in a temporary folder and rename it into place. Raises Refused."""
    print(f"Preparing the action's Python packages in {cache} (once for each version)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=cache))
    try:
        target = folder / "environment"
        uv = shutil.which("uv") or bring_uv(folder)
        run([uv, "venv", "--no-project", "--relocatable", "--python", sys.executable, str(target)])
        run(
            [
                uv,
                "pip",
                "install",
                "--python",
                str(target / "bin" / "python"),
                "--require-hashes",
                "--compile-bytecode",
                "-r",
                str(ACTION / "requirements.lock"),
            ]
        )
        shutil.rmtree(cache / name, ignore_errors=True)
        target.chmod(0o755)
        target.rename(cache / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bring_uv(folder: Path) -> str:
    """Install uv into a private environment and return its path. Raises Refused."""
    tool = folder / "uv"
    run(
        [sys.executable, "-I", "-m", "venv", str(tool)],
        "Install it: apt-get install python3-venv (or install uv).",
    )
    pip = [str(tool / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    run([*pip, "--disable-pip-version-check", f"uv=={UV}"])
    return str(tool / "bin" / "uv")


def run(command: list[str], hint: str = "Can this runner reach its Python index? See PIP_INDEX_URL.") -> None:
    """Run a tool of the build; a signal takes it along. Raises Refused with its last words."""
    environment = {**os.environ, "UV_NO_CONFIG": "1", "UV_HTTP_TIMEOUT": "180", "UV_NO_PROGRESS": "1"}
    for theirs, pips in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("UV_INDEX", "PIP_EXTRA_INDEX_URL")):
        if environment.get(pips):
            environment.setdefault(theirs, environment[pips])
    # A machine that was told to trust more than the distribution does: our tools trust it, too.
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    if any(Path("/usr/local/share/ca-certificates").glob("*.crt")) and Path(bundle).exists():
        environment.setdefault("SSL_CERT_FILE", bundle)
        environment.setdefault("PIP_CERT", bundle)
    for secret in (
        "SLACK_IDENTIFIER",
        "TRAIN_CLASSIFIER_SLACK_WEBHOOK",
        "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK",
    ):
        environment.pop(secret, None)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-12:]
        tool = " ".join([Path(command[0]).name, *command[1:3]])
        raise Refused(
            "\n".join([f"The action's Python packages were not made ready ({tool}). {hint}", *last])
        )


def sweep(cache: Path, name: str) -> None:
    """Remove what killed builds of this environment left, and environments that nothing uses any more."""
    for folder in cache.glob(f".{name}.new-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in cache.glob("[0-9]*.[0-9]*-*"):
        with contextlib.suppress(OSError):
            if folder.name != name and folder.stat().st_mtime < time.time() - UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)


def error(words: str) -> None:
    """Say why the step failed, as an annotation."""
    first, _, rest = words.partition("\n")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        escaped = words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        print(f"::error title=train-classifier::{escaped}", flush=True)
    else:
        print(first, rest, sep="\n", file=sys.stderr, flush=True)


def stop(number: int, _frame: object) -> None:
    """End the build by an exception, which cleans up."""
    raise KeyboardInterrupt(number)


def main() -> int:
    """Become the step, or return its exit code where that cannot be."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        name = key()
        made = find(name) or make(name)
        with contextlib.suppress(OSError):
            os.utime(made)
    except Refused as refused:
        error(str(refused))
        return 3
    except KeyboardInterrupt:
        error("Cancelled before anything was started.")
        return 6
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
    python = str(made / "bin" / "python")
    # Handled signals turn into the default ones at exec; blocked ones wait for the step to be ready.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    return os.execve(python, [python, "-m", "train_classifier.step", *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
