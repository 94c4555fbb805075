"""A large archive that is fetched with flat memory, and a tree of many files that is sent once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile

import pytest
from loopback.line import Line
from loopback.sshd import Sshd
from loopback.world import World, tail
from process_memory import Memory

pytestmark = pytest.mark.engine

#: One random block, repeated: quick to write, and longer than gzip's window.
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
FILE_BYTES = 1500


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
    # Processes of both sides were sampled.
    for part in ("-m train_classifier train", "/workers/", "rsync --server --sender", "rsync "):
        assert any(part in name for name in memory.peaks), (part, list(memory.peaks))
    memory.assert_flat()
    world.assert_clean()


@pytest.mark.parametrize("files", [3000, pytest.param(10_000, marks=pytest.mark.full)])
def test_unchanged_tree_is_not_sent_again(world: World, sshd: Sshd, files: int) -> None:
    data = world.repo / "data"
    for number in range(files):
        folder = data / f"{number // 100:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"sample-{number}").write_bytes(os.urandom(FILE_BYTES))
    world.model(
        "print(sum(len(files) for _, _, files in os.walk('data')))\n"
        "print(open('data/024/sample-2424', 'rb').read(5))\n"
        "open('artefacts/a', 'w').write('x')\n"
    )
    sample = (data / "024" / "sample-2424").read_bytes()[:5]
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        inventory = world.inventory(sshd, line.port)

        def pushed() -> int:
            """Bytes that went over the line, both ways, for one job."""
            before = line.bytes
            done = world.run(*world.train("probe", inventory=inventory))
            assert done.returncode == 0, tail(done.stderr)
            assert done.stdout == b"%d\n%r\n" % (files, sample)
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
    assert first > files * FILE_BYTES
    # Names and times of the files and the job's messages, but no content.
    assert again < files * FILE_BYTES / 10
    world.assert_clean()
