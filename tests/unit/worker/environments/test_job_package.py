"""The file of a job's copy that has the version of its package."""

import json
import os
from pathlib import Path

import pytest

from train_classifier.worker.environments import job_package
from train_classifier.worker.environments.job_package import (
    REPOSITORY,
    add_built_part,
    write_version_part,
)


def write(root: Path, file: str) -> str:
    request = {"workspace": str(root), "file": file, "text": "version = '1'\n"}
    problem: str = write_version_part(request)["problem"]
    return problem


@pytest.mark.parametrize("before", ["nothing", "a file", "a link"])
def test_file_is_replaced(tmp_path: Path, before: str) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    path, outside = tmp_path / "src" / "a" / "_version.py", tmp_path / "outside"
    outside.write_text("kept")
    if before == "a file":
        path.write_text("old")
    elif before == "a link":
        path.symlink_to(outside)
    assert write(tmp_path, "./src/a/_version.py") == ""
    assert (path.is_symlink(), path.read_text(), outside.read_text()) == (False, "version = '1'\n", "kept")


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("link/x.py", "Not a directory"), ("../x.py", "no file of the repository"), ("src/../../x.py", "no file"),
        ("src/", "no file"), ("nowhere/x.py", "No such file"), ("src", "File exists"), ("x\0.py", "null"), ("a" * 300, "too long"),
    ],
)  # fmt: skip
def test_file_elsewhere_is_not_written(tmp_path: Path, file: str, problem: str) -> None:
    root = tmp_path / "workspace"
    (root / "src").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (root / "link").symlink_to("../out")
    assert problem in write(root, file)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "out", "src", "workspace"]
    assert not Path("/x.py").exists()


def test_modules_that_the_build_made_are_added(tmp_path: Path) -> None:
    site, workspace = tmp_path / "site", tmp_path / "workspace"
    library = site / "lib" / "python3.11" / "site-packages"
    for name, url in (("shapes-1", REPOSITORY), ("other-1", f"{REPOSITORY}/lib")):
        info = library / f"{name}.dist-info"
        info.mkdir(parents=True)
        (info / "direct_url.json").write_text(json.dumps({"url": url}))
        (info / "RECORD").write_text(
            "shapes/fast.so,sha256=x,1\nshapes/code.py,,\nshapes/_version.py,,\nsrc/a.so,,\n../x.so,,\ntop.so,,\nshapes/no.so,,\nlink/x.so,,\n"
        )
    (library / "broken.dist-info").mkdir()
    (library / "broken.dist-info" / "direct_url.json").write_text("[]")
    for folder in (library / "shapes", library / "link", workspace / "shapes"):
        folder.mkdir(parents=True)
    for name in ("shapes/fast.so", "shapes/code.py", "link/x.so"):
        (library / name).write_text("built")
    (workspace / "shapes" / "code.py").write_text("own")
    (library / "shapes" / "_version.py").write_text("built")
    (library / "shapes" / "no.so").symlink_to("/etc/hostname")
    (workspace / "link").symlink_to("shapes")
    request = {"site": str(site), "workspace": str(workspace)}
    assert add_built_part(request) == {"names": ["shapes/fast.so", "shapes/_version.py"], "too_large": []}
    files = {path.name: path.read_text() for path in (workspace / "shapes").iterdir()}
    assert files == {"fast.so": "built", "_version.py": "built", "code.py": "own"}
    assert add_built_part({**request, "site": str(tmp_path / "nowhere")})["names"] == []


def test_links_of_a_build_give_a_job_no_file_of_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_package, "MOST_MODULE_BYTES", 1 << 20)
    site, workspace, home = tmp_path / "site", tmp_path / "workspace", tmp_path / "home"
    for folder in (site / "own-1.dist-info", workspace / "shapes", workspace / "lib", home):
        folder.mkdir(parents=True)
    (site / "own-1.dist-info" / "direct_url.json").write_text(json.dumps({"url": REPOSITORY}))
    (site / "own-1.dist-info" / "RECORD").write_text("shapes/passwords.py,,\nlib/huge.so,,\n")
    (home / "passwords.py").write_text("secret")
    (site / "shapes").symlink_to(home)
    (site / "lib").mkdir()
    (site / "lib" / "huge.so").touch()
    # It has no blocks of its own; a copy has them.
    os.truncate(site / "lib" / "huge.so", 2 << 20)
    request = {"site": str(site), "workspace": str(workspace)}
    assert add_built_part(request) == {"names": [], "too_large": ["lib/huge.so"]}
    assert [path for path in workspace.rglob("*") if path.is_file()] == []
