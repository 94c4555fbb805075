"""`train-classifier rerun`: the job again, and first what of it is gone."""

import base64
import contextlib
import os
import platform
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core import options
from train_classifier.core.errors import BadInput, NotReady
from train_classifier.core.job import JobSpec, new_job_id
from train_classifier.core.text import printable

if TYPE_CHECKING:
    from train_classifier.cli.console import Console
    from train_classifier.controller.transport import RemoteHost

#: Most files that a message names.
MOST_NAMES = 3
#: Most bytes of the list of a job's files, and most files in it.
MOST_LIST, MOST_FILES = 1 << 30, 5_000_000


@click.command()
@parameters.job
@parameters.click_parameter(options.BY_NAME["secrets"])
@parameters.click_parameter(options.BY_NAME["repo"])
@parameters.output
@parameters.click_parameter(options.BY_NAME["detach"])
@parameters.inventory
@parameters.host
@parameters.json_mode
def rerun(
    job: str,
    secrets: Sequence[str],
    repo: str | None,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
    **destination: Any,
) -> int:
    """Train a job again: the same files, arguments, settings, environment and image, on the same host.

    \b
    What of these is gone is said before the job starts, and what it does then.
    The files are those that the host still has; where a later push replaced
    them, those of the job's commit, from the checkout in --repo. Secrets are
    kept nowhere: name each by --secret, as for the first job.

    \b
    Example:
      train-classifier rerun 20260131-1200 --secret HF_TOKEN
    """
    from train_classifier.ansible_bridge import inventory as inventories
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import find_inventory, hosts
    from train_classifier.cli.runs.training_run import TrainingRun, show_end
    from train_classifier.controller import find_jobs
    from train_classifier.controller.order import Order

    console = Console(json_mode=json_mode)
    output, patience = jobs.find_output(destination["output"]), parameters.patience_s()
    located = find_jobs.find_job(hosts(inventory, host), job).require_started()
    answer = located.host.call({"verb": "rerun", "id": located.id}, timeout=120)
    spec, values = again(answer, secrets)
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(sources(answer, spec, located.host, Path(repo or ".")))
        show_remarks(answer, spec, files, console)
        order = Order(
            spec=spec,
            tree=files.tree,
            files=files.names,
            output=str(output.path),
            fingerprint=files.fingerprint,
            patience_s=patience,
            flags=located.host.flags,
            detach=bool(destination["detach"]),
            keeps_good_archive=output.keeps_good,
        )
        path, _ = find_inventory(inventory, host)
        run = TrainingRun(order, lambda: inventories.single_host(path, located.host.name), values, console)
        code = run.run(path, located.host.name)
    show_end(run, code, console)
    return code


def again(answer: Mapping[str, Any], named: Sequence[str]) -> tuple[JobSpec, dict[str, str]]:
    """Return the specification of the new job, and the values of its secrets. Raises BadInput."""
    from train_classifier.request import checks
    from train_classifier.request.checkout import user_name

    try:
        submitter = f"{user_name()}@{platform.node()}"
        data = answer.get("spec")
        own = {"id": new_job_id(), "submitter": submitter}
        spec = JobSpec.from_dict({**data, **own} if isinstance(data, dict) else None)
    except ValueError as error:
        raise BadInput(*str(error).splitlines()) from error
    problems = [
        f"job {answer.get('id')} had the secret {name}, which is kept nowhere: give --secret {name}"
        for name in spec.secrets
        if name not in named
    ]
    problems += [f"job {answer.get('id')} had no secret {name}" for name in named if name not in spec.secrets]
    secret_names = tuple(name for name in named if name in spec.secrets)
    values, wrong = checks.secrets({"secrets": secret_names, "environment": spec.environment}, os.environ)
    # The job had it: it cannot be left out.
    problems += [problem.removesuffix(", or leave it out") for problem in wrong]
    if problems:
        raise BadInput(*problems)
    return spec, values


def show_remarks(answer: Mapping[str, Any], spec: JobSpec, files: "Files", console: "Console") -> None:
    """Say what is repeated, or what of it is gone, before the job starts."""
    gone = [*map(str, answer.get("gone") or ()), *([files.remark] if files.remark else [])]
    if gone:
        text = f"Job {spec.rerun_of} is repeated, but {'; '.join(gone)}."
        console.event("message", level="warning", text=text)
        return
    commit = spec.repository.commit
    name = "its files" if commit is None else f"its files, of commit {printable(commit)[:12]}"
    changes = " with changes that are in no commit" if commit and spec.repository.dirty else ""
    # A job that did not come so far, or has no packages, had none.
    had = [f"{name}{changes}"]
    had += ["its environment"] if spec.pinned_environment else []
    had += ["its image"] if spec.pinned_image else []
    listed = ", ".join(had[:-1]) + (" and " if had[:-1] else "") + had[-1]
    console.say(f"Job {spec.rerun_of} is repeated, with {listed}.")


class Files(NamedTuple):
    """The files of a repeated job: on the host already, or in a folder here."""

    #: "": the host has them.
    tree: str
    #: As `Order.files`.
    names: str
    fingerprint: str | None
    #: Where they come from, if not from the host.
    remark: str = ""


@contextlib.contextmanager
def sources(answer: Mapping[str, Any], spec: JobSpec, host: "RemoteHost", repo: Path) -> Iterator[Files]:
    """Yield the files of the job that `spec` repeats: those that the host has, else those of its commit.

    Raises BadInput when they cannot be had as they were.
    """
    from train_classifier.controller.order import pack_names
    from train_classifier.controller.temp_files import private_folder
    from train_classifier.request import checkout, git_state, push_list
    from train_classifier.request.trainignore import FILE as IGNORE_FILE

    names = str(answer.get("files") or "")
    if answer.get("has_files"):
        yield Files("", names, str(answer.get("fingerprint")))
        return
    commit = spec.repository.commit
    replaced = f"a later push replaced the files of job {spec.rerun_of} on {host.name}"
    hint = f"What is here now: train-classifier train {spec.model}{host.flags}"
    if commit is None or spec.repository.dirty is not False:
        why = "it was trained outside of git" if commit is None else "it had changes that are in no commit"
        raise BadInput(f"{replaced}, and {why}: it cannot be repeated", hint=hint)
    with private_folder() as folder:
        (folder / "tree").mkdir()
        top = checkout.resolve(repo)
        shown = printable(str(top))
        pushed = _unpacked(names, host.name)
        try:
            with git_state.opened(top, time.monotonic() + git_state.EXPORT_S) as git:
                below = top.relative_to(git.top)
                prefix = b"" if below == Path() else os.fsencode(below) + b"/"
                # A commit may have more, and larger ones: what .trainignore leaves out.
                paths = {prefix + name for name in (*pushed, IGNORE_FILE.encode())}
                exported = git.export(commit, folder / "tree", paths)
        except git_state.GitSilent as silent:
            raise BadInput(
                f"{replaced}, and {shown} does not give those of its commit: {silent}",
                hint=f"Name a checkout that has the commit by --repo. {hint}",
            ) from silent
        written = {name.removeprefix(prefix) for name in exported}
        missing = [name for name in pushed if not name.endswith(b"/") and name not in written]
        if missing:
            raise BadInput(f"{replaced}, and {_some(missing)} of it are in no commit", hint=hint)
        tree = folder / "tree" / below
        # A host names the files: none that a push of the commit leaves out, such as a private key.
        sendable = {*push_list.collect(tree).paths, *_below_artefacts(written)}
        left_out = [name for name in pushed if name in written and name not in sendable]
        if left_out:
            raise BadInput(f"{replaced}, and a push of its commit leaves out {_some(left_out)}", hint=hint)
        folders = _folders(written)
        # A folder that holds no file of the commit was empty.
        kept = [name for name in pushed if name in written or name in folders]
        remark = f"{host.name} no longer has its files: they are taken from commit {commit[:12]} of {shown}"
        yield Files(str(tree), pack_names(kept), push_list.fingerprint(tree, kept), remark)


def _unpacked(names: str, host: str) -> list[bytes]:
    """Return the list of files that a host answered. Raises NotReady."""
    damaged = f"{host} answered with a damaged list of files."
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(names, validate=True), MOST_LIST)
    except (ValueError, zlib.error) as error:
        raise NotReady(damaged) from error
    # A job with a part of its files would be another one.
    if not unpacker.eof or data.count(b"\0") > MOST_FILES:
        raise NotReady(damaged)
    return [name for name in data.split(b"\0") if name]


def _below_artefacts(names: Iterable[bytes]) -> list[bytes]:
    """Return the files of artefacts/: a push sends those of git, which a plain folder does not tell."""
    return [name for name in names if name.startswith(b"artefacts/")]


def _folders(names: Iterable[bytes]) -> set[bytes]:
    """Return the folders that files are in, each with a slash at its end."""
    folders: set[bytes] = set()
    for name in names:
        folder = name.rpartition(b"/")[0]
        while folder and folder + b"/" not in folders:
            folders.add(folder + b"/")
            folder = folder.rpartition(b"/")[0]
    return folders


def _some(names: Sequence[bytes]) -> str:
    shown = ", ".join(printable(os.fsdecode(name)) for name in names[:MOST_NAMES])
    return shown + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
