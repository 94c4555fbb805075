"""`train` and its companions as people use them: plain Ansible, several hosts, limits, keys, what a killed fetch leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from loopback.line import Line
from loopback.sshd import Sshd
from loopback.world import HOLD, World, tail, wait_until

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
GOOD = "print('hello', *sys.argv[1:], flush=True); open('artefacts/weights', 'w').write('x')\n"


def playbook(world: World, name: str, inventory: Path, **variables: object) -> subprocess.Popen[bytes]:
    """Start one of our playbooks from the user's own repository, with nothing set for Ansible."""
    environment = {k: v for k, v in world.environment.items() if not k.startswith("ANSIBLE_")}
    # Also no path of the package: it is installed beside ansible-playbook.
    environment.pop("PYTHONPATH")
    extra = [word for key, value in variables.items() if key != "flags" for word in ("-e", f"{key}={value}")]
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.Popen(
        [program, "-i", str(inventory), str(ROOT / "playbooks" / name), *extra, *variables.get("flags", ())],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=world.repo, env={**environment, "PWD": str(world.repo), "PASSPHRASE": "a-rare-word"},
    )  # fmt: skip


def test_playbook_trains_over_ssh(world: World, sshd: Sshd) -> None:
    """From the user's repository: live lines, the settings file, a masked secret, no template rendered (row 13)."""
    template = "{{ lookup('pipe', 'touch " + str(world.folder / "rendered") + "') }}"
    world.model(
        f"print('first', os.environ['PASSPHRASE'], os.environ['EVIL'], flush=True)\n{HOLD}open('seen', 'w').write('x')\n"
    )
    (world.repo / "{{ lookup('pipe', 'id') }}").write_text("x")
    (world.repo / "train-classifier.toml").write_text(
        f'[defaults]\nallow_empty = true\nenvironment = {{ EVIL = "{template}" }}\n'
    )
    inventory = world.inventory(sshd)
    variables = {"training_job_host": "trainer1", "training_job_model": "probe", "training_job_gpus": "0"}
    secrets = ["-e", '{"training_job_secrets": ["PASSPHRASE"]}']
    process = playbook(world, "train.yml", inventory, **variables, flags=secrets)
    assert process.stdout is not None
    lines = []
    while (line := process.stdout.readline()) and not line.startswith(b"first"):
        lines.append(line)
    assert line.decode().strip() == f"first *** {template}", tail(b"".join(lines))
    assert process.poll() is None and world.statuses()[-1]["state"] == "running"
    world.go()
    end = process.stdout.read()
    # Nothing new in artefacts/ is no failure: the settings file says so.
    assert process.wait() == 0, tail(end)
    assert (world.repo / "artefacts.tar.gz").exists()
    assert not (world.folder / "rendered").exists()
    assert b"a-rare-word" not in b"".join(lines) + line + end


def test_playbooks_check_train_and_cancel_on_this_machine(world: World) -> None:
    """A failing model, check mode, and a job that cancel.yml stops."""
    world.model("open('artefacts/partial', 'w').write('x'); print('so far', flush=True); sys.exit(3)\n")
    variables = {"training_job_host": "here", "training_job_model": "probe", "training_job_gpus": "0"}
    checked = playbook(world, "train.yml", world.local, **variables, flags=["--check"])
    output = checked.communicate(timeout=240)[0]
    assert checked.returncode == 0, tail(output)
    assert b"Check mode: the request is good; nothing was pushed to here" in output
    world.assert_untouched()
    wrong = playbook(
        world, "train.yml", world.local, **{**variables, "training_job_model": "nope"}, flags=["--check"]
    )
    output = wrong.communicate(timeout=240)[0]
    assert wrong.returncode == 2 and b"no model 'nope'" in output
    failing = playbook(world, "train.yml", world.local, **variables)
    output = failing.communicate(timeout=240)[0]
    assert failing.returncode == 2
    assert b"so far" in output and b"exited with status 3" in output.replace(
        b"exit status 3", b"exited with status 3"
    ), tail(output)
    with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
        assert "artefacts/partial" in archive.getnames()
    world.model("import time\nprint('up', flush=True)\ntime.sleep(300)\n")
    detached = playbook(world, "train.yml", world.local, **variables, training_job_detach="true")
    output = detached.communicate(timeout=240)[0]
    assert detached.returncode == 0, tail(output)
    job = world.wait_for(lambda status: status["phase"] == "training")["id"]
    stopped = playbook(world, "cancel.yml", world.local, training_job_host="here", training_job_id=job)
    output = stopped.communicate(timeout=240)[0]
    assert stopped.returncode == 0, tail(output)
    assert world.result(job)["exit_code"] == 6


def test_time_limit_is_exit_5_and_delivers(world: World) -> None:
    world.model("import time\nopen('artefacts/partial', 'w').write('x')\ntime.sleep(300)\n")
    good = world.work / "artefacts.tar.gz"
    good.write_bytes(b"the good one of yesterday")
    done = world.run(*world.train("probe", "--timeout", "1s", "--grace", "1s", "--json"))
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["exit_code"], answer["outcome"]) == (5, 5, "timed-out"), tail(done.stderr)
    # The archive of a failed job does not replace the last good one, unless --output names the file.
    beside = world.work / f"artefacts-{answer['id']}.tar.gz"
    assert answer["artefacts"]["path"] == str(beside) and beside.exists()
    named = world.work / "new" / "folder" / "failed.tgz"
    assert world.run("fetch", answer["id"], "--inventory", world.local, "-o", named).returncode == 0
    assert named.read_bytes() == beside.read_bytes() and good.read_bytes() == b"the good one of yesterday"
    world.assert_clean()


def test_one_of_two_hosts_is_named_or_chosen(world: World) -> None:
    """Fault row 7 by the command, a job found on the second host, and hints that work as they are printed."""
    hosts = {
        name: {
            "ansible_connection": "local",
            "training_job_state_dir": str(world.folder / f"state of {name}"),
        }
        for name in ("one", "two")
    }
    hosts_file = world.folder / "the lab's hosts.yml"
    hosts_file.write_text(json.dumps({"all": {"hosts": hosts}}))
    world.model(GOOD)
    both = world.run(*world.train("probe", "--host", "one:two", inventory=hosts_file))
    assert both.returncode == 2 and b"2 hosts, but one is needed: one, two" in both.stderr, tail(both.stderr)
    assert world.run(*world.train("probe", "--host", "nobody", inventory=hosts_file)).returncode == 2
    assert not list(world.folder.glob("state of *"))
    started = world.run(
        *world.train("probe", "--host", "two", "--detach", inventory=hosts_file.name), cwd=world.folder
    )
    assert started.returncode == 0, tail(started.stderr)
    job = started.stdout.decode().strip()
    (hint,) = [line for line in started.stderr.decode().splitlines() if line.startswith("Follow it again: ")]
    _, *words = shlex.split(hint.partition(": ")[2])
    assert "--host" in words
    picked = world.run(*words)
    assert (picked.returncode, picked.stdout) == (0, b"hello\n"), tail(picked.stderr)
    # From any controller, all hosts at once.
    (world.work / "artefacts.tar.gz").unlink()
    again = world.run("attach", job[:-3], "--inventory", hosts_file)
    assert (again.returncode, again.stdout) == (0, b"hello\n"), tail(again.stderr)
    assert (world.work / "artefacts.tar.gz").exists()
    # None named, and nobody waits for a GPU: the first that is ready.
    hosts_file.write_text(
        json.dumps({"all": {"hosts": {"none": {"ansible_host": "127.255.255.254"}, **hosts}}})
    )
    anywhere = world.run(*world.train("probe", inventory=hosts_file))
    assert (anywhere.returncode, anywhere.stdout) == (0, b"hello\n"), tail(anywhere.stderr)
    assert b"passed over: none" in anywhere.stderr and b"Host one: the first" in anywhere.stderr
    unknown = world.run("status", "20010101-000000-00000000", "-i", hosts_file, "--host", "one")
    assert unknown.returncode == 2
    assert f"--inventory '{hosts_file}'".replace("'s hosts", "'\"'\"'s hosts").encode() in unknown.stderr, (
        tail(unknown.stderr)
    )


def test_private_keys_are_not_pushed_and_files_may_change_during_push(world: World) -> None:
    """Fault rows 14 and 15: no private key is in the mirror, the workspace or the archive."""
    for name in ("id_ed25519_work", "deploykey", "notes.txt"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", world.repo / name], check=True)
        (world.repo / name).chmod(0o644)
    for number in range(3000):
        (world.repo / f"steady{number:04}").write_text(f"{number}\n")
    world.model(
        "good = all(open(f'steady{n:04}').read() == f'{n}\\n' for n in range(3000))\n"
        "print(good, flush=True); open('artefacts/a', 'w').write('x')\n"
    )
    over = threading.Event()

    def change_files() -> None:
        number = 0
        while not over.is_set():
            number += 1
            (world.repo / f"moving{number % 200:03}").write_bytes(os.urandom(1 + number % 9999))
            with contextlib.suppress(FileNotFoundError):
                (world.repo / f"moving{(number * 7) % 200:03}").unlink()

    thread = threading.Thread(target=change_files)
    thread.start()
    try:
        done = world.run(*world.train("probe"))
    finally:
        over.set()
        thread.join()
    assert (done.returncode, done.stdout) == (0, b"True\n"), tail(done.stderr)
    assert b"private keys are not pushed: deploykey, id_ed25519_work, notes.txt" in done.stderr
    (mirror,) = (world.state / "mirrors").glob("*/tree")
    assert (mirror / "deploykey.pub").exists()
    matches = subprocess.run(
        ["grep", "-rlaF", "-e", "-----BEGIN OPENSSH PRIVATE KEY", world.state / "mirrors", world.state / "jobs"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert matches.stdout == b""


def test_next_fetch_removes_files_of_killed_fetch(world: World, sshd: Sshd) -> None:
    """Row 20, `attach` in its fetch: the partial file is not pushed, and the next fetch removes all that is left."""
    if shutil.which("rsync") is None:
        pytest.skip("no rsync on this machine: apt-get install rsync")
    world.model("open('artefacts/large', 'wb').write(os.urandom(30 << 20))\n")
    job = world.run(*world.train("probe", "--detach")).stdout.decode().strip()
    wait_until(lambda: True if world.statuses()[-1]["state"] == "finished" else None, 60)
    # Fetched into the repository, as people do who work there.
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        process = world.start("attach", job, "-i", world.inventory(sshd, line.port), cwd=world.repo)
        part = world.repo / f".artefacts.tar.gz.{job}.part"
        wait_until(lambda: True if line.bytes > 8 << 20 and part.exists() else None, 60)
        line.freeze()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        line.mend()
        wait_until(lambda: not world.processes(), 60)
    assert part.exists() and list(world.temp.iterdir()), "nothing was left to remove"
    listed = world.run(
        *world.train("probe", "--dry-run", "--json", "--output", world.repo / "artefacts.tar.gz")
    )
    assert part.name not in json.loads(listed.stdout)["files"]
    world.model(GOOD)
    done = world.run(*world.train("probe"), cwd=world.repo)
    assert done.returncode == 0, tail(done.stderr)
    assert not part.exists()
    world.assert_clean()
