"""Row 12: `.trainignore` is matched as git matches `.gitignore`, in bounded time."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train_classifier.request import push_list
from train_classifier.request.trainignore import TrainIgnore

CLI = shutil.which("train-classifier") or "train-classifier"
NAMES = (
    "a", "b", "ab", "ba", "aab", "a.b", "b.a", "abab", "aaaaaaaa", "-", "[a]", "a b", "x]", "^", "!a", "#a", "A", "0",
    "a\\b", "é", "a\nb",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with folders in folders, all combinations of a few names."""
    top = tmp_path_factory.mktemp("tree")
    subprocess.run(["git", "init", "-q", top], check=True)
    for name in NAMES:
        (top / name).mkdir()
        for below in NAMES[:8]:
            (top / name / below).mkdir()
            for file in NAMES[:4]:
                (top / name / below / file).touch()
        (top / name / "file.a").touch()
    return top


LINES = st.lists(
    st.text(alphabet="aab**?/[]!^\\-.# Aé0:", max_size=12)
    | st.sampled_from(["[[:alpha:]]", "a**/b", "**/b", "a/**", "a/**/b", "***/a", "!a/", "[^a]b", "a[b-]", "[]a]", "\\!a", "a\\ "])
    .flatmap(lambda part: st.text(alphabet="ab*/", max_size=3).map(lambda rest: part + rest)),
    min_size=1,
    max_size=6,
)  # fmt: skip


def ignored_by_git(tree: Path, paths: list[bytes]) -> set[bytes]:
    """Return the paths that git ignores."""
    done = subprocess.run(
        ["git", "-C", tree, "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "--stdin", "-z"],
        input=b"\0".join(paths), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.split(b"\0")) - {b""}


def ignored_by_trainignore(ignore: TrainIgnore, paths: list[bytes], folders: set[bytes]) -> set[bytes]:
    """Return the paths that are left out: in git nothing in a left-out folder comes back."""
    left_out: set[bytes] = set()
    for path in paths:
        if path.rpartition(b"/")[0] in left_out or ignore.decide(path, path in folders):
            left_out.add(path)
    return left_out


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lines=LINES)
def test_12_patterns_match_as_in_git(tree: Path, lines: list[str]) -> None:
    # git treats `\/` after `**` differently.
    text = "\n".join(line.replace("\\/", "/") for line in lines)
    (tree / ".gitignore").write_text(text)
    (tree / ".trainignore").write_text(text)
    ignore = TrainIgnore(tree)
    if ignore.problems:
        return
    entries = sorted(
        os.fsencode(path.relative_to(tree)) for path in tree.rglob("*") if ".git" not in path.parts
    )
    folders = {path for path in entries if (tree / os.fsdecode(path)).is_dir()}
    assert ignored_by_trainignore(ignore, entries, folders) == ignored_by_git(tree, entries)


HOSTILE = {
    "stars": b"*" * 12 + b"b",
    "letters": b"*a" * 60 + b"b",
    "folders": b"**/" * 60 + b"*a*a*a*a*a*a*ab",
    "brackets": b"*[a-z]" * 40 + b"[!a-z]",
    "many": (b"**/" + b"*a" * 250 + b"b\n") * 130,
    "long": b"*" + b"a" * 60000 + b"b",
    "negations": b"!venv/" + b"**/*a" * 1000 + b"/b",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_12_hostile_patterns_take_bounded_time(tmp_path: Path, kind: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "__init__.py").touch()
    (tmp_path / "m" / "__main__.py").touch()
    deep = tmp_path.joinpath("venv", *["a" * 200] * 15)
    deep.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "m", deep):
        (folder / ("a" * 250)).touch()
    (tmp_path / ".trainignore").write_bytes(HOSTILE[kind])
    done = subprocess.run(
        [CLI, "train", "m", "--dry-run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "Dry run: nothing was touched." in done.stderr


def test_12_limits_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".trainignore").write_bytes(b"*x\n" * 40000)
    assert push_list.collect(tmp_path).problems == [
        ".trainignore has over 64 KiB of patterns with wildcards: name folders instead"
    ]
    monkeypatch.setattr(push_list, "WALK_S", -60.0)
    assert (
        "the checkout was not read within -1 min: name a smaller folder"
        in push_list.collect(tmp_path).problems[0]
    )


def test_12_trainignore_must_be_a_file_of_the_checkout(tmp_path: Path) -> None:
    """A link out of it would have its lines repeated in the messages."""
    repo = tmp_path / "repo"
    repo.mkdir()
    (tmp_path / "private").write_text("[secret\n")
    (repo / ".trainignore").symlink_to(tmp_path / "private")
    assert push_list.collect(repo).problems == [".trainignore leads out of the repository"]
    (repo / ".trainignore").unlink()
    os.mkfifo(repo / ".trainignore")
    assert push_list.collect(repo).problems == [".trainignore is not a regular file"]


def test_12_git_folders_are_never_pushed(tmp_path: Path) -> None:
    """actions/checkout leaves the workflow's token in .git/config."""
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / ".git").mkdir(parents=True)
        (folder / ".git" / "config").write_text("token")
    (tmp_path / ".trainignore").write_text("!.git\n!.git/config\n!sub/.git/**\n!*\n")
    entries = push_list.collect(tmp_path)
    assert entries.paths == [b".trainignore", b"sub/"]
    assert ".git is never pushed, whatever .trainignore says" in entries.warnings


def test_12_negated_pattern_includes_files_at_its_depth(tmp_path: Path) -> None:
    for name in ("venv/a/b/keep.txt", "venv/a/b/other.txt", "venv/keep.txt", "node_modules/a/keep.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".trainignore").write_text("!venv/**/keep.txt\n!**/keep.txt\n")
    assert sorted(push_list.collect(tmp_path).paths) == [
        b".trainignore", b"venv/", b"venv/a/", b"venv/a/b/", b"venv/a/b/keep.txt", b"venv/keep.txt",
    ]  # fmt: skip
