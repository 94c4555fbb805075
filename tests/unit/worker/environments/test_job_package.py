"""The file of a job's copy that has the version of its package."""

from pathlib import Path

import pytest

from train_classifier.worker.environments.job_package import write_version_part


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
