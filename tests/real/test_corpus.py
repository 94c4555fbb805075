"""The corpus of requirement files, through the resolver of the product. It needs a package index."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hosts.fleet import uv_binary
from worker_site import Site, site, tmp_path, uv

from . import corpus

__all__ = ["site", "tmp_path", "uv"]

#: What CI resolves: each way to write a file, and each end but two. test_environment has a conflict without a solution,
#: test_requirement_options packages that are built; `--full` resolves every file.
QUICK = (
    "conda-pip-freeze", "hashed-lines", "keras-2-only", "markers-and-comments", "misspelt", "pip-compile-output",
    "powershell-utf-16", "protobuf-3", "torch-1-10", "torch-stable-html", "trusted-host", "windows-editor",
)  # fmt: skip


@pytest.fixture(scope="session")
def index() -> None:
    """Skip where no package index answers."""
    command = [uv_binary(), "pip", "compile", "--quiet", "--no-cache", "-"]
    asked = subprocess.run(command, input="six", capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"no package index answers: {asked.stderr.strip()[-300:]}")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in corpus.names()]
)
def test_what_becomes_of_a_requirements_file(
    name: str, index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in the container of a build.
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    assert corpus.outcome(name, tmp_path, str(uv_binary())) == corpus.EXPECTED[name]


@pytest.mark.full
@pytest.mark.engine
def test_packages_without_wheels_are_built(site: Site) -> None:
    built = site.prepare("\n".join(corpus.BUILT))
    names = {line.partition("==")[0] for line in built.packages}
    assert {line.partition("==")[0] for line in corpus.BUILT} <= names


def test_quick_files_have_each_end() -> None:
    def end(name: str) -> str:
        return "Python" if corpus.EXPECTED[name].startswith("Python") else corpus.EXPECTED[name]

    others = {end(name) for name in corpus.EXPECTED} - {end(name) for name in QUICK}
    assert others == {corpus.SOURCES, "requirements.txt has no solution"}


def test_each_file_has_its_row_and_the_docs_have_the_table() -> None:
    assert sorted(corpus.EXPECTED) == corpus.names()
    assert corpus.table() in corpus.DOCS.read_text()
