"""`rerun`: what of a job is gone, where its files come from, and what cannot be repeated."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from git_commands import git

from train_classifier.cli.commands.jobs import rerun
from train_classifier.cli.console import Console
from train_classifier.controller import steps
from train_classifier.controller.order import Order, pack_names
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, NotReady
from train_classifier.core.job import SCHEMA, JobSpec, PinnedImage, Repository
from train_classifier.request import checkout, push_list

JOB = "20260101-000000-00000001"
KEY = "0123456789abcdef"
ENVIRONMENT = "e" * 40
ONE = RemoteHost("one", flags=" --host one")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A checkout with a commit that the test's job had, and a later one."""
    folder = tmp_path / "checkout"
    (folder / "mnist").mkdir(parents=True)
    (folder / "mnist" / "__main__.py").write_text("print('first')\n")
    (folder / "mnist" / "link").symlink_to("__main__.py")
    (folder / ".trainignore").write_text("big.bin\n")
    (folder / "big.bin").write_text("not pushed")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def pushed(folder: Path) -> tuple[Repository, list[bytes], str]:
    """The identity of a checkout and what a push of it sends now."""
    names = push_list.collect(folder, "mnist").paths
    fingerprint = push_list.fingerprint(folder, names)
    assert fingerprint
    identity = dataclasses.replace(checkout.describe(folder)[0], key=KEY)
    return identity, names, fingerprint


def finished_job(state: Path, push: tuple[Repository, list[bytes], str], **changes: Any) -> JobSpec:
    """A job's folder and its mirror, as the worker leaves them."""
    repository, names, fingerprint = push
    spec = JobSpec(id=JOB, model="mnist", repository=repository, gpus=0, **changes)
    folder, mirror = state / "jobs" / JOB, state / "mirrors" / KEY
    folder.mkdir(parents=True)
    mirror.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    (folder / "files").write_bytes(b"\0".join(names))
    (folder / "fingerprint").write_text(fingerprint)
    (mirror / "fingerprint").write_text(fingerprint)
    status = {"schema": SCHEMA, "id": JOB, "model": "mnist", "version": 1, "state": "finished"}
    (folder / "status.json").write_text(json.dumps({**status, "times": {}, "updated": 0.0}))
    facts = {
        "image": {
            "reference": "train-classifier/test:none", "digest": None, "id": "sha256:" + "a" * 64,
            "base": "sha256:" + "b" * 64,
        },
        "environment": {"hash": ENVIRONMENT},
    }  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))
    return spec


def test_files_image_and_environment_of_the_job_are_asked_for(
    tmp_path: Path, repo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = finished_job(
        tmp_path / "state", pushed(repo), arguments=("--epochs", "3"), secrets=("TOKEN",),
        max_parallel=None, lease_s=60.0, environment={"SEED": "1"},
    )  # fmt: skip
    host = RemoteHost("one", state_dir=str(tmp_path / "state"))
    answer = host.call({"verb": "rerun", "id": JOB[:12]})
    assert answer["has_files"] is True
    assert [sentence for sentence in answer["gone"] if "environment is gone" in sentence]
    (tmp_path / "state" / "environments" / "envs" / ENVIRONMENT).mkdir(parents=True)
    assert not any("environment" in gone for gone in host.call({"verb": "rerun", "id": JOB})["gone"])
    again = JobSpec.from_dict({**answer["spec"], "id": "20260102-000000-00000002"})
    assert (again.rerun_of, again.pinned_environment, again.lease_s) == (JOB, ENVIRONMENT, None)
    # The id below a layer of Debian packages: the layer is found by it.
    assert again.pinned_image == PinnedImage("train-classifier/test:none", "sha256:" + "b" * 64)
    kept = ("model", "arguments", "secrets", "environment", "gpus", "repository", "timeout_s")
    assert [getattr(again, name) for name in kept] == [getattr(spec, name) for name in kept]
    with rerun.sources(answer, again, ONE, tmp_path / "nowhere") as files:
        assert (files.tree, files.remark) == ("", "")
    for dirty, words in ((False, "its files, of commit"), (True, "with changes that are in no commit")):
        repository = dataclasses.replace(again.repository, dirty=dirty)
        changed = dataclasses.replace(again, repository=repository)
        rerun.show_remarks({"gone": []}, changed, files, Console())
        shown = capfd.readouterr().err
        assert words in shown and shown.endswith(", its environment and its image.\n")
        # A job that was stopped while it waited had neither.
        early = dataclasses.replace(changed, pinned_image=None, pinned_environment=None)
        rerun.show_remarks({"gone": []}, early, files, Console())
        shown = capfd.readouterr().err
        assert words in shown and "image" not in shown
    rerun.show_remarks({"gone": ["image x is gone", "\x1b[2J"]}, again, files, Console())
    shown = capfd.readouterr().err
    assert f"Job {JOB} is repeated, but image x is gone;" in shown and "\x1b" not in shown
    # Another push between the question and the start: nothing of this machine is sent in place of it.
    order = Order(spec=again, tree=files.tree, files=files.names, output=str(tmp_path / "a.tar.gz"))
    with pytest.raises(NotReady, match="by another push just now"):
        steps.push(host, order, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("below", ["", "part"])
def test_replaced_files_come_from_the_commit(tmp_path: Path, repo: Path, below: str) -> None:
    if below:
        (repo / below).mkdir()
        git(repo, "mv", "mnist", ".trainignore", "big.bin", below)
        git(repo, "commit", "-q", "-m", "moved")
    top = repo / below
    push = pushed(top)
    spec = finished_job(tmp_path / "state", push)
    (top / "mnist" / "__main__.py").write_text("print('later')\n")
    git(repo, "commit", "-q", "-a", "-m", "second")
    (top / "uncommitted.py").write_text("")
    (repo / ".git" / "hooks" / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/hook\n")
    (repo / ".git" / "hooks" / "post-checkout").chmod(0o755)
    (tmp_path / "state" / "mirrors" / KEY / "fingerprint").write_text("another push")
    answer = RemoteHost("one", state_dir=str(tmp_path / "state")).call({"verb": "rerun", "id": JOB})
    assert answer["has_files"] is False
    again = JobSpec.from_dict({**answer["spec"], "id": "20260102-000000-00000002"})
    with rerun.sources(answer, again, ONE, top) as files:
        tree = Path(files.tree)
        assert files.names == pack_names(push[1])
        assert (tree / "mnist" / "__main__.py").read_text() == "print('first')\n"
        assert (tree / "mnist" / "link").readlink() == Path("__main__.py")
        commit = spec.repository.commit
        assert commit and commit[:12] in files.remark and str(top) in files.remark
    assert not tree.exists() and not (tmp_path / "hook").exists()
    assert (top / "mnist" / "__main__.py").read_text() == "print('later')\n"


def refusal(tmp_path: Path, push: tuple[Repository, list[bytes], str], top: Path) -> str:
    spec = finished_job(tmp_path / "state", push)
    answer = {"id": JOB, "has_files": False, "files": pack_names(push[1]), "gone": []}
    again = dataclasses.replace(spec, rerun_of=JOB)
    with pytest.raises(BadInput) as error, rerun.sources(answer, again, ONE, top):
        pass
    assert "a later push replaced the files of job" in error.value.reason
    assert str(error.value.hint).endswith("train-classifier train mnist --host one")
    return error.value.reason


def test_files_that_are_in_no_commit_are_not_left_out(tmp_path: Path, repo: Path) -> None:
    (repo / ".git" / "info" / "exclude").write_text("data.csv\n")
    (repo / "data.csv").write_text("1,2\n")
    push = pushed(repo)
    assert push[0].dirty is False
    assert "data.csv of it are in no commit" in refusal(tmp_path, push, repo)


def test_uncommitted_changes_that_the_host_lacks_are_refused(tmp_path: Path, repo: Path) -> None:
    (repo / "mnist" / "__main__.py").write_text("print('changed')\n")
    assert "it had changes that are in no commit" in refusal(tmp_path, pushed(repo), repo)


def test_what_git_alone_does_not_write_is_refused(tmp_path: Path, repo: Path) -> None:
    (repo / ".gitattributes").write_text("*.csv filter=lfs\n")
    (repo / "data.csv").write_text("1,2\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "lfs")
    assert "data.csv of commit" in refusal(tmp_path, pushed(repo), repo)


def test_large_files_that_were_not_pushed_are_not_needed(tmp_path: Path, repo: Path) -> None:
    """Data in LFS are mostly left out by .trainignore."""
    (repo / ".gitattributes").write_text("*.bin filter=lfs\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "lfs")
    push = pushed(repo)
    spec = dataclasses.replace(finished_job(tmp_path / "state", push), rerun_of=JOB)
    answer = {"id": JOB, "has_files": False, "files": pack_names(push[1])}
    with rerun.sources(answer, spec, ONE, repo) as files:
        assert files.names == pack_names(push[1])
        assert not (Path(files.tree) / "big.bin").exists()


def test_submodules_are_refused(tmp_path: Path, repo: Path) -> None:
    (repo / "sub").mkdir()
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{git(repo, 'rev-parse', 'HEAD')},sub")
    git(repo, "commit", "-q", "-m", "submodule")
    push = pushed(repo)
    assert push[0].dirty is False and "has submodules" in refusal(tmp_path, push, repo)


def test_commit_that_the_checkout_lacks_is_named(tmp_path: Path, repo: Path) -> None:
    push = pushed(repo)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("")
    git(other, "init", "-q")
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "other")
    assert f"it has no commit {str(push[0].commit)[:12]}" in refusal(tmp_path, push, other)


def test_host_cannot_choose_files_of_this_machine(tmp_path: Path, repo: Path) -> None:
    push = pushed(repo)
    spec = dataclasses.replace(finished_job(tmp_path / "state", push), rerun_of=JOB)
    for name in (b"../outside", os.fsencode(repo / "big.bin"), b".git/config"):
        answer = {"id": JOB, "has_files": False, "files": pack_names([*push[1], name])}
        with pytest.raises(BadInput, match="are in no commit"), rerun.sources(answer, spec, ONE, repo):
            pass
    # What is in the commit, but is never pushed.
    (repo / "deploy.key").write_text("-----BEGIN PRIVATE KEY-----\nx\n")
    (repo / "artefacts").mkdir()
    (repo / "artefacts" / "base.txt").write_text("tracked")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "key")
    push = pushed(repo)
    assert b"artefacts/base.txt" in push[1]
    spec = dataclasses.replace(spec, repository=push[0])
    for name in (b"deploy.key", b"big.bin"):
        answer = {"id": JOB, "has_files": False, "files": pack_names([*push[1], name])}
        words = f"a push of its commit leaves out {name.decode()}"
        with pytest.raises(BadInput, match=words), rerun.sources(answer, spec, ONE, repo):
            pass
    for names in (pack_names(push[1])[:-8], "", "x", pack_names([b"a"] * (rerun.MOST_FILES + 2))):
        answer = {"id": JOB, "has_files": False, "files": names}
        with pytest.raises(NotReady, match="damaged list"), rerun.sources(answer, spec, ONE, repo):
            pass
    answer = {"id": JOB, "has_files": False, "files": pack_names([*push[1], b"../", b".git/"])}
    with rerun.sources(answer, spec, ONE, repo) as files:
        assert files.names == pack_names(push[1])


@pytest.mark.parametrize(
    "change", [{"source_bytes": "1"}, {"source_files": -1}, {"submitter": 3}, {"source_bytes": 1e300}]
)
def test_specification_of_a_host_is_checked(change: dict[str, Any]) -> None:
    spec = JobSpec(id=JOB, model="mnist", repository=Repository("r", KEY))
    with pytest.raises(ValueError, match=next(iter(change))):
        JobSpec.from_dict({**spec.to_dict(), **change})


def test_secrets_are_given_again(monkeypatch: pytest.MonkeyPatch, repo: Path) -> None:
    spec = JobSpec(id=JOB, model="mnist", repository=Repository("r", KEY), secrets=("TOKEN",))
    answer = {"id": JOB, "spec": spec.to_dict()}
    monkeypatch.setenv("TOKEN", "a long value")
    with pytest.raises(BadInput) as error:
        rerun.again(answer, ["OTHER"])
    assert error.value.problems == [
        f"job {JOB} had the secret TOKEN, which is kept nowhere: give --secret TOKEN",
        f"job {JOB} had no secret OTHER",
    ]
    monkeypatch.delenv("TOKEN")
    with pytest.raises(BadInput) as error:
        rerun.again(answer, ["TOKEN"])
    assert error.value.problems == ["secret TOKEN is not set in the environment: export it"]
    monkeypatch.setenv("TOKEN", "a long value")
    new, values = rerun.again(answer, ["TOKEN"])
    assert values == {"TOKEN": "a long value"} and new.id != JOB
