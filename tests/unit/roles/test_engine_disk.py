"""Role training_host looks for space where the engine keeps its images, and at who can write the way to the state folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LOOK = Path(__file__).parents[3] / "roles/training_host/tasks/look.yml"
#: An engine, its containerd, and three disks.
PROGRAMS = {
    "docker": 'case $3 in *Root*) echo "$BASE/docker" ;; *) echo "[[driver-type $KIND]]" ;; esac',
    "containerd": """echo "root = '$BASE/images'\n[plugins]\n  root = '/elsewhere'" """,
    "df": """
[ "$1" = -Pk ] || { echo Type; echo ext4; exit; }
echo Filesystem
for folder; do
    case $folder in
        */images) echo disk 0 0 1024000 0 /images ;;
        */docker) echo disk 0 0 2048000 0 /docker ;;
        -Pk) ;;
        *) echo disk 0 0 3072000 0 /state ;;
    esac
done""",
}


def look(tmp_path: Path, state: Path, kind: str) -> str:
    """What the role prints of a host with this state folder."""
    for name in ("docker", "images", "state", "bin"):
        (tmp_path / name).mkdir(exist_ok=True)
    for name, script in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    tasks = yaml.safe_load(LOOK.read_text())
    shell = next(task["ansible.builtin.shell"] for task in tasks if "ansible.builtin.shell" in task)
    shell = shell.replace("{{ __training_host_state | quote }}", str(state))
    for word in ("{% raw %}", "{% endraw %}"):
        shell = shell.replace(word, "")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "BASE": str(tmp_path), "KIND": kind}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "free"),
    [
        ("io.containerd.snapshotter.v1", "free_mib 1000\nfree_on /images\n"),
        ("extfs", "free_mib 2000\nfree_on /docker\n"),
    ],
)
def test_fullest_disk_of_jobs_and_images_counts(tmp_path: Path, kind: str, free: str) -> None:
    assert free in look(tmp_path, tmp_path / "state", kind)


def test_state_folder_that_others_can_replace_is_named(tmp_path: Path) -> None:
    assert "unsafe" not in look(tmp_path, Path("/var/lib/none/of/this/name"), "extfs")
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o777)
    assert f"unsafe {others}\n" in look(tmp_path, others / "state", "extfs")
    # Also behind a link.
    (tmp_path / "link").symlink_to(others)
    assert f"unsafe {others}\n" in look(tmp_path, tmp_path / "link" / "state", "extfs")
