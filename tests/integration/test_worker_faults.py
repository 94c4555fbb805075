"""Nothing is lost when things break at a job's end: kills between its last steps, full disks, an engine that stays away."""

import dataclasses
import json
import subprocess
import time
from pathlib import Path

import pytest
from engine_proxy import proxied
from hosts.machine import make_image
from loopback.world import wait_until
from worker_support import (
    HOLD,
    Machine,
    Refused,
    accounts,
    docker,
    host_fixture,
    machine,
    packed,
    write_model,
)

pytestmark = pytest.mark.engine
WRITES = "import os\nopen('artefacts/weights','wb').write(os.urandom(1000))\nprint('up', flush=True)\n"
#: The worker kills itself in place of a step, as `kill -9` between two instructions would.
KILLS_ITSELF = """
def {name}(*_arguments, **_options):
    import os
    os.kill(os.getpid(), 9)
"""
host = host_fixture(accounts()[-1:])


@pytest.mark.parametrize("user", accounts())
@pytest.mark.parametrize("step", ["conclude", "set_finished", "remove_leftovers"])
def test_job_finishes_after_kill_between_last_steps(user: str, step: str) -> None:
    with machine(user) as host:
        with host.patched("jobs/conclude", KILLS_ITSELF.format(name=step)):
            job = host.start(WRITES)
            host.until_worker_is_gone(job)
        archive = (host.job_dir(job) / "artefacts.tar.gz").read_bytes()
        result = host.wait(job)
        assert (result["outcome"], result["exit_code"], result["reason"]) == ("trained", 0, None)
        assert result["archive"]["bytes"] == len(archive)
        assert (host.job_dir(job) / "artefacts.tar.gz").read_bytes() == archive
        assert "artefacts/weights" in host.names(job) and host.manifest(job)["outcome"] == "trained"
        host.assert_clean(job)


def test_recovery_may_be_killed_too(host: Machine) -> None:
    job = host.start(WRITES + "import time\ntime.sleep(600)\n")
    host.until(job, "training", text=b"up\n")
    host.kill_worker(job)
    with (
        host.patched("jobs/conclude", KILLS_ITSELF.format(name="conclude")),
        pytest.raises(Exception, match=r"-9|SIGKILL"),
    ):
        for _ in range(100):
            host.call("status", id=job)
            time.sleep(0.05)
    result = host.wait(job)
    assert result["outcome"] == "lost" and host.pack(job)["outcome"] == "lost"
    assert "artefacts/weights" in host.names(job)
    host.assert_clean(job)


def test_full_disk_at_packing_keeps_artefacts(host: Machine) -> None:
    with host.on_small_disk("12m") as small:
        job = small.start(
            "import os\nopen('artefacts/weights','wb').write(os.urandom(7 << 20))\nprint('up')\n"
        )
        result = small.wait(job)
        assert (result["outcome"], result["exit_code"]) == ("nothing-delivered", 7), result
        assert "could not be packed" in result["reason"] and "fetch" in result["hint"]
        assert "No space left" in result["detail"] and result["archive"] is None
        weights = small.job_dir(job) / "workspace" / "artefacts" / "weights"
        assert weights.stat().st_size == 7 << 20
        # As long as there is no room, nothing changes.
        with pytest.raises(Refused, match="could not be packed"):
            small.pack(job)
        assert small.call("status", id=job)["result"] == result and weights.exists()
        subprocess.run(["mount", "-o", "remount,size=40m", str(small.root)], check=True)
        # Reading packs nothing.
        assert small.call("status", id=job)["result"] == result
        done = small.pack(job)
        assert (done["outcome"], done["exit_code"], done["reason"]) == ("trained", 0, None), done
        assert done["archive"]["bytes"] == (small.job_dir(job) / "artefacts.tar.gz").stat().st_size
        assert "artefacts/weights" in small.names(job) and small.manifest(job)["outcome"] == "trained"
        assert small.call("status", id=job)["result"] == done
        small.assert_clean(job)


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)\n"])
def test_full_disk_during_training_keeps_job_and_log_end(host: Machine, ending: str) -> None:
    program = (
        "import os, sys, time\nopen('artefacts/first','w').write('x')\nprint('up', flush=True)\n"
        + HOLD
        + "filler = open('filler', 'wb', buffering=0)\ntry:\n    while True:\n        filler.write(bytes(4096))\n"
        "except OSError:\n    pass\n"
        # More than a FIFO holds: the worker must keep reading.
        "for _ in range(100):\n    os.write(1, b'y' * 65535 + b'\\n')\n"
        "os.unlink('filler')\nfiller.close()\nos.write(1, b'the end\\n')\n"
    )
    with host.on_small_disk("16m") as small:
        job = small.start(program + ending)
        small.until(job, "training", text=b"up\n")
        small.go(job)
        result = small.wait(job, timeout=240)
        assert result["outcome"] == ("failed" if ending else "trained"), result
        assert result["training_exit_status"] == (3 if ending else 0)
        log = small.log(job)
        assert log.startswith(b"up\n") and b"the end\n" in log and b"bytes of the log are missing here" in log
        assert "artefacts/first" in small.names(job)
        small.assert_clean(job)


def test_stopped_log_reader_ends_the_job(host: Machine) -> None:
    """Nothing reads the FIFO any more: the model would block for ever and keep its GPU."""
    patch = "def _broken(self, data):\n    raise ValueError('broken on purpose')\nPump._write = _broken\n"
    with host.patched("training/log", patch):
        job = host.start(WRITES + "import time\ntime.sleep(600)\n", grace_s=1.0)
        result = host.wait(job, timeout=240)
    assert result["exit_code"] == 1 and "log stopped: broken on purpose" in result["reason"]
    assert "artefacts/weights" in host.names(job)
    host.assert_clean(job)


def test_full_disk_during_build_is_reported(host: Machine) -> None:
    """A build step fills the disk: the job ends at once and names the disk."""
    patch = """
def layer(context, base, workspace, model):
    with open(context.store.root / "fill", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            context.say("the disk is full now")
    return base
"""
    with host.on_small_disk("12m") as small, small.patched("containers/package_layers", patch):
        job = small.start(WRITES)
        result = small.wait(job, timeout=240)
        assert (result["outcome"], result["exit_code"]) == ("not-ready", 3), result
        assert "No space left on device" in result["reason"] and "disk" in result["hint"]
        (small.state / "fill").unlink()
        assert small.status(job)["state"] == "finished"
        small.assert_clean(job)


def test_job_is_lost_and_delivered_when_engine_stays_away(host: Machine, tmp_path: Path) -> None:
    """The result names the engine, and what the model wrote is delivered."""
    with proxied() as engine, machine(host.user) as away:
        away.docker_host = engine.address
        with away.patched("containers/engine", "RETRY_S = 2.0\nretry.__defaults__ = (None, None, 2.0)\n"), \
                away.patched("jobs/run", "CLOSING_PATIENCE_S = 1.0\n"):  # fmt: skip
            job = away.start(WRITES + "import time\ntime.sleep(600)\n")
            away.until(job, "training", text=b"up\n")
            # The model may write before the worker's first questions to the engine are answered.
            wait_until((away.job_dir(job) / "usage.csv").exists, 240)
            engine.stop()
            away.until_finished(job, timeout=240)
        result = away.stored_result(job)
        assert (result["outcome"], result["exit_code"]) == ("lost", 10), json.dumps(result)
        assert "engine went away" in result["reason"]
        assert "artefacts/weights" in away.names(job) and away.log(job) == b"up\n"
        # The container cannot be removed yet, and reading changes nothing.
        assert away.call("read", id=job, offset=0)["result"] == result
        assert docker("ps", "-q", "--filter", f"label=train-classifier.job={job}")
        engine.start()
        assert away.call("read", id=job, offset=0)["result"] == result
        away.assert_clean(job)


def test_helper_container_is_restarted_after_lost_connection(host: Machine) -> None:
    """A helper container is started again when the connection breaks at its start."""
    with proxied() as engine, machine(host.user) as fresh:
        fresh.forget_images()
        fresh.docker_host = engine.address
        engine.cut_after(b"/start", times=1)
        job, result = fresh.train(WRITES)
        assert engine.cuts == 1 and result["outcome"] == "trained", result
        fresh.assert_clean(job)


@pytest.mark.parametrize("user", accounts())
def test_job_without_its_secrets_leaves_nothing(user: str, tmp_path: Path) -> None:
    with machine(user) as host:
        patch = "\n_take = take_secrets\ndef take_secrets(job):\n    drop_secrets_only(job)\n    return _take(job)\n" \
               "def drop_secrets_only(job):\n    Path(os.fsdecode((job.dir / 'secrets-at').read_bytes())).unlink()\n"  # fmt: skip
        with host.patched("jobs/secrets", patch):
            job, result = host.train(WRITES, {"TOKEN": "hunter2"})
        assert (result["outcome"], result["exit_code"]) == ("not-ready", 3)
        assert "secrets are gone" in result["reason"]
        host.assert_clean(job)


@dataclasses.dataclass
class InContainer(Machine):
    """The host as a container sees it that has the socket of the engine, and a state folder of its own."""

    container: str = ""

    def prefix(self) -> list[str]:
        settings = f"TRAIN_CLASSIFIER_HOST_JSON={self.root / 'host.json'}"
        return ["docker", "exec", "-i", "-e", settings, self.container]


def test_engine_that_does_not_see_the_state_folder_is_named() -> None:
    with machine("root") as host:
        # The host has a folder at the path, too: the wrong one would be mounted.
        (host.state / "jobs").mkdir()
        settings = host.root / "host.json"
        container = docker(
            "run", "-d", "-v", "/var/run/docker.sock:/var/run/docker.sock", "-v", f"{settings}:{settings}:ro",
            "-v", str(host.state), "--entrypoint", "sleep", make_image("bookworm"), "infinity",
        )  # fmt: skip
        try:
            docker("cp", str(host.program.parent), f"{container}:{host.state}")
            inside = InContainer(host.root, "root", host.settings, container=container)
            sentence = f"the Docker engine does not see the state folder {host.state}"
            checks = {check["name"]: check for check in inside.call("check", gpus=0, deep=True)["checks"]}
            assert checks["state-in-container"]["message"] == sentence, checks
            assert (checks["state-in-container"]["status"], checks["state-in-container"]["code"]) == (
                "fail",
                3,
            )

            spec = inside.spec()
            inside.call("prepare", spec=spec, files=packed([b"model/__main__.py"]))
            pushed = inside.rsync(write_model(host.root / "tree", WRITES), spec["id"], [b"model/__main__.py"])
            assert pushed.returncode == 0, pushed.stderr
            inside.call("submit", id=spec["id"], secrets={})
            result = inside.wait(spec["id"])
            assert (result["exit_code"], result["reason"]) == (3, sentence)
            assert "same path" in result["hint"]
        finally:
            docker("rm", "-fv", container)
