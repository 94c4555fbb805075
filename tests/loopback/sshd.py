"""A real sshd on a high port of loopback, with keys of its own: for one account, the test's."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest


class Sshd:
    """One running sshd. `ssh()` is the command line that reaches it; files lie below `folder`."""

    def __init__(self, folder: Path) -> None:
        require()
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.key = folder / "id_ed25519"
        self.host_key = folder / "host_key"
        self.known_hosts = folder / "known_hosts"
        self.keygen(self.key)
        self.keygen(self.host_key)
        authorized = folder / "authorized_keys"
        authorized.write_text(self.key.with_suffix(".pub").read_text())
        self.port = free_port()
        config = folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\n"
            f"AuthorizedKeysFile {authorized}\nPidFile {folder}/pid\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "MaxStartups 100\nMaxSessions 100\nAcceptEnv TRAIN_CLASSIFIER_HOST_JSON XDG_STATE_HOME\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        program = sshd_program()
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=self._log)
        self.trust(self.port)
        _wait(self.port)

    def keygen(self, path: Path, passphrase: str = "") -> None:
        """Make a key pair."""
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)]
        subprocess.run(command, check=True)

    def trust(self, port: int, host_key: Path | None = None) -> None:
        """Write the host key as the one known for 127.0.0.1:`port`."""
        kind, key = (host_key or self.host_key).with_suffix(".pub").read_text().split()[:2]
        with self.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{port} {kind} {key}\n")

    def options(self, key: Path | None = None, known_hosts: Path | None = None) -> list[str]:
        """Return ssh's options, for an inventory's ansible_ssh_common_args too."""
        return [
            *("-F", "/dev/null"),
            *("-o", f"UserKnownHostsFile={known_hosts or self.known_hosts}"),
            *("-o", "GlobalKnownHostsFile=/dev/null"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", f"IdentityFile={key or self.key}"),
            *("-o", "SendEnv=TRAIN_CLASSIFIER_HOST_JSON"),
            *("-o", "SendEnv=XDG_STATE_HOME"),
        ]

    def ssh(self, port: int | None = None, host: str = "127.0.0.1", **how: Path) -> list[str]:
        """Return the command line up to and with the destination."""
        return ["ssh", *self.options(**how), "-p", str(port or self.port), f"{getpass.getuser()}@{host}"]

    def inventory(self, port: int | None = None, name: str = "trainer1", **variables: str) -> Path:
        """Write an inventory with this one host and return its path."""
        path = self.folder / f"inventory-{name}-{port or self.port}.yml"
        lines = [
            "all:",
            "  hosts:",
            f"    {name}:",
            "      ansible_host: 127.0.0.1",
            f"      ansible_port: {port or self.port}",
            f"      ansible_user: {getpass.getuser()}",
            f"      ansible_ssh_common_args: '{' '.join(self.options())}'",
            *(f"      {key}: {value}" for key, value in variables.items()),
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def stop(self) -> None:
        """End the daemon. Sessions are children of it that end with their clients."""
        self._process.terminate()
        self._process.wait()
        self._log.close()


def sshd_program() -> str:
    """Return where the daemon is; it often lies on no PATH but root's."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin") or ""


def require() -> None:
    """Skip the test that wants a daemon of its own on a machine that lacks what this takes."""
    if not sshd_program():
        pytest.skip("no sshd on this machine: apt-get install openssh-server")
    for program in ("ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine: apt-get install openssh-client")


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"sshd does not listen on port {port}")
