"""One runner instance's folder on the host: what is configured there, is it busy, and calling config.sh.

Standard library only, Python 3.9; `prepare` on the host carries a copy.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What config.sh writes; all of it goes when a registration is dropped.
CONFIGURATION = (
    ".runner",
    ".runner_migrated",
    ".credentials",
    ".credentials_migrated",
    ".credentials_rsaparams",
)


class LocalError(Exception):
    """config.sh refused, or the folder is not as it should be."""


def configuration(folder: Path) -> dict[str, Any] | None:
    """What config.sh left in .runner (it writes a byte order mark), or None. A broken file counts as none."""
    try:
        data = json.loads((folder / ".runner").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and (folder / ".credentials").exists() else None


def version(folder: Path, user: str) -> str:
    """The version that the listener itself names (it may have updated itself), empty when it does not run."""
    listener = folder / "bin" / "Runner.Listener"
    if not listener.exists():
        return ""
    done = _as_user(user, folder, [str(listener), "--version"], {})
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return found.group(0) if done.returncode == 0 and found else ""


def busy(folder: Path) -> bool:
    """Is a job running? The listener starts one Runner.Worker for each."""
    worker = re.compile(re.escape(str(folder)) + r"/bin[^/]*/Runner\.Worker")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(worker.fullmatch(argument.decode(errors="replace")) for argument in arguments):
            return True
    return False


def drop(folder: Path) -> bool:
    """Forget the registration. True when there was one."""
    had = False
    for name in CONFIGURATION:
        path = folder / name
        if path.is_symlink() or path.exists():
            path.unlink()
            had = True
    return had


def configure(folder: Path, user: str, token: str, wanted: Mapping[str, Any]) -> None:
    """Run config.sh as the runner's user; the token goes by environment. Raises LocalError."""
    command = ["./config.sh", "--unattended", "--url", wanted["url"], "--name", wanted["name"]]
    command += ["--work", "_work", "--labels", ",".join(wanted["labels"])]
    if wanted.get("group"):
        command += ["--runnergroup", wanted["group"]]
    for flag, on in (
        ("--replace", wanted.get("replace")),
        ("--no-default-labels", wanted.get("no_default_labels")),
        ("--disableupdate", wanted.get("disable_update")),
        ("--ephemeral", wanted.get("ephemeral")),
    ):
        if on:
            command.append(flag)
    done = _as_user(user, folder, command, {"ACTIONS_RUNNER_INPUT_TOKEN": token})
    if done.returncode != 0:
        raise LocalError(_why(done, token, f"register {wanted['name']!r} at {wanted['url']}", wanted["url"]))


def remove(folder: Path, user: str, token: str) -> None:
    """Run config.sh remove with a remove token. Raises LocalError with what to do."""
    done = _as_user(user, folder, ["./config.sh", "remove"], {"ACTIONS_RUNNER_INPUT_TOKEN": token})
    if done.returncode != 0:
        raise LocalError(_why(done, token, f"remove the runner in {folder}", "this scope"))


def _as_user(
    user: str, folder: Path, command: list[str], secrets: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    account = pwd.getpwnam(user)
    environment = {
        "HOME": account.pw_dir,
        "USER": user,
        "LOGNAME": user,
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    carried = (
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
    )
    environment.update({name: os.environ[name] for name in carried if name in os.environ})
    environment.update(secrets)
    return subprocess.run(
        ["runuser", "-u", user, "--", *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _why(done: subprocess.CompletedProcess[str], token: str, what: str, where: str) -> str:
    said = (done.stdout + "\n" + done.stderr).replace(token or "\0", "***")
    if re.search(r"\b404\b|NotFound", said):
        return (
            f"Could not {what}: GitHub says not found (404). That is also what it says of an expired token: "
            f"registration and remove tokens last one hour and are for one scope. Make a new one for "
            f"{where}, or  set github_runner_pat or a GitHub App and let the role make it."
        )
    if re.search(r"exists with the same name", said):
        return (
            f"Could not {what}: the name is taken. Choose another github_runner_name, "
            "or set github_runner_replace: true."
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"Could not {what}: config.sh ended with {done.returncode}: {' / '.join(lines[-4:])[:600]}"
