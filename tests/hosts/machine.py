"""One test host: a systemd machine in a container, reached by ssh and by `docker exec`."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
LABEL = "train-classifier-test"
# How systemd and a Docker engine of its own run in a container without --privileged.
SYSTEMD_OPTIONS = (
    "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--security-opt", "seccomp=unconfined",
    "--tmpfs", "/run", "--tmpfs", "/run/lock", "-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--stop-signal", "SIGRTMIN+3",
)  # fmt: skip
# State must not lie on an overlay file system.
VOLUMES = ("-v", "/var/lib/docker", "-v", "/var/lib/train-classifier", "-v", "/home")
# This machine's CA bundle as the host sees it: behind a proxy that inspects TLS its builds need it.
CA_BUNDLE = "/etc/train-classifier-ca.crt"


class HostError(Exception):
    """A test host could not be made or did not come up."""


def run(*argv: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the machine that tests run on; raise with its output when it fails."""
    check = kwargs.pop("check", True)
    done = subprocess.run(
        [str(a) for a in argv],
        text=True,
        capture_output=True,
        **kwargs,  # type: ignore[call-overload]
    )
    if check and done.returncode:
        raise HostError(f"{shlex.join(map(str, argv))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def make_image(name: str, *options: str) -> str:
    """The tag of the image `name` (slim, bookworm, trixie), made first when it is missing."""
    return run(HERE / "make-image", *options, name).stdout.split()[0]


def ca_bundle() -> Path | None:
    """The CA bundle this machine trusts."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if os.environ.get(name) and Path(os.environ[name]).is_file():
            return Path(os.environ[name])
    path = Path("/etc/ssl/certs/ca-certificates.crt")
    return path if path.is_file() else None


def process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def owner_label() -> str:
    """The label by which `sweep` finds what this process made."""
    return f"{LABEL}.owner={os.getpid()}:{process_start(os.getpid())}"


def sweep() -> None:
    """Remove the test hosts of test runs that are gone (killed before they could clean up), then their networks and volumes."""
    label_form = f'{{{{index .Labels "{LABEL}.owner"}}}}'
    for listing, form, removal in (
        (("ps", "-aq"), f'{{{{index .Config.Labels "{LABEL}.owner"}}}}', ("rm", "-fv")),
        (("network", "ls", "-q"), label_form, ("network", "rm")),
        (("volume", "ls", "-q"), label_form, ("volume", "rm", "-f")),
    ):
        listed = run("docker", *listing, "--filter", f"label={LABEL}.owner", check=False)
        for name in listed.stdout.split():
            kind = () if listing[0] == "ps" else (listing[0],)
            owner = run("docker", *kind, "inspect", "-f", form, name, check=False).stdout.strip()
            pid, _, start = owner.partition(":")
            if pid.isdigit() and process_start(int(pid)) != start:
                run("docker", *removal, name, check=False)


def state_dir(user: str) -> str:
    """Where the jobs of an account lie on a test host."""
    return (
        "/var/lib/train-classifier/state" if user == "root" else f"/home/{user}/.local/state/train-classifier"
    )


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class TestHost:
    """A running test host. `directory` holds its key, known_hosts and inventory files (mode 0700)."""

    __test__ = False  # no test class, in spite of its name

    name: str
    container: str
    directory: Path
    port: int
    address: str = "127.0.0.1"
    users: tuple[str, ...] = ("root", "trainer")
    facts: dict[str, object] = field(default_factory=dict)

    @classmethod
    def create(
        cls, name: str, image: str, directory: Path, *, options: Sequence[str] = (), init: str = "/sbin/init"
    ) -> TestHost:
        """Start a host from an image and wait until ssh answers.

        Raises:
            HostError: the container did not start or did not come up; says its last log lines.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        port = free_port()
        mounts: list[str] = []
        bundle = ca_bundle()
        if bundle is not None:
            mounts = ["-v", f"{bundle}:{CA_BUNDLE}:ro"]
        container = run(
            "docker", "run", "-d", "--name", f"tc-test-{name}-{secrets.token_hex(3)}", "--hostname", name,
            "--label", LABEL, "--label", owner_label(),
            *SYSTEMD_OPTIONS, *VOLUMES, *mounts, "-p", f"127.0.0.1:{port}:22", *options, image, init,
        ).stdout.strip()  # fmt: skip
        host = cls(name=name, container=container, directory=directory, port=port)
        try:
            host.authorize()
            host.wait()
            host.write_known_hosts()
            for user in host.users:
                host.write_inventory(user)
        except BaseException:
            host.remove()
            raise
        return host

    # Access

    @property
    def key(self) -> Path:
        """The private key that every user of the host accepts."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The known_hosts file naming the host's key."""
        return self.directory / "known_hosts"

    def authorize(self) -> None:
        """Let our key in as each user."""
        if not self.key.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "train-classifier-test", "-f", self.key)
        public = self.key.with_suffix(".pub").read_text()
        for user in self.users:
            self.exec(
                "sh", "-ec",
                'home=$(getent passwd "$1" | cut -d: -f6); install -d -m 700 -o "$1" -g "$1" "$home/.ssh"; '
                'cat >"$home/.ssh/authorized_keys"; chown "$1:$1" "$home/.ssh/authorized_keys"; '
                'chmod 600 "$home/.ssh/authorized_keys"', "sh", user, input=public,
            )  # fmt: skip

    def close_umask(self) -> None:
        """Give every login, by ssh or by sudo, the umask 077, as guides for hardened systems (CIS) do.

        Also the accounts' own systemd: it asks the same modules of PAM.
        """
        line = "session optional pam_umask.so umask=0077 nousergroups"
        for name in ("common-session", "common-session-noninteractive"):
            self.shell(f"echo '{line}' >>/etc/pam.d/{name}")
        masks = {self.ssh("umask", user=user).stdout.strip() for user in self.users}
        if masks != {"0077"}:
            raise HostError(f"{self.name}: the umask of a login is {masks}, not 0077")

    def write_known_hosts(self) -> None:
        """Write known_hosts from the host's own key (read inside it, so nothing is trusted on first use)."""
        key = " ".join(self.exec("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[:2])
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {key}\n")

    def ssh_options(self) -> list[str]:
        """ssh's options to reach the host, without user and command."""
        return [
            "-F", "/dev/null", "-p", str(self.port), "-i", str(self.key), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes",
            "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
        ]  # fmt: skip

    def write_inventory(
        self, user: str, path: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> Path:
        """Write an inventory of this host as `user`; the default path is what `inventory(user)` names."""
        path = path or self.directory / f"inventory-{user}.ini"
        values = {
            "ansible_host": self.address,
            "ansible_port": str(self.port),
            "ansible_user": user,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-F /dev/null -o UserKnownHostsFile={self.known_hosts} "
            "-o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o BatchMode=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
            **(extra or {}),
        }
        line = " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
        path.write_text(f"[training]\n{self.name} {line}\n")
        return path

    def inventory(self, user: str = "root") -> Path:
        """The inventory file that reaches this host as `user`."""
        return self.directory / f"inventory-{user}.ini"

    # Commands

    def exec(
        self,
        *argv: str,
        user: str = "root",
        input: str | None = None,
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host, beside ssh (works while sshd or the network is down)."""
        return run(
            "docker", "exec", "-i", "-u", user, self.container, *argv,
            input=input or "", check=check, timeout=timeout,
        )  # fmt: skip

    def shell(self, script: str, user: str = "root", *, check: bool = True, timeout: float = 300) -> str:
        """Run a shell script inside the host; its standard output."""
        return self.exec("sh", "-ec", script, user=user, check=check, timeout=timeout).stdout

    def ssh(
        self,
        *argv: str,
        user: str = "root",
        input: str | None = None,
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over real ssh (the arguments are joined by the remote shell, as ssh does)."""
        return run(
            "ssh", *self.ssh_options(), f"{user}@{self.address}", *argv,
            input=input or "", check=check, timeout=timeout,
        )  # fmt: skip

    def docker(self, *argv: str, check: bool = True, timeout: float = 300) -> str:
        """Run the host's own docker command; its standard output."""
        return self.exec("docker", *argv, check=check, timeout=timeout).stdout

    def write(self, path: str, content: str, mode: str = "0644") -> None:
        """Write a file inside the host."""
        script = 'mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1"'
        self.exec("sh", "-ec", script, "sh", path, mode, input=content)

    def load_image(self, tag: str) -> None:
        """Give the host's engine an image of this machine's engine, tag included (nothing when it has it)."""
        if self.docker("images", "-q", tag).strip():
            return
        save = subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE)
        load = subprocess.run(
            ["docker", "exec", "-i", self.container, "docker", "load", "-q"],
            stdin=save.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if save.wait() or load.returncode:
            raise HostError(f"{self.name}: image {tag} could not be loaded: {load.stdout}{load.stderr}")

    def containers(self, *filters: str) -> list[str]:
        """Names of our containers on the host's engine (label train-classifier), running or not."""
        options = [part for item in filters for part in ("--filter", item)]
        label = ("--filter", "label=train-classifier", *options)
        return self.docker("ps", "-a", *label, "--format", "{{.Names}}").split()

    # Start and stop

    def wait(self, seconds: float = 240) -> None:
        """Wait until ssh answers and the engine does (where one is installed)."""
        ready = (
            # Port 22 in state LISTEN: sshd runs before that, too, to check its configuration.
            "grep -q ':0016 .* 0A ' /proc/net/tcp; test -s /etc/ssh/ssh_host_ed25519_key.pub; "
            "if command -v dockerd >/dev/null; then docker version >/dev/null; fi"
        )
        deadline = time.monotonic() + seconds
        while True:
            done = self.exec("sh", "-ec", ready, check=False)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                logs = run("docker", "logs", "--tail", "20", self.container, check=False)
                raise HostError(f"{self.name} did not come up: {done.stderr}{logs.stdout}{logs.stderr}")
            time.sleep(0.3)

    def kill_container(self) -> None:
        """Kill every process of the host at once, as a power loss does. `start()` boots it again."""
        run("docker", "kill", self.container)

    def stop(self) -> None:
        """Shut the host down in order."""
        run("docker", "stop", "-t", "30", self.container)

    def start(self) -> None:
        """Boot a host that is off and wait until it answers; it has a new boot id."""
        run("docker", "start", self.container)
        self.wait()

    def reboot(self, *, hard: bool = False) -> None:
        """Stop (`hard`: kill) and start the host."""
        if hard:
            self.kill_container()
        else:
            self.stop()
        self.start()

    def remove(self) -> None:
        """Remove the host with its volumes."""
        run("docker", "rm", "-fv", self.container, check=False)
