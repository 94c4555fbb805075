"""Explains ssh's error messages: one sentence for each reason why a host cannot be reached."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from train_classifier.core.errors import NotReady


class Unreachable(NotReady):
    """The host cannot be reached. `kind` is the reason; `final` means that trying again cannot help."""

    def __init__(
        self, reason: str, hint: str | None = None, detail: str | None = None, kind: str = "cut"
    ) -> None:
        super().__init__(reason, hint, detail)
        self.kind = kind

    @property
    def final(self) -> bool:
        """Whether trying again cannot help, as with a changed host key."""
        return self.kind in ("host-key", "key-permissions", "passphrase")


#: First match wins: (kind, pattern of ssh's message, our sentence, what to do).
EXPLANATIONS = (
    (
        "host-key",
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|HOST IDENTIFICATION HAS CHANGED",
        "The host key of {host} has changed: the connection was refused.",
        "If the host was installed anew, check its new key, then remove the old one with ssh-keygen -R. "
        "If not, someone may intercept the connection.",
    ),
    (
        "host-key",
        r"Host key verification failed|No \S+ host key is known",
        "The host key of {host} is not known on this machine.",
        "Connect once by ssh and compare the fingerprint, or add the key to ~/.ssh/known_hosts.",
    ),
    (
        "key-permissions",
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "ssh does not use the private key for {host}: others may read the file.",
        "chmod 600 the key file.",
    ),
    (
        "name",
        r"Could not resolve hostname|Name or service not known|Temporary failure in name resolution",
        "The name of {host} cannot be resolved.",
        "Check ansible_host in the inventory, and the DNS.",
    ),
    (
        "refused",
        r"Connection refused",
        "{host} refused the connection: nothing listens on its ssh port.",
        "Check that sshd runs there, and the port in the inventory.",
    ),
    (
        "timeout",
        r"(Connection|Operation) timed out|timed out during banner exchange|Connection to \S+ timed out",
        "{host} does not answer: the connection timed out.",
        "Check that the host is up and that no firewall drops the packets.",
    ),
    (
        "down",
        r"No route to host|Network is unreachable|Host is down",
        "{host} is down, or there is no route to it.",
        "Check that the host is up, and the network to it.",
    ),
    (
        "permission",
        r"Permission denied|Too many authentication failures|No supported authentication methods",
        "{host} refuses the login: permission denied.",
        "Check the user and the key in the inventory, and authorized_keys on the host.",
    ),
    (
        "cut",
        r"Timeout, server .* not responding|Broken pipe|[Cc]onnection (reset|closed|unexpectedly closed)"
        r"|client_loop|mux_client|kex_exchange_identification|lost connection",
        "The connection to {host} was cut.",
        "Check the network, then try again.",
    ),
)


def explain(host: str, ssh: Sequence[str], text: str) -> Unreachable:
    """Return the failure for the messages in `text` of ssh (command line `ssh`) with exit status 255."""
    for kind, pattern, reason, hint in EXPLANATIONS:
        if re.search(pattern, text):
            if kind == "permission" and (locked := _locked_key(ssh)):
                return Unreachable(
                    f"The key {locked} for {host} has a passphrase and no agent holds it.",
                    f"Start an agent and add it: ssh-add {locked}",
                    _tail(text),
                    "passphrase",
                )
            return Unreachable(reason.format(host=host), hint, _tail(text), kind)
    return Unreachable(f"The connection to {host} failed.", "Try to connect by ssh.", _tail(text), "cut")


def _locked_key(ssh: Sequence[str]) -> str | None:
    """Return the first key that ssh would offer and cannot open without a passphrase."""
    try:
        settings = subprocess.run(
            [ssh[0], "-G", *ssh[1:]], capture_output=True, text=True, timeout=10, check=False
        ).stdout
        for line in settings.splitlines():
            name, _, value = line.partition(" ")
            key = Path(value.strip('"')).expanduser()
            if name != "identityfile" or not key.is_file():
                continue
            opened = subprocess.run(
                ["ssh-keygen", "-y", "-P", "", "-f", str(key)],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
            if "passphrase" in opened.stderr:
                return str(key)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None


def _tail(text: str) -> str | None:
    lines = [line for line in text.strip().splitlines() if not line.startswith(("@", "Warning: Permanently"))]
    return "\n".join(lines[-6:]) or None
