"""What the tests that are written from the rules alone share: the probe on a host, hostile files, canaries."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosts import probe

PROBE = "/usr/share/probe.py"
#: Planted programs write to it when another account than their own runs them.
PROOF = "/var/tmp/who-ran-it"
STOP = "/root/stop-watching"
TRAP = "/root/trap"
CANARIES = "/srv/canaries"


class Site:
    """A test host, by its container on this machine's engine."""

    def __init__(self, container: str, account: str) -> None:
        self.container, self.account = container, account
        self.before: dict[str, list[str]] = {}
        self.sh(f"cat > {PROBE}", input=Path(probe.__file__).read_text())

    def sh(self, script: str, *, user: str = "root", check: bool = True, input: str | None = None) -> str:
        done = subprocess.run(
            ["docker", "exec", "-i", "-u", user, self.container, "bash", "-c", script],
            capture_output=True, text=True, timeout=300, input=input or "",
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def audit(self) -> dict[str, list[str]]:
        """What the account can use against root."""
        listing: dict[str, list[str]] = json.loads(self.sh(f"python3 -I {PROBE} audit {self.account}"))
        return listing

    def snapshot(self, *tops: str) -> list[str]:
        listing: list[str] = json.loads(self.sh(f"python3 -I {PROBE} snapshot {' '.join(tops)}"))["files"]
        return listing

    @contextlib.contextmanager
    def watched(self) -> Iterator[dict[str, Any]]:
        """Fill the dictionary with the files that root opened and that the account can change."""
        self.sh(f"rm -f {STOP}; touch {TRAP}; chmod 600 {TRAP}")
        command = [
            "docker",
            "exec",
            self.container,
            "python3",
            "-I",
            PROBE,
            "watch",
            self.account,
            STOP,
            TRAP,
        ]
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        answer: dict[str, Any] = {}
        try:
            yield answer
        finally:
            self.sh(f"mkdir {STOP}")
            answer.update(json.loads(watcher.stdout.readline()))
            watcher.wait(60)
            self.sh(f"rmdir {STOP}")

    def writable_folders(self) -> list[str]:
        """Every folder in which the account can create something, as the kernel says."""
        script = (
            "find / '(' -path /proc -o -path /sys -o -path /dev/pts -o -path /dev/mqueue -o -path /var/lib/docker ')' -prune"
            " -o -type d -writable -executable -print 2>/dev/null"
        )
        return self.sh(script, user=self.account, check=False).splitlines()

    def plant(self) -> list[str]:
        """Put hostile files, as the account, wherever it can create any; returns the folders."""
        self.sh(f"rm -f {PROOF}; install -m 666 /dev/null {PROOF}")
        folders = self.writable_folders()
        self.sh("cat > /var/tmp/plant.py; chmod 644 /var/tmp/plant.py", input=PLANT)
        names = json.dumps([PROOF, TRAP, CANARIES, folders])
        self.sh("cat > /var/tmp/plant.json; chmod 644 /var/tmp/plant.json", input=names)
        self.sh("python3 -I /var/tmp/plant.py", user=self.account)
        return folders

    def remove_planted(self) -> None:
        """Remove what was planted and is still there."""
        self.sh(
            f"xargs -0 -r rm -rf -- < /var/tmp/planted-$(id -u {self.account}); rm -rf /var/tmp/planted-* /var/tmp/plant.* /var/tmp/evil"
            f" /var/tmp/payload.sh {PROOF} {TRAP} {CANARIES} {PROBE} /usr/share/swap.py",
            check=False,
        )

    def canaries(self) -> list[str]:
        """Make files of root's that nothing of root's should touch; returns what must not change."""
        self.sh(
            f"rm -rf {CANARIES}; mkdir -p {CANARIES}/folder/inner {CANARIES}/open; cd {CANARIES};"
            "echo precious > file; echo precious > folder/inner/file; echo '{}' > folder/result.json; chmod 600 file;"
            "echo precious > readable; touch -d '2001-01-01' old folder/old folder; chmod 4755 old; mkfifo pipe"
        )
        return self.snapshot(CANARIES, "/etc")


PLANT = r"""
import json, os, sys
proof, trap, canaries, folders = json.load(open("/var/tmp/plant.json"))
shell = f'#!/bin/sh\n[ "$(id -u)" = {os.getuid()} ] || echo "$0 as $(id -un)" >> {proof}\nexit 0\n'
python = (
    f"import os\nif os.getuid() != {os.getuid()}:\n"
    f"    open({proof!r}, 'a').write(__file__ + ' as ' + str(os.getuid()) + chr(10))\n"
)
ran = os.path.join("/var/tmp", "payload.sh")
open(ran, "w").write(shell)
os.chmod(ran, 0o755)
environment = f"BASH_ENV={ran}\nENV={ran}\nPATH=/var/tmp/evil:/usr/bin:/bin\nPYTHONPATH=/var/tmp/evil\nPYTHONSTARTUP=/var/tmp/evil/json.py\n"
files = {
    ".bashrc": shell, ".bash_profile": shell, ".profile": shell, ".bash_logout": shell, ".pam_environment": environment,
    ".env": environment, ".path": "/var/tmp/evil:/usr/bin:/bin", "environment": environment, "payload": shell,
    ".gitconfig": f"[core]\n\tfsmonitor = {ran}\n\tpager = {ran}\n\tsshCommand = {ran}\n",
    ".netrc": "machine x login y password z\n", "config": "[core]\n\tfsmonitor = " + ran + "\n", "pyvenv.cfg": "home = /var/tmp/evil\n",
    "ansible.cfg": "[defaults]\nlibrary = /var/tmp/evil\n", "hosts": "1.2.3.4 x\n",
    "a\nb": "x", "-rf": "x", "--": "x", "*": "x", "$(touch x)": "x", ";id": "x", "\udcff": "x", " ": "x", "x" * 255: "x",
}
links = {
    "to-file": canaries + "/file", "to-folder": canaries + "/folder", "to-trap": trap, "to-etc": "/etc", "to-shadow": "/etc/shadow",
    "to-root": "/", "to-home": "/root", "to-itself": "to-itself", "to-pipe": canaries + "/pipe", "to-old": canaries + "/old",
    "log.txt": trap, "status.json": trap, "result.json": trap, "manifest.json": trap, "lock": trap, "last": canaries + "/folder",
    "artefacts": canaries + "/folder", "artefacts.tar.gz": trap, "crash.txt": trap, "metrics.json": trap, ".runner": trap,
    ".credentials": trap, ".credentials_rsaparams": trap, "jobs": canaries, "used": trap, "state": canaries, "tmp": canaries,
    "_work": canaries, "_diag": canaries + "/folder", "_temp": canaries, "_actions": canaries, "_tool": canaries,
}
modules = ("json", "os", "re", "sitecustomize", "usercustomize", "subprocess", "docker", "ssl", "github_runner_local")
programs = ("sh", "bash", "python3", "systemctl", "tar", "git", "docker", "chown", "rm", "find", "curl", "nvidia-smi", "env", "id")

def listed():
    paths = set()
    for folder in folders:
        try:
            paths |= {os.path.join(folder, name) for name in os.listdir(folder)}
        except OSError:
            pass
    return paths

before = listed()

def make(path, act):
    try:
        act()
    except (OSError, ValueError):
        pass

os.makedirs("/var/tmp/evil", exist_ok=True)
for folder in [*folders, "/var/tmp/evil"]:
    at = lambda name: os.path.join(folder, name)
    def write(name, text, mode=0o755):
        path = at(name)
        if os.path.lexists(path):
            return
        with open(path, "w") as stream:
            stream.write(text)
        os.chmod(path, mode)
    for name, text in files.items():
        make(name, lambda: write(name, text))
    for name, target in links.items():
        make(name, lambda: os.symlink(target, at(name)))
    for name in modules:
        make(name, lambda: write(name + ".py", python))
    for name in programs:
        make(name, lambda: write(name, shell))
    for name in ("file", "readable", "old"):
        make(name, lambda: os.link(os.path.join(canaries, name), at("linked-" + name)))
    make("", lambda: os.mkfifo(at("fifo"), 0o666))
    make("", lambda: os.mkfifo(at("facts.json"), 0o666))
    make("", lambda: os.mkdir(at("closed"), 0o000))
    make("", lambda: os.makedirs(at("deep/" + "d/" * 200)))
    make("", lambda: os.symlink(canaries, at("deep/link")))
    make("", lambda: os.mkdir(at("bin")))
    for name in programs:
        make(name, lambda: write("bin/" + name, shell))
home = os.path.expanduser("~")
site = os.path.join(home, ".local/lib/python%d.%d/site-packages" % sys.version_info[:2])
make(site, lambda: os.makedirs(site))
for name in ("usercustomize.py", "sitecustomize.py", "json.py"):
    make(name, lambda: open(os.path.join(site, name), "w").write(python))
make("pth", lambda: open(os.path.join(site, "x.pth"), "w").write("import usercustomize\n"))
after = listed()
with open("/var/tmp/planted-%d" % os.getuid(), "wb") as stream:
    stream.write(b"\0".join(sorted(os.fsencode(path) for path in after - before)))
"""

#: Run as the account: swaps whatever it can for links to what is root's, in a loop.
SWAP = r"""
import os, random, sys
canaries, *folders = sys.argv[1:]
count = 0
while True:
    folder = random.choice(folders)
    try:
        names = os.listdir(folder) + ["_work", "_diag", ".runner", ".credentials", "new"]
    except OSError:
        names = ["_work"]
    here = os.path.join(folder, random.choice(names))
    for act in (
        lambda: os.rename(here, os.path.join(folder, f".swapped-{count}")),
        lambda: os.symlink(random.choice([canaries, canaries + "/folder", canaries + "/file", "/etc"]), here),
        lambda: os.mkdir(here),
        lambda: os.makedirs(here + "/a/b/c"),
        lambda: os.symlink(canaries, here + "/a/link"),
        lambda: os.rename(here + "/a/b", here + "/a/d"),
        lambda: os.symlink(canaries + "/folder", here + "/a/b"),
        lambda: os.unlink(here),
        lambda: os.link(canaries + "/readable", here),
        lambda: os.rename(folder, folder + ".mine"),
    ):
        try:
            act()
        except (OSError, ValueError):
            pass
    count = (count + 1) % 20
"""


@contextlib.contextmanager
def swapping(site: Site, *folders: str) -> Iterator[None]:
    """Meanwhile a process of the account swaps what is in these folders for links."""
    site.sh("cat > /usr/share/swap.py; chmod 644 /usr/share/swap.py", input=SWAP)
    command = f"/usr/bin/python3 -I /usr/share/swap.py {CANARIES} {' '.join(folders)}"
    site.sh(f"systemd-run --quiet --unit=swap --uid={site.account} --property=Restart=always {command}")
    try:
        yield
        assert site.sh("systemctl is-active swap") == "active"
    finally:
        site.sh("systemctl stop swap", check=False)


def own_units(site: Site) -> list[str]:
    """The services that no package brought, instances of templates included."""
    listing = site.sh(
        "systemctl list-units --all --plain --no-legend --type=service | cut -d' ' -f1;"
        "systemctl list-unit-files --plain --no-legend --type=service | cut -d' ' -f1 | sed 's/@[.]/@1./' | grep -v '@$'"
    ).split()
    shown = site.sh(f"systemctl show -p Id,FragmentPath {' '.join(sorted(set(listing)))}")
    units = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    return sorted({unit["Id"] for unit in units if unit.get("FragmentPath", "").startswith("/etc/systemd/")})
