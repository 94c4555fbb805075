"""The checkout, what git says of it, and models that cannot be run (faults, rows 1 and 2)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from git_commands import git

from train_classifier.core.errors import BadInput
from train_classifier.request import checkout

ROOT = Path(__file__).parents[3]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with two models."""
    for name in ("mnist", "yolo"):
        folder = tmp_path / "repo with space" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text("print()\n")
    return tmp_path / "repo with space"


def refused(repo: Path, name: str | None) -> str:
    """Return the one sentence with which a model is refused."""
    problems, warnings = checkout.check_model(repo, name)
    assert warnings == []
    (problem,) = problems
    assert problem.isprintable()
    return problem


def test_good_models(repo: Path) -> None:
    assert checkout.check_model(repo, "mnist") == ([], [])
    assert checkout.models(repo) == ["mnist", "yolo"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "no model is named: give its name, or set MODEL; models here: mnist, yolo"),
        ("", "no model is named"),
        ("  ", "no model is named"),
        ("/mnist", "is an absolute path"),
        ("..", "climbs out of the repository"),
        ("../repo/mnist", "climbs out of the repository"),
        ("a/b", "is a path"),
        ("mnist yolo", "holds a space"),
        ("mn'ist", "holds a quote"),
        ('mn"ist', "holds a quote"),
        ("mnist;id", "holds ;"),
        ("$(id)", "holds $, (, )"),
        ("mnist\n", "holds a line break"),
        ("mnist\0", "holds a NUL"),
        ("\x1b[31m", "holds \\x1b, ["),
        ("-mnist", "starts with a dash"),
        ("--help", "starts with a dash"),
        ("1mnist", "starts with a digit"),
        ("mnist.train", "holds a dot"),
        ("mnist.py", "holds a dot; did you mean 'mnist'?"),
        ("{{ lookup('pipe', 'id') }}", "model '{{ lookup('pipe', 'id') }}' holds a space"),
        (
            "mnіst",
            "holds U+0456; a model is one folder",
        ),
        ("ｍnist", "holds U+FF4D; a model is one folder"),
        ("größe", "holds U+00DF, U+00F6; a model is one folder"),
        ("m" * 101, "is longer than 100 characters"),
        ("mnits", "no model 'mnits' in"),
        ("mnits", "did you mean 'mnist'?"),
        ("MNIST", "did you mean 'mnist'? Capitals count"),
        ("transformer", "models here: mnist, yolo"),
    ],
)
def test_names_that_are_refused(repo: Path, name: str | None, message: str) -> None:
    assert message in refused(repo, name)


def test_folders_that_are_refused(repo: Path, tmp_path: Path) -> None:
    (repo / "single.py").touch()
    (repo / "plain").touch()
    (repo / "bare").mkdir()
    (repo / "gone").symlink_to("nowhere")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "__main__.py").touch()
    (repo / "outside").symlink_to(outside)
    (repo / "loop").symlink_to("loop")
    for name in ("folder_main", "linked_main", "dangling_main", "venv"):
        (repo / name).mkdir()
    (repo / "folder_main" / "__main__.py").mkdir()
    (repo / "linked_main" / "__main__.py").symlink_to(outside / "__main__.py")
    (repo / "dangling_main" / "__main__.py").symlink_to("nowhere")
    (repo / "venv" / "__main__.py").touch()
    assert "single.py is a script; move it to single/__main__.py, or write fit/" in refused(repo, "single")
    assert "'plain' is a file; a model is a folder" in refused(repo, "plain")
    assert "'bare' has no __main__.py" in refused(repo, "bare")
    assert "leads nowhere" in refused(repo, "gone")
    assert "leads nowhere" in refused(repo, "loop")
    assert "is a symbolic link out of the repository" in refused(repo, "outside")
    assert "folder_main/__main__.py is not a file" in refused(repo, "folder_main")
    assert "linked_main/__main__.py is a symbolic link out of the repository" in refused(repo, "linked_main")
    assert "dangling_main/__main__.py is a symbolic link that leads nowhere" in refused(repo, "dangling_main")
    assert "name of a folder that is never pushed" in refused(repo, "venv")


@pytest.mark.parametrize("path", ["train.py", "scripts/train.py"])
@pytest.mark.parametrize("name", ["PATH", "fit", None])
def test_message_for_a_script_has_the_line_that_trains_it(
    tmp_path: Path, path: str, name: str | None
) -> None:
    script = tmp_path / path
    script.parent.mkdir(exist_ok=True)
    script.write_text("import neighbour, sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n")
    (script.parent / "neighbour.py").touch()
    message = refused(tmp_path, path if name == "PATH" else name)
    assert ("move it to train/__main__.py" in message) == (path == "train.py")
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "__main__.py").write_text(
        message.partition("write fit/__main__.py with the line: ")[2]
    )
    command = [sys.executable, "-m", "fit", "--epochs", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "['--epochs', '3']\n", done.stderr


@pytest.mark.parametrize("name", ["eda.ipynb", "fit", None])
def test_message_for_a_notebook_says_how_it_becomes_a_model(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "eda.ipynb").touch()
    assert "eda.ipynb is a notebook; jupyter nbconvert --to script makes it" in refused(tmp_path, name)


def test_message_for_a_folder_without_main_names_its_script(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "__init__.py").touch()
    assert refused(tmp_path, "src").endswith("src' has no __main__.py, which `python -m src` runs")
    (source / "learn.py").touch()
    assert "runs: src/learn.py is a script; write fit/__main__.py with the line: " in refused(tmp_path, "src")
    (source / "data.py").touch()
    assert "script" not in refused(tmp_path, "src")
    (source / "train.py").touch()
    assert "src/train.py is a script" in refused(tmp_path, "src")


def test_scripts_whose_names_need_quotation_are_not_shown_as_programs(tmp_path: Path) -> None:
    for name in ("it's.py", "-x.ipynb", "a b.ipynb"):
        (tmp_path / name).touch()
        assert "is a" not in refused(tmp_path, name).partition("; a model is")[0]
    assert "is --repo right?" in refused(tmp_path, "fit")


def test_odd_checkouts_work_with_a_warning(repo: Path) -> None:
    (repo / "mnist" / "__init__.py").unlink()
    assert checkout.check_model(repo, "mnist") == (
        [], ["mnist/__init__.py is missing: mnist runs as a namespace package; an empty file makes it an ordinary one"],
    )  # fmt: skip
    (repo / "alias").symlink_to("yolo")
    assert checkout.check_model(repo, "alias") == ([], [])
    (repo / "yolo").rename(repo / "json")
    assert "name of a module of Python itself" in checkout.check_model(repo, "json")[1][0]


def test_a_model_of_the_folder_above_is_found(repo: Path) -> None:
    below = repo / "notebooks"
    below.mkdir()
    assert f"say --repo {repo}" in refused(below, "mnist")


def test_folders_that_are_no_checkout(repo: Path) -> None:
    link = repo / "link"
    link.symlink_to("mnist")
    assert checkout.resolve(link) == repo / "mnist"
    (repo / "loop").symlink_to("loop")
    for folder, message in (
        (repo / "nope", "no such folder"),
        (repo / "mnist" / "__main__.py", "is not a folder"),
        (repo / "loop", "--repo"),
        (Path("/"), "whole file system"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(BadInput, match=message):
            checkout.resolve(folder)


def test_the_key_names_the_folder_and_its_user(repo: Path, tmp_path: Path) -> None:
    first, warnings = checkout.describe(repo)
    assert warnings == []
    assert first.name == "repo with space"
    assert (first.commit, first.dirty) == (None, None)
    assert first == checkout.describe(repo)[0]
    assert first.key != checkout.describe(tmp_path)[0].key
    assert len(first.key) == 16
    assert int(first.key, 16) >= 0


def test_commit_and_dirty(repo: Path) -> None:
    git(repo, "init", "-q")
    described, warnings = checkout.describe(repo)
    assert described.commit is None
    assert warnings == ["the commit of this checkout is not recorded: it has no commit yet"]
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    described, warnings = checkout.describe(repo)
    assert (described.commit, described.dirty, warnings) == (git(repo, "rev-parse", "HEAD"), False, [])
    output = repo / "artefacts.tar.gz"
    output.touch()
    of_failed_job = repo / "artefacts-20260131-120000-0123abcd.tar.gz"
    of_failed_job.touch()
    (repo / "artefacts").mkdir()
    (repo / "artefacts" / "old").touch()
    other_output = repo / "results.tar.gz"
    other_output.touch()
    assert checkout.describe(repo, other_output)[0].dirty is False
    assert checkout.describe(repo, output)[0].dirty is True
    other_output.unlink()
    output.unlink()
    of_failed_job.unlink()
    (repo / "new.py").touch()
    assert checkout.describe(repo)[0].dirty is True
    (repo / "new.py").unlink()
    git(repo, "mv", "mnist/__init__.py", "mnist/other.py")
    assert checkout.describe(repo)[0].dirty is True


def test_description_for_a_package_with_a_version_from_git(repo: Path, tmp_path: Path) -> None:
    git(repo, "init", "-q")
    (repo / "pyproject.toml").write_text("[tool.setuptools_scm]\n")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    commit = git(repo, "rev-parse", "--short=9", "HEAD")
    assert checkout.describe(repo)[0].description == f"0.0-1-g{commit}"
    git(repo, "tag", "v1.2")
    # No program that the checkout names runs.
    git(repo, "config", "core.fsmonitor", f"touch {tmp_path}/ran")
    git(repo, "config", "alias.describe", f"!touch {tmp_path}/ran")
    assert checkout.describe(repo)[0].description == f"v1.2-0-g{commit}"
    assert not (tmp_path / "ran").exists()
    git(repo, "config", "--unset", "core.fsmonitor")
    git(repo, "commit", "-q", "--allow-empty", "-m", "two")
    later = checkout.describe(repo)[0].description
    assert later is not None and later.startswith("v1.2-1-g")
    # git writes no tag of such a name, but takes one.
    (repo / ".git" / "refs" / "tags" / "--exec=1").write_text(f"{git(repo, 'rev-parse', 'HEAD')}\n")
    assert checkout.describe(repo)[0].description == later
    # As for setuptools-scm, new files change nothing.
    (repo / "new.py").touch()
    assert (checkout.describe(repo)[0].description, checkout.describe(repo)[0].dirty) == (later, True)
    (repo / "mnist" / "__init__.py").write_text("changed = True\n")
    assert checkout.describe(repo)[0].description == f"{later}-dirty"
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", "--no-tags", f"file://{repo}", str(shallow))
    assert checkout.describe(shallow)[0].description is None
    (repo / "pyproject.toml").write_text("[project]\n")
    assert checkout.describe(repo)[0].description is None


def test_a_folder_inside_a_checkout(repo: Path) -> None:
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    (repo / "mnist" / "changed.py").touch()
    described, _ = checkout.describe(repo / "yolo")
    assert (described.commit, described.dirty) == (git(repo, "rev-parse", "HEAD"), False)


def test_variables_of_a_hook_do_not_point_elsewhere(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    commit = git(repo, "rev-parse", "HEAD")
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / "index"))
    assert checkout.describe(repo)[0].commit == commit


def test_without_git_training_goes_on(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(repo, "init", "-q")
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    described, warnings = checkout.describe(repo)
    assert described.commit is None
    assert warnings == ["the commit of this checkout is not recorded: git is not installed"]
    monkeypatch.undo()
    (repo / ".git" / "HEAD").write_text("rubbish\n")
    described, (warning,) = checkout.describe(repo)
    assert described.commit is None
    assert "not recorded: fatal: " in warning


def test_checkout_of_another_user_is_recorded(repo: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    commit = git(repo, "rev-parse", "HEAD")
    for path in (repo, *repo.rglob("*")):
        os.chown(path, 65534, 65534)
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys\nfrom pathlib import Path\nfrom train_classifier.request import checkout as repository\n"
         "print(*repository.describe(Path(sys.argv[1])))", repo],
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"commit='{commit}', dirty=False, description=None, address=None) []" in done.stdout


def test_git_folder_of_another_user_above_a_checkout_is_not_read(repo: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "one", "--allow-empty")
    os.chown(tmp_path / ".git", 65534, 65534)
    described, (warning,) = checkout.describe(repo)
    assert described.commit is None
    assert warning.endswith(f"{tmp_path}/.git, above it, belongs to another user")


def test_git_file_that_names_another_repository_is_not_followed(repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    git(other, "commit", "-qm", "one", "--allow-empty")
    (repo / ".git").write_text(f"gitdir: {other}/.git\n")
    described, (warning,) = checkout.describe(repo)
    assert described.commit is None
    assert warning.endswith(f"names the git folder {other}/.git, which does not name it in turn")
    (repo / ".git").unlink()
    (repo / ".git").symlink_to(other / ".git")
    described, (warning,) = checkout.describe(repo)
    assert described.commit is None
    assert warning.endswith("repo with space/.git is no folder")
    (repo / ".git").unlink()
    os.mkfifo(repo / ".git")
    assert checkout.describe(repo)[0].commit is None


def test_linked_worktree_and_submodule(repo: Path, tmp_path: Path) -> None:
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    linked = tmp_path / "linked"
    git(repo, "worktree", "add", "-q", str(linked))
    git(linked, "commit", "-qm", "two", "--allow-empty")
    described, warnings = checkout.describe(linked)
    assert (described.commit, described.dirty, warnings) == (git(linked, "rev-parse", "HEAD"), False, [])

    above = tmp_path / "above"
    git(tmp_path, "init", "-q", str(above))
    git(above, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repo), "sub")
    git(above, "commit", "-qm", "one")
    assert checkout.describe(above)[0].dirty is False
    described, warnings = checkout.describe(above / "sub")
    assert (described.commit, described.dirty, warnings) == (git(repo, "rev-parse", "HEAD"), False, [])
    (above / "sub" / "new.py").touch()
    assert checkout.describe(above / "sub")[0].dirty is True
    assert checkout.describe(above)[0].dirty is True
    (above / "sub" / "new.py").unlink()
    git(above / "sub", "commit", "-qm", "two", "--allow-empty")
    assert checkout.describe(above)[0].dirty is True


def test_content_that_a_filter_writes_is_neither_clean_nor_dirty(repo: Path) -> None:
    git(repo, "init", "-q")
    (repo / ".gitattributes").write_text("*.bin filter=upper\n*.txt text\n")
    (repo / "large.bin").write_text("content\n")
    (repo / "plain.txt").write_text("content\n")
    git(repo, "config", "filter.upper.clean", "tr a-z A-Z")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    for name in ("large.bin", "plain.txt"):
        os.utime(repo / name, (1, 1))
    described, (warning,) = checkout.describe(repo)
    assert described.dirty is None
    assert "a filter of git (such as LFS) writes" in warning
    (repo / "plain.txt").write_text("another\n")
    assert checkout.describe(repo)[0].dirty is True


@pytest.mark.parametrize("form", ["split", "sparse", "sha256", "packed", "crlf", "mode", "excludes"])
def test_forms_of_a_checkout(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    git(repo, "init", "-q", *(["--object-format=sha256"] if form == "sha256" else []))
    (repo / "line.txt").write_text("one\n")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    if form == "split":
        git(repo, "update-index", "--split-index")
    elif form == "sparse":
        git(repo, "sparse-checkout", "set", "--cone", "--sparse-index", "mnist")
        assert not (repo / "yolo").exists()
    elif form == "packed":
        git(repo, "gc", "-q")
    elif form == "crlf":
        git(repo, "config", "core.autocrlf", "true")
        (repo / "line.txt").unlink()
        git(repo, "checkout", "--", "line.txt")
        assert (repo / "line.txt").read_bytes() == b"one\r\n"
    elif form == "mode":
        git(repo, "config", "core.fileMode", "false")
        (repo / "line.txt").chmod(0o755)
    elif form == "excludes":
        (tmp_path / "gitconfig").write_text("[core]\n\texcludesFile = " + str(tmp_path / "ignore"))
        (tmp_path / "ignore").write_text(".DS_Store\n")
        (repo / ".DS_Store").touch()
    os.utime(repo / "line.txt", (1, 1))
    described, warnings = checkout.describe(repo)
    assert (described.commit, described.dirty, warnings) == (git(repo, "rev-parse", "HEAD"), False, [])
    (repo / "line.txt").write_text("two\n")
    assert checkout.describe(repo)[0].dirty is True


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://github.com/octocat/hello.git", "https://github.com/octocat/hello"),
        ("https://octocat:ghp_secret@github.com/octocat/hello", "https://github.com/octocat/hello"),
        ("https://git.example.org:8443/a/b/c.git/", "https://git.example.org:8443/a/b/c"),
        ("git@github.com:octocat/hello.git", "https://github.com/octocat/hello"),
        ("ssh://git@git.example.org:2222/octocat/hello.git", "https://git.example.org/octocat/hello"),
        *((origin, None) for origin in (
            "", "/srv/git/hello.git", "../hello", "file:///srv/hello", "http://github.com/a/b", "javascript:alert(1)//a",
            "https://github.com/a/../b", "https://github.com/a/b?token=x", "https://github.com/", "https://a@b@github.com/a/b",
            "https://github.com/a/<script>", "git@github.com:/srv/hello", "C:\\hello", "ext::sh -c x", "https://github.com/a b",
        )),
    ],
)  # fmt: skip
def test_address_in_a_browser_has_no_login(origin: str, address: str | None) -> None:
    assert checkout.web_address(origin) == address


def test_address_is_that_of_the_remote_origin(repo: Path) -> None:
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    assert checkout.describe(repo)[0].address is None
    git(repo, "remote", "add", "origin", "https://user:token@github.com/octocat/hello.git")
    assert checkout.describe(repo)[0].address == "https://github.com/octocat/hello"
