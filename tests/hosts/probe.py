"""Runs as root inside a test host: lists what an account could use against root, and watches what root opens.

Written from docs/security.md alone: it knows no file of the roles, only systemd, file modes and the account's name.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import hashlib
import json
import os
import pwd
import re
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator

PATHS = re.compile(r"(?<![\w./-])/(?:[\w.@+,:-]+/)*[\w.@+,:-]+")
EXEC = (
    "ExecCondition",
    "ExecStartPre",
    "ExecStart",
    "ExecStartPost",
    "ExecReload",
    "ExecStop",
    "ExecStopPost",
)
#: What root runs or trusts besides units. PATH and Python's folders are added.
TRUSTED = (
    "/etc", "/usr", "/boot", "/opt", "/root", "/var/spool/cron", "/run/systemd", "/run/sudo", "/run/udev",
    "/var/lib/systemd", "/lib", "/bin", "/sbin",
)  # fmt: skip
#: Where a host says who may act as root.
RULES = (
    "/etc/sudoers", "/etc/sudoers.d", "/etc/crontab", "/etc/cron.d", "/var/spool/cron", "/etc/polkit-1",
    "/usr/share/polkit-1", "/etc/udev/rules.d", "/etc/pam.d", "/etc/security", "/etc/dbus-1",
)  # fmt: skip


class Account:
    """What the kernel lets an account change, by owner, group and mode."""

    def __init__(self, name: str) -> None:
        self.uid = pwd.getpwnam(name).pw_uid
        self.gids = {pwd.getpwnam(name).pw_gid} | {g.gr_gid for g in grp.getgrall() if name in g.gr_mem}

    def writes(self, info: os.stat_result) -> bool:
        """Whether it can write this, or give itself the right to."""
        if info.st_uid == self.uid:
            return True
        if info.st_gid in self.gids:
            return bool(info.st_mode & stat.S_IWGRP)
        return bool(info.st_mode & stat.S_IWOTH)

    def replaces(self, parent: os.stat_result, entry: os.stat_result | None) -> bool:
        """Whether it can rename, remove or create an entry of a folder."""
        if not self.writes(parent):
            return False
        sticky = parent.st_mode & stat.S_ISVTX and parent.st_uid != self.uid
        return entry is None or not sticky or entry.st_uid == self.uid

    def weakness(self, path: str, links: int = 20) -> str:
        """The first part of a path that the account can change; empty when it can change none."""
        here = "/"
        parts = [part for part in path.split("/") if part]
        for number, part in enumerate(parts):
            parent = os.stat(here)
            here = os.path.join(here, part)
            try:
                entry = os.lstat(here)
            except OSError:
                return here if self.replaces(parent, None) else ""
            if self.replaces(parent, entry):
                return here
            if stat.S_ISLNK(entry.st_mode):
                remainder = "/".join(parts[number + 1 :])
                target = os.path.join(os.path.dirname(here), os.readlink(here), remainder)
                return self.weakness(os.path.normpath(target), links - 1) if links else here
            if not stat.S_ISDIR(entry.st_mode):
                weak = self.writes(entry) and not stat.S_ISCHR(entry.st_mode)
                return here if weak and not stat.S_ISSOCK(entry.st_mode) else ""
        return ""

    def offers(self, path: str, info: os.stat_result) -> bool:
        """Whether what is open is something that the account put there, or can put there.

        A pipe that root made for it in a folder of root's is a way to talk, and no file.
        """
        if not stat.S_ISFIFO(info.st_mode):
            return bool(self.weakness(path))
        folder = os.path.dirname(path)
        return bool(self.weakness(folder)) or self.writes(os.stat(folder))


def show(names: list[str]) -> dict[str, list[str]]:
    """What systemd executes and reads for these units, by unit."""
    properties = [*EXEC, "EnvironmentFiles", "PIDFile", "FragmentPath", "DropInPaths", "Id"]
    text = subprocess.run(
        ["systemctl", "show", "-p", ",".join(properties), "--", *names], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    units: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        lines = [line.partition("=")[::2] for line in block.splitlines()]
        name = dict(lines).get("Id", "")
        for key, value in lines:
            if key != "Id":
                units.setdefault(name, []).extend(PATHS.findall(value))
    return units


def units() -> dict[str, list[str]]:
    """All units that are loaded or installed."""
    names = set()
    for verb in ("list-unit-files", "list-units"):
        command = ["systemctl", verb, "--all", "--plain", "--no-legend", "--no-pager"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        names |= {line.split()[0] for line in lines if line.split()}
    names = {name.replace("@.", "@1.") for name in names if name.endswith((".service", ".socket", ".timer"))}
    return show(sorted(names))


def walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder, without what the kernel makes up."""
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if os.path.join(folder, f) not in ("/proc", "/sys", "/dev")]
        if folder == "/var/lib/docker":
            folders.clear()
            continue
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                yield path, os.lstat(path)


def mentioned(path: str) -> list[str]:
    """The paths that a script or a file of settings names."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as stream:
        return PATHS.findall(stream.read(200_000))
    return []


def audit(name: str) -> dict[str, list[str]]:
    """What the account can change of what root runs and reads, and what it can write and use at all."""
    account = Account(name)
    weak: dict[str, str] = {}
    checked: set[str] = set()

    def check(path: str, because: str) -> None:
        if path in checked:
            return
        checked.add(path)
        if os.path.isdir(path):
            return
        part = ""
        with contextlib.suppress(OSError):
            part = account.weakness(path)
        if part and (os.path.lexists(path) or because.startswith("unit")):
            weak[path] = f"{path}: {part} can be changed, and {because} names it"
        elif os.path.isfile(path) and not path.startswith(
            ("/usr/lib/", "/usr/bin/", "/usr/sbin/", "/usr/share/")
        ):
            for other in mentioned(path):
                check(other, path)

    for unit, paths in units().items():
        for path in paths:
            check(path, f"unit {unit}")
    searched = ["/usr/local/sbin", "/usr/local/bin", *os.environ["PATH"].split(":"), *sys.path]
    for top in (*TRUSTED, *searched):
        if top.startswith("/") and os.path.exists(top) and account.weakness(top):
            weak[top] = f"{top} itself can be changed"
    writable, privileged = [], []
    for path, info in walk("/"):
        if stat.S_ISLNK(info.st_mode):
            continue
        if path.startswith(TRUSTED) and account.writes(info) and not stat.S_ISSOCK(info.st_mode):
            weak[path] = f"{path} can be changed"
        if account.writes(info):
            writable.append(path)
        if stat.S_ISREG(info.st_mode):
            has_capability = "security.capability" in os.listxattr(path) if info.st_mode & 0o111 else False
            if info.st_mode & (stat.S_ISUID | stat.S_ISGID) or has_capability:
                privileged.append(f"{path} {info.st_mode:o} {info.st_uid}:{info.st_gid}")
    rules = []
    for top in RULES:
        for path in [top] if os.path.isfile(top) else [path for path, _ in walk(top)]:
            if os.path.isfile(path):
                with open(path, errors="replace") as stream:
                    if name in path or name in stream.read():
                        rules.append(path)
    with open("/proc/net/unix", encoding="utf-8") as stream:
        bound = {
            line.split()[7] for line in stream if len(line.split()) > 7 and line.split()[3] != "00000000"
        }
    sockets = [p for p in bound if p[0] == "@" or (os.path.exists(p) and account.writes(os.stat(p)))]
    groups = sorted(grp.getgrgid(gid).gr_name for gid in account.gids)
    return {
        "weak": sorted(weak.values()), "writable": sorted(writable), "privileged": sorted(privileged),
        "rules": sorted(rules), "sockets": sorted(sockets), "groups": groups,
    }  # fmt: skip


def status(pid: int) -> tuple[int, str]:
    """The file system uid of a process, and its command line."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as stream:
        uid = next(int(line.split()[4]) for line in stream if line.startswith("Uid:"))
    with open(f"/proc/{pid}/cmdline", "rb") as raw:
        return uid, raw.read(300).replace(b"\0", b" ").decode(errors="replace")


def watch(name: str, stop: str, *traps: str) -> dict[str, list[str]]:
    """What processes of root open that the account can change, and who opens a trap, until the file `stop` is there.

    Every open waits for our answer, so that its process is there to be looked at. Nothing here may open a file of the
    host itself, since that open would wait for us: /proc is not watched.
    """
    account, libc = Account(name), ctypes.CDLL(None, use_errno=True)
    opened: dict[str, None] = {}
    # FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE | FAN_CLOEXEC; FAN_MARK_ADD | FAN_MARK_FILESYSTEM; FAN_OPEN_PERM
    notifier = libc.fanotify_init(0x4 | 0x10 | 0x1, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if notifier < 0 or libc.fanotify_mark(notifier, 0x101, ctypes.c_uint64(0x10000), -100, b"/") < 0:
        raise OSError(ctypes.get_errno(), "fanotify")
    # A volume lies on the disk of the machine that the tests run on: only what is opened through this mount is watched.
    for mount in (b"/run", b"/run/lock", b"/dev/shm", b"/home", b"/var/lib/train-classifier"):
        if os.path.ismount(mount):
            libc.fanotify_mark(notifier, 0x11, ctypes.c_uint64(0x10000), -100, mount)
    own_pid, count = os.getpid(), 0
    print("watching", flush=True)
    while not os.path.exists(stop):
        if not select.select([notifier], [], [], 0.2)[0]:
            continue
        data = os.read(notifier, 65536)
        while data:
            length, _, _, _, _, fd, pid = struct.unpack("IBBHQii", data[:24])
            data = data[length:]
            try:
                count += 1
                info, path = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
                if pid != own_pid and not stat.S_ISDIR(info.st_mode):
                    uid, command = status(pid)
                    if path in traps:
                        opened[f"trap {path} opened by uid {uid}: {command}"] = None
                    elif uid != account.uid and account.offers(path.removesuffix(" (deleted)"), info):
                        opened[f"{path} opened by uid {uid}: {command}"] = None
            except (OSError, StopIteration):
                pass
            finally:
                os.write(notifier, struct.pack("iI", fd, 1))
                os.close(fd)
    os.close(notifier)
    return {"opened": list(opened), "count": [str(count)]}


def snapshot(*tops: str) -> dict[str, list[str]]:
    """All that is below folders: owner, mode, times and content."""
    lines = []
    for top in tops:
        for path, info in ((top, os.lstat(top)), *walk(top)):
            content = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as stream:
                    content = hashlib.sha256(stream.read()).hexdigest()
            # The last name of a linked file goes with the folder that it lies in, which changes its ctime and count.
            changed = 0 if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode) else info.st_ctime_ns
            if os.path.basename(path).startswith("linked"):
                changed = 0
            lines.append(
                f"{path} {info.st_uid}:{info.st_gid} {info.st_mode:o} {info.st_ino} {changed} {content}"
            )
    return {"files": sorted(lines)}


if __name__ == "__main__":
    answer = {"audit": audit, "watch": watch, "snapshot": snapshot}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(answer), flush=True)
