"""scripts/release: what is checked, and what a release does on GitHub, here a stand-in for `gh`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: Keeps releases and tags in one file; BREAK names the call that fails.
GH = """\
#!{python}
import json, os, pathlib, sys
store = pathlib.Path(__file__).with_name("github.json")
state = json.loads(store.read_text())
words = sys.argv[1:]
tags, releases = state["tags"], state["releases"]
def option(name):
    return words[words.index(name) + 1]
if os.environ.get("BREAK") and os.environ["BREAK"] in " ".join(words):
    sys.exit("gh: HTTP 502")
if words[:2] == ["release", "view"]:
    sys.exit(words[2] not in releases)
elif words[:2] == ["release", "create"]:
    if words[2] in releases:
        sys.exit("gh: a release with the same tag name already exists")
    releases[words[2]] = {{"notes": sys.stdin.read(), "files": [pathlib.Path(w).name for w in words[8:]]}}
elif words[:2] == ["release", "upload"]:
    releases[words[2]]["files"] = [pathlib.Path(w).name for w in words[4:]]
elif words[:2] == ["release", "list"]:
    print("\\n".join(releases))
elif words[0] == "api" and "/git/ref/tags/" in words[1]:
    sys.exit(words[1].rpartition("/")[2] not in tags)
elif words[:3] == ["api", "--method", "PATCH"]:
    tags[words[3].rpartition("/")[2]] = words[5].removeprefix("sha=")
elif words[0] == "api" and words[1].endswith("/git/refs"):
    tags[words[3].rpartition("/")[2]] = words[5].removeprefix("sha=")
else:
    sys.exit("gh: unknown: " + " ".join(words))
store.write_text(json.dumps(state))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of version 1.2.3, and a `gh` beside it."""
    for name in ("scripts", "train_classifier", "bin", "dist"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "release").write_bytes((ROOT / "scripts" / "release").read_bytes())
    (tmp_path / "train_classifier" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# C\n\n## [1.2.4]\n\nlater\n\n## [1.2.3] - 2026\n\n- new\n\n## [1.2.2]\nold\n"
    )
    (tmp_path / "dist" / "wheel.whl").touch()
    (tmp_path / "bin" / "gh").write_text(GH.format(python=sys.executable))
    (tmp_path / "bin" / "gh").chmod(0o755)
    (tmp_path / "bin" / "github.json").write_text('{"tags": {}, "releases": {}}')
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "One"], check=True)
    return tmp_path


def release(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/release."""
    return subprocess.run(
        ["sh", str(checkout / "scripts" / "release"), *arguments], capture_output=True, text=True, check=False,
        env={
            **os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}", "GITHUB_REPOSITORY": "o/r", **environment
        },
    )  # fmt: skip


def test_release_check(checkout: Path) -> None:
    """A tag is released only if it is the package's version and the changelog speaks of it."""
    assert release(checkout, "check", "v1.2.3").returncode == 0
    assert release(checkout, "notes", "v1.2.3").stdout.strip() == "- new"
    assert "not the package's version" in release(checkout, "check", "v1.2.4").stderr
    (checkout / "CHANGELOG.md").write_text("# C\n\n## [1.2.3]\n\n## [1.2.2]\nold\n")
    assert "has no text under" in release(checkout, "check", "v1.2.3").stderr


@pytest.mark.parametrize("broken", ["", "release create", "release list", "git/refs", "PATCH"])
def test_publish(checkout: Path, broken: str) -> None:
    """A release moves its major version's tag; what fails in the middle is finished by running it again."""
    store = checkout / "bin" / "github.json"
    tags = {"v1": "older"} if broken == "PATCH" else {}
    store.write_text(json.dumps({"tags": tags, "releases": {"v1.2.2": {}, "v1.10.0-rc1": {}, "v0.9.0": {}}}))
    if broken:
        failed = release(checkout, "publish", "v1.2.3", "dist", BREAK=broken)
        assert failed.returncode != 0
        assert json.loads(store.read_text())["tags"] == tags
    done = release(checkout, "publish", "v1.2.3", "dist")
    assert done.returncode == 0, done.stderr
    state = json.loads(store.read_text())
    assert state["releases"]["v1.2.3"]["notes"].strip() == "- new"
    assert state["releases"]["v1.2.3"]["files"] == ["wheel.whl"]
    head = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert state["tags"] == {"v1": head.stdout.strip()}


def test_publish_of_an_older_version(checkout: Path) -> None:
    """A repair of 1.2 after 1.10 is released, and callers of v1 stay where they are."""
    store = checkout / "bin" / "github.json"
    store.write_text(json.dumps({"tags": {"v1": "newer"}, "releases": {"v1.10.0": {}, "v2.0.0": {}}}))
    done = release(checkout, "publish", "v1.2.3", "dist")
    assert done.returncode == 0, done.stderr
    assert "v1 stays at v1.10.0" in done.stdout
    state = json.loads(store.read_text())
    assert "v1.2.3" in state["releases"]
    assert state["tags"] == {"v1": "newer"}


def test_build_is_pinned() -> None:
    """What builds a release comes by hash: its own build system's requirement is among what is named."""
    locked = (ROOT / "scripts" / "requirements-build.lock").read_text()
    assert "hatchling==" in locked
    assert "--hash=sha256:" in locked
    (build,) = [
        line for line in (ROOT / "scripts" / "release").read_text().splitlines() if "build --quiet" in line
    ]
    assert "--require-hashes --build-constraints scripts/requirements-build.lock" in build


def test_pin(checkout: Path) -> None:
    """Every example names the commit of the release, and which release that is; nothing else changes."""
    (checkout / "docs").mkdir()
    workflows = checkout / "examples" / "classifiers" / ".github" / "workflows"
    workflows.mkdir(parents=True)
    old = "uses: Incuvers/train-classifier@" + "a" * 40
    text = f"- {old} # v1.0.0\n- {{ {old}, env: {{ M: m }} }}\n- uses: actions/checkout@{'b' * 40} # v5.0.0\n"
    pages = [checkout / "README.md", checkout / "docs" / "a.md", workflows.parents[1] / "README.md"]
    pages.append(workflows / "train.yml")
    pages.append(checkout / "train_classifier" / "starter" / "templates" / "train.yml")
    pages[-1].parent.mkdir(parents=True)
    for page in pages:
        page.write_text(text)
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "tag", "v1.2.3"], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert release(checkout, "pin", "v1.2.3").returncode == 0
    new = f"uses: Incuvers/train-classifier@{head}"
    for page in pages:
        assert page.read_text().splitlines() == [
            f"- {new} # v1.2.3",
            f"- {{ {new}, env: {{ M: m }} }} # v1.2.3",
            f"- uses: actions/checkout@{'b' * 40} # v5.0.0",
        ]
    # A commit that is not released has no version to name.
    assert release(checkout, "pin", head).returncode == 0
    assert pages[0].read_text().splitlines()[0] == f"- {new}"
    done = release(checkout, "pin", "v9.9.9")
    assert done.returncode == 1 and "there is no commit v9.9.9" in done.stderr
