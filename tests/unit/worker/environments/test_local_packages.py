"""The digest of packages that stand in the repository."""

from pathlib import Path

from train_classifier.worker.environments.local_packages import digest_of_paths


def test_links_count_by_their_target(tmp_path: Path) -> None:
    for name in ("one", "two", "package"):
        (tmp_path / name).mkdir()
    digests = set()
    for target in ("../one", "../two", "../one/missing"):
        (tmp_path / "package" / "data").symlink_to(target)
        digests.add(digest_of_paths(tmp_path, ("package",)))
        (tmp_path / "package" / "data").unlink()
    digests.add(digest_of_paths(tmp_path, ("package",)))
    assert len(digests) == 4
