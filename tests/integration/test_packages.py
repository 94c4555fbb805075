"""Images and Debian layers with the real engine and the real package mirror."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import docker
import pytest
from worker_site import Site, build_in_two_processes, image_after, layers, own_base, site, tmp_path, uv

from train_classifier.core.errors import BadInput, NoEnvironment
from train_classifier.worker.containers import package_layers

__all__ = ["own_base", "site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine


def test_layer_has_the_packages_and_nothing_of_the_host(
    engine: docker.DockerClient, site: Site, own_base: str
) -> None:
    site.host = dataclasses.replace(site.host, environment={"http_proxy": "", "SECRET_PROXY": "it's hidden"})
    layer = site.layer("# tools\r\ntree\r\n", own_base)
    assert "tree v" in site.run(layer, None, "tree --version", shell=True)
    base, new = (engine.api.inspect_image(name)["Config"] for name in (own_base, layer.id))
    for key in ("Cmd", "Entrypoint", "User", "WorkingDir", "Env", "Volumes", "ExposedPorts"):
        assert new.get(key) == base.get(key), key
    changed = [line["Path"] for line in files_in_tmp(engine, layer.id)]
    assert [path for path in changed if path.startswith("/tmp/")] == []
    assert site.containers() == []
    # Found again by what it holds: no second build.
    assert site.layer("tree", own_base).id == layer.id
    assert len([message for message in site.messages if message.startswith("installing")]) == 1
    # A new package extends the layer.
    longer = site.layer("bc\ntree", own_base)
    assert engine.api.inspect_image(longer.id)["Parent"] == layer.id
    assert "installing 1 Debian package: bc" in site.messages
    assert "tree v" in site.run(longer, None, "tree --version && bc --version", shell=True)


def files_in_tmp(engine: docker.DockerClient, image: str) -> list[dict[str, str]]:
    """The files in /tmp of an image, read from a container that is never started."""
    container = engine.containers.create(image, ["true"])
    try:
        archive, _ = container.get_archive("/tmp")
        names = (
            subprocess.run(["tar", "-t"], input=b"".join(archive), capture_output=True, check=True)
            .stdout.decode()
            .split()
        )
        return [{"Path": f"/{name}"} for name in names if name != "tmp/"]
    finally:
        container.remove(force=True)


def test_unknown_package_and_version_are_reported(site: Site, own_base: str) -> None:
    # A name is not a pattern: tr.e would be tree.
    with pytest.raises(NoEnvironment) as raised:
        site.layer("tr.e\nno-such-package-of-ours", own_base)
    assert "Debian package not found" in raised.value.reason
    assert "no-such-package-of-ours" in raised.value.reason
    for name in ("no-such-package-of-ours", "tr.e"):
        assert f"E: Unable to locate package {name}" in (raised.value.detail or "")
    with pytest.raises(NoEnvironment, match=r"Version '0.0.1' for 'tree' was not found"):
        site.layer("tree=0.0.1", own_base)
    assert site.containers() == []


def test_options_as_package_names_are_refused(site: Site) -> None:
    with pytest.raises(BadInput, match="is an option, not a package"):
        site.layer("-o\n")


def test_unreachable_mirror_is_reported(site: Site, own_base: str, tmp_path: Path) -> None:
    sources = tmp_path / "host.sources"
    sources.write_text("Types: deb\nURIs: http://127.0.0.1:9/debian\nSuites: bookworm\nComponents: main\n")
    site.host = dataclasses.replace(site.host, apt_sources=sources)
    with pytest.raises(NoEnvironment, match="the package mirror cannot be reached") as raised:
        site.layer("tree", own_base)
    assert "127.0.0.1:9" in (raised.value.detail or "")


def test_two_jobs_at_once_build_one_layer(site: Site, own_base: str, tmp_path: Path) -> None:
    build_in_two_processes(site, tmp_path, lambda other: other.layer("tree", own_base).id)


def test_cancelled_build_leaves_nothing(engine: docker.DockerClient, site: Site, own_base: str) -> None:
    def cancel() -> None:
        if site.containers():
            raise KeyboardInterrupt

    base = site.find(own_base)
    (site.workspace / "m" / "apt-pkgs.txt").write_text("tree")
    with pytest.raises(KeyboardInterrupt):
        package_layers.layer(site.context(cancel), base, site.workspace, "m")
    assert site.containers() == []
    assert layers(engine, base.id) == []
    assert [path.name for path in site.store.environments.iterdir() if path.name.startswith(".")] == []


def test_image_is_probed_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (remembered,) = site.store.images.iterdir()
    answer = json.loads(remembered.read_text())
    remembered.unlink()
    image = site.find()
    # Other tests begin with the answer that a job would store.
    assert json.loads(remembered.read_text()) == answer
    assert image.version >= (3, 11)
    assert image.digest is None
    monkeypatch.setattr(package_layers.helper, "run_helper", None)
    assert site.find() == image


@pytest.mark.parametrize(
    ("script", "words"), [("true", "has no Python"), ("rm -f /bin/sh /usr/bin/sh", "has no /bin/sh")]
)
def test_image_without_python_or_shell_is_refused(
    engine: docker.DockerClient, base_image: str, site: Site, script: str, words: str
) -> None:
    command = ["sh", "-c", f"rm -f /usr/bin/python3* /usr/bin/python; {script}"]
    with image_after(engine, base_image, "broken", command) as image:
        with pytest.raises(NoEnvironment, match=words):
            site.find(image)
        assert site.containers() == []


def test_image_for_another_processor_is_refused(
    engine: docker.DockerClient, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    tag = f"tc-env-foreign:test-{os.getpid()}"
    foreign = "amd64" if os.uname().machine == "aarch64" else "arm64"
    image, _ = engine.images.build(path=str(tmp_path), tag=tag, platform=f"linux/{foreign}")
    try:
        with pytest.raises(NoEnvironment, match=f"is built for linux/{foreign}, this host is linux/"):
            site.find(tag)
    finally:
        engine.images.remove(image.id, force=True)


def test_missing_image_is_reported(site: Site) -> None:
    with pytest.raises(NoEnvironment, match="is not on this host and cannot be pulled") as raised:
        site.find("localhost:9/nobody/nothing:1")
    assert "training_host_image_source: bootstrap" in (raised.value.hint or "")
    assert raised.value.detail
    with pytest.raises(BadInput, match="is not an image reference"):
        site.find("a b")
