"""What is large: an archive that comes back with flat memory, a tree of 10,000 files that is sent once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback.line import Line
from loopback.sshd import Sshd
from loopback.world import World, make_world, tail

pytestmark = pytest.mark.engine

#: Our own processes may not grow past this.
MOST_MEMORY = 200 << 20
#: One block of noise, over and over: quick to write, and farther apart than gzip looks back.
LARGE = """
import hashlib
block = os.urandom(BLOCK)
whole = hashlib.sha256()
with open("artefacts/weights.bin", "wb") as file:
    for _ in range(COUNT):
        file.write(block)
        whole.update(block)
print(whole.hexdigest())
"""
FILES = 10_000
FILE_BYTES = 1500


@pytest.fixture
def world(base_image: str) -> Iterator[World]:
    yield from make_world(base_image)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    daemon = Sshd(tmp_path / "sshd")
    yield daemon
    daemon.stop()


class Memory:
    """Samples the peak memory of every process that belongs to a world: controller, ssh, rsync, worker."""

    def __init__(self, world: World) -> None:
        self._needle = os.fsencode(str(world.folder))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        #: Command line to bytes.
        self.peaks: dict[str, int] = {}

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    # A process may end while it is looked at.
                    with contextlib.suppress(OSError):
                        self._look(entry)

    def _look(self, entry: Path) -> None:
        command = (entry / "cmdline").read_bytes()
        if self._needle not in command and self._needle not in (entry / "environ").read_bytes():
            return
        name = command.replace(b"\0", b" ").decode("utf-8", "replace")
        for line in (entry / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.peaks[name] = max(self.peaks.get(name, 0), int(line.split()[1]) << 10)


@pytest.mark.parametrize(
    "count", [pytest.param(3, id="200MB"), pytest.param(32, id="2GB", marks=pytest.mark.full)]
)
def test_large_artefact_arrives_with_flat_memory(world: World, sshd: Sshd, count: int) -> None:
    block = 64 << 20
    world.model(LARGE.replace("BLOCK", str(block)).replace("COUNT", str(count)))
    with Memory(world) as memory:
        done = world.run(*world.train("probe", inventory=world.inventory(sshd)), timeout=580)
    assert done.returncode == 0, tail(done.stderr)
    archive = world.work / "artefacts.tar.gz"
    assert archive.stat().st_size >= count * block
    digest = hashlib.sha256()
    with tarfile.open(archive) as opened:
        member = opened.extractfile("artefacts/weights.bin")
        assert member is not None
        while data := member.read(1 << 20):
            digest.update(data)
    assert digest.hexdigest() == done.stdout.decode().strip()
    # Both sides were looked at while they carried it.
    for part in ("-m train_classifier train", "/workers/", "rsync --server --sender", "rsync "):
        assert any(part in name for name in memory.peaks), (part, list(memory.peaks))
    too_large = {name[:160]: peak >> 20 for name, peak in memory.peaks.items() if peak > MOST_MEMORY}
    assert not too_large
    world.assert_clean()


def test_unchanged_tree_is_not_sent_again(world: World, sshd: Sshd) -> None:
    data = world.repo / "data"
    for number in range(FILES):
        folder = data / f"{number // 100:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"sample-{number}").write_bytes(os.urandom(FILE_BYTES))
    world.model(
        "print(sum(len(files) for _, _, files in os.walk('data')))\n"
        "print(open('data/042/sample-4242', 'rb').read(5))\n"
        "open('artefacts/a', 'w').write('x')\n"
    )
    sample = (data / "042" / "sample-4242").read_bytes()[:5]
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        inventory = world.inventory(sshd, line.port)

        def pushed() -> int:
            """Bytes that went over the line, both ways, for one job."""
            before = line.bytes
            done = world.run(*world.train("probe", inventory=inventory))
            assert done.returncode == 0, tail(done.stderr)
            assert done.stdout == b"%d\n%r\n" % (FILES, sample)
            # The shared connection ends with its run's control socket, so that each run is counted alone.
            for socket in (world.folder / "cp").iterdir():
                subprocess.run(
                    ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"],
                    capture_output=True,
                    check=False,
                )
            return line.bytes - before

        first = pushed()
        again = pushed()
    assert first > FILES * FILE_BYTES
    # Names and times of the files, the job's own talk, and no content.
    assert again < FILES * FILE_BYTES / 10
    world.assert_clean()
