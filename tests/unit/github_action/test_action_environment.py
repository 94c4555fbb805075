"""The action's launcher: which Python, which uv, which folder, and what it tells where there can be no step."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from train_classifier.core.errors import BadInput
from train_classifier.github_action import old_archive
from train_classifier.request.build import TrainRequest, build

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = ROOT / "scripts" / "action_environment.py"
OLD = b"\x1f\x8bold"
#: An account without rights.
NOBODY = 65534


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(LAUNCHER.parent))
    import action_environment

    return action_environment


@pytest.fixture
def action(tmp_path: Path) -> Path:
    """An action whose step says where it runs; its lock names nothing, so that nothing is fetched."""
    folder = tmp_path / "an action"
    (folder / "scripts").mkdir(parents=True)
    for name in ("action", LAUNCHER.name, "requirements-uv.lock"):
        shutil.copy2(ROOT / "scripts" / name, folder / "scripts" / name)
    (folder / "requirements.lock").write_text("")
    (folder / "train_classifier").mkdir()
    (folder / "train_classifier" / "__init__.py").touch()
    for name in ("core", "github_action"):
        (folder / "train_classifier" / name).mkdir()
    for name in (
        "github_action/__init__.py",
        "github_action/old_archive.py",
        "core/__init__.py",
        "core/job.py",
        "core/options.py",
        "core/text.py",
        "core/errors.py",
        "core/image_reference.py",
        "core/regular_file.py",
    ):
        shutil.copy2(ROOT / "train_classifier" / name, folder / "train_classifier" / name)
    (folder / "train_classifier/github_action/step.py").write_text(
        "import sys; print('step in', sys.prefix)\n"
    )
    return folder


def start(action: Path, cwd: Path, *prefix: str, **environment: str) -> subprocess.Popen[str]:
    """Start the launcher as scripts/action does."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-I", "-S", "-B", str(action / "scripts" / LAUNCHER.name)], cwd=cwd,
        env={**os.environ, "GITHUB_ACTIONS": "true", **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(action: Path, cwd: Path, *prefix: str, **environment: str) -> tuple[int, str]:
    """Run the launcher to its end. Return its exit code and what it said."""
    process = start(action, cwd, *prefix, **environment)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def test_one_version_of_uv() -> None:
    """What brings uv in names one version, by hash, and the role's hashes are among them."""
    lock = (ROOT / "scripts" / "requirements-uv.lock").read_text()
    role = yaml.safe_load((ROOT / "roles" / "training_host" / "defaults" / "main.yml").read_text())
    assert f"uv=={role['training_host_uv_version']} " in lock
    assert set(role["training_host_uv_hashes"]) <= set(re.findall(r"--hash=(sha256:[0-9a-f]{64})", lock))
    for script in ("action_environment.py", "lib.sh", "release", "action"):
        text = (ROOT / "scripts" / script).read_text()
        assert not re.search(r"uv==[0-9]", text)
        assert "pip install" not in text or "--require-hashes" in text


def test_two_runners_prepare_once(tmp_path: Path, action: Path) -> None:
    """Two steps at once on a runner with an empty tool cache make one environment, and a third makes none."""
    cache = {"RUNNER_TOOL_CACHE": str(tmp_path / "tool cache")}
    both = [start(action, tmp_path, **cache) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("Preparing" in words for words in outputs) == 1
    status, third = run(action, tmp_path, **cache)
    assert status == 0
    assert third.startswith("step in ")
    folders = [path for path in (tmp_path / "tool cache" / "train-classifier").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert str(folders[0]) in third
    assert list(action.rglob("*.pyc")) == []
    # A moving ref puts other code under the same path and lock, here of the same length and age.
    code = action / "train_classifier/github_action/step.py"
    before = code.stat()
    code.write_text(code.read_text().replace("step in", "STEP IN"))
    os.utime(code, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(action, tmp_path, **cache) == (0, third.replace("step in", "STEP IN"))


def test_no_python(tmp_path: Path) -> None:
    """A runner without a Python that is new enough is told what to install, and delivers nothing old."""
    for name in ("dirname", "grep", "od", "rm"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    # That of Ubuntu 22.04's package python3.11.
    candidate = "import sys; sys.version_info = (3, 11, 0, 'candidate', 1); exec(sys.argv[1])"
    (tmp_path / "python3.11").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{candidate}" "$4"\n')
    for name in ("python3", "python3.11"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "work").mkdir()
    archive, outputs = tmp_path / "work" / "artefacts.tar.gz", tmp_path / "outputs"

    def step(**environment: str) -> str:
        done = subprocess.run(
            ["/bin/sh", ROOT / "scripts" / "action"], capture_output=True, text=True, cwd=archive.parent,
            env={"PATH": str(tmp_path), "GITHUB_OUTPUT": str(outputs), **environment}, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        head = "::error title=train-classifier::This runner has no Python 3.11 or newer."
        assert done.stdout.startswith(head)
        return done.stdout

    archive.write_bytes(OLD)
    step()
    assert not archive.exists()
    assert outputs.read_text() == "status=not-ready\nexit-code=3\nmetrics={}\n"
    archive.write_text("no archive")
    step()
    assert archive.exists()
    archive.write_bytes(OLD)
    other = archive.with_name("other.tar.gz")
    other.write_bytes(OLD)
    step(TRAIN_CLASSIFIER_INPUT_OUTPUT=other.name)
    assert (archive.exists(), other.exists()) == (True, False)
    # What the settings say cannot be read without Python: nothing is removed on a guess.
    archive.with_name("train-classifier.toml").write_text('[defaults]\noutput = "results.tar.gz"\n')
    assert "may still be there" in step()
    assert archive.exists()


def test_python_by_uv(tmp_path: Path, action: Path) -> None:
    """Where uv alone knows a Python it is used, and the .venv of the caller's checkout is not even started."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    tools, work = tmp_path / "bin", tmp_path / "work"
    (work / ".venv" / "bin").mkdir(parents=True)
    tools.mkdir()
    (tools / "uv").symlink_to(uv)
    for name in ("dirname", "sh", "env"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python").symlink_to(Path(sys.base_prefix, "bin", "python3"))
    (work / ".venv" / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
    trap = work / ".venv" / "bin" / "python"
    trap.write_text(f'#!/bin/sh\ntouch "{tmp_path}/trapped"\nexec {sys.executable} "$@"\n')
    for path in (tools / "python3", trap):
        path.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", action / "scripts" / "action"], capture_output=True, text=True, cwd=work, check=False,
        env={
            "PATH": str(tools), "HOME": str(tmp_path), "RUNNER_TOOL_CACHE": str(tmp_path / "cache"),
            "VIRTUAL_ENV": str(work / ".venv"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step in " in done.stdout
    assert not (tmp_path / "trapped").exists()


def host(tmp_path: Path) -> tuple[Path, Path]:
    """Lay a host out as role training_host does; its uv writes down that it was asked. Return host.json and uv."""
    folder = tmp_path / "lib"
    (folder / "bin").mkdir(parents=True)
    uv = folder / "bin" / "uv"
    uv.write_text(f'#!/bin/sh\necho "$1" >>"{tmp_path}/asked"\nexec {shutil.which("uv")} "$@"\n')
    uv.chmod(0o755)
    settings = folder / "host.json"
    settings.write_text(f'{{"schema": 1, "uv": "{uv}"}}\n')
    return settings, uv


def test_uv_of_the_host(tmp_path: Path, action: Path) -> None:
    """A host made by site.yml has uv off PATH: the action finds it, and needs no python3-venv."""
    if os.geteuid():
        pytest.skip("a file of root's needs root")
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    settings, _ = host(tmp_path)
    status, output = run(
        action, tmp_path, PATH="/usr/bin:/bin", TRAIN_CLASSIFIER_HOST_JSON=str(settings),
        RUNNER_TOOL_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert status == 0, output
    assert "step in " in output
    assert (tmp_path / "asked").read_text().split() == ["venv", "pip"]


@pytest.mark.parametrize("whose", ["root", "file", "folder", "settings", "writable", "link", "missing"])
def test_uv_that_others_may_have_put_there(
    tmp_path: Path, launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """The host's uv is run only where root alone can have put it there, folders above included."""
    if os.geteuid():
        pytest.skip("a file of root's needs root")
    settings, uv = host(tmp_path)
    monkeypatch.setenv("TRAIN_CLASSIFIER_HOST_JSON", str(settings))
    if whose == "writable":
        uv.parent.chmod(0o775)
    elif whose == "link":
        foreign = tmp_path / "foreign"
        uv.rename(foreign)
        os.chown(foreign, NOBODY, NOBODY)
        uv.symlink_to(foreign)
    elif whose == "missing":
        uv.unlink()
    elif whose != "root":
        os.chown({"file": uv, "folder": uv.parent, "settings": settings}[whose], NOBODY, NOBODY)
    assert launcher.host_uv() == (str(uv) if whose == "root" else None)


def test_strange_tool_cache_is_not_trusted(tmp_path: Path, launcher: ModuleType) -> None:
    """A tool cache that others may write to could hold their code: it is passed over."""
    cache = tmp_path / "tool cache" / "train-classifier"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert not launcher.is_private(cache)
    cache.chmod(0o755)
    assert launcher.is_private(cache)


FULL_UV = """\
#!/bin/sh
case "$*" in
    *"$FULL"*) echo "error: failed to write: No space left on device (os error 28)" >&2; exit 2 ;;
esac
exec REAL "$@"
"""


@pytest.mark.parametrize("trouble", ["no room", "read-only"])
def test_next_folder(tmp_path: Path, action: Path, trouble: str) -> None:
    """A tool cache that is full or may not be written to is passed over; the next folder serves."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    tools, cache = tmp_path / "bin", tmp_path / "cache" / "train-classifier"
    tools.mkdir()
    (tools / "uv").write_text(FULL_UV.replace("REAL", uv))
    (tools / "uv").chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "RUNNER_TOOL_CACHE": str(cache.parent),
        "XDG_CACHE_HOME": str(tmp_path / "home"),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "FULL": str(cache) if trouble == "no room" else "neither",
    }
    prefix: list[str] = []
    if trouble == "read-only":
        # The lock is there from an earlier version; what the folder's mode forbids is the build.
        assert run(action, tmp_path, **environment)[0] == 0
        (folder,) = [path for path in cache.iterdir() if path.is_dir()]
        shutil.rmtree(folder)
        assert [path.name for path in cache.iterdir()] == [f".{folder.name}.lock"]
        if not os.geteuid():
            # For this root a mode counts.
            prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        cache.chmod(0o555)
    status, output = run(action, tmp_path, *prefix, **environment)
    assert status == 0, output
    assert f"step in {tmp_path}/home/train-classifier/action/" in output
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_no_folder(tmp_path: Path, action: Path) -> None:
    """A full disk is reported in one annotation, with outputs and without an old archive."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "uv").write_text(FULL_UV)
    (tools / "uv").chmod(0o755)
    (tmp_path / "artefacts.tar.gz").write_bytes(OLD)
    status, output = run(
        action, tmp_path, PATH=f"{tools}:/usr/bin:/bin", RUNNER_TOOL_CACHE=str(tmp_path / "cache"),
        XDG_CACHE_HOME=str(tmp_path / "home"), RUNNER_TEMP="", FULL=str(tmp_path),
        GITHUB_OUTPUT=str(tmp_path / "outputs"),
    )  # fmt: skip
    assert status == 3, output
    (annotation,) = [line for line in output.splitlines() if line.startswith("::error")]
    assert "No space left on device" in annotation
    assert "index" not in annotation
    assert "Traceback" not in output
    assert (tmp_path / "outputs").read_text() == "status=not-ready\nexit-code=3\nmetrics={}\n"
    assert not (tmp_path / "artefacts.tar.gz").exists()
    assert list(action.rglob("*.pyc")) == []


def test_nothing_names_a_folder(action: Path) -> None:
    """Root without a home makes none: /nonexistent would become the home of all accounts that have none."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", str(action / "scripts" / LAUNCHER.name)], env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "RUNNER_TEMP name none. Give the runner a tool cache" in done.stderr
    assert not Path("/nonexistent").exists()


SETTINGS = {
    "nothing": "",
    "defaults": '[defaults]\noutput = "results.tar.gz"\n',
    "model": '[defaults]\noutput = "other.tar.gz"\n[models.mnist]\noutput = "results.tar.gz"\n',
    "other model": '[models.yolo]\noutput = "results.tar.gz"\n',
    "folder": '[defaults]\noutput = "sub/results.tar.gz"\n',
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("variable", ["", "TRAIN_CLASSIFIER_OUTPUT", "TRAIN_CLASSIFIER_INPUT_OUTPUT"])
@pytest.mark.parametrize("repo", ["", "sub/repo"])
def test_place_of_the_archive(tmp_path: Path, settings: str, variable: str, repo: str) -> None:
    """The archive that is removed is the one that the request would write, whatever names it."""
    top = tmp_path / repo
    for folder in (top / "mnist", top / "sub"):
        folder.mkdir(parents=True)
    (top / "mnist" / "__main__.py").touch()
    (top / "train-classifier.toml").write_text(SETTINGS[settings])
    environment = {"MODEL": "mnist", "TRAIN_CLASSIFIER_REPO": repo}
    if variable:
        environment[variable] = "given.tar.gz"
    merged = {name.replace("_INPUT_", "_"): value for name, value in environment.items()}
    plan = build(TrainRequest(cwd=tmp_path), merged, resolve=False)
    assert old_archive.archive_path(environment, tmp_path) == plan.output


@pytest.mark.parametrize(
    "settings", ["[defaults\n", "\xff", "defaults = 1\n[models]\nmnist = 2\n", "[defaults]\noutput = 3\n"]
)
def test_unreadable_settings(tmp_path: Path, settings: str) -> None:
    """Settings that may name another place and cannot be read: the place is not guessed."""
    (tmp_path / "train-classifier.toml").write_bytes(settings.encode("latin-1"))
    with pytest.raises(BadInput):
        build(TrainRequest(cwd=tmp_path, model="mnist"), {}, resolve=False)
    if settings.startswith("defaults"):
        assert old_archive.archive_path({}, tmp_path) == tmp_path / "artefacts.tar.gz"
    else:
        with pytest.raises(ValueError, match=r"train-classifier\.toml"):
            old_archive.archive_path({}, tmp_path)
