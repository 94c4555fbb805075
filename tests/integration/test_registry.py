"""Images from a real registry that requires a password (Debian's docker-registry, on the test host's loopback)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import fleet
from hosts.caller import Caller, archived
from hosts.machine import TestHost
from hosts.play import play
from loopback.world import tail
from worker_site import PLAIN_VERSION, plain_reference

__all__ = ["plain_reference"]
pytestmark = [pytest.mark.engine, pytest.mark.host]

ADDRESS = "127.0.0.1:5000"
IMAGE = f"{ADDRESS}/team/base:1"
CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker/test-registry}}
http: {addr: 127.0.0.1:5000}
auth: {htpasswd: {realm: test, path: /root/htpasswd}}
"""
#: The same images without a login, as a mirror of Docker's registry has them.
MIRROR_ADDRESS = "127.0.0.1:5001"
MIRROR = CONFIG.replace(ADDRESS, MIRROR_ADDRESS).partition("auth:")[0]
ENGINE = "/etc/docker/daemon.json"
SETTINGS = "/var/lib/train-classifier/host.json"
LOGIN = f"echo 'pa ss' | docker login -u team --password-stdin {ADDRESS}"


@pytest.fixture
def registry(ssh_host: TestHost, base_image: str) -> Iterator[str]:
    """The digest of an image that only the registry has."""
    ssh_host.shell(
        "command -v docker-registry >/dev/null || { apt-get update -q; apt-get install -yq --no-install-recommends "
        "docker-registry; systemctl disable --now docker-registry; }"
    )
    ssh_host.write("/root/registry.yml", CONFIG)
    crypt = (
        "import crypt; print('team:' + crypt.crypt('pa ss', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))"
    )
    ssh_host.shell(f'python3 -W ignore -c "{crypt}" >/root/htpasswd')
    ssh_host.shell("systemd-run -q --unit tc-registry docker-registry serve /root/registry.yml")
    try:
        ssh_host.shell(
            f"for _ in $(seq 1000); do {LOGIN} && break; sleep 0.2; done; docker tag {base_image} {IMAGE}"
        )
        repository_digest = ssh_host.shell(
            f"docker push -q {IMAGE} >/dev/null; docker inspect -f '{{{{index .RepoDigests 0}}}}' {IMAGE}"
        )
        ssh_host.shell(f"docker rmi {IMAGE}; docker logout {ADDRESS}")
        yield repository_digest.strip().partition("@")[2]
    finally:
        ssh_host.shell(
            f"systemctl stop tc-registry; docker rmi {IMAGE} 2>/dev/null; rm -rf /var/lib/docker/test-registry",
            check=False,
        )
        ssh_host.shell("rm -f ~/.docker/config.json", user="trainer")


def test_private_image_is_pulled_with_the_users_login(
    ssh_host: TestHost, registry: str, base_image: str, tmp_path: Path
) -> None:
    caller = Caller(ssh_host, tmp_path)
    caller.model(
        "probe", "import os\nos.makedirs('artefacts', exist_ok=True)\nopen('artefacts/x', 'w').write('x')\n"
    )
    words = caller.train("probe", "--gpus", "0", "--image", IMAGE)

    refused = caller.run(*words)
    assert refused.returncode == 9, tail(refused.stderr)
    assert b"cannot be pulled" in refused.stderr and b"docker login" in refused.stderr
    assert b"Traceback" not in refused.stderr

    ssh_host.shell(LOGIN, user="trainer")
    done = caller.run(*words)
    assert done.returncode == 0, tail(done.stderr)
    assert IMAGE in ssh_host.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    manifest = json.loads(archived(caller.work / "artefacts.tar.gz", "job/manifest.json"))
    assert manifest["image"]["reference"] == IMAGE
    assert manifest["image"]["digest"] == registry

    # The name gets another image, and the host loses the one of a job: a repeat gets that one by its digest.
    made = (
        f"c=$(docker create {base_image} true) && docker commit -c 'LABEL moved=1' $c {IMAGE} && docker rm $c"
    )
    ssh_host.shell(f"{LOGIN} && {made} && docker push -q {IMAGE}")
    assert caller.run(*words).returncode == 0
    first = json.loads(archived(caller.work / "artefacts.tar.gz", "job/manifest.json"))["image"]
    assert first["digest"] not in (registry, None)
    ssh_host.shell(
        f"docker rmi {IMAGE}; docker tag {base_image} {IMAGE}; docker push -q {IMAGE}; docker rmi {IMAGE}"
    )
    repeated = caller.run("rerun", "last")
    assert repeated.returncode == 0, tail(repeated.stderr)
    assert f"image {IMAGE} is gone: it is pulled again by its digest" in repeated.stderr.decode()
    assert json.loads(archived(caller.work / "artefacts.tar.gz", "job/manifest.json"))["image"] == first
    ssh_host.shell(f"docker rmi {IMAGE.rpartition(':')[0]}@{first['digest']}; docker logout {ADDRESS}")
    assert caller.run(*words).returncode == 0

    # An image on the host is not pulled again: the registry need not answer.
    ssh_host.shell("systemctl stop tc-registry")
    again = caller.run(*words)
    assert again.returncode == 0, tail(again.stderr)
    assert b"pulling image" not in again.stderr

    ssh_host.shell(f"docker rmi {IMAGE}")
    away = caller.run(*words)
    assert away.returncode == 9, tail(away.stderr)
    assert b"cannot be pulled" in away.stderr and b"connection refused" in away.stderr


@pytest.fixture
def plain_registry(ssh_host: TestHost, registry: str, plain_reference: str) -> Iterator[str]:
    """The repository of plain images in the registry, which has one; also in a mirror of Docker's registry."""
    repository = f"{ADDRESS}/library/python"
    pushed = f"{repository}:{PLAIN_VERSION}-slim"
    ssh_host.load_image(plain_reference)
    ssh_host.shell(
        f"{LOGIN}; docker tag {plain_reference} {pushed}; docker push -q {pushed}; docker logout {ADDRESS}"
    )
    ssh_host.shell(
        f"docker rmi {plain_reference} {pushed}; cp {SETTINGS} /root/host.json; cp {ENGINE} /root/daemon.json"
    )
    ssh_host.write("/root/mirror.yml", MIRROR)
    ssh_host.shell("systemd-run -q --unit tc-mirror docker-registry serve /root/mirror.yml")
    try:
        yield repository
    finally:
        ssh_host.shell(
            f"cp -p /root/host.json {SETTINGS}; cp /root/daemon.json {ENGINE}; systemctl reload docker"
        )
        ssh_host.shell("systemctl stop tc-mirror")
        ssh_host.shell(f"docker rmi {pushed} python:{PLAIN_VERSION}-slim", check=False)


def test_plain_image_of_another_python_is_pulled(
    ssh_host: TestHost, plain_registry: str, tmp_path: Path
) -> None:
    caller = Caller(ssh_host, tmp_path)
    program = (
        "import os, sys\nos.makedirs('artefacts', exist_ok=True)\nprint('Python', *sys.version_info[:2])\n"
    )
    caller.model("probe", f"{program}open('artefacts/x', 'w').write('x')\n")
    settings = json.loads(ssh_host.shell(f"cat {SETTINGS}"))

    def train(version: str, **images: str) -> subprocess.CompletedProcess[bytes]:
        changed = {**settings, "images": {**settings["images"], **images}}
        ssh_host.shell(f"cat >{SETTINGS} <<'END'\n{json.dumps(changed)}\nEND")
        return caller.run(*caller.train("probe", "--gpus", "0", "--python", version))

    own = f"{plain_registry}:{{version}}-slim"
    refused = train(PLAIN_VERSION, python=own)
    assert refused.returncode == 9, tail(refused.stderr)
    assert f"docker login {ADDRESS}" in refused.stderr.decode()

    ssh_host.shell(LOGIN, user="trainer")
    missing = train("3.10", python=own)
    assert missing.returncode == 9, tail(missing.stderr)
    assert (
        f"image {plain_registry}:3.10-slim is not on this host and cannot be pulled"
        in missing.stderr.decode()
    )
    assert b"the registry has none of this name" in missing.stderr

    done = train(PLAIN_VERSION, python=own)
    assert done.returncode == 0, tail(done.stderr)
    assert f"pulling image {plain_registry}:{PLAIN_VERSION}-slim" in done.stderr.decode()
    assert b"Python 3 9" in done.stdout + done.stderr

    # The standard name, from a mirror of Docker's registry that the engine knows.
    engine_settings = {
        **json.loads(ssh_host.shell(f"cat {ENGINE}")),
        "registry-mirrors": [f"http://{MIRROR_ADDRESS}"],
    }
    ssh_host.write(ENGINE, json.dumps(engine_settings))
    ssh_host.shell("systemctl reload docker")
    mirrored = train(PLAIN_VERSION)
    assert mirrored.returncode == 0, tail(mirrored.stderr)
    assert f"pulling image python:{PLAIN_VERSION}-slim" in mirrored.stderr.decode()


def test_role_pulls_the_training_image(ssh_host: TestHost, registry: str, base_image: str) -> None:
    variables = fleet.role_variables(base_image)
    pulled = {
        **variables,
        "training_host_images": {},
        "training_host_pull_images": {"cpu": IMAGE, "gpu": IMAGE},
    }
    ssh_host.shell(LOGIN)
    try:
        assert play(ssh_host, "training_host", **pulled).changed > 0
        assert registry in ssh_host.docker("image", "inspect", "-f", "{{.RepoDigests}}", IMAGE)
        settings = json.loads(ssh_host.shell("cat /var/lib/train-classifier/host.json"))
        assert settings["images"]["cpu"] == IMAGE
    finally:
        ssh_host.shell(f"docker logout {ADDRESS}")
        play(ssh_host, "training_host", **variables)
