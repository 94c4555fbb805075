"""The kinds of test host: bookworm over ssh, a simulated GPU host, a host without systemd."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from . import gpu
from .gpu.world import UUIDS, cdi, device_nodes, world
from .machine import CA_BUNDLE, TestHost, ca_bundle, make_image, run
from .play import ROOT, play

GPU_FILES = Path(gpu.__file__).parent
UV = "/var/lib/train-classifier/bin/uv"


def uv_binary() -> str:
    """The path of uv's own program (what is first on PATH may be a shim)."""
    return run("uv", "run", "--no-project", "--offline", "sh", "-c", 'echo "$UV"').stdout.strip()


def prepare(host: TestHost, slim: str, **settings: object) -> None:
    """Prepare a host for training: folders, groups, uv and host.json (`settings` go there)."""
    values: dict[str, object] = {"images": {"cpu": slim, "gpu": slim}, "uv": UV}
    if ca_bundle() is not None:
        values["ca_bundle"] = CA_BUNDLE
    values.update(settings)
    host.shell(
        "getent passwd train-classifier >/dev/null || useradd --system --create-home --home-dir "
        "/var/lib/train-classifier/home --shell /usr/sbin/nologin train-classifier; "
        "cd /var/lib/train-classifier; chmod 0755 .; install -d bin; install -d -m 2770 -g docker queue; "
        "install -d -m 0711 state; usermod -aG docker trainer; "
        "if test -d /run/systemd/system; then loginctl enable-linger trainer; fi"
    )
    host.write("/var/lib/train-classifier/host.json", json.dumps(values))
    run("docker", "cp", uv_binary(), f"{host.container}:{UV}")
    host.load_image(slim)


def role_variables(slim: str) -> dict[str, object]:
    """The roles' variables for a test host: the base image as training image, who trains, the CA bundle."""
    variables: dict[str, object] = {"training_host_images": {"cpu": slim}, "training_host_users": ["trainer"]}
    if ca_bundle() is not None:
        variables["train_classifier_ca_bundle"] = CA_BUNDLE
    return variables


def place_uv(host: TestHost) -> None:
    """Put this machine's uv where role training_host would put it, if it has the version of the role."""
    defaults = yaml.safe_load((ROOT / "roles/training_host/defaults/main.yml").read_text())
    version = defaults["training_host_uv_version"]
    binary = uv_binary()
    if run(binary, "--version").stdout.split()[1] == version:
        host.shell(f"mkdir -p {UV}-{version}")
        run("docker", "cp", binary, f"{host.container}:{UV}-{version}/uv")


def simulate_gpus(host: TestHost, **engine: object) -> None:
    """Give a host two simulated cards: nvidia-smi, device nodes, CDI in the engine (Docker 25 or newer).

    `engine` are further settings of daemon.json.
    """
    host.write("/usr/bin/nvidia-smi", (GPU_FILES / "nvidia-smi").read_text(), "0755")
    host.write("/etc/simulated-gpus.json", world())
    host.write("/etc/cdi/nvidia.json", cdi())
    host.write("/etc/tmpfiles.d/simulated-gpus.conf", device_nodes())
    host.write(
        "/etc/docker/daemon.json", json.dumps({"features": {"cdi": True}, "live-restore": True, **engine})
    )
    host.shell("systemd-tmpfiles --create /etc/tmpfiles.d/simulated-gpus.conf; systemctl restart docker")
    host.facts["gpus"] = UUIDS


def ssh_host(directory: Path, slim: str) -> TestHost:
    """Debian 12 with Docker 20.10 and a strict umask: users root and trainer (docker group, linger)."""
    host = TestHost.create("ssh-host", make_image("bookworm"), directory)
    try:
        host.close_umask()
        # Role docker_engine leaves a working engine as it is: this one keeps its containers when it ends.
        host.write("/etc/docker/daemon.json", json.dumps({"live-restore": True}))
        host.shell("systemctl restart docker")
        host.load_image(slim)
        place_uv(host)
        show = "systemctl show -p ActiveEnterTimestampMonotonic docker; cat /etc/docker/daemon.json; apt-mark showhold"
        before = host.shell(show)
        play(host, "docker_engine", "training_host", **role_variables(slim))
        host.facts["engine"] = (before, host.shell(show))
    except BaseException:
        host.remove()
        raise
    return host


def systemd_host(directory: Path, slim: str) -> TestHost:
    """Debian 12 with Docker 20.10, live-restore and the users of ssh_host, prepared without Ansible."""
    host = TestHost.create("systemd-host", make_image("bookworm"), directory)
    try:
        host.write("/etc/docker/daemon.json", json.dumps({"live-restore": True}))
        host.shell("systemctl restart docker")
        prepare(host, slim)
    except BaseException:
        host.remove()
        raise
    return host


def bare_host(directory: Path, release: str = "trixie") -> TestHost:
    """A Debian release with a strict umask, without Docker and without anything of ours."""
    host = TestHost.create("bare-host", make_image(release, "--bare"), directory)
    try:
        host.close_umask()
    except BaseException:
        host.remove()
        raise
    return host


def gpu_host(directory: Path, slim: str) -> TestHost:
    """Debian 13 with Docker 26 and two simulated cards; `facts["gpus"]` has their UUIDs."""
    host = TestHost.create("gpu-host", make_image("trixie"), directory)
    simulate_gpus(host)
    prepare(host, slim, gpu_check="device")
    return host


PLAIN_INIT = """#!/bin/sh
# A host without systemd: sshd and dockerd started by hand.
mkdir -p /run/sshd
ssh-keygen -A
/usr/sbin/sshd
rm -f /var/run/docker.pid /run/docker/containerd/containerd.pid
setsid -f dockerd >/var/log/dockerd.log 2>&1
exec sleep infinity
"""


def plain_host(directory: Path, slim: str) -> TestHost:
    """Debian 12 without systemd: sshd and dockerd run, nothing else."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    script = directory / "plain-init"
    script.write_text(PLAIN_INIT)
    script.chmod(0o755)
    options = ("-v", f"{script}:/sbin/plain-init:ro", "--init")
    image = make_image("bookworm")
    host = TestHost.create("plain-host", image, directory, options=options, init="/sbin/plain-init")
    prepare(host, slim)
    return host
