"""Jobs that end well, as root and as a person: what they see, what they leave, and what is refused."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest
from docker import DockerClient
from hosts.fleet import uv_binary
from index_server import serve, wheel
from worker_support import (
    HOLD,
    IMAGE,
    Machine,
    Refused,
    accounts,
    docker,
    host_fixture,
    packed,
    write_model,
)

pytestmark = pytest.mark.engine
host = host_fixture(accounts())


WRITES = "open('artefacts/out','w').write('x')\n"


def test_job_end_to_end(host: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "repo with space"
    (tree / "model").mkdir(parents=True)
    (tree / "artefacts").mkdir()
    (tree / "artefacts" / "README.md").write_text("old")
    (tree / "model" / "__init__.py").touch()
    (tree / "model" / "__main__.py").write_text(
        "import json, os, sys\nprint('argv', sys.argv[1:], flush=False)\nprint('err', file=sys.stderr)\n"
        "open('model/beside','w').write('x')\nos.makedirs('artefacts/sub')\n"
        "open('artefacts/sub/out.bin','wb').write(bytes(1000))\n"
        "json.dump({'loss': 0.5}, open('artefacts/metrics.json','w'))\n"
    )
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    # As a repeated job gets it: the name leads nowhere any more, and the image is still here.
    name = f"registry.invalid/moved/{IMAGE}"
    pin = {"reference": name, "id": docker("image", "inspect", "-f", "{{.Id}}", IMAGE), "digest": None}
    job = host.start_tree(tree, arguments=["--x", "a b", "$HOME", "é\n"], image=name, pinned_image=pin)
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"], result["reason"]) == ("trained", 0, None)
    assert result["training_exit_status"] == 0 and result["metrics"] == {"loss": 0.5}
    assert host.log(job) == "argv ['--x', 'a b', '$HOME', 'é\\n']\nerr\n".encode()
    assert set(result["seconds"]) == {
        "image", "packages", "environment", "queue", "gpu-check", "training", "artefacts"
    }  # fmt: skip
    assert host.names(job) == [
        "artefacts", "artefacts/README.md", "artefacts/metrics.json", "artefacts/sub", "artefacts/sub/out.bin",
    ]  # fmt: skip
    data = (host.job_dir(job) / "artefacts.tar.gz").read_bytes()
    assert result["archive"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert [place["path"] for place in result["unpacked"]["places"]] == ["model/beside"]
    manifest = host.manifest(job)
    assert manifest["outcome"] == "trained" and manifest["arguments"] == ["--x", "a b", "$HOME", "é\n"]
    assert (manifest["image"]["reference"], manifest["image"]["base"]) == (name, pin["id"])
    assert [line["path"] for line in manifest["artefacts"] if line["new"]] == [
        "artefacts/metrics.json", "artefacts/sub/out.bin",
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    assert "unpacked" not in host.call("pack", id=job)["result"]
    assert host.manifest(job)["artefacts"][-1]["path"] == "workspace/model/beside"
    host.assert_clean(job)


def test_repository_that_is_a_package_with_a_version_from_git(
    host: Machine, engine: DockerClient, tmp_path: Path
) -> None:
    tree = write_model(
        tmp_path / "tree",
        "import subprocess, importlib.metadata, shapes\n"
        "print(shapes.version, importlib.metadata.version('shapes'), flush=True)\n"
        "subprocess.run(['tool'], check=True)\n" + WRITES,
        "-e .\n",
    )
    (tree / "src" / "shapes").mkdir(parents=True)
    (tree / "src" / "shapes" / "__init__.py").write_text(
        "from shapes.made import version\ndef main(): print('tool', version)\n"
    )
    (tree / "setup.py").write_text(
        "from setuptools import find_packages, setup\n"
        "setup(name='shapes', packages=find_packages('src'), package_dir={'': 'src'},\n"
        "      use_scm_version={'version_file': 'src/shapes/made.py'},\n"
        "      entry_points={'console_scripts': ['tool = shapes:main']})\n"
    )
    repository = {**host.spec()["repository"], "description": "v2.1-3-gabcdef1"}
    shutil.copy2(uv_binary(), host.root / "uv")
    (host.root / "uv").chmod(0o755)
    with serve(engine) as index:
        # The image lacks distutils.
        index.add(wheel("setuptools", "80.0"))
        settings = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
        with host.changed_settings(environment=settings, uv=str(host.root / "uv")):
            job = host.start_tree(tree, repository=repository)
            result = host.wait(job)
    assert result["outcome"] == "trained", result
    version = "2.2.dev3+gabcdef1"
    assert host.log(job).decode() == f"{version} {version}\ntool {version}\n"
    assert f"shapes=={version}" in host.manifest(job)["environment"]["packages"]
    host.assert_clean(job)


def test_confinement(host: Machine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    # pytest's own folders, one more with several processes.
    for folder in tmp_path.parents:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o711)
    (tmp_path / "input").write_text("given")
    program = (
        """
import os, pwd, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print("caps", status["CapEff"].strip(), status["CapBnd"].strip(), "nnp", status["NoNewPrivs"].strip())
print("uid", os.getuid() != 0, pwd.getpwuid(os.getuid()).pw_name == os.environ["USER"])
open(os.path.expanduser("~/file"), "w").write("x")
print("data", open("/data/d/input").read(), os.access("/data/d/input", os.W_OK))
print("net", sorted(os.listdir("/sys/class/net")))
print("pid1", open("/proc/1/comm").read().strip())
print("shm", os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize)
for name in ("KERAS_HOME", "HF_HOME", "TORCH_HOME", "TRAIN_CHECKPOINT_DIR"):
    os.makedirs(os.environ[name], exist_ok=True)
    open(os.environ[name] + "/kept", "w").write("x")
try:
    open("/run/train-classifier/new", "w")
except OSError as error:
    print("run", error.errno)
print("stdin", repr(os.read(0, 1)))
print("env", os.environ["MODEL"], repr(os.environ["ODD"]), len(os.environ["LONG"]))
"""
        + WRITES
    )
    odd = {"ODD": "a=b\nc '\"$x", "LONG": "x" * (131072 - 16)}
    job, result = host.train(
        program, network="none", shm_bytes=64 << 20, memory_bytes=256 << 20, cpus=1.5, pids=99, environment=odd,
        data=[{"path": str(tmp_path), "name": "d"}],
    )  # fmt: skip
    text = host.log(job).decode()
    assert result["outcome"] == "trained", (result, text)
    assert "caps 0000000000000000 0000000000000000 nnp 1" in text
    assert "uid True True" in text and "data given False" in text and "net ['lo']" in text
    assert f"shm {64 << 20}" in text and "run 30" in text and "stdin b''" in text
    assert f"env model {odd['ODD']!r} {len(odd['LONG'])}" in text
    assert (host.state / "cache" / "0123456789abcdef" / "keras" / "kept").exists()
    assert (host.job_dir(job) / "checkpoints" / "kept").exists()
    host.assert_clean(job)


def test_limits_reach_the_engine(host: Machine) -> None:
    job = host.start(
        "print('up', flush=True)\nimport time\ntime.sleep(60)", memory_bytes=64 << 20, cpus=0.5, pids=50
    )
    host.until(job, "training", text=b"up\n")
    details = json.loads(docker("inspect", f"tc-job-{job}"))[0]
    limits = details["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"], limits["NanoCpus"], limits["PidsLimit"]) == (
        64 << 20, 64 << 20, 500_000_000, 50,
    )  # fmt: skip
    assert limits["LogConfig"]["Type"] == "none" and limits["Init"] and limits["CapDrop"] == ["ALL"]
    assert details["Config"]["User"].split(":")[0] != "0"
    labels = {
        key: value for key, value in details["Config"]["Labels"].items() if key.startswith("train-classifier")
    }
    assert labels["train-classifier"] == "1" and labels["train-classifier.job"] == job
    assert (
        labels["train-classifier.dir"] == str(host.job_dir(job)) and labels["train-classifier.kind"] == "job"
    )
    host.call("cancel", id=job)
    assert host.wait(job)["outcome"] == "cancelled"
    host.assert_clean(job)


def test_secrets_stay_secret(host: Machine) -> None:
    secret = "s3cret-'\"$(id)\nsecond line-é"
    program = (
        "import os, sys, time\nvalue = os.environ['TOKEN']\nsys.stdout.write('<' + value[:7])\nsys.stdout.flush()\n"
        "sys.stdout.write(value[7:] + '>\\n')\nprint(len(value), flush=True)\n"
        f"open('artefacts/x','w').write('x')\n{HOLD}"
    )
    job = host.start(program, {"TOKEN": secret})
    host.until(job, "training", text=b"\n")
    commands = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    inspected = docker("inspect", f"tc-job-{job}")
    assert "s3cret" not in commands and "s3cret" not in inspected
    host.go(job)
    result = host.wait(job)
    assert result["outcome"] == "trained"
    assert host.log(job) == f"<***>\n{len(secret)}\n".encode()
    # Once the worker has removed what it removes.
    host.assert_clean(job)
    for path in host.job_dir(job).rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path


@pytest.mark.parametrize("secrets", [{}, {"TOKEN": "a\0b"}, {"TOKEN": "x", "OTHER": "y"}])
def test_wrong_secrets_are_refused(host: Machine, tmp_path: Path, secrets: dict[str, str]) -> None:
    spec = host.spec(secrets=["TOKEN"])
    host.push(write_model(tmp_path), spec)
    with pytest.raises(Refused, match="secret") as refused:
        host.call("submit", id=spec["id"], secrets=secrets)
    assert refused.value.code == 2
    assert host.call("cancel", id=spec["id"])["state"] == "removed"
    assert not host.job_dir(spec["id"]).exists()


def test_resume_starts_from_a_copy(host: Machine) -> None:
    program = (
        "import os\npath = os.environ['TRAIN_CHECKPOINT_DIR'] + '/epoch'\n"
        "epoch = int(open(path).read()) + 1 if os.path.exists(path) else 1\n"
        "open(path, 'w').write(str(epoch))\nprint('epoch', epoch)\n" + WRITES
    )
    first, _ = host.train(program, model="model")
    second, _ = host.train(program, resume=first)
    third, result = host.train(program, resume="last")
    assert [host.log(job) for job in (first, second, third)] == [b"epoch 1\n", b"epoch 2\n", b"epoch 3\n"]
    assert host.manifest(third)["resumed_from"] == second and result["outcome"] == "trained"
    with pytest.raises(Refused, match="no job"):
        host.call("prepare", spec=host.spec(resume="20200101-000000-00000000"), files=packed([]))


def test_missing_artefacts_fail_unless_allowed(host: Machine) -> None:
    job, result = host.train("print('no results')")
    assert (result["outcome"], result["exit_code"]) == ("nothing-delivered", 7)
    assert host.manifest(job)["outcome"] == "nothing-delivered" and "artefacts" in result["reason"]
    job, result = host.train("print('no results')", allow_empty=True)
    assert (result["outcome"], result["exit_code"]) == ("trained", 0)
    job, result = host.train("import os\nos.rmdir('artefacts')")
    assert result["exit_code"] == 7
    host.assert_clean(job)


def test_model_cannot_reach_checkout_and_may_destroy_workspace(host: Machine) -> None:
    program = """
import os, subprocess
os.makedirs("artefacts/closed")
open("artefacts/closed/kept", "w").write("kept")
os.makedirs("deep/" + "/".join(["d" * 50] * 60))
open("unreadable", "w").close()
os.makedirs("shut/inside")
open("shut/inside/file", "w").close()
for name in ("unreadable", "shut/inside", "shut", "artefacts/closed/kept", "artefacts/closed"):
    os.chmod(name, 0)
subprocess.run(["rm", "-rf", "model"], check=True)
with open("/tmp/big", "wb") as file:
    file.truncate(1 << 30)
"""
    job, result = host.train(program)
    assert result["outcome"] == "trained", result
    with host.archive(job) as archive:
        file = archive.extractfile("artefacts/closed/kept")
        assert file is not None and file.read() == b"kept"
    host.assert_clean(job)
    mirror = host.state / "mirrors" / "0123456789abcdef" / "tree"
    assert sorted(os.listdir(mirror / "model")) == ["__init__.py", "__main__.py"]
    job, result = host.train("import os\nos.system('rm -rf /workspace/* /workspace/.??*')")
    assert result["exit_code"] == 7
    host.assert_clean(job)


def test_job_ids_are_unique_and_may_be_abbreviated(host: Machine, tmp_path: Path) -> None:
    write_model(tmp_path, "print(1)")
    with pytest.raises(Refused, match="no job"):
        host.call("status", id="20990101-000000-00000000")
    first = host.spec(id="20990101-000000-aaaaaaaa", allow_empty=True)
    second = host.spec(id="20990101-000000-bbbbbbbb", allow_empty=True)
    for spec in (first, second):
        host.push(tmp_path, spec)
        host.call("submit", id=spec["id"])
    assert [host.wait(spec["id"])["outcome"] for spec in (first, second)] == ["trained", "trained"]
    with pytest.raises(Refused, match="in use already"):
        host.push(tmp_path, first)
    with pytest.raises(Refused, match="submitted already"):
        host.call("submit", id=first["id"])
    done = host.rsync(tmp_path, first["id"], [b"model/__main__.py"])
    assert done.returncode != 0 and b"submitted already" in done.stderr
    with pytest.raises(Refused, match="ambiguous"):
        host.call("status", id="20990101-000000")
    assert host.call("status", id="20990101-000000-b")["id"] == second["id"]
    assert host.call("status", id="last")["id"] == second["id"]
    listed = {line["id"]: line for line in host.call("list", all=True)["jobs"]}
    assert listed[first["id"]]["outcome"] == "trained" and listed[first["id"]]["state"] == "finished"
    for wrong in ("", "../x", None, 5):
        with pytest.raises(Refused) as refused:
            host.call("status", id=wrong)
        assert refused.value.code == 2


def test_all_problems_are_reported_at_once(host: Machine) -> None:
    spec = host.spec(model="../x", gpus=-1, network="host", image=5)
    with pytest.raises(Refused) as refused:
        host.call("prepare", spec=spec, files=packed([]))
    assert refused.value.code == 2 and len(refused.value.error["problems"]) == 4
    missing = host.spec(data=[{"path": "/nowhere", "name": "a"}, {"path": "/nowhere2", "name": "b"}])
    with pytest.raises(Refused) as refused:
        host.call("prepare", spec=missing, files=packed([]))
    assert len(refused.value.error["problems"]) == 2 and "/nowhere2" in refused.value.error["reason"]
    assert not host.job_dir(missing["id"]).exists()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"verb": "dance"}', b'{"verb": "status", "state_dir": "x"}', b"\xff"]
)
def test_invalid_requests_are_refused(host: Machine, data: bytes) -> None:
    done = subprocess.run(
        [*host.prefix(), "/usr/bin/python3", "-I", str(host.program)], input=data, capture_output=True,
        env=host.environment(), check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["error"]["code"] == 2 and done.stderr == b""


def test_data_folder_removed_after_push_is_reported(host: Machine, tmp_path: Path) -> None:
    folder = host.root / "data"
    folder.mkdir()
    spec = host.spec(data=[{"path": str(folder), "name": "d"}])
    host.push(write_model(tmp_path, "print(1)"), spec)
    folder.rmdir()
    host.call("submit", id=spec["id"])
    result = host.wait(spec["id"])
    assert result["exit_code"] == 2 and str(folder) in result["reason"]
    host.assert_clean(spec["id"])


def test_low_disk_space_refuses_job(host: Machine) -> None:
    host.write_settings(disk_floor_bytes=1 << 60)
    try:
        with pytest.raises(Refused, match="GiB free") as refused:
            host.call("prepare", spec=host.spec(), files=packed([]))
    finally:
        host.write_settings(disk_floor_bytes=1 << 20)
    assert refused.value.code == 3


def test_long_poll_answers_at_once_on_changes(host: Machine) -> None:
    program = "import time\nfor n in range(3):\n    print(n)\n    time.sleep(1)\n" + WRITES
    job = host.start(program)
    offset, version, text, states = 0, None, b"", []
    while not states or states[-1] != "finished":
        answer = host.call("read", id=job, offset=offset, seen=version, wait=30)
        data = zlib.decompress(base64.b64decode(answer["data"])) if answer["data"] else b""
        assert answer["offset"] == offset
        assert data or answer["status"]["version"] != version
        offset, version = offset + len(data), answer["status"]["version"]
        text += data
        states.append(answer["status"]["state"])
    assert text == b"0\n1\n2\n" == host.log(job)
    assert answer["archive"] == str(host.job_dir(job) / "artefacts.tar.gz")


def test_jobs_of_others_cannot_be_read(host: Machine) -> None:
    job, _ = host.train(WRITES)
    if host.user == "root" or os.geteuid() != 0:
        # The group of the job's account passes through, and reads nothing.
        assert (host.job_dir(job)).stat().st_mode & 0o067 == 0
        return
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "cat", str(host.job_dir(job) / "log.txt")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0


def test_job_without_gpus_gets_none_from_default_runtime(host: Machine) -> None:
    program = "import os\nprint(os.environ['NVIDIA_VISIBLE_DEVICES'])\n" + WRITES
    job, _ = host.train(program, environment={"NVIDIA_VISIBLE_DEVICES": "all"})
    assert host.log(job) == b"void\n"
