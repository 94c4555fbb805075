"""`train` from end to end on this machine's engine, over a local connection and over ssh."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from git_commands import git
from loopback.sshd import Sshd
from loopback.world import HOLD, World, tail, wait_until
from process_memory import Memory

from train_classifier.core.report import page

pytestmark = pytest.mark.engine

GOOD = """
print("hello from", os.environ["MODEL"], *sys.argv[1:])
os.makedirs("artefacts", exist_ok=True)
open("artefacts/weights.bin", "wb").write(bytes(range(256)) * 100)
open("artefacts/metrics.json", "w").write('{"accuracy": 0.975}')
"""


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def members(archive: Path) -> set[str]:
    with tarfile.open(archive) as opened:
        return set(opened.getnames())


def test_train_delivers_archive_and_log(world: World, sshd: Sshd) -> None:
    # Nothing is on the host yet, the worker neither.
    shutil.rmtree(world.state)
    model = world.model(GOOD)
    git(world.repo, "init", "-q")
    git(world.repo, "add", "-A")
    git(world.repo, "commit", "-q", "-m", "first")
    before = hashes(world.repo)
    inventory = world.inventory(sshd)
    done = world.run(*world.train(model, "--", "--epochs", "3", inventory=inventory))
    assert done.returncode == 0, tail(done.stderr)
    assert done.stdout == b"hello from probe --epochs 3\n"
    archive = world.work / "artefacts.tar.gz"
    assert {"artefacts/weights.bin", "job/log.txt", "job/manifest.json"} <= members(archive)
    messages = done.stderr.decode()
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in messages
    assert str(archive) in messages and "0.975" in messages and "trained" in messages
    assert archive.stat().st_uid == os.getuid()
    assert hashes(world.repo) == before
    assert b"\x1b" not in done.stderr
    world.assert_clean()
    check_single_files(world, inventory)
    check_repeats(world, inventory)
    world.assert_clean()


def check_single_files(world: World, inventory: Path) -> None:
    """One file of the archive comes over ssh, and nothing else."""
    here = world.work / "single"
    here.mkdir()
    done = world.run("fetch", "last", "artefacts/weights.bin", "job", "-i", inventory, cwd=here)
    assert done.returncode == 0, tail(done.stderr)
    assert (here / "artefacts/weights.bin").read_bytes() == bytes(range(256)) * 100
    assert json.loads((here / "job/manifest.json").read_text())["model"] == "probe"
    assert [path.name for path in (here / "artefacts").iterdir()] == ["weights.bin"]
    assert world.run("fetch", "last", "job/log.txt", "-i", inventory, cwd=here).returncode == 7
    shutil.rmtree(here)


def check_repeats(world: World, inventory: Path) -> None:
    """A repeat takes what the host still has, then what the commit has, and never what the checkout has now."""
    first = world.jobs()[-1]["id"]
    (world.repo / "probe" / "__main__.py").write_text("raise SystemExit('changed')\n")
    done = world.run("rerun", first, "-i", inventory)
    assert (done.returncode, done.stdout) == (0, b"hello from probe --epochs 3\n"), tail(done.stderr)
    assert b"is repeated, with its files, of commit" in done.stderr
    (mirror,) = (world.state / "mirrors").iterdir()
    (mirror / "fingerprint").write_text("of another push")
    # Without a checkout that has the commit nothing starts; with it, the commit is pushed.
    refused = world.run("rerun", first, "-i", inventory)
    assert refused.returncode == 2 and b"a later push replaced the files of job" in refused.stderr
    done = world.run("rerun", first, "-i", inventory, "--repo", world.repo, "--json")
    assert done.returncode == 0, tail(done.stderr)
    assert b"hello from probe --epochs 3" in done.stderr and b"taken from commit" in done.stderr
    assert json.loads(done.stdout)["metrics"] == {"accuracy": 0.975}
    manifest = json.loads((world.state / "jobs" / world.jobs()[-1]["id"] / "manifest.json").read_text())
    assert (manifest["rerun_of"], manifest["repository"]["dirty"]) == (first, False)
    assert "changed" in (world.repo / "probe" / "__main__.py").read_text()


def test_json_is_one_object_and_the_log_goes_to_standard_error(world: World) -> None:
    """On this machine, without ssh."""
    shutil.rmtree(world.state)
    done = world.run(*world.train(world.model(GOOD), "--json"))
    answer = json.loads(done.stdout)
    assert (answer["exit_code"], answer["outcome"], answer["metrics"]) == (0, "trained", {"accuracy": 0.975})
    archive = world.work / "artefacts.tar.gz"
    assert answer["artefacts"]["bytes"] == archive.stat().st_size
    assert {"artefacts/weights.bin", "job/log.txt", "job/manifest.json"} <= members(archive)
    assert b"hello from probe" in done.stderr
    assert set(answer["seconds"]) >= {"preflight", "push", "start", "training", "fetch"}
    world.assert_clean()


def test_failed_jobs_deliver_and_name_their_cause(world: World) -> None:
    """Also fault row 12, unknown and ambiguous ids of these two jobs."""
    done = world.run(*world.train(world.model(GOOD + "sys.exit(3)\n"), "--json"))
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 4
    assert "artefacts/weights.bin" in members(Path(answer["artefacts"]["path"]))
    assert b"Traceback" not in done.stderr

    cause, hint = b"the Python module yaml is missing", b"add the line pyyaml to probe/requirements.txt"
    done = world.run(*world.train(world.model("import yaml\n")))
    assert done.returncode == 4
    assert cause in done.stderr and hint in b" ".join(done.stderr.split()), tail(done.stderr)
    status = world.run("status", "last", "--inventory", world.local)
    assert cause in b" ".join(status.stdout.split()), tail(status.stdout)
    assert world.statuses()[-1]["id"].encode() in status.stdout
    world.assert_clean()

    for job, words in (("29991231", b"no job"), ("2", b"ambiguous"), ("../../etc", b"job")):
        done = world.run("status", job, "--inventory", world.local)
        assert done.returncode == 2 and words in done.stderr.lower(), (job, tail(done.stderr))
        assert b"Traceback" not in done.stderr
    done = world.run("status", answer["id"], "--inventory", world.local)
    assert done.returncode == 0 and answer["id"].encode() in done.stdout, tail(done.stderr)
    check_reports(world, answer)


def check_reports(world: World, failed: dict[str, Any]) -> None:
    """Check the report of the first of two failed jobs, in its archive and of the host, and that of the last."""
    archive = Path(failed["artefacts"]["path"])
    with tarfile.open(archive) as opened:
        source = opened.extractfile("job/report.html")
        assert source
        delivered = page.document_of(source.read())
    assert delivered
    assert delivered["title"] == "probe failed" and delivered["metrics"] == [["accuracy", "0.975"]]
    assert delivered["log"]["lines"] == ["hello from probe"]
    assert [name for name, _, _ in delivered["phases"]][-2:] == ["training", "artefacts"]
    output = world.work / "report.html"
    done = world.run("report", failed["id"], "--json", "--output", output, "--inventory", world.local)
    # It is the job's first: nothing to compare it with.
    assert json.loads(done.stdout) == page.document_of(output.read_bytes()) == delivered
    assert world.run("report", archive).stdout.startswith(b"probe failed\n")
    done = world.run("report", "last", "--inventory", world.local)
    newest = world.statuses()[-1]["id"]
    assert done.returncode == 0, tail(done.stderr)
    shown = done.stdout.decode()
    assert "ModuleNotFoundError" in shown and "Earlier runs" in shown
    assert failed["id"] in shown and newest in shown


def test_missing_artefacts_are_exit_7(world: World) -> None:
    (world.repo / "artefacts" / "README.md").write_text("kept\n")
    world.model("open('model.pkl', 'w').write('x')\n")
    done = world.run(*world.train("probe"))
    assert done.returncode == 7, tail(done.stderr)
    message = done.stderr.decode()
    assert "wrote nothing new into artefacts/; it wrote model.pkl (1 byte) elsewhere" in message
    assert message.count("it wrote model.pkl") == message.count("gets these files") == 1
    assert f"--inventory {world.local} gets these files" in message and "(here model.pkl)" in message


def test_results_outside_artefacts_are_named_and_fetched(world: World) -> None:
    """By `train`, `status` and `attach`; `--artefacts` brings a folder at once, and a link is refused."""
    world.model(
        "os.makedirs('outputs/run'); open('outputs/run/model.h5', 'wb').write(bytes(5000))\n"
        "os.makedirs('runs'); open('runs/events', 'w').write('x'); open('artefacts/weights', 'w').write('x')\n"
    )
    (world.repo / "link").symlink_to("/etc")
    refused = world.run(*world.train("probe", "--artefacts", "link", "--artefacts=../x"))
    assert refused.returncode == 2 and b"link is a link" in refused.stderr, tail(refused.stderr)
    assert b"'../x' is not the path of a folder in the repository" in refused.stderr
    world.assert_untouched()
    done = world.run(*world.train("probe", "--artefacts", "runs/", "--json"))
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["result"]["unpacked"]["why"] == "elsewhere", tail(done.stderr)
    job = answer["id"]
    archive = world.work / "artefacts.tar.gz"
    brought = {name for name in members(archive) if not name.startswith("job/")}
    assert brought == {"artefacts", "artefacts/weights", "runs/events"}
    words = "the model also wrote outputs/ (4.9 KiB) outside artefacts/"
    for shown in (done.stderr, world.run("status", job, "--inventory", world.local).stdout):
        assert words in shown.decode() and f"train-classifier fetch {job} --inventory" in shown.decode()
    assert words in world.run("attach", job, "--inventory", world.local).stderr.decode()
    refused = world.run("fetch", job, "--max-size", "1KiB", "--inventory", world.local)
    assert refused.returncode == 0 and b"more than the limit of 1.0 KiB" in refused.stderr
    assert "workspace/outputs/run/model.h5" not in members(archive)
    fetched = world.run("fetch", job, "--inventory", world.local)
    assert fetched.returncode == 0, tail(fetched.stderr)
    assert {"artefacts/weights", "runs/events", "workspace/outputs/run/model.h5"} <= members(archive)
    assert words not in world.run("status", job, "--inventory", world.local).stdout.decode()
    assert not (world.state / "jobs" / job / "workspace").exists()
    world.assert_clean()


def test_odd_artefacts_are_packed_and_not_followed(world: World) -> None:
    """Fault row 35: links out of the folder, odd names, modes; the archive arrives, nothing is extracted."""
    world.model(
        """
os.makedirs("artefacts/deep/er", exist_ok=True)
os.symlink("/etc/shadow", "artefacts/shadow")
os.symlink("../../..", "artefacts/up")
open("artefacts/new\\nline", "w").write("x")
open(b"artefacts/\\xff\\xfe", "w").write("x")
open("artefacts/secret", "w").write("x"); os.chmod("artefacts/secret", 0)
open("artefacts/setuid", "w").write("x"); os.chmod("artefacts/setuid", 0o6755)
os.mkfifo("artefacts/fifo")
"""
    )
    done = world.run(*world.train("probe"))
    assert done.returncode == 0, tail(done.stderr)
    with tarfile.open(world.work / "artefacts.tar.gz") as archive:
        entries = {entry.name: entry for entry in archive.getmembers()}
    assert "artefacts/new\nline" in entries
    assert "artefacts/secret" in entries
    for entry in entries.values():
        assert not entry.isdev() and not entry.name.startswith("/") and ".." not in entry.name.split("/")
        assert not entry.mode & 0o6000
    shadow = entries.get("artefacts/shadow")
    assert shadow is None or shadow.issym()
    assert [path.name for path in world.work.iterdir()] == ["artefacts.tar.gz"]


def read_hashed(process: subprocess.Popen[bytes]) -> str:
    """Read standard output to its end without keeping it; returns its SHA-256."""
    digest = hashlib.sha256()
    assert process.stdout is not None
    while block := process.stdout.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


LINES = """
for number in range(200_000):
    print(f"line {number} of a long run, with some more words to fill it")
open("artefacts/done", "w").write("x")
"""
BINARY = """
import random
block = random.Random(7).randbytes(1 << 20)
for number in range(BLOCKS):
    sys.stdout.buffer.write(number.to_bytes(4, "big") + block[4:])
open("artefacts/done", "w").write("x")
"""


@pytest.mark.parametrize(
    ("program", "connection"),
    [
        pytest.param(LINES, "ssh", id="lines-ssh"),
        pytest.param(BINARY.replace("BLOCKS", "50"), "local", id="50 MiB-local"),
        pytest.param(LINES, "local", id="lines-local", marks=pytest.mark.full),
        pytest.param(BINARY.replace("BLOCKS", "200"), "ssh", id="200 MiB-ssh", marks=pytest.mark.full),
    ],
)
def test_no_byte_is_lost_and_memory_stays_flat(
    world: World, sshd: Sshd, program: str, connection: str
) -> None:
    inventory = world.inventory(sshd) if connection == "ssh" else world.local
    model = world.model(program)
    errors = world.folder / "stderr"
    with errors.open("wb") as stream, Memory(world) as memory:
        process = world.start(*world.train(model, inventory=inventory), stderr=stream)
        digest = read_hashed(process)
        assert process.wait() == 0, tail(errors.read_bytes())
    (job,) = world.statuses()
    with (world.state / "jobs" / job["id"] / "log.txt").open("rb") as log:
        log_hash = hashlib.file_digest(log, "sha256").hexdigest()
    expected = hashlib.sha256()
    if program is LINES:
        for number in range(200_000):
            expected.update(f"line {number} of a long run, with some more words to fill it\n".encode())
    else:
        block = random.Random(7).randbytes(1 << 20)
        for number in range(50 if "range(50)" in program else 200):
            expected.update(number.to_bytes(4, "big") + block[4:])
    assert digest == log_hash == expected.hexdigest()
    memory.assert_flat()
    assert memory.event_files < 200
    logs = world.start("logs", job["id"], "--inventory", world.local, stderr=subprocess.DEVNULL)
    assert read_hashed(logs) == digest
    assert logs.wait() == 0
    world.assert_clean()


def test_closed_standard_output_does_not_stop_the_job(world: World) -> None:
    world.model(
        "import time\nfor n in range(30):\n    print(n, flush=True); time.sleep(0.1)\nopen('artefacts/a', 'w').write('x')\n"
    )
    process = world.start(*world.train("probe"))
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    messages = process.stderr.read()
    assert process.wait() == 0, tail(messages)
    assert b"nobody reads the log" in messages and b"Traceback" not in messages
    assert (world.work / "artefacts.tar.gz").exists()


def test_lines_appear_at_once_without_secrets_and_templates_are_not_rendered(world: World) -> None:
    """Fault row 51 on the controller: not in a folder of the run, not on a command line. Row 13 under the command line."""
    secret = "hunter2-a-very-rare-word"
    template = "{{ lookup('pipe', 'touch " + str(world.folder / "rendered") + "') }}"
    (world.repo / "{{ lookup('pipe', 'id') }}").write_text("x")
    world.model(
        "print(os.environ['PASSPHRASE'], sys.argv[1], os.environ['EVIL'], flush=True)\n"
        f"{HOLD}open('artefacts/a', 'w').write('x')\n"
    )
    train = world.train("probe", "--secret", "PASSPHRASE", "--env", f"EVIL={template}", "--", template)
    process = world.start(*train, env={**world.environment, "PASSPHRASE": secret})
    assert process.stdout is not None
    assert process.stdout.readline().decode() == f"*** {template} {template}\n"
    assert world.statuses()[-1]["state"] == "running"
    needle = secret.encode()
    assert world.files_with(needle) == []
    for pid, command in world.processes():
        assert secret not in command, pid
    world.go()
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, tail(errors)
    assert out == b""
    assert needle not in errors
    assert not (world.folder / "rendered").exists()


BREAK = """
import importlib.abc, importlib.util, sys

class Break(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "MODULE":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def broken(module):
            load(module)
            def fail(*arguments, **options):
                raise RuntimeError("broken by a test")
            owner = module
            *path, last = "NAME".split(".")
            for word in path:
                owner = getattr(owner, word)
            setattr(owner, last, fail)
        spec.loader.exec_module = broken
        return spec

sys.meta_path.insert(0, Break())
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [("train_classifier.ansible_bridge.playbook", "run"), ("train_classifier.controller.steps", "start")],
    ids=["command", "plugin"],
)
def test_bug_is_exit_1_and_reveals_no_secret(world: World, module: str, name: str) -> None:
    """Fault row 51, crash output; the traceback is in a file that is named, and nothing was started."""
    secret = "hunter2-a-very-rare-word"
    world.model("open('artefacts/a', 'w').write('x')\n")
    site = world.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BREAK.replace("MODULE", module).replace("NAME", name))
    done = world.run(
        *world.train("probe", "--secret", "PASSPHRASE"),
        PASSPHRASE=secret,
        PYTHONPATH=f"{site}{os.pathsep}{world.environment['PYTHONPATH']}",
    )
    assert done.returncode == 1, tail(done.stderr)
    needle = secret.encode()
    assert needle not in done.stdout + done.stderr
    crashes = list(world.temp.glob("train-classifier-crash-*.txt"))
    assert len(crashes) == 1, tail(done.stderr)
    crash = crashes[0]
    assert crash.name.encode() in done.stderr
    assert b"broken by a test" in crash.read_bytes()
    assert crash.stat().st_mode & 0o777 == 0o600
    assert world.files_with(needle) == []
    assert not [job for job in world.statuses() if job["state"] in ("submitted", "running")]


def test_wrong_input_changes_nothing(world: World) -> None:
    done = world.run(*world.train("no_such_model", "--timeout", "never", "--memory", "-1", "--json"))
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 2
    assert len(answer["error"]["problems"]) >= 3
    world.assert_untouched()


def test_jobs_of_other_users_are_listed_without_their_secrets(world: World) -> None:
    """Another state folder is another user's: its jobs are known by their containers alone."""
    world.model(HOLD + "open('artefacts/a', 'w').write('x')\n")
    done = world.run(*world.train("probe", "--detach", "--", "--a-rare-argument"))
    assert done.returncode == 0, tail(done.stderr)
    job = world.wait_for(lambda status: status.get("phase") == "training" and status.get("container"))["id"]
    stranger = world.folder / "stranger.yml"
    stranger.write_text(world.local.read_text().replace(str(world.state), str(world.folder / "other")))
    alone = world.run("list", "--all", "--inventory", stranger)
    assert alone.returncode == 0 and job.encode() not in alone.stdout
    listed: list[dict[str, object]] = wait_until(
        lambda: [
            line
            for line in json.loads(world.run("list", "--all-users", "--json", "--inventory", stranger).stdout)
            if (line["id"], line["phase"]) == (job, "training")
        ]
    )
    (line,) = listed
    assert line["other_user"] and line["state"] == "running" and line["submitter"]
    shown = world.run("list", "--all-users", "--inventory", stranger)
    assert job.encode() in shown.stdout and b"running (training)" in shown.stdout, tail(shown.stderr)
    assert b"a-rare-argument" not in shown.stdout + json.dumps(line).encode()
    # The owner sees it once, with what is the owner's.
    (own,) = [
        each
        for each in json.loads(world.run("list", "--all-users", "--json", "--inventory", world.local).stdout)
        if each["id"] == job
    ]
    assert own["arguments"] == ["--a-rare-argument"] and "other_user" not in own
    assert world.run("logs", job, "--inventory", stranger).returncode == 2
    world.go()
    world.wait_for(lambda status: status["state"] == "finished")
    world.assert_clean()


def test_sweep_trains_every_combination_after_one_push(world: World, sshd: Sshd) -> None:
    """One run fails and stops no other; without a GPU one runs at a time."""
    model = world.model(
        "print(*sys.argv[1:])\nopen('artefacts/seed', 'w').write(sys.argv[-1])\nsys.exit(3 * (sys.argv[-1] == '2'))\n"
    )
    words = ["--sweep", "lr=-0.1", "--sweep", "seed=1,2,a b", "--", "--epochs", "3"]
    done = world.run(*world.train(model, *words, inventory=world.inventory(sshd)))
    assert done.returncode == 4, tail(done.stderr)
    assert done.stdout.decode().splitlines() == [
        f"{number} | --epochs 3 --lr=-0.1 --seed {seed}" for number, seed in enumerate(("1", "2", "a b"), 1)
    ]
    statuses = world.statuses()
    group = statuses[0]["id"][:-2]
    assert [status["id"] for status in statuses] == [f"{group}0{number}" for number in (1, 2, 3)]
    messages = done.stderr.decode()
    assert messages.count("push: ") == 1 and f"group {group} on " in messages and "exit status 3" in messages
    for status, seed in zip(statuses, (b"1", b"2", b"a b"), strict=True):
        with tarfile.open(world.work / f"artefacts-{status['id']}.tar.gz") as archive:
            member = archive.extractfile("artefacts/seed")
            assert member and member.read() == seed
    times = [status["times"]["training"] for status in statuses]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    world.assert_clean()


def test_ctrl_c_stops_every_job_of_a_group(world: World) -> None:
    """Of three, two run, since two may; the third waits. Two models have one group, too."""
    program = "print('up', flush=True)\nopen('artefacts/so-far', 'w').write('x')\n" + HOLD
    words = [world.model(program, "other"), "--max-parallel", "2", "--sweep", "seed=1,2"]
    process = world.start(*world.train(world.model(program), *words))
    group = wait_until(world.statuses)[0]["id"][:-2]

    def phases() -> list[object]:
        return [status["phase"] for status in world.statuses()]

    wait_until(lambda: phases() == ["training", "training", "queue", "queue"])
    shown = json.loads(world.run("status", "last", "--json", "--inventory", world.local).stdout)
    assert shown["id"] == group and shown["jobs"][2]["status"]["message"] == "waiting for 2 jobs of its group"
    assert [job["spec"]["model"] for job in shown["jobs"]] == ["probe", "probe", "other", "other"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 6, tail(err)
    assert sorted(out.splitlines()) == [b"1 | up", b"2 | up"]
    assert [world.result(f"{group}0{number}")["exit_code"] for number in (1, 2, 3, 4)] == [6] * 4
    assert {path.name for path in world.work.iterdir()} == {
        f"artefacts-{group}0{number}.tar.gz" for number in (1, 2)
    }
    world.assert_clean()


def test_detached_group_is_cancelled_and_fetched_by_its_id(world: World) -> None:
    detached = world.run(
        *world.train(world.model("print('up', flush=True)\n" + HOLD), "--sweep", "seed=1,2", "--detach")
    )
    group = detached.stdout.decode().strip()
    assert detached.returncode == 0 and f"attach {group}" in detached.stderr.decode(), tail(detached.stderr)
    wait_until(lambda: [status["phase"] for status in world.statuses()] == ["training", "queue"])
    here = ("--inventory", world.local)
    assert world.run("cancel", group, *here).returncode == 0
    assert [world.result(f"{group}0{number}")["exit_code"] for number in (1, 2)] == [6, 6]
    attached = world.run("attach", group, "--json", *here)
    assert attached.returncode == 6, tail(attached.stderr)
    assert [job["outcome"] for job in json.loads(attached.stdout)["jobs"]] == ["cancelled", "cancelled"]
    world.assert_clean()
