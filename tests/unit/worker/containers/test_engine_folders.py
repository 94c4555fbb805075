"""Where the engine keeps images: doctor and the closed folders of jobs go by that."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from train_classifier.worker.checks import host_check
from train_classifier.worker.containers import engine
from train_classifier.worker.system.host import Host

#: As Docker 29 answers, with containerd of a package and with one that the engine started.
STORE = [["driver-type", "io.containerd.snapshotter.v1"]]
PACKAGED = {"Address": "/run/containerd/containerd.sock"}
OWN = {"Address": "/var/run/docker/containerd/containerd.sock"}


@pytest.mark.parametrize(
    ("info", "settings", "folders"),
    [
        ({}, None, []),
        ({"DriverStatus": [["Backing Filesystem", "extfs"]]}, 'root = "/srv"', ["/data/docker"]),
        ({"DriverStatus": STORE, "Containerd": PACKAGED}, None, ["/data/docker", "/var/lib/containerd"]),
        (
            {"DriverStatus": STORE},
            "version = 2\n  root = '/srv/images'\n[grpc]\n",
            ["/data/docker", "/srv/images"],
        ),
        ({"DriverStatus": STORE}, '[plugins.x]\n  root = "/srv"\n', ["/data/docker", "/var/lib/containerd"]),
        (
            {"DriverStatus": STORE, "Containerd": OWN},
            None,
            ["/data/docker", "/data/docker/containerd/daemon"],
        ),
    ],
)
def test_folders_of_the_engine(
    tmp_path: Path, info: dict[str, Any], settings: str | None, folders: list[str]
) -> None:
    if settings is not None:
        (tmp_path / "etc/containerd").mkdir(parents=True)
        (tmp_path / "etc/containerd/config.toml").write_text(settings)
    if folders:
        info = {"DockerRootDir": "/data/docker", **info}
    assert engine.folders(info, tmp_path) == folders


def test_doctor_looks_at_the_fuller_disk_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker, images = tmp_path / "docker", tmp_path / "images"
    (tmp_path / "etc/containerd").mkdir(parents=True)
    (tmp_path / "etc/containerd/config.toml").write_text(f'root = "{images}"')
    for folder in (docker, images):
        folder.mkdir()
    space = namedtuple("space", "f_bavail f_frsize f_files f_favail")
    monkeypatch.setattr(
        os, "statvfs", lambda path: space(10 if path == images else 10**6, 1 << 20, 10**6, 10**6)
    )
    info = {"DockerRootDir": str(docker), "DriverStatus": STORE}
    findings = host_check.disks(Host(root=tmp_path), None, info)
    assert [(row.name, row.status) for row in findings] == [("engine-disk", "fail")]
    assert str(images) in findings[0].message
