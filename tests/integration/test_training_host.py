"""Role training_host: the tree, the settings, the timer, what it refuses, and the image it makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hosts import fleet
from hosts.machine import CA_BUNDLE, TestHost, ca_bundle
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host]

ROOT = "/var/lib/train-classifier"


@pytest.fixture(scope="module")
def bare_host(_hosts_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHost]:
    """A Debian 13 host with nothing on it."""
    new_host = fleet.bare_host(tmp_path_factory.mktemp("bare-host"))
    yield new_host
    new_host.remove()


def test_folders_have_the_documented_owners_and_modes(ssh_host: TestHost) -> None:
    paths = f"{ROOT} {ROOT}/queue {ROOT}/state {ROOT}/host.json {ROOT}/bin/uv"
    assert ssh_host.shell(f"stat -c '%a %U:%G' {paths}").splitlines() == [
        "755 root:root",
        "2770 root:docker",
        "711 root:root",
        "640 root:docker",
        "755 root:root",
    ]
    assert ssh_host.ssh(f"{ROOT}/bin/uv --version", user="trainer").stdout.startswith("uv ")
    account = ssh_host.shell("getent passwd train-classifier").strip().split(":")
    assert account[5:] == [f"{ROOT}/home", "/usr/sbin/nologin"]


def test_settings_name_the_image_and_the_bundle(ssh_host: TestHost, base_image: str) -> None:
    settings = json.loads(ssh_host.shell(f"cat {ROOT}/host.json"))
    assert settings["images"]["cpu"] == base_image
    assert settings.get("ca_bundle") == (CA_BUNDLE if ca_bundle() else None)


@pytest.mark.full
def test_check_mode_on_provisioned_host_changes_nothing(ssh_host: TestHost, base_image: str) -> None:
    variables = fleet.role_variables(base_image)
    assert play(ssh_host, "docker_engine", "training_host", check=True, **variables).changed == 0


@pytest.mark.parametrize("user", ["root", "trainer"])
def test_timer_cleans_for_each_account(ssh_host: TestHost, user: str) -> None:
    assert ssh_host.shell(f"systemctl is-active train-classifier-clean@{user}.timer") == "active\n"
    ssh_host.shell(f"systemctl start train-classifier-clean@{user}.service")
    journal = ssh_host.shell(f"journalctl -o cat -u train-classifier-clean@{user}.service")
    answers = [json.loads(line) for line in journal.splitlines() if line.startswith("{")]
    assert answers and set(answers[-1]["removed"]) >= {"jobs", "images", "environments"}


def test_state_on_overlay_is_refused_before_any_change(ssh_host: TestHost, base_image: str) -> None:
    variables = {**fleet.role_variables(base_image), "training_host_state_dir": "/opt/training/state"}
    done = play(ssh_host, "training_host", fails=True, **variables)
    assert "/opt/training/state lies on a file system of type overlay" in done.output
    assert ssh_host.exec("test", "-e", "/opt/training", check=False).returncode == 1


def test_missing_network_names_the_server_and_changes_nothing(ssh_host: TestHost, base_image: str) -> None:
    variables = {
        **fleet.role_variables(base_image),
        "training_host_disk_floor_bytes": 1 << 60,
        "training_host_uv_version": "0.0.1",
        "training_host_environment": {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"},
        "training_host_download_retries": 1,
        "training_host_download_delay": 1,
    }
    before = ssh_host.shell(f"ls -A {ROOT} {ROOT}/bin; sha256sum {ROOT}/bin/uv {ROOT}/host.json")
    done = play(ssh_host, "training_host", fails=True, **variables)
    assert "uv 0.0.1 could not be fetched" in done.output and "127.0.0.1" in done.output
    assert ssh_host.shell(f"ls -A {ROOT} {ROOT}/bin; sha256sum {ROOT}/bin/uv {ROOT}/host.json") == before


def test_image_that_cannot_be_pulled_ends_in_one_sentence(ssh_host: TestHost, base_image: str) -> None:
    image = "127.0.0.1:9/acme/image:1"
    variables = {
        **fleet.role_variables(base_image),
        "training_host_images": {"cpu": image},
        "training_host_download_delay": 1,
    }
    done = play(ssh_host, "training_host", fails=True, **variables)
    ssh_host.shell(f"sed -i '\\#^{image}$#d' {ROOT}/installed/training_host.images")
    (sentence,) = re.findall(
        rf'"msg": "(ssh-host: the image {image} could not be pulled from its registry: .*?)"}}', done.output
    )
    assert (
        "connection refused" in sentence
        and "set it in train_classifier_environment (http_proxy, https_proxy), and run again." in sentence
    )
    assert sentence.endswith("training_host_image_source: bootstrap.") and "\\n" not in sentence


def test_missing_engine_names_the_role_to_run(bare_host: TestHost, base_image: str) -> None:
    variables = {**fleet.role_variables(base_image), "training_host_disk_floor_bytes": 1 << 60}
    done = play(bare_host, "training_host", fails=True, **variables)
    assert "there is no Docker engine; run the role docker_engine first." in done.output
    # Both problems at once; a host that has its image needs no room for it.
    assert re.search(r"only \d+ MiB are free on /\S*, where jobs or images lie", done.output)
    assert bare_host.shell(f"ls -A {ROOT}") == ""


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_image_is_built_from_mirror_and_index(bare_host: TestHost) -> None:
    variables: dict[str, object] = {
        "training_host_image_source": "bootstrap",
        "training_host_pythons": ["3.11", "3.13"],
        "training_host_users": ["trainer"],
        "train_classifier_environment": {"NO_PROXY": "only-for-the-build.invalid"},
    }
    if ca_bundle() is not None:
        variables["train_classifier_ca_bundle"] = CA_BUNDLE
    play(bare_host, "docker_engine", "training_host", timeout=3000, **variables)
    image = json.loads(bare_host.shell(f"cat {ROOT}/host.json"))["images"]["cpu"]
    version = image.rpartition(":")[2].removesuffix("-cpu")
    program = "import tensorflow, distutils.dir_util; print(tensorflow.__version__)"
    assert (
        bare_host.docker("run", "--rm", "--network", "none", image, "python3", "-c", program).strip()
        == version
    )
    # What real projects expect beside Python.
    command = "git --version && echo '#include <Python.h>' | g++ -x c++ -fsyntax-only $(python3-config --includes) -"
    libraries = (
        "import ctypes; [ctypes.CDLL(f'lib{name}') for name in ('gomp.so.1', 'GL.so.1', 'glib-2.0.so.0')]"
    )
    bare_host.docker("run", "--rm", "--network", "none", image, "sh", "-ec", command)
    bare_host.docker("run", "--rm", "--network", "none", image, "python3", "-c", libraries)
    images = json.loads(bare_host.shell(f"cat {ROOT}/host.json"))["images"]
    for version in ("3.11", "3.13"):
        show = "import sys; print('%d.%d' % sys.version_info[:2])"
        plain = images[f"python{version}"]
        shown = bare_host.docker("run", "--rm", "--network", "none", plain, "python3", "-c", show)
        assert shown.strip() == version
        bare_host.docker("run", "--rm", "--network", "none", plain, "sh", "-ec", command)
    # The machine's proxies and bundle served the build; the image knows nothing of them.
    lines = json.loads(bare_host.docker("image", "inspect", image))[0]["Config"]["Env"]
    assert not [line for line in lines if line.split("=")[0] in ("NO_PROXY", "SSL_CERT_FILE", "UV_CACHE_DIR")]
    assert bare_host.exec("sh", "-c", f"ls -d {ROOT}/state/.image.*", check=False).stdout == ""
    assert play(bare_host, "docker_engine", "training_host", **variables).changed == 0
    play(bare_host, "training_host", tasks_from="uninstall", **variables)
    assert bare_host.shell(f"ls -A {ROOT}") == ""
    assert bare_host.docker("images", "-q", "--filter", "label=train-classifier=1") == ""
