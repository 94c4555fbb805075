"""Packing artefacts/: what is delivered, what is left out and why, and that memory stays flat."""

import hashlib
import json
import os
import pwd
import resource
import socket
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.jobs import conclude
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "workspace" / "artefacts").mkdir(parents=True)
    (tmp_path / "log.txt").write_bytes(b"the log\n")
    record_initial_artefacts(tmp_path)
    return tmp_path


def account() -> Account:
    entry = pwd.getpwuid(os.geteuid())
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def record_initial_artefacts(job: Path, *results: str) -> None:
    repository = Repository("digits", "0" * 16)
    spec = JobSpec("20260101-000000-00000000", "m", repository, artefacts=results)
    conclude.record_initial_artefacts(Job(job), spec, account(), [], lambda: None)


def packed(
    job: Path,
    need_new: bool = True,
    results: tuple[str, ...] = (),
    elsewhere: str | None = None,
    most_bytes: int = 1 << 50,
) -> dict[str, Any]:
    head = {"outcome": "trained", "exit_code": 0}
    request = {
        "manifest": head,
        "result": {"id": job.name, "model": "m", **head},
        "need_new": need_new,
        "most_bytes": most_bytes,
        "threads": 2,
        "results": results,
        "elsewhere": elsewhere,
    }
    return conclude.write_archive(Job(job), account(), request, None, lambda: None)


def manifest(job: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((job / "manifest.json").read_text())
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        file = archive.extractfile("job/manifest.json")
        assert file is not None and json.load(file) == manifest
    return manifest


def names(job: Path) -> list[str]:
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        return archive.getnames()


def test_archive_and_manifest_agree(job: Path) -> None:
    root = job / "workspace" / "artefacts"
    (root / "sub").mkdir()
    (root / "sub" / "model.bin").write_bytes(b"weights" * 1000)
    (root / "metrics.json").write_text('{"accuracy": 0.97, "epochs": 3}')
    answer = packed(job)
    data = (job / "artefacts.tar.gz").read_bytes()
    assert answer["archive"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert (answer["new"], answer["files"], answer["left_out"]) == (2, 2, 0)
    assert answer["metrics"] == {"accuracy": 0.97, "epochs": 3}
    lines = {line["path"]: line for line in manifest(job)["artefacts"]}
    line = lines["artefacts/sub/model.bin"]
    assert line["sha256"] == hashlib.sha256(b"weights" * 1000).hexdigest() and line["bytes"] == 7000
    assert names(job) == [
        "artefacts", "artefacts/metrics.json", "artefacts/sub", "artefacts/sub/model.bin",
        "job/manifest.json", "job/report.html", "job/log.txt",
    ]  # fmt: skip
    assert sorted(path.name for path in job.iterdir()) == [
        "artefacts.tar.gz", "log.txt", "manifest.json", "packed.json", "report.html", "stock.json", "workspace",
    ]  # fmt: skip


def test_what_does_not_compress_is_stored_in_one_gzip_member(job: Path) -> None:
    """In one member, because readers of streams stop after the first."""
    root = job / "workspace" / "artefacts"
    dense, text = os.urandom(3 << 20), b"epoch,loss\n1,0.5\n" * 200_000
    (root / "dense").write_bytes(dense)
    (root / "mixed").write_bytes(dense[:700_000] + text + dense[:300_000] + text)
    size = packed(job)["archive"]["bytes"]
    assert len(dense) + 1_000_000 < size < len(dense) + 1_000_000 + len(text) // 10
    with tarfile.open(job / "artefacts.tar.gz", "r|gz") as archive:
        contents = {}
        for member in archive:
            file = archive.extractfile(member)
            contents[member.name] = file.read() if file else b""
    assert contents["artefacts/dense"] == dense
    assert contents["artefacts/mixed"] == dense[:700_000] + text + dense[:300_000] + text
    assert contents["job/log.txt"] == b"the log\n"
    subprocess.run(["gzip", "--test", str(job / "artefacts.tar.gz")], check=True)


def test_earlier_files_are_packed_but_not_new(tmp_path: Path) -> None:
    root = tmp_path / "workspace" / "artefacts"
    root.mkdir(parents=True)
    (root / "README.md").write_text("old")
    (root / "changed").write_text("old")
    record_initial_artefacts(tmp_path)
    answer = packed(tmp_path)
    assert answer["new"] == 0 and answer["files"] == 2
    assert manifest(tmp_path)["outcome"] == "nothing-delivered"
    assert packed(tmp_path, need_new=False)["new"] == 0
    assert manifest(tmp_path)["outcome"] == "trained"
    (root / "changed").write_text("new text")
    assert packed(tmp_path)["new"] == 1
    assert {line["path"]: line["new"] for line in manifest(tmp_path)["artefacts"]} == {
        "artefacts/README.md": False,
        "artefacts/changed": True,
    }


def test_links_and_special_files_are_left_out(job: Path) -> None:
    root = job / "workspace" / "artefacts"
    (root / "sub").mkdir()
    (root / "sub" / "real").write_text("x")
    (root / "good").symlink_to("sub/real")
    (root / "sub" / "up").symlink_to("../good")
    (root / "dangling").symlink_to("later")
    (root / "shadow").symlink_to("/etc/shadow")
    (root / "climbs").symlink_to("../../secret")
    (root / "and-back").symlink_to("../artefacts/sub/real")
    (root / "loop").symlink_to("loop")
    (root / "hop").symlink_to("/etc")
    (root / "through").symlink_to("hop/passwd")
    (root / "folder").symlink_to("../../..")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
    expected = {"shadow", "climbs", "and-back", "hop", "through", "folder", "fifo", "socket"}
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        expected.add("device")
    answer = packed(job)
    contents = manifest(job)
    left_out = {line["path"]: line["reason"] for line in contents["left_out"]}
    assert set(left_out) == {f"artefacts/{name}" for name in expected}
    assert answer["left_out"] == len(expected)
    assert "outside artefacts/" in left_out["artefacts/climbs"]
    assert "leads out" in left_out["artefacts/through"]
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        links = {member.name: member.linkname for member in archive if member.issym()}
        assert all(member.isfile() or member.isdir() or member.issym() for member in archive)
    assert links == {
        "artefacts/good": "sub/real", "artefacts/sub/up": "../good", "artefacts/dangling": "later",
        "artefacts/loop": "loop",
    }  # fmt: skip


def test_artefacts_replaced_by_link_or_file_is_left_out(job: Path) -> None:
    root = job / "workspace" / "artefacts"
    root.rmdir()
    root.symlink_to("/etc")
    answer = packed(job)
    assert (answer["new"], answer["files"], answer["metrics"]) == (0, 0, None)
    assert manifest(job)["left_out"] == [{"path": "artefacts", "reason": "artefacts is a link, not a folder"}]
    assert not any("passwd" in name for name in names(job))
    root.unlink()
    root.write_text("a file")
    assert packed(job)["files"] == 0
    root.unlink()
    assert packed(job)["new"] == 0


@pytest.mark.parametrize("target", ["outputs", "/workspace/outputs", "hop/../../outputs/"])
def test_artefacts_replaced_by_link_into_workspace_is_followed(job: Path, target: str) -> None:
    workspace = job / "workspace"
    (workspace / "artefacts").rmdir()
    (workspace / "outputs" / "sub").mkdir(parents=True)
    (workspace / "outputs" / "metrics.json").write_text('{"loss": 1}')
    (workspace / "hop").symlink_to("/workspace/outputs/sub")
    (workspace / "outputs" / "sub" / "best").symlink_to("/workspace/outputs/metrics.json")
    (workspace / "artefacts").symlink_to(target)
    answer = packed(job)
    assert (answer["new"], answer["metrics"], answer["left_out"]) == (2, {"loss": 1}, 0)
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        assert archive.getmember("artefacts").isdir() and archive.getmember("artefacts/metrics.json").isfile()
        assert archive.getmember("artefacts/sub/best").linkname == "../metrics.json"


@pytest.mark.parametrize(
    "target", [".", "/workspace", "..", "hop", "/workspace/../etc", "/workspaces/x", "artefacts", "file"]
)
def test_artefacts_replaced_by_another_link_is_left_out(job: Path, target: str) -> None:
    workspace = job / "workspace"
    (workspace / "artefacts").rmdir()
    (workspace / "hop").symlink_to("/etc")
    (workspace / "file").touch()
    (workspace / "artefacts").symlink_to(target)
    assert packed(job)["files"] == 0
    assert manifest(job)["left_out"] == [{"path": "artefacts", "reason": "artefacts is a link, not a folder"}]


def test_absolute_links_into_artefacts_become_relative(job: Path) -> None:
    root = job / "workspace" / "artefacts"
    (root / "a" / "b").mkdir(parents=True)
    (root / "model").write_text("x")
    (root / "a" / "b" / "last").symlink_to("/workspace/artefacts/model")
    (root / "all").symlink_to("/workspace/artefacts")
    (root / "through").symlink_to("all/model")
    (root / "outside").symlink_to("/workspace/source.py")
    (root / "climbs").symlink_to("/workspace/artefacts/../source.py")
    packed(job)
    assert {line["path"] for line in manifest(job)["left_out"]} == {"artefacts/outside", "artefacts/climbs"}
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        links = {member.name: member.linkname for member in archive if member.issym()}
    assert links == {
        "artefacts/a/b/last": "../../model", "artefacts/all": ".", "artefacts/through": "all/model",
    }  # fmt: skip


def test_modes_and_owners_are_normalised(job: Path) -> None:
    root = job / "workspace" / "artefacts"
    (root / "closed").mkdir()
    (root / "closed" / "file").write_text("x")
    (root / "none").write_text("y")
    (root / "setuid").write_text("z")
    (root / "setuid").chmod(0o6755)
    (root / "none").chmod(0)
    (root / "closed" / "file").chmod(0)
    (root / "closed").chmod(0)
    if os.geteuid() == 0:
        # As root every mode reads; as an ordinary user the modes must be overcome.
        subprocess.run(["chown", "-R", "daemon", str(job)], check=True)
        for folder in job.parents:
            if folder.stat().st_mode & 0o001 == 0:
                folder.chmod(folder.stat().st_mode | 0o011)
        repository = Path(__file__).parents[4]
        subprocess.run(
            ["/usr/bin/python3", "-B", "-c", "import os\nos.setuid(1)\n" + FLAT, str(job)],
            check=True, cwd=repository, env={"PYTHONPATH": str(repository), "TMPDIR": "/tmp"},
        )  # fmt: skip
    else:
        packed(job, need_new=False)
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        modes = {member.name: member.mode for member in archive}
        assert modes["artefacts/none"] == 0o400
        assert modes["artefacts/closed"] == 0o700
        assert modes["artefacts/setuid"] == 0o755
        assert {(member.uid, member.gid, member.uname) for member in archive} == {(0, 0, "")}
        file = archive.extractfile("artefacts/closed/file")
        assert file is not None and file.read() == b"x"


def test_odd_names_are_packed(job: Path) -> None:
    root = os.fsencode(job / "workspace" / "artefacts")
    odd = [b"new\nline", b"\xff\xfe", b"-rf", b"*", "größe".encode(), b"a" * 255, b"::error::x", b"{{ 1 }}"]
    for name in odd:
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
    deep = root
    for _ in range(30):
        deep = os.path.join(deep, b"d" * 100)
    os.makedirs(deep)
    with open(os.path.join(deep, b"leaf"), "wb") as file:
        file.write(b"leaf")
    assert packed(job)["files"] == len(odd) + 1
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        names_in_archive = {os.fsencode(member.name) for member in archive if member.isfile()}
    assert {b"artefacts/" + name for name in odd} < names_in_archive
    assert any(name.endswith(b"/leaf") for name in names_in_archive)
    listed = subprocess.run(["tar", "-tzf", str(job / "artefacts.tar.gz")], capture_output=True, check=True)
    assert listed.stderr == b""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"a": "x"}', "'a' is not a finite number"),
        ('{"a": true}', "'a' is not a finite number"),
        ('{"a": {"b": 1}}', "'a' is not a finite number"),
        ('{"a": NaN}', "'a' is not a finite number"),
        ('{"a": 1' + "0" * 400 + "}", "'a' is not a finite number"),
        ('{"a": 1' + "0" * 5000 + "}", "'a' is not a finite number"),
        ('{"a": 1' + "0" * 900_000 + "}", "'a' is not a finite number"),
        ('{"a": -Infinity, "b": 1e999}', "'a' is not a finite number, and 1 more"),
        ('{"a": ' + "[" * 100_000, "not JSON"),
        ('{"\\ud800": 1}', "no printable name"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "larger than 1 MiB"),
    ],
)
def test_invalid_metrics_are_reported(job: Path, text: str, problem: str) -> None:
    (job / "workspace" / "artefacts" / "metrics.json").write_text(text)
    answer = packed(job)
    assert answer["metrics"] is None
    assert problem in answer["metrics_problem"]
    assert manifest(job)["metrics"] is None


def test_valid_metrics_are_kept_beside_invalid_ones(job: Path) -> None:
    text = '{"a": 1, "b": NaN, "a": 2, "c": 9007199254740993, "d": 0.5, "e": 5e-324, "f": [1]}'
    (job / "workspace" / "artefacts" / "metrics.json").write_text(text)
    answer = packed(job)
    assert answer["metrics"] == {"a": 1, "c": 9007199254740992.0, "d": 0.5, "e": 5e-324}
    assert answer["metrics_problem"] == "metrics.json: 'b' is not a finite number, and 2 more"


FLAT = """
import os, pwd, sys
from pathlib import Path
from train_classifier.worker.jobs import conclude
from train_classifier.worker.system.host import Account
from train_classifier.worker.state.store import Job
entry = pwd.getpwuid(os.geteuid())
account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)
request = {
    "manifest": {}, "need_new": False, "most_bytes": 1 << 50, "threads": 4, "results": [], "elsewhere": "list"
}
answer = conclude.write_archive(Job(Path(sys.argv[1])), account, request, None, lambda: None)
# Not getrusage: its peak counts the process that started this one, until exec.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(answer["files"], peak)
"""


def pack_apart(job: Path) -> tuple[int, int]:
    """Pack in a process of its own; return the number of files and its peak memory in KiB."""
    process = subprocess.run(
        [sys.executable, "-c", FLAT, str(job)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4],
    )  # fmt: skip
    files, peak = map(int, process.stdout.split())
    return files, peak


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "count", [10_000, *(pytest.param(n, marks=pytest.mark.full) for n in (100_000, 1_000_000))]
)
def test_memory_does_not_grow_with_number_of_files(job: Path, count: int) -> None:
    root = job / "workspace" / "artefacts"
    for number in range(count):
        folder = root / f"{number // 1000}"
        if number % 1000 == 0:
            folder.mkdir()
        (folder / f"{number}").write_bytes(b"%d" % number)
    files, peak = pack_apart(job)
    assert files == count
    assert peak < 100 << 10
    assert len(manifest(job)["artefacts"]) == count


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    # Over 8 GiB a size no longer fits the header's octal digits; the last is sparse and has 100 GB of zeros.
    "size",
    [
        300 << 20,
        *(pytest.param(size, marks=pytest.mark.full) for size in (5 << 30, 9 << 30, 100_000_000_000)),
    ],
)
def test_memory_does_not_grow_with_size_of_files(job: Path, size: int) -> None:
    with open(job / "workspace" / "artefacts" / "large", "wb") as file:
        file.truncate(size)
        file.write(os.urandom(1 << 20))
    files, peak = pack_apart(job)
    assert files == 1 and peak < 100 << 10
    assert manifest(job)["artefacts"][0]["bytes"] == size
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        assert [member.size for member in archive if member.name == "artefacts/large"] == [size]


def test_paths_longer_than_system_limit_are_packed(job: Path) -> None:
    """A name has at most 255 bytes, a path at most 4096: longer ones are made, and packed, from folder to folder."""
    at = os.open(job / "workspace" / "artefacts", os.O_RDONLY)
    for _ in range(30):
        os.mkdir(b"d" * 255, dir_fd=at)
        below = os.open(b"d" * 255, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    with open(os.open(b"f" * 255, os.O_WRONLY | os.O_CREAT, dir_fd=at), "wb") as file:
        file.write(b"deep")
    os.close(at)
    try:
        assert packed(job)["files"] == 1
        (line,) = manifest(job)["artefacts"]
        assert len(line["path"]) == len("artefacts") + 31 * 256
        with tarfile.open(job / "artefacts.tar.gz") as archive:
            member = next(entry for entry in archive if entry.isfile() and entry.name.startswith("artefacts"))
            file_in = archive.extractfile(member)
            assert member.name == line["path"] and file_in is not None and file_in.read() == b"deep"
    finally:
        # pytest cannot remove it.
        subprocess.run(["rm", "-rf", str(job / "workspace")], check=True)


def test_lists_are_not_in_folder_for_temporary_files(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job / "workspace" / "artefacts" / "x").write_text("x")
    monkeypatch.setattr("tempfile.tempdir", str(job / "no-such-folder"))
    assert packed(job)["files"] == 1


def test_full_disk_leaves_no_partial_archive(job: Path) -> None:
    (job / "workspace" / "artefacts" / "x").write_bytes(os.urandom(1 << 20))
    script = (
        "import json,resource,sys,signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        + FLAT
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(job)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert process.returncode != 0
    assert not list(job.glob(".*")) and not (job / "artefacts.tar.gz").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536
