"""The list of files of a push, and the mirror that matches it."""

from pathlib import Path

from train_classifier.worker.state.file_trees import parse_list, remove_unlisted


def test_entries_that_are_not_listed_are_removed(tmp_path: Path) -> None:
    files, folders = parse_list(b"a/b/c\0d/\0e\0.\0")
    assert files == {b"a/b/c", b"e"} and folders == {b"a", b"a/b", b"d"}
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "c").touch()
    (tmp_path / "tree" / "a" / "b" / ".c.Xy12").touch()
    (tmp_path / "tree" / "d").symlink_to("/etc")
    (tmp_path / "tree" / "e").mkdir()
    (tmp_path / "tree" / "e" / "x").touch()
    remove_unlisted(tmp_path / "tree", *parse_list(b"a/b/c\0d/\0e\0"))
    remaining = sorted(str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*"))
    assert remaining == ["a", "a/b", "a/b/c"]
