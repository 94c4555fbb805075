"""Row 14: nothing outside the workspace is read when artefacts/, or a file in it, is replaced by a link."""

from pathlib import Path

import pytest
from worker_support import Machine, accounts, host_fixture

pytestmark = pytest.mark.engine
#: The target is a path of the host; where the model runs, it leads nowhere.
REPLACES = {
    "artefacts": "os.rmdir('artefacts')\nos.symlink({outside!r}, 'artefacts')\n",
    "metrics.json": "os.symlink({outside!r} + '/metrics.json', 'artefacts/metrics.json')\nopen('artefacts/x', 'w')\n",
    "a folder": "os.symlink({outside!r}, 'artefacts/folder')\nopen('artefacts/x', 'w')\n",
    "link to a link": "os.symlink({outside!r}, 'artefacts/hop')\nos.symlink('hop/metrics.json', 'artefacts/through')\nopen('artefacts/x', 'w')\n",
}  # fmt: skip
host = host_fixture(accounts())


@pytest.fixture(scope="module")
def outside(host: Machine) -> Path:
    folder = host.root / "outside"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"foreign": 1}')
    (folder / "history.csv").write_text("epoch,foreign\n1,1\n2,2\n")
    folder.chmod(0o755)
    return folder


@pytest.mark.parametrize("kind", sorted(REPLACES))
def test_14_nothing_outside_is_delivered(host: Machine, outside: Path, kind: str) -> None:
    job, result = host.train("import os\n" + REPLACES[kind].format(outside=str(outside)))
    assert result["exit_code"] in (0, 7) and result["metrics"] is None, result
    manifest = host.manifest(job)
    assert manifest["metrics"] is None and manifest["left_out"]
    with host.archive(job) as archive:
        for member in archive:
            assert not member.issym() and "foreign" not in member.name
            file = (
                archive.extractfile(member)
                if member.isfile() and member.name.startswith("artefacts")
                else None
            )
            assert file is None or b"foreign" not in file.read()
    host.assert_clean(job)
