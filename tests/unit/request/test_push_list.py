"""What is pushed and what is not, on real trees: the odd files of faults, rows 10 and 13 to 15."""

import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from git_commands import git
from ordinary_user import as_ordinary_user

from train_classifier.request import push_list
from train_classifier.request.push_list import Sources

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A small repository outside git."""
    write(
        tmp_path / "repo", {"mnist/__init__.py": "", "mnist/__main__.py": "print()\n", "README.md": "hello\n"}
    )
    return tmp_path / "repo"


def write(folder: Path, files: dict[str, str]) -> None:
    """Write files, making their folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(sources: Sources) -> set[str]:
    """Return what is pushed, without the three files of every repository here."""
    usual = {"mnist/", "mnist/__init__.py", "mnist/__main__.py", "README.md"}
    return {os.fsdecode(path) for path in sources.paths} - usual


def test_folders_come_before_what_they_hold_and_files_are_counted(repo: Path) -> None:
    (repo / "empty").mkdir()
    sources = push_list.collect(repo)
    assert sources.paths == [b"README.md", b"empty/", b"mnist/", b"mnist/__init__.py", b"mnist/__main__.py"]
    assert (sources.files, sources.bytes) == (3, 14)
    assert sources.problems == sources.warnings == []


def test_fingerprint_tells_every_change(repo: Path) -> None:
    (repo / "link").symlink_to("mnist")
    paths = push_list.collect(repo, "mnist").paths

    def now() -> str | None:
        return push_list.fingerprint(repo, paths)

    states = [now()]
    assert states[0] is not None and now() == states[0]

    def changed() -> bool:
        states.append(now())
        return None not in states and len(set(states)) == len(states)

    entry = repo / "mnist" / "__main__.py"
    before = entry.stat()
    entry.write_bytes(entry.read_bytes().swapcase())
    os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed()
    entry.chmod(0o755)
    assert changed()
    entry.rename(repo / "aside")
    (repo / "aside").rename(entry)
    assert changed()
    (repo / "link").unlink()
    (repo / "link").symlink_to("mnist")
    assert changed()
    entry.unlink()
    assert now() is None


def test_generated_folders_stay_at_any_depth(repo: Path) -> None:
    for name in (".git", ".venv", "venv", "node_modules", "__pycache__"):
        write(repo, {f"{name}/x": "", f"deep/down/{name}/x": ""})
    (repo / "deep" / "venv").symlink_to("/opt/venv")
    assert names(push_list.collect(repo)) == {"deep/", "deep/down/"}


def test_git_ignored_files_are_pushed(repo: Path) -> None:
    git(repo, "init", "-q")
    write(repo, {".gitignore": "*.csv\n", "made-by-an-earlier-step.csv": "1\n"})
    assert names(push_list.collect(repo)) == {".gitignore", "made-by-an-earlier-step.csv"}


def test_the_output_stays(repo: Path) -> None:
    write(repo, {"artefacts.tar.gz": "old", "sub/artefacts.tar.gz": "source"})
    (repo / "artefacts-20260131-120000-0123abcd.tar.gz").write_text("of a failed job")
    assert names(push_list.collect(repo, output=repo / "artefacts.tar.gz")) == {
        "sub/",
        "sub/artefacts.tar.gz",
    }


def test_archive_of_an_earlier_run_stays_wherever_this_one_goes(repo: Path) -> None:
    archives = {"artefacts.tar.gz": "old", "artefacts-20260131-120000-0123abcd.tar.gz": "failed"}
    write(repo, {**archives, "sub/artefacts.tar.gz": "source", "data.tar.gz": "source"})
    pushed = {"sub/", "sub/artefacts.tar.gz", "data.tar.gz"}
    assert names(push_list.collect(repo, output=repo.parent / "artefacts.tar.gz")) == pushed
    assert names(push_list.collect(repo, output=repo / "data.tar.gz")) == pushed - {"data.tar.gz"}
    write(repo, {".trainignore": "!artefacts.tar.gz\n"})
    assert names(push_list.collect(repo)) == pushed | {".trainignore", "artefacts.tar.gz"}


def test_trainignore_leaves_out_and_brings_back(repo: Path) -> None:
    write(
        repo,
        {
            ".trainignore": "# comment\n*.log\n!keep.log\n/data/\n!venv/share/labels.txt\n!__pycache__/\na b.txt\r\n",
            "x.log": "", "sub/y.log": "", "sub/keep.log": "", "data/big": "", "sub/data/small": "", "a b.txt": "",
            "venv/bin/python": "", "venv/share/labels.txt": "", "venv/share/other.txt": "", "__pycache__/m.pyc": "",
        },
    )  # fmt: skip
    assert names(push_list.collect(repo)) == {
        ".trainignore", "sub/", "sub/keep.log", "sub/data/", "sub/data/small", "__pycache__/", "__pycache__/m.pyc",
        "venv/", "venv/share/", "venv/share/labels.txt",
    }  # fmt: skip


def test_a_broken_trainignore_names_the_line(repo: Path) -> None:
    write(repo, {".trainignore": "*.log\n[z-a]\n!\n"})
    assert push_list.collect(repo).problems == [
        ".trainignore: line 2: '[z-a]' is no pattern of gitignore's syntax",
        ".trainignore: line 3: '!' is no pattern of gitignore's syntax",
    ]
    (repo / ".trainignore").unlink()
    (repo / ".trainignore").mkdir()
    assert push_list.collect(repo).problems == [".trainignore is a folder"]


def test_a_model_that_is_left_out_is_a_problem(repo: Path) -> None:
    write(repo, {".trainignore": "__main__.py\n"})
    (problem,) = push_list.collect(repo, "mnist").problems
    assert problem == "mnist/__main__.py is left out of the push by .trainignore; the job needs it"


def test_names_with_newlines_and_broken_utf8(repo: Path) -> None:
    top = os.fsencode(repo)
    names = (b"two\nlines.py", b"\xff\xfe.bin", b"-rf", b"#hash", b" space ", b"{{ lookup('pipe', 'id') }}")
    for name in names:
        Path(os.fsdecode(top + b"/" + name)).write_text("x")
    write(repo, {".trainignore": "lines.py\n*.log\n"})
    Path(os.fsdecode(top + b"/end.log\n")).write_text("x")
    sources = push_list.collect(repo)
    assert {*names, b"end.log\n"} <= set(sources.paths)
    assert sources.problems == []


def test_pipes_sockets_and_devices_are_left_out_and_reported(repo: Path) -> None:
    os.mkfifo(repo / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(repo)
        try:
            server.bind("sock\n")
        finally:
            os.chdir(here)
    sources = push_list.collect(repo)
    assert names(sources) == set()
    assert sources.warnings == ["left out, a FIFO: pipe", "left out, a socket: sock\\n"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_devices(repo: Path) -> None:
    os.mknod(repo / "null", 0o20666, os.makedev(1, 3))
    sources = push_list.collect(repo)
    assert names(sources) == set()
    assert sources.warnings == ["left out, a device: null"]


def test_symbolic_links_are_sent_as_links_and_never_followed(repo: Path, tmp_path: Path) -> None:
    write(tmp_path, {"outside/secret": "x"})
    links = {"dangling": "nowhere", "loop": "loop", "self": ".", "out": "../outside", "abs": "/etc/shadow"}
    for name, target in links.items():
        (repo / name).symlink_to(target)
    (repo / "mnist" / "up").symlink_to("../README.md")
    sources = push_list.collect(repo)
    assert names(sources) == {*links, "mnist/up"}
    assert sources.files == 9
    assert sources.warnings == ["symbolic links out of the repository lead nowhere in the job: abs, out"]


def test_hard_links_and_sparse_files_are_files(repo: Path) -> None:
    os.link(repo / "README.md", repo / "twin.md")
    with (repo / "sparse.bin").open("wb") as file:
        file.truncate(1 << 30)
    sources = push_list.collect(repo)
    assert names(sources) == {"twin.md", "sparse.bin"}
    assert sources.bytes == (1 << 30) + 6 + 6 + 8
    assert sources.problems == []


def test_over_the_limit_names_the_five_largest(repo: Path) -> None:
    for number in range(1, 8):
        with (repo / f"file{number}").open("wb") as file:
            file.truncate(number << 30)
    (problem,) = push_list.collect(repo).problems
    assert "28.0 GiB, over the limit of 5.0 GiB" in problem
    assert (
        "largest: file7 (7.0 GiB), file6 (6.0 GiB), file5 (5.0 GiB), file4 (4.0 GiB), file3 (3.0 GiB);"
        in problem
    )
    assert "--push-limit" in problem
    assert "file2" not in problem
    assert push_list.collect(repo, push_limit=29 << 30).problems == []


def test_private_keys_stay_and_are_named(repo: Path) -> None:
    write(
        repo,
        {
            "id_rsa": KEY, "sub/deploy_key": KEY, "tls/server.pem": "-----BEGIN CERTIFICATE-----\n" + KEY,
            "tls/ca.pem": "-----BEGIN CERTIFICATE-----\n", "id_rsa.pub": "ssh-rsa AAAA\n", "monkey.py": KEY,
            "putty.ppk": "PuTTY-User-Key-File-3: ssh-ed25519\n", "slides.key": "PK\3\4", "pgp.asc": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
            "signature.asc": "-----BEGIN PGP SIGNATURE-----\n",
        },
    )  # fmt: skip
    (repo / "store.p12").write_bytes(b"\x30\x82\x01\x02")
    write(repo, {"ours": KEY * 3})
    (repo / "ours").chmod(0o600)
    sources = push_list.collect(repo)
    assert names(sources) == {
        "sub/", "tls/", "tls/ca.pem", "id_rsa.pub", "monkey.py", "slides.key", "signature.asc",
    }  # fmt: skip
    (warning,) = sources.warnings
    assert warning.startswith(
        "private keys are not pushed: id_rsa, ours, pgp.asc, putty.ppk, store.p12 and 2 more (a line such as !id_rsa"
    )
    write(repo, {".trainignore": "!id_rsa\n!tls/*.pem\n"})
    sources = push_list.collect(repo)
    assert {"id_rsa", "tls/server.pem"} <= names(sources)
    assert "id_rsa" not in sources.warnings[0].partition("(")[0]


def test_keys_of_any_name_and_mode_are_found_by_what_they_hold(repo: Path) -> None:
    names_of_keys = {
        "id_ed25519_work",
        "id_rsa_github",
        "deploykey",
        "gh_deploy_key.bak",
        "mykey.txt",
        "conf/prod.yaml",
    }
    (repo / "conf").mkdir()
    for number, name in enumerate(sorted(names_of_keys)):
        kind = ("ed25519", "rsa", "ecdsa")[number % 3]
        form = ["-m", "PEM"] if kind == "rsa" else []
        process = subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, *form, "-N", "" if number % 2 else "a passphrase", "-f", repo / name],
            capture_output=True, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        (repo / name).chmod(0o644)
    write(repo, {"account.json": '{"private_key": "' + KEY.replace("\n", "\\n") + '"}', "notes.md": KEY})
    (repo / "large.txt").write_text("x" * 100_000)
    sources = push_list.collect(repo)
    assert names(sources) == {
        "conf/", "notes.md", "large.txt", *(f"{name}.pub" for name in names_of_keys),
    }  # fmt: skip
    (warning,) = sources.warnings
    assert warning.startswith("private keys are not pushed: account.json") and "and 2 more" in warning


def test_what_a_killed_fetch_left_is_no_source(repo: Path) -> None:
    job = "20260101-000000-0123abcd"
    write(
        repo, {f".out.tgz.{job}.part": "x", f"sub/.out.tgz.{job}.part": "x", ".out.tgz.a.part": "x", ".other.part": "x"}
    )  # fmt: skip
    pushed = {"sub/", f"sub/.out.tgz.{job}.part", ".other.part"}
    assert names(push_list.collect(repo, output=repo / "out.tgz")) - {".out.tgz.a.part"} == pushed


def test_env_files_are_pushed_and_reported(repo: Path) -> None:
    write(repo, {".env": "A=1", "sub/.env.production": "A=1", ".env.example": "A="})
    sources = push_list.collect(repo)
    assert names(sources) == {".env", "sub/", "sub/.env.production", ".env.example"}
    assert sources.warnings == [
        ".env, sub/.env.production: pushed, passwords too; a line in .trainignore leaves it out"
    ]
    write(repo, {".trainignore": ".env*\n"})
    assert push_list.collect(repo).warnings == []


def test_of_artefacts_only_what_git_tracks(repo: Path) -> None:
    write(
        repo,
        {"artefacts/README.md": "", "artefacts/base/weights": "", "artefacts/old.h5": "", "artefacts/stale/x": "",
         "sub/artefacts/x": ""},
    )  # fmt: skip
    outside = {"sub/", "sub/artefacts/", "sub/artefacts/x", "artefacts/", "artefacts/README.md"}
    assert names(push_list.collect(repo)) == outside
    git(repo, "init", "-q")
    git(repo, "add", "artefacts/README.md", "artefacts/base/weights")
    assert names(push_list.collect(repo)) == {*outside, "artefacts/base/", "artefacts/base/weights"}
    write(repo, {".trainignore": "!artefacts/old.h5\n"})
    assert "artefacts/old.h5" in names(push_list.collect(repo))


def test_artefacts_that_is_no_folder(repo: Path) -> None:
    (repo / "artefacts").symlink_to("mnist")
    sources = push_list.collect(repo)
    assert names(sources) == set()
    assert sources.warnings == ["artefacts is a symbolic link: not pushed, the job gets a folder of its own"]
    (repo / "artefacts").unlink()
    (repo / "artefacts").write_text("")
    assert push_list.collect(repo).problems == [
        "artefacts is a file; results need a folder of that name: move the file away"
    ]


def test_empty_submodules_and_lfs_pointers_are_reported(repo: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    write(
        repo,
        {".gitmodules": '[submodule "lib"]\n\tpath = lib dir\n\turl = x\n[submodule "b"]\n\tpath = full\n',
         "full/x": "", ".gitattributes": "*.h5 filter=lfs diff=lfs merge=lfs -text\n", "w.h5": pointer},
    )  # fmt: skip
    (repo / "lib dir").mkdir()
    sources = push_list.collect(repo)
    assert {"lib dir/", "w.h5"} <= names(sources)
    assert sources.warnings == [
        "git submodules are empty: lib dir; run git submodule update --init first",
        "git LFS has not fetched w.h5: run git lfs pull, or the job gets a pointer",
    ]


def test_unreadable_files_are_problems() -> None:
    # pytest's own folder is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder)
        repo.chmod(0o755)
        write(repo, {"ok.py": "", "closed.py": "", "shut/x": ""})
        (repo / "closed.py").chmod(0)
        (repo / "shut").chmod(0)
        try:
            problems = as_ordinary_user(lambda: push_list.collect(repo).problems)
        finally:
            (repo / "shut").chmod(0o700)
        assert problems == ["this user cannot read closed.py, shut/; make readable, or name in .trainignore"]


def test_the_checkout_is_left_as_it_was(repo: Path) -> None:
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    write(repo, {"artefacts/x": ""})

    def state() -> list[tuple[str, int, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in repo.rglob("*"))

    before = state()
    push_list.collect(repo)
    assert state() == before


def test_what_rsync_makes_of_the_list_is_what_was_listed(repo: Path, tmp_path: Path) -> None:
    write(repo, {"#hash": "1", ";semi": "2", "venv/x": "", "sub/.trainignore": "", "a\nb": "3"})
    (repo / "empty").mkdir()
    (repo / "link").symlink_to("nowhere")
    os.mkfifo(repo / "pipe")
    sources = push_list.collect(repo)
    target = tmp_path / "target"
    subprocess.run(
        ["rsync", "-lptS", "--dirs", "--files-from=-", "--from0", f"{repo}/", f"{target}/"],
        input=b"".join(b"./" + path.rstrip(b"/") + b"\0" for path in sources.paths), check=True, capture_output=True,
    )  # fmt: skip
    arrived = {f"{path.relative_to(target)}{'/' if path.is_dir() else ''}" for path in target.rglob("*")}
    assert arrived == {os.fsdecode(path) for path in sources.paths}


@pytest.mark.full
def test_a_hundred_thousand_files(repo: Path) -> None:
    for folder in range(100):
        (repo / f"d{folder}").mkdir()
        for number in range(1000):
            (repo / f"d{folder}" / f"f{number}").touch()
    sources = push_list.collect(repo)
    assert sources.files == 100_003
    assert sources.problems == sources.warnings == []


def test_files_that_come_and_go_meanwhile_are_no_problem(repo: Path) -> None:
    for number in range(300):
        (repo / f"steady{number:03}").touch()
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            for number in range(50):
                folder = repo / f"steadily{number}"
                folder.mkdir()
                (folder / "id_rsa").write_text("x")
                (folder / "id_rsa").unlink()
                folder.rmdir()

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(20):
            sources = push_list.collect(repo)
            assert sources.problems == []
            assert sum(path.startswith(b"steady") for path in sources.paths) == 300
    finally:
        done.set()
        worker.join()
