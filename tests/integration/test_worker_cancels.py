"""Cancels and other ends before training: while an image is pulled, a build runs, artefacts are packed.

The registry, the index and the mirror here are stand-ins that do what broken ones do; engine, uv and apt are real.
"""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hosts.fleet import uv_binary
from worker_support import Machine, Refused, accounts, docker, machine, packed, until_building, write_model

from train_classifier.core.job import PHASES
from train_classifier.worker.training.container_watch import Running

pytestmark = pytest.mark.engine
WRITES = "open('artefacts/x','w').write('x')\n"
LAYER = bytes(1 << 20)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry with one image, whose only layer stops half way: it stalls, or the connection is closed."""

    #: `stall` or `truncate`.
    manner: ClassVar[str] = "stall"
    #: A client has half of the layer; the test is over.
    begun: ClassVar[threading.Event] = threading.Event()
    over: ClassVar[threading.Event] = threading.Event()
    config: ClassVar[bytes] = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {},
         "rootfs": {"type": "layers", "diff_ids": [digest(LAYER)]}}
    ).encode()  # fmt: skip

    @classmethod
    def manifest(cls) -> bytes:
        kind = "application/vnd.docker."
        return json.dumps(
            {
                "schemaVersion": 2, "mediaType": f"{kind}distribution.manifest.v2+json",
                "config": {"mediaType": f"{kind}container.image.v1+json", "size": len(cls.config),
                           "digest": digest(cls.config)},
                "layers": [{"mediaType": f"{kind}image.rootfs.diff.tar", "size": len(LAYER), "digest": digest(LAYER)}],
            }
        ).encode()  # fmt: skip

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(b"{}", "application/json")
        elif "/manifests/" in self.path:
            self._answer(self.manifest(), "application/vnd.docker.distribution.manifest.v2+json")
        elif self.path.endswith(digest(self.config)):
            self._answer(self.config, "application/octet-stream")
        else:
            self._half_a_layer()

    def _answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", digest(data))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _half_a_layer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(LAYER)))
        self.end_headers()
        self.wfile.write(LAYER[: len(LAYER) // 2])
        self.wfile.flush()
        self.begun.set()
        if self.manner == "stall":
            # Nothing more is sent. The engine keeps waiting, as it does for docker pull.
            self.over.wait(300)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(params=["stall"])
def registry(request: pytest.FixtureRequest) -> Iterator[str]:
    """Reference of an image that can never be pulled to its end."""
    Registry.manner = request.param
    Registry.begun.clear()
    Registry.over.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/team/broken:1"
        Registry.over.set()
        server.shutdown()


@pytest.fixture(scope="module", params=accounts()[-1:])
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with machine(request.param) as new_host:
        shutil.copy2(uv_binary(), new_host.root / "uv")
        yield new_host


def assert_cancelled(host: Machine, job: str, phase: str) -> None:
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"], result["reason"]) == (
        "cancelled",
        6,
        "cancelled by me@there",
    )
    through = {*PHASES[: PHASES.index(phase) + 1], "artefacts"}
    assert set(result["seconds"]) == through and result["archive"] is None
    host.assert_clean(job)
    assert host.call("cancel", id=job, by="late")["state"] == "finished"
    assert host.call("status", id=job)["result"] == result


def test_cancel_during_image_pull(host: Machine, registry: str) -> None:
    job = host.start(WRITES, image=registry)
    host.until(job, "image")
    assert Registry.begun.wait(240)
    host.call("cancel", id=job, by="me@there")
    assert_cancelled(host, job, "image")
    assert docker("images", "-q", registry) == ""


@pytest.mark.full
@pytest.mark.parametrize("registry", ["truncate"], indirect=True)
def test_truncating_registry_is_reported(host: Machine, registry: str) -> None:
    # The engine tries five times, with longer and longer pauses.
    job = host.start(WRITES, image=registry)
    result = host.wait(job, timeout=300)
    assert (result["outcome"], result["exit_code"]) == ("no-environment", 9), result
    assert registry in result["reason"] and result["detail"]
    assert docker("images", "-q", registry) == ""
    host.assert_clean(job)


def test_cancel_during_package_installation(host: Machine, tmp_path: Path) -> None:
    with host.unreachable_archive():
        job = host.start_tree(write_model(tmp_path, WRITES, packages="hello\n"))
        host.until(job, "packages")
        until_building(job)
        host.call("cancel", id=job, by="me@there")
        assert_cancelled(host, job, "packages")


def test_cancel_during_environment_build(host: Machine, tmp_path: Path) -> None:
    # An index at an address that swallows every packet; uv's own patience is far longer than the test's.
    index = {"PIP_INDEX_URL": "http://192.0.2.1/simple", "UV_HTTP_TIMEOUT": "300"}
    with host.changed_settings(environment=index, uv=str(host.root / "uv")):
        job = host.start_tree(write_model(tmp_path, WRITES, requirements="six\n"))
        host.until(job, "environment")
        until_building(job)
        host.call("cancel", id=job, by="me@there")
        assert_cancelled(host, job, "environment")
        assert not list((host.state / "environments" / "envs").iterdir())


def test_cancel_during_packing_keeps_artefacts(host: Machine) -> None:
    program = "import os\nfor n in range(80):\n    open(f'artefacts/{n}','wb').write(os.urandom(1 << 20))\nprint('up')\n"
    job = host.start(program)
    host.until(job, "artefacts")
    host.call("cancel", id=job, by="me@there")
    result = host.wait(job)
    if "unpacked" in result:
        assert (result["outcome"], result["exit_code"]) == ("cancelled", 6), result
        result = host.pack(job)
        assert (result["outcome"], result["exit_code"]) == ("cancelled", 6), result
    else:
        # The cancel came after packing.
        assert (result["outcome"], result["exit_code"]) == ("trained", 0), result
    assert len(host.names(job)) == 81
    data = (host.job_dir(job) / "artefacts.tar.gz").read_bytes()
    assert result["archive"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    host.assert_clean(job)


@pytest.mark.parametrize("user", accounts())
def test_simultaneous_submits_and_pushes_start_one_job(user: str, tmp_path: Path) -> None:
    """Row 38: one submit starts the job, the other is refused; the job runs once."""
    with machine(user) as host:
        write_model(tmp_path, "print('once')\n" + WRITES)
        for _ in range(2):
            spec = host.spec()
            answers = at_once(partial(host.call, "prepare", spec=spec, files=packed([b"model/__main__.py"])))
            assert [None in answers, len(set(answers))] == [True, 2], answers
            assert "in use already" in next(filter(None, answers))
            # One that finds the other at work is refused; one that comes after it pushes the same again.
            pushed = at_once(partial(host.rsync, tmp_path, spec["id"], [b"model/__main__.py"]), check=True)
            assert None in pushed
            submitted = at_once(partial(host.call, "submit", id=spec["id"]))
            assert [None in submitted, len(set(submitted))] == [True, 2], submitted
            assert "submitted already" in next(filter(None, submitted))
            assert host.wait(spec["id"])["outcome"] == "trained"
            assert host.log(spec["id"]) == b"once\n"
            host.assert_clean(spec["id"])


def at_once(call: Callable[[], Any], check: bool = False) -> list[str | None]:
    """Make a call twice at the same moment: None for success (with `check` also status 0), else the reason."""
    barrier, outcomes = threading.Barrier(2), []

    def make_call() -> None:
        barrier.wait()
        try:
            answer = call()
            outcomes.append(f"status {answer.returncode}" if check and answer.returncode else None)
        except Refused as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=make_call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_silent_job_survives_engine_stream_timeout(engine: Any, base_image: str) -> None:
    """Row 40: a silent stream ends after the client's timeout, which here is a second instead of 45."""
    container = engine.containers.create(
        base_image, ["sh", "-c", "sleep 5; exit 7"], labels={"train-classifier-test": "silence"}
    )
    try:
        waits = []
        wait = container.wait

        def wait_one_second(timeout: float) -> Any:
            waits.append(timeout)
            return wait(timeout=1)

        container.wait = wait_one_second
        running = Running(container)
        running.begin()
        assert running.ended.wait(240)
        assert running.failure is None and running.ending is not None
        assert (running.ending.status, running.ending.from_outside) == (7, False)
        assert len(waits) > 2
    finally:
        container.remove(force=True)


@pytest.mark.full
def test_job_may_be_silent_for_over_a_minute(host: Machine) -> None:
    job = host.start(f"import time\ntime.sleep(100)\n{WRITES}print('awake')\n", lease_s=None)
    result = host.wait(job, 300)
    assert result["outcome"] == "trained", result
    assert host.log(job) == b"awake\n"
    host.assert_clean(job)
