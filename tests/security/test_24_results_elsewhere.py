"""Row 24: what a model leaves outside artefacts/ is named and packed, whatever its names and kinds."""

import pytest
from worker_support import Machine, accounts, host_fixture

pytestmark = pytest.mark.engine
host = host_fixture(accounts())

HOSTILE = r"""
import os, socket
open('artefacts/x', 'w').write('x')
names = [b'e\x1b]0;title\x07', b'\xff\xfe', b'::set-output name=a::b', b'line\nbreak', b'-rf', b'l' * 255, b'..x']
for name in names:
    open(name, 'w').write('x')
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
os.symlink('/etc/passwd', 'link')
os.symlink('..', 'up')
os.mkdir('closed')
open('closed/file', 'w').write('x')
os.truncate('closed/file', 1 << 26)
os.chmod('closed/file', 0)
os.chmod('closed', 0)
for _ in range(150):
    os.mkdir('d')
    os.chdir('d')
open('deep', 'w').write('x')
os.chmod('/workspace', 0)
"""


def test_24_hostile_files_elsewhere_are_packed(host: Machine) -> None:
    job, result = host.train(HOSTILE)
    assert result["exit_code"] == 0 and host.names(job) == ["artefacts", "artefacts/x"], result
    unpacked = result["unpacked"]
    assert unpacked["files"] == 8 and not unpacked["is_complete"]
    assert all(place["path"].isprintable() for place in unpacked["places"])
    assert unpacked["reason"].isprintable()
    host.pack(job)
    with host.archive(job) as archive:
        members = {member.name: member for member in archive if member.name.startswith("workspace")}
    assert len(members) == 8 and all(member.isfile() for member in members.values())
    assert "workspace/line\nbreak" in members and members["workspace/closed/file"].size == 1 << 26
    host.assert_clean(job)
