"""Row 8: no command runs a program that a checkout names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from git_commands import git

CLI = shutil.which("train-classifier") or "train-classifier"


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which each program that ran leaves its name."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def make(folder: Path) -> Path:
    """Make a checkout with one model and a tracked file in artefacts/."""
    for name in ("m/__init__.py", "m/__main__.py", "artefacts/README.md", "data.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("# one\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


def program(marks: Path, name: str) -> str:
    """Return a command that leaves `name` behind and does what a filter does."""
    path = marks.parent / f"program-{name}"
    path.write_text(f"#!/bin/sh\ntouch '{marks}/{name}'\nexec cat\n")
    path.chmod(0o755)
    return str(path)


def run(folder: Path, *arguments: str) -> str:
    """Run the command line in the checkout, with a home that has no settings."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [CLI, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def ran(marks: Path) -> list[str]:
    """Return the names of the programs that ran."""
    return sorted(path.name for path in marks.iterdir())


def outdate(folder: Path) -> None:
    """Make git compare every file by its content."""
    for path in folder.rglob("*"):
        if ".git" not in path.parts and path.is_file():
            os.utime(path, (1, 1))


def hostile(marks: Path) -> str:
    """Return a configuration in which every key that names a program names one."""

    def of(name: str) -> str:
        return program(marks, name)

    drivers = "".join(
        f'[filter "{name}"]\n\tclean = {of("clean")}\n\tsmudge = {of("smudge")}\n\trequired = true\n'
        for name in ("x", "lfs")
    )
    return (
        f"{drivers}"
        f'[filter "p"]\n\tprocess = {of("process")}\n\trequired = true\n'
        f'[diff]\n\texternal = {of("external")}\n[diff "x"]\n\ttextconv = {of("textconv")}\n\tcommand = {of("diff")}\n'
        f'[merge "x"]\n\tdriver = {of("merge")}\n'
        f"[core]\n\tfsmonitor = {of('fsmonitor')}\n\tpager = {of('pager')}\n\tsshCommand = {of('ssh')}\n"
        f"\tgitProxy = {of('proxy')}\n\taskPass = {of('askpass')}\n\teditor = {of('editor')}\n"
        f"\talternateRefsCommand = {of('refs')}\n\thooksPath = {marks.parent}/hooks\n"
        f"[pager]\n\tstatus = {of('pager-status')}\n\tconfig = {of('pager-config')}\n"
        f"[alias]\n\tstatus = !{of('alias')}\n\trev-parse = !{of('alias')}\n\tls-files = !{of('alias')}\n"
        f"[credential]\n\thelper = !{of('credential')}\n[gpg]\n\tprogram = {of('gpg')}\n[log]\n\tshowSignature = true\n"
        f"[uploadpack]\n\tpackObjectsHook = {of('upload')}\n[index]\n\tversion = 4\n"
        f'[lfs "extension.x"]\n\tclean = {of("lfs-clean")}\n\tsmudge = {of("lfs-smudge")}\n\tpriority = 0\n'
        f"[status]\n\tsubmoduleSummary = true\n"
    )


def hooks(marks: Path, folder: Path) -> None:
    """Write every hook of git."""
    folder.mkdir(exist_ok=True)
    for name in (
        "post-index-change",
        "fsmonitor-watchman",
        "post-checkout",
        "reference-transaction",
        "pre-auto-gc",
    ):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{marks}/hook'\n")
        (folder / name).chmod(0o755)


ATTRIBUTES = "*.bin filter=x diff=x merge=x\n*.md filter=p diff=x\n*.py filter=lfs\n"


@pytest.mark.parametrize("where", ["config", "include", "worktree", "user"])
def test_08_no_program_of_the_git_configuration_runs(tmp_path: Path, marks: Path, where: str) -> None:
    repo = make(tmp_path / "repo")
    hooks(marks, repo / ".git" / "hooks")
    hooks(marks, tmp_path / "hooks")
    configuration = hostile(marks)
    config = repo / ".git" / "config"
    if where == "config":
        config.write_text(config.read_text() + configuration)
    elif where == "include":
        (tmp_path / "included").write_text(configuration)
        config.write_text(config.read_text() + f"[include]\n\tpath = {tmp_path}/included\n")
    elif where == "worktree":
        config.write_text(config.read_text() + "[extensions]\n\tworktreeConfig = true\n")
        (repo / ".git" / "config.worktree").write_text(configuration)
    else:
        # git LFS, which the user installed, runs what the checkout's configuration tells it.
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".gitconfig").write_text(configuration)
    (repo / ".git" / "info" / "attributes").write_text("m/* filter=x\n")
    (repo / ".gitattributes").write_text(ATTRIBUTES)
    outdate(repo)
    words = run(repo, "train", "m", "--dry-run")
    assert ran(marks) == []
    assert "Dry run" in words


def test_08_git_configuration_of_a_submodule_is_ignored(tmp_path: Path, marks: Path) -> None:
    make(tmp_path / "other")
    repo = make(tmp_path / "repo")
    git(
        repo,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        str(tmp_path / "other"),
        "sub",
    )
    git(repo, "commit", "-qm", "two")
    config = repo / ".git" / "modules" / "sub" / "config"
    config.write_text(config.read_text() + hostile(marks))
    (repo / "sub" / ".gitattributes").write_text(ATTRIBUTES)
    outdate(repo)
    run(repo, "train", "m", "--dry-run")
    assert ran(marks) == []


def test_08_missing_objects_of_a_partial_clone_are_not_fetched(tmp_path: Path, marks: Path) -> None:
    repo = make(tmp_path / "repo")
    tree = git(repo, "rev-parse", "HEAD^{tree}")
    (repo / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    git(repo, "config", "extensions.partialClone", "origin")
    git(repo, "config", "core.repositoryFormatVersion", "1")
    git(repo, "config", "remote.origin.promisor", "true")
    git(repo, "config", "remote.origin.partialCloneFilter", "tree:0")
    git(repo, "config", "protocol.allow", "always")
    for url, key in (
        (f"ext::{program(marks, 'transport')}", "remote.origin.vcs"),
        (str(tmp_path), "remote.origin.uploadpack"),
        ("ssh://127.0.0.1/x", "core.sshCommand"),
    ):
        git(repo, "config", "remote.origin.url", url)
        if key != "remote.origin.vcs":
            git(repo, "config", key, program(marks, "transport"))
        words = run(repo, "train", "m", "--dry-run")
        assert ran(marks) == [], url
        assert "not recorded: " in words


def test_08_git_folder_of_another_repository_is_not_used(tmp_path: Path, marks: Path) -> None:
    other = make(tmp_path / "other")
    commit = git(other, "rev-parse", "HEAD")
    (other / ".git" / "config").write_text((other / ".git" / "config").read_text() + hostile(marks))
    repo = tmp_path / "repo"
    shutil.copytree(other, repo, ignore=shutil.ignore_patterns(".git"))
    (repo / ".git").write_text(f"gitdir: {other}/.git\n")
    outdate(repo)
    assert commit not in run(repo, "train", "m", "--dry-run")
    (repo / ".git").unlink()
    git(repo, "init", "-q")
    git(repo, "config", "core.worktree", str(other))
    git(repo, "commit", "-qm", "one", "--allow-empty")
    words = run(repo, "train", "m", "--dry-run")
    assert ran(marks) == []
    assert "Dry run" in words


@pytest.mark.parametrize("command", [["train", "m", "--dry-run"], ["list"], ["doctor"]])
def test_08_python_modules_and_ansible_variables_of_the_current_folder_are_ignored(
    tmp_path: Path, marks: Path, command: list[str]
) -> None:
    """A module named like one of Python's, and Ansible's variables beside the model, are not loaded."""
    repo = make(tmp_path / "repo")
    mark = f"open({str(marks / 'module')!r}, 'w')\n"
    for name in ("json", "ansible", "train_classifier", "sitecustomize"):
        (repo / name).mkdir()
        (repo / name / "__init__.py").write_text(mark)
    inventory = tmp_path / "inventory.ini"
    inventory.write_text("host ansible_host=127.0.0.1 ansible_port=1\n")
    run(repo, *command, "--inventory", str(inventory))
    assert ran(marks) == []
    for name in ("json", "ansible", "train_classifier", "sitecustomize"):
        shutil.rmtree(repo / name)
    for folder in ("group_vars", "host_vars"):
        (repo / folder).mkdir()
        for name in ("all.yml", "host.yml"):
            (repo / folder / name).write_text(
                f"ansible_ssh_executable: {program(marks, 'ssh')}\n"
                f"name: \"{{{{ lookup('pipe', 'touch {marks}/pipe') }}}}\"\n"
            )
    (repo / "ansible.cfg").write_text(f"[ssh_connection]\nssh_executable = {program(marks, 'config')}\n")
    run(repo, *command, "--inventory", str(inventory))
    assert ran(marks) == []
