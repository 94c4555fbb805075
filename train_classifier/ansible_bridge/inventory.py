"""The inventory's hosts and how to connect to each, exactly as Ansible does, but without a playbook."""

import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_classifier.ansible_bridge import content
from train_classifier.core.errors import BadInput, NotReady, SeveralHosts
from train_classifier.core.options import show_option
from train_classifier.core.text import nearest, printable, quoted

if TYPE_CHECKING:
    from train_classifier.controller.transport import RemoteHost

VARIABLE = "TRAIN_CLASSIFIER_INVENTORY"
#: The name of this machine where no inventory is given.
THIS_MACHINE = "localhost"
#: Seconds for an inventory: it may be a program that queries a cloud, or a vault that asks for a password.
TIMEOUT_S = 300.0
#: The name of one host, no pattern and no option of ssh.
PLAIN_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_PATTERN = frozenset(":,*?!&[]~@")


@dataclasses.dataclass(frozen=True)
class Target:
    """One host. `ssh` is the whole command line up to and with the destination; empty when `local`."""

    name: str
    local: bool = True
    ssh: list[str] = dataclasses.field(default_factory=list)
    #: The inventory's training_job_state_dir and ansible_python_interpreter; None: the host's default.
    state_dir: str | None = None
    python: str | None = None
    #: Why this program cannot connect to the host; None: no known problem.
    problem: str | None = None

    def connect(self, own_session: bool = False, flags: str = "") -> "RemoteHost":
        """Return the host as a RemoteHost; `flags` are those by which a command finds it, see `flags`."""
        from train_classifier.controller.transport import RemoteHost

        return RemoteHost(
            self.name,
            None if self.local else self.ssh,
            python=self.python,
            state_dir=self.state_dir,
            own_session=own_session,
            flags=flags,
            problem=self.problem,
        )


def flags(inventory: str | None, host: str | None) -> str:
    """Return the flags with which another command uses the same hosts, each with a space before it."""
    options = (("--inventory", inventory), ("--host", host))
    return "".join(f" {name} {shlex.quote(value)}" for name, value in options if value is not None)


def resolve(
    inventory: str | None,
    environ: Mapping[str, str],
    cwd: Path,
    host: str | None = None,
    own_hosts: Sequence[str] = (),
) -> str | None:
    """Return the inventory to use: an absolute path, a host list with a comma, or None for this machine.

    A plain name of a host that ssh knows is an inventory of that host; without an inventory, so is `host`,
    and without both `own_hosts` are the inventory.
    Raises BadInput when there is no such file.
    """
    name = inventory if inventory is not None else environ.get(VARIABLE) or None
    if name is None:
        if host is None or host in own_hosts:
            return host_list(own_hosts)
        return ssh_host_inventory(host)
    if not name.strip() or "\0" in name:
        raise BadInput("the inventory's name is empty: give a file, a folder, or hosts with a comma")
    if "," in name:
        return name
    try:
        path = cwd / Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"inventory {quoted(name)}: {reason}") from error
    if not exists:
        if hosts := ssh_host_inventory(name):
            return hosts
        hint = "; neither does ssh know a host of that name" if PLAIN_HOST.match(name) else ""
        raise BadInput(f"inventory {quoted(name)} does not exist in {printable(str(cwd))}{hint}")
    if not os.access(path, os.R_OK):
        raise BadInput(f"inventory {quoted(name)} cannot be read by this user")
    return str(path)


def host_list(names: Sequence[str]) -> str | None:
    """Return the inventory of these hosts; None without one."""
    return "".join(f"{name}," for name in names) or None


def listed_hosts(inventory: str | None) -> list[str]:
    """Return the hosts of an inventory that is a list of them; of a file or of this machine none."""
    is_list = inventory is not None and "," in inventory
    return [name for name in map(str.strip, (inventory or "").split(",")) if name] if is_list else []


def ssh_host_inventory(name: str) -> str | None:
    """Return the inventory of one host by its name, None where ssh's configuration and DNS lack it."""
    if not PLAIN_HOST.match(name) or name in (THIS_MACHINE, "all"):
        return None
    try:
        settings = subprocess.run(
            ["ssh", "-G", name], capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    ssh = dict(line.split(" ", 1) for line in settings.stdout.splitlines() if " " in line)
    # A name that a jump host resolves need not be known here.
    if ssh.get("hostname", name) == name.lower() and not {"proxyjump", "proxycommand"} & set(ssh):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            return None
    return f"{name},"


def hosts(
    inventory: str | None = None,
    limit: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> list[Target]:
    """Return the hosts of an inventory, or those that match `limit`: a host, a group or a pattern.

    Without an inventory and TRAIN_CLASSIFIER_INVENTORY, the host is this machine. A host that cannot be
    reached is returned with its problem if another one can be reached. Raises BadInput with one sentence
    per problem: no such inventory, unknown host, nothing that matches, no host that can be reached.
    """
    targets = _targets(_matching_hosts(inventory, limit, environ, cwd))
    if all(target.problem for target in targets):
        raise BadInput(*(str(target.problem) for target in targets))
    return targets


def host_names(inventory: str, pattern: str) -> list[str]:
    """Return the names of the hosts that match `pattern`; no variable is read, so no vault is opened.

    Raises BadInput when the inventory cannot be read.
    """
    answer = _ask(inventory, pattern, os.environ, names_only=True)
    if "error" in answer:
        raise BadInput(_unreadable(inventory, answer))
    return [str(host["name"]) for host in answer["hosts"]]


def _targets(hosts: list[dict[str, Any]]) -> list[Target]:
    return [
        Target(
            host["name"],
            host["local"],
            host["ssh"],
            host.get("state_dir"),
            host.get("python"),
            f"host '{printable(host['name'])}' {host['problem']}" if host["problem"] else None,
        )
        for host in hosts
    ]


def single_host(
    inventory: str | None = None,
    host: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Target:
    """Return the only host that matches. Raises BadInput as `hosts` does, and when there are several."""
    target = _targets(_single(_matching_hosts(inventory, host, environ, cwd), host))[0]
    if target.problem:
        raise BadInput(target.problem)
    return target


def _matching_hosts(
    inventory: str | None, limit: str | None, environ: Mapping[str, str] | None, cwd: Path | None
) -> list[dict[str, Any]]:
    environ = os.environ if environ is None else environ
    where = resolve(inventory, environ, cwd or Path.cwd())
    if where is None:
        if limit not in (None, THIS_MACHINE, "127.0.0.1", "all"):
            flag = show_option("inventory")
            raise BadInput(
                f"host {quoted(limit)} is unknown: no inventory is given, and ssh knows no host of that "
                f"name; add {flag} FILE"
            )
        local: dict[str, Any] = {"name": THIS_MACHINE, "problem": None, "local": True, "ssh": []}
        return [{**local, "state_dir": None, "python": None}]
    # With @, also after a comma or a colon, Ansible would read patterns from a file.
    if limit is not None and (
        not limit.strip() or limit.startswith("-") or re.search(r"(^|[,:])\s*@", limit)
    ):
        raise BadInput(f"host {quoted(limit)} is not the name of a host or group")
    answer = _ask(where, limit, environ)
    if "error" in answer:
        raise BadInput(_unreadable(where, answer))
    hosts: list[dict[str, Any]] = answer["hosts"]
    if not hosts:
        raise BadInput(
            _unknown(where, limit, answer["names"]) if limit else f"inventory {quoted(where)} has no hosts"
        )
    return hosts


def _unreadable(where: str, answer: Mapping[str, Any]) -> str:
    reason = " ".join(printable(line) for line in str(answer["error"]).splitlines() if line.strip())
    hint = (
        "; name the file of its password by ANSIBLE_VAULT_PASSWORD_FILE" if "vault secrets" in reason else ""
    )
    return f"inventory {quoted(where)} cannot be read: {reason}{hint}"


def _single(hosts: list[dict[str, Any]], host: str | None) -> list[dict[str, Any]]:
    if len(hosts) > 1:
        names = ", ".join(printable(target["name"]) for target in hosts[:10])
        more = f" and {len(hosts) - 10} more" if len(hosts) > 10 else ""
        match = f"{quoted(host)} matches" if host else "the inventory has"
        raise SeveralHosts(
            f"{match} {len(hosts)} hosts, but one is needed: {names}{more}; name one by {show_option('host')}"
        )
    return hosts


def _unknown(where: str, limit: str, names: list[str]) -> str:
    if _PATTERN & set(limit):
        return f"no host of inventory {quoted(where)} matches {quoted(limit)}"
    near = nearest(limit, names)
    if near:
        hint = f"did you mean '{printable(near)}'?"
    elif limit in names:
        hint = "the group is empty"
    else:
        hint = f"it has {', '.join(printable(name) for name in names[:10])}{', …' if len(names) > 10 else ''}"
    return f"host {quoted(limit)} is not in inventory {quoted(where)}; {hint}"


def _ask(
    inventory: str, limit: str | None, environ: Mapping[str, str], names_only: bool = False
) -> dict[str, Any]:
    from train_classifier.ansible_bridge.playbook import ansible_environment

    environment = {
        **ansible_environment(content.root(), environ),
        # A file that no plugin understands is an error, not an empty inventory.
        "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_NOCOLOR": "True",
    }
    try:
        process = subprocess.run(
            # -P: nothing is imported from the current folder, which may be an untrusted checkout.
            [sys.executable, "-P", "-m", "train_classifier.ansible_bridge.inventory_child"],
            input=json.dumps({"inventory": inventory, "limit": limit, "names_only": names_only}).encode(),
            env=environment,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"inventory {quoted(inventory)} did not answer within {TIMEOUT_S:.0f} s") from error
    stderr = process.stderr.decode("utf-8", "replace")
    try:
        answer = json.loads(process.stdout)
    except ValueError:
        answer = None
    if process.returncode or not isinstance(answer, dict):
        raise NotReady(
            f"Ansible does not start with inventory {quoted(inventory)}.",
            "Check your variables ANSIBLE_…, and Ansible's installation: ansible-inventory --list",
            "\n".join(stderr.strip().splitlines()[-1:]),
        )
    if "error" in answer:
        answer["error"] = _reason(inventory, answer["error"], stderr)
    return answer


def _reason(inventory: str, error: str, stderr: str) -> str:
    """Return the error; for an inventory that no plugin can read, the message of the plugin for it."""
    plugin = "yaml" if inventory.endswith((".yml", ".yaml", ".json")) else "ini"
    message = re.search(rf"with '{plugin}' plugin: ([^\n]+)", stderr)
    position = re.search(r"^Origin: .*?:([0-9]+):([0-9]+)$", stderr, re.MULTILINE)
    where = f" (line {position[1]}, column {position[2]})" if position and plugin == "yaml" else ""
    return f"{message[1]}{where}" if message else error
