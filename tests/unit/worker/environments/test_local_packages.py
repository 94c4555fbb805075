"""The digest of packages that stand in the repository."""

import os
import subprocess
from pathlib import Path

import pytest

from train_classifier.core.errors import BadInput, Cancelled, NotReady
from train_classifier.worker.environments import build_folder
from train_classifier.worker.environments.local_packages import digest_of_paths
from train_classifier.worker.state import file_trees


def test_content_counts(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    digests = [digest_of_paths(tmp_path, ("package",))]
    assert digest_of_paths(tmp_path, ("package",)) == digests[0]
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "package" / "code.py").write_text(text)
        digests.append(digest_of_paths(tmp_path, ("package",)))
    assert len(set(digests)) == 3


def test_links_count_by_their_target(tmp_path: Path) -> None:
    for name in ("package", "package/one", "package/two"):
        (tmp_path / name).mkdir()
    digests = set()
    for target in ("one", "./two", "one/missing"):
        (tmp_path / "package" / "data").symlink_to(target)
        digests.add(digest_of_paths(tmp_path, ("package",)))
        (tmp_path / "package" / "data").unlink()
    digests.add(digest_of_paths(tmp_path, ("package",)))
    assert len(digests) == 4


@pytest.mark.parametrize("target", ["../one", "/etc/hostname", "two/../../one", "../package2"])
def test_link_out_of_a_package_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "package" / "two").mkdir(parents=True)
    (tmp_path / "package" / "data").symlink_to(target)
    with pytest.raises(
        BadInput, match="package/data is a link that leads out of the local package package: put"
    ):
        digest_of_paths(tmp_path, ("package",))
    # The push refuses such a link of the whole repository.
    assert digest_of_paths(tmp_path, (".",))


def test_cancel_ends_the_reading_of_a_large_package(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "large").write_bytes(b"")
    os.truncate(tmp_path / "package" / "large", 1 << 40)

    def cancel() -> None:
        raise Cancelled("the job was cancelled")

    with pytest.raises(Cancelled):
        digest_of_paths(tmp_path, ("package",), cancel)


def test_cancel_ends_the_copy_of_a_large_package() -> None:
    def cancel() -> None:
        raise Cancelled("the job was cancelled")

    with pytest.raises(Cancelled):
        file_trees._run(None, "sleep", "1000", check=cancel)


def test_full_disk_while_a_package_is_copied_is_the_hosts_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "package").mkdir(parents=True)
    (tmp_path / "package").mkdir()
    full = subprocess.CompletedProcess([], 1, b"No space left on device")
    monkeypatch.setattr(file_trees, "_run", lambda *_, **__: full)
    request = {"folder": str(tmp_path), "nearest": None, "open": None, "paths": ["package"]}
    with pytest.raises(NotReady) as caught:
        build_folder.fill_part({**request, "workspace": str(tmp_path)})
    assert "No space left" in (caught.value.detail or "")
