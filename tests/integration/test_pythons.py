"""The worker by the oldest and the newest Python that a host may have: every module, every verb, one whole job.

The other tests run it by this machine's own. The distribution has the Docker SDK for that one only, so here it comes
from the package index, into an environment that goes with the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.fleet import uv_binary
from worker_site import CA
from worker_support import Machine, accounts, machine, write_model

from train_classifier.controller.worker_bundle import bundle

pytestmark = pytest.mark.engine
#: What a worker does not need is most of an installation.
LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "site-packages", "config-*", "__pycache__", "*.a"
)
IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
print("docker" in sys.modules, *sys.version_info[:2])
"""
PROGRAM = """
import os, six
print("six", six.__version__, os.environ["TOKEN"], flush=True)
open("artefacts/x", "w").write("x")
"""


def find(version: str) -> Path:
    """An interpreter of this version on this machine, pyenv's folder included; skips when there is none."""
    programs = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    programs += [Path(path)] if (path := shutil.which(f"python{version}")) else []
    for program in programs:
        code = "import sys, ssl, ctypes; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return program.resolve()
    pytest.skip(f"no Python {version} on this machine")


def for_everybody(program: Path, folder: Path) -> Path:
    """The interpreter, or where only its owner may run it a copy that everybody may."""
    if not any(parent.stat().st_mode & 0o001 == 0 for parent in program.parents):
        return program
    home, version = program.parents[1], program.name
    shutil.copytree(home / "lib" / version, folder / "lib" / version, ignore=LEFT_OUT, symlinks=True)
    for library in (home / "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib", follow_symlinks=False)
    (folder / "bin").mkdir()
    copy = folder / "bin" / version
    # Its library is found where it was built for, which others may not enter: this is as long or shorter.
    original, relocated = os.fsencode(home / "lib") + b"\0", b"$ORIGIN/../lib\0"
    content = program.read_bytes()
    copy.write_bytes(content.replace(original, relocated.ljust(len(original), b"\0")))
    copy.chmod(0o755)
    return copy


@pytest.fixture(scope="module", params=["3.9", "3.13"])
def python(request: pytest.FixtureRequest) -> Iterator[str]:
    """An interpreter of the version with the Docker SDK, which every account may run."""
    program = find(request.param)
    folder = Path(tempfile.mkdtemp(prefix="train-classifier-python-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        interpreter = for_everybody(program, folder / "copy")
        uv = (uv_binary(), "-q", "--no-config")
        subprocess.run([uv[0], "venv", *uv[1:], "--python", interpreter, folder / "venv"], check=True)
        # The newest that this Python may have, as its distribution would have one of its time.
        venv_python = folder / "venv" / "bin" / "python"
        subprocess.run(
            [uv[0], "pip", "install", *uv[1:], "--python", venv_python, "docker>=4,<8"], check=True
        )
        yield str(venv_python)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=accounts())
def host(request: pytest.FixtureRequest, python: str) -> Iterator[Machine]:
    settings = {"ca_bundle": str(CA)} if CA.exists() else {}
    with machine(request.param, **settings) as new_host:
        new_host.python = python
        # The probe of the image is asked and stored by this Python, too.
        new_host.forget_images()
        # This machine's may lie where only its owner may go.
        shutil.copy2(uv_binary(), new_host.root / "uv")
        new_host.write_settings(uv=str(new_host.root / "uv"))
        yield new_host


def test_every_module_imports_without_docker_sdk(python: str, tmp_path: Path) -> None:
    names = []
    for name, content in bundle()[1].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if (
            name.startswith("train_classifier/")
            and path.suffix == ".py"
            and path.parent.name != "inside"
            and not path.name.startswith("__")
        ):
            names.append(name[:-3].replace("/", "."))
    done = subprocess.run(
        [python, "-I", "-W", "error", "-c", IMPORT_ALL, tmp_path, *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "False"
    # Only these files run inside containers, by a Python that may be older than the host's.
    inside = sorted((tmp_path / "train_classifier/worker").glob("*/inside/*.py"))
    assert len(inside) > 3
    subprocess.run([python, "-m", "py_compile", *inside], check=True)


def test_job_runs_from_submission_to_clean(host: Machine, tmp_path: Path) -> None:
    tree = write_model(tmp_path, PROGRAM, requirements="six==1.16.0\n")
    job = host.start_tree(tree, {"TOKEN": "hunter2"}, memory_bytes=128 << 20, timeout_s=60.0)
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"]) == ("trained", 0), result
    assert host.log(job) == b"six 1.16.0 ***\n"
    assert "artefacts/x" in host.names(job)
    assert "six==1.16.0" in host.manifest(job)["environment"]["packages"]
    host.assert_clean(job)

    checked = host.call("check", gpus=0)
    assert checked["ready"] and checked["python"].startswith(("3.9.", "3.13.")), checked

    # A job that is stopped, one whose worker dies, and what removes them.
    program = "import time\nopen('artefacts/x','w').write('x')\nprint('up', flush=True)\ntime.sleep(600)\n"
    stopped = host.start(program)
    host.until(stopped, "training", text=b"up\n")
    host.call("cancel", id=stopped)
    assert host.wait(stopped)["outcome"] == "cancelled"
    killed = host.start(program)
    host.until(killed, "training", text=b"up\n")
    host.kill_worker(killed)
    assert host.wait(killed)["outcome"] == "lost" and host.pack(killed)["outcome"] == "lost"
    for stopped_job in (stopped, killed):
        assert "artefacts/x" in host.names(stopped_job)
        host.assert_clean(stopped_job)
    assert {line["id"] for line in host.call("list", all=True)["jobs"]} == {job, stopped, killed}
    assert host.call("clean", older_s=0)["removed"]["jobs"] == 3
    assert not list((host.state / "jobs").iterdir())
