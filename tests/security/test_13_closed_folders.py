"""Row 13: a model that closes /cache or /checkpoints harms no later job."""

import os
from pathlib import Path

import docker
import pytest
from worker_site import image_after
from worker_support import Machine, accounts, host_fixture

from train_classifier.worker.state import file_trees

pytestmark = pytest.mark.engine
CLOSES = """
import os
open('artefacts/x', 'w').write('x')
for top in ('/cache', '/checkpoints'):
    os.makedirs(top + '/deep/er')
    open(top + '/deep/er/file', 'w').write('kept')
    for path in (top + '/deep/er/file', top + '/deep/er', top + '/deep', top):
        os.chmod(path, 0)
"""
READS = "print(open('/cache/deep/er/file').read(), open('/checkpoints/deep/er/file').read())\nopen('artefacts/y', 'w')\n"
host = host_fixture(accounts())


@pytest.mark.parametrize("resume", ["last", "by its id"])
def test_13_next_job_can_read_closed_cache_and_checkpoints(host: Machine, resume: str) -> None:
    key = {"last": "a" * 16, "by its id": "b" * 16}[resume]
    repository = {"name": "repo", "key": key, "commit": None, "dirty": None}
    closed, result = host.train(CLOSES, repository=repository)
    assert result["outcome"] == "trained", (result, host.log(closed))
    again = closed if resume == "by its id" else "last"
    job, result = host.train(READS, repository=repository, resume=again)
    assert result["outcome"] == "trained" and host.log(job) == b"kept kept\n", (result, host.log(job))
    host.assert_clean(job)


def test_13_volume_of_an_image_leaves_no_folder_of_root(
    host: Machine, engine: docker.DockerClient, base_image: str
) -> None:
    """The account of the job could not remove it: every clean failed from then on."""
    configuration = {"Cmd": [], "Entrypoint": [], "Volumes": {"/workspace/a/b": {}}}
    with image_after(engine, base_image, "volumes", ["true"], configuration=configuration) as image:
        job, result = host.train("print()\n", image=image)
    assert result["exit_code"] == 9 and "/workspace/a/b" in result["reason"], result
    host.assert_clean(job)
    host.call("clean", older_s=0)


def test_13_link_created_during_repair_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that runs beside the next job of its repository may swap what was just listed."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_text("precious")
    (outside / "deep" / "file").chmod(0o400)
    cache = tmp_path / "cache"
    (cache / "folder" / "deep").mkdir(parents=True)
    (cache / "folder" / "deep" / "file").write_text("x")
    (cache / "file").write_text("x")
    (cache / "file").chmod(0)
    scandir = os.scandir

    def swapping(descriptor: int) -> "os._ScandirIterator[str]":
        if Path(f"/proc/self/fd/{descriptor}").readlink() == cache / "folder":
            (cache / "folder").rename(cache / "old")
            (cache / "folder").symlink_to(outside)
        return scandir(descriptor)

    monkeypatch.setattr(os, "scandir", swapping)
    file_trees.restore_owner_rights(cache)
    assert (cache / "folder").is_symlink()
    assert (outside / "deep" / "file").stat().st_mode & 0o777 == 0o400
    assert (cache / "file").stat().st_mode & 0o777 == 0o600
    (cache / "file").unlink()
    (cache / "file").symlink_to(outside / "deep" / "file")
    folder = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file_trees.give_rights_to_file("file", folder, 0o600)
    finally:
        os.close(folder)
    assert (outside / "deep" / "file").stat().st_mode & 0o777 == 0o400
