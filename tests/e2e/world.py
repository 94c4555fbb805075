"""A runner's machine in folders of its own: a caller's checkout, the action as a ref gives it, a tool cache, act.

act is the real nektos/act in host mode: it runs the workflow's steps on this machine as a self-hosted runner does.
`actions/checkout` it carries out itself; `actions/upload-artifact` is stood in for by a five-line action, since nothing
is fetched from GitHub here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ACT = Path(sys.executable).parent / "act"
#: What a ref of the repository holds of the action.
PARTS = (
    "action.yaml",
    "ansible.cfg",
    "site.yml",
    "requirements.lock",
    "train_classifier",
    "playbooks",
    "roles",
    "plugins",
    "scripts",
)
SAMPLE = (ROOT / "examples/classifiers/.github/workflows/train.yml").read_text()
#: The commits that the sample workflow names.
SAMPLE_UPLOAD = SAMPLE.partition("upload-artifact@")[2][:40]
SAMPLE_ACTION = SAMPLE.partition("train-classifier@")[2][:40]
UPLOAD = """\
name: stand-in for actions/upload-artifact
inputs: { name: {}, path: {}, retention-days: {}, compression-level: {}, if-no-files-found: {} }
runs:
  using: composite
  steps:
    - shell: sh
      env: { NAME: "${{ inputs.name }}", FILE: "${{ inputs.path }}" }
      run: |
        mkdir -p "$TC_UPLOADS/$NAME"
        if [ -e "$FILE" ]; then cp -p "$FILE" "$TC_UPLOADS/$NAME/"; fi
        # What the tests check of the checkout and of the runner's temporary folder, while these exist.
        git status --porcelain --ignored >"$TC_UPLOADS/status"
        find . -printf '%u %p\\n' >"$TC_UPLOADS/owners"
        if [ -d "$RUNNER_TEMP/train-classifier" ]; then cp -rp "$RUNNER_TEMP/train-classifier" "$TC_UPLOADS/temp"; fi
"""
MAIN = "import os, sys, time\n"
#: An ordinary account.
NOBODY = 65534
#: For accounts that may not read what the tests' own PATH names.
PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
GOOD = """
print("hello from", os.environ["MODEL"], sys.argv[1:])
os.makedirs("artefacts", exist_ok=True)
open("artefacts/weights.bin", "wb").write(bytes(range(256)) * 100)
open("artefacts/metrics.json", "w").write('{"accuracy": 0.975}')
open("artefacts/history.csv", "w").write("epoch,loss,val_loss\\n1,0.9,1.0\\n2,0.5,0.7\\n3,0.3,0.6\\n")
"""


def action_folder(target: Path) -> Path:
    """Copy the action as a runner's checkout of a ref has it: no tests, no environment, no bytecode."""
    target.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(
                source, target / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "_content")
            )
        else:
            shutil.copy2(source, target / part)
    # Another account runs it in some tests, whatever umask the checkout was made under.
    subprocess.run(["chmod", "-R", "a+rX", target], check=True)
    return target


def process_numbers() -> set[str]:
    return {path.name for path in Path("/proc").iterdir() if path.name.isdigit()}


class SecretWatch:
    """Searches every command line, and every new file of some folders, for words that must not be there."""

    def __init__(self, folders: list[Path], words: list[bytes]) -> None:
        self.folders = folders
        self.words = words
        self.since = time.time()
        self.leaks: set[str] = set()
        #: Processes of before, which do not get the words.
        self._others = process_numbers()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._search, daemon=True)
        if words:
            self._thread.start()

    def _search(self) -> None:
        while not self._end.wait(0.1):
            processes = process_numbers()
            # A number may be used again.
            self._others &= processes
            for name in processes - self._others:
                with contextlib.suppress(OSError):
                    line = Path("/proc", name, "cmdline").read_bytes()
                    if any(word in line for word in self.words):
                        self.leaks.add(line.replace(b"\0", b" ").decode("utf-8", "replace"))
            for folder in self.folders:
                self._search_folder(folder)

    def _search_folder(self, folder: str | Path) -> None:
        """Search the files that were made or changed, by their ctime."""
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._search_folder(entry.path)
                    continue
                with contextlib.suppress(OSError):
                    # The clock of a file system may be a tick behind.
                    changed = entry.stat(follow_symlinks=False).st_ctime >= self.since - 0.1
                    if changed and entry.is_file(follow_symlinks=False):
                        content = Path(entry.path).read_bytes()
                        if any(word in content for word in self.words):
                            self.leaks.add(entry.path)

    def stop(self) -> set[str]:
        self._end.set()
        if self.words:
            self._thread.join()
        return self.leaks


class World:
    """One runner with one caller's repository."""

    def __init__(self, folder: Path, image: str, action: Path, tools: Path, name: str) -> None:
        self.folder = folder
        self.action = action
        self.identity: int | None = None
        #: PATH of a runner with an account of its own.
        self.path = PLAIN_PATH
        self._secrets: set[str] = set()
        self._watches: list[SecretWatch] = []
        self._unsearched = False
        self._logs: list[str] = []
        self.tools = tools
        self.repo = folder / name
        self.uploads = folder / "uploads"
        self.state = folder / "state"
        self.temp = folder / "tmp"
        self.home = folder / "home"
        for path in (self.repo, self.uploads, self.temp, self.home, folder / "queue"):
            path.mkdir(parents=True)
        folder.chmod(0o755)
        settings: dict[str, Any] = {
            "schema": 1,
            "images": {"cpu": image},
            "queue_dir": str(folder / "queue"),
            "state_dir": str(self.state / "{user}"),
            "service_user": "nobody",
            # Jobs without requirements try no setuptools, also on a machine that role training_host prepared.
            "uv": str(folder / "no-uv"),
        }
        (folder / "host.json").write_text(json.dumps(settings))
        upload = folder / "upload-artifact"
        upload.mkdir()
        (upload / "action.yml").write_text(UPLOAD)
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", "tests@localhost")
        self.git("config", "user.name", "tests")
        self.git("remote", "add", "origin", "https://github.com/octo/classifiers.git")

    def git(self, *arguments: str) -> str:
        """Run git in the caller's repository."""
        done = subprocess.run(
            ["git", "-C", str(self.repo), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def write(self, name: str, content: str) -> None:
        """Put a file into the caller's repository."""
        path = self.repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def model(self, program: str, name: str = "mnist") -> None:
        """Put a model into the caller's repository."""
        self.write(f"{name}/__init__.py", "")
        self.write(f"{name}/__main__.py", MAIN + program)

    def workflow(self, text: str) -> None:
        """Commit the caller's repository with this workflow."""
        self.write(".github/workflows/train.yml", text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Train")

    @property
    def environment(self) -> dict[str, str]:
        """The runner's own environment."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "RUNNER_"))
        }
        return {
            **inherited,
            "TRAIN_CLASSIFIER_HOST_JSON": str(self.folder / "host.json"),
            "TRAIN_CLASSIFIER_GPUS": "auto",
            "TC_UPLOADS": str(self.uploads),
            "TMPDIR": str(self.temp),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def act(
        self, *arguments: str, secrets: dict[str, str] | None = None, timeout: float = 280, **environment: str
    ) -> ActRun:
        """Run the workflow as a push would, as `identity` if there is one, and watch for secrets meanwhile.

        Secrets go by a file: act's own argument list is no place for them.
        """
        variables = {**self.environment, **environment}
        file = self.folder / "act-secrets"
        file.touch(0o600)
        file.write_text("".join(f"{name}={value}\n" for name, value in (secrets or {}).items()))
        # Of a webhook's address its last part alone is the secret.
        words = {value.rpartition("/")[2] if "://" in value else value for value in (secrets or {}).values()}
        self._secrets |= words
        user: dict[str, Any] = {}
        if self.identity is not None:
            self.change_owner(self.identity)
            user = {"user": self.identity, "group": self.identity, "extra_groups": [docker_group()]}
            variables.update(HOME=str(self.home), PATH=self.path)
        command = [
            str(self.folder.parent / "act"), "push", "-C", str(self.repo), "-P", "self-hosted=-self-hosted", "--secret-file", str(file),
            "--action-cache-path", str(self.tools), "--action-offline-mode",
            "--local-repository", f"Incuvers/train-classifier@v1={self.action}",
            "--local-repository", f"Incuvers/train-classifier@{SAMPLE_ACTION}={self.action}",
            "--local-repository", f"actions/upload-artifact@v5={self.folder / 'upload-artifact'}",
            "--local-repository", f"actions/upload-artifact@{SAMPLE_UPLOAD}={self.folder / 'upload-artifact'}",
            *arguments,
        ]  # fmt: skip
        # A runner passes on its own environment; act gives steps only what its flags name.
        for name in (
            "TRAIN_CLASSIFIER_HOST_JSON",
            "TRAIN_CLASSIFIER_GPUS",
            "TC_UPLOADS",
            "TMPDIR",
            *environment,
        ):
            if variables.get(name):
                command += ["--env", f"{name}={variables[name]}"]
        watch = self._watch(words)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=variables, timeout=timeout, stdin=subprocess.DEVNULL,
                check=False, cwd=self.folder, **user,
            )  # fmt: skip
        finally:
            leaks = watch.stop()
            file.unlink()
        assert leaks == set()
        self._logs.append(done.stdout + done.stderr)
        return ActRun(done.returncode, self._logs[-1])

    def change_owner(self, identity: int) -> None:
        """Give all files to this account."""
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, identity, identity, follow_symlinks=False)

    def _watch(self, words: set[str]) -> SecretWatch:
        self._watches.append(SecretWatch([self.temp, self.action], [word.encode() for word in words]))
        return self._watches[-1]

    def close(self) -> None:
        """Stop the watches: no secret was in a process list or is in a file."""
        leaks = [words for watch in self._watches for words in watch.stop()]
        assert not leaks, leaks
        if self._unsearched:
            leaks = self.search(*self._secrets)
            assert not leaks, leaks

    def step(self, identity: int | None = None, *, outside: bool = False, **environment: str) -> Step:
        """Start the action's step as the runner does: `sh -e` on a file with the text of its `run:`, stdin closed.

        With `outside` no variable of GitHub's or the runner's is there at all. The webhook and what `secrets` names
        are watched for from now on.
        """
        script = self.folder / "step.sh"
        command = yaml.safe_load((self.action / "action.yaml").read_text())["runs"]["steps"][0]["run"]
        script.write_text(command.replace("$GITHUB_ACTION_PATH", str(self.action)) if outside else command)
        named = environment.get("TRAIN_CLASSIFIER_INPUT_SECRETS", "").split()
        hooks = [environment.get(n, "") for n in ("SLACK_IDENTIFIER", "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK")]
        words = {line for name in named for line in environment[name].splitlines()}
        words |= {hook.rpartition("/")[2] for hook in hooks if hook}
        self._secrets |= words
        script.chmod(0o755)
        files = {name: self.folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.touch()
            file.chmod(0o666)
        runner_temp = self.folder / "runner temp"
        runner_temp.mkdir(exist_ok=True)
        runner_temp.chmod(0o777)
        github_variables = {
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(self.repo),
            "GITHUB_ACTION_PATH": str(self.action),
            "GITHUB_REPOSITORY": "octo/classifiers",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_RUN_ID": "42",
            "RUNNER_TEMP": str(runner_temp),
            "RUNNER_TOOL_CACHE": str(self.tools / "tool_cache"),
            **{name: str(path) for name, path in files.items()},
        }
        variables = {**self.environment, **({} if outside else github_variables), **environment}
        if identity is not None:
            variables["HOME"] = str(self.home)
        log = self.folder / "step.log"
        if words:
            self._watch(words)
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-e", str(script)], cwd=self.repo, env=variables, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, user=identity, group=identity,
                extra_groups=None if identity is None else [docker_group()],
            )  # fmt: skip
        return Step(process, log, files["GITHUB_OUTPUT"], files["GITHUB_STEP_SUMMARY"])

    def jobs(self) -> list[Path]:
        """Return the folders of all jobs on this host, oldest first."""
        return sorted(self.state.glob("*/jobs/*"))

    def containers(self) -> list[str]:
        """Return the containers of this world's jobs."""
        container_ids = []
        for job in self.jobs():
            listed = subprocess.run(
                ["docker", "ps", "-aq", "--filter", f"label=train-classifier.job={job.name}"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            container_ids += listed.stdout.split()
        return container_ids

    def assert_clean(self, *documented: str) -> None:
        """Nothing is left but what is documented: in the checkout, on the engine, in the temporary folder.

        All of the checkout is the runner's own, and no secret is in a log or a file.
        """
        status = (self.uploads / "status").read_text().splitlines()
        assert sorted(status) == sorted(f"?? {name}" for name in documented)
        assert self.containers() == []
        assert [path.name for path in self.temp.iterdir()] == []
        owner = pwd.getpwuid(os.getuid() if self.identity is None else self.identity).pw_name
        owners = {line.split(" ", 1)[0] for line in (self.uploads / "owners").read_text().splitlines()}
        assert owners == {owner}
        assert self.search(*self._secrets) == []
        assert not [word for word in self._secrets for log in self._logs if word in log]

    def assert_owned(self) -> None:
        """All that a run left in this world and in the tool cache is the runner's own."""
        for top in (self.folder, self.tools.resolve()):
            foreign_files = [path for path in top.rglob("*") if path.lstat().st_uid != self.identity]
            assert not foreign_files, foreign_files[:20]

    def search(self, *words: str) -> list[str]:
        """Return the files of this world, the action's folder and the tool cache that hold one of the words."""
        self._unsearched = False
        if not words:
            return []
        tops = [str(top) for top in (self.folder, self.action, self.tools.resolve())]
        # By standard input: a word in an argument list is what is looked for, too.
        listed = subprocess.run(
            ["grep", "-rlaF", "--devices=skip", "--file=-", "--", *tops],
            input="".join(f"{word}\n" for word in words), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert listed.returncode in (0, 1), listed.stderr
        matches = [path for path in listed.stdout.splitlines() if Path(path).name != "step.log"]
        for path in self.folder.rglob("*.tar.gz"):
            content = gzip.decompress(path.read_bytes())
            matches += [f"{path}: {word}" for word in words if word.encode() in content]
        for path in self.folder.rglob("step.log"):
            # The runner obeys such a line and shows none of it.
            shown = [line for line in path.read_bytes().splitlines() if not line.startswith(b"::add-mask::")]
            matches += [f"{path}: {word}" for word in words if word.encode() in b"\n".join(shown)]
        return matches


@dataclasses.dataclass
class ActRun:
    """How a run of act ended."""

    status: int
    log: str


@dataclasses.dataclass
class Step:
    """A step as the runner sees it."""

    process: subprocess.Popen[bytes]
    file: Path
    outputs_file: Path
    summary_file: Path

    @property
    def log(self) -> str:
        """The step's log so far."""
        return self.file.read_text(errors="replace")

    @property
    def summary(self) -> str:
        """The job summary."""
        return self.summary_file.read_text()

    @property
    def outputs(self) -> dict[str, str]:
        """The outputs; the last value of each counts, as on GitHub."""
        values: dict[str, str] = {}
        lines = iter(self.outputs_file.read_text().splitlines())
        for line in lines:
            name, _, end = line.partition("<<")
            value = []
            for part in lines:
                if part == end:
                    break
                value.append(part)
            values[name] = "\n".join(value)
        return values


def docker_group() -> int:
    """Return the group that may use the engine."""
    return Path("/var/run/docker.sock").stat().st_gid
