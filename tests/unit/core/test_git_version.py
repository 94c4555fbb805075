"""Versions from git, as setuptools-scm and versioneer make them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from train_classifier.core.project import git_version, own_package
from train_classifier.core.project.git_version import GitVersion, file_text, version

DAY = "20260102"


@pytest.mark.parametrize(
    ("settings", "description", "text"),
    [
        ({}, "v1.2.3-0-gabcd", "1.2.3"), ({}, "v1.2.3-0-gabcd-dirty", "1.2.4.dev0+gabcd.d20260102"),
        ({}, "1.2-4-gabcd", "1.3.dev4+gabcd"), ({}, "shapes-1.2rc1-4-gabcd-dirty", "1.2rc2.dev4+gabcd.d20260102"),
        ({}, "v1.2.0-rc.1-0-gabcd", "1.2.0rc1"), ({}, "v1.2-BETA-4-gabcd", "1.2b1.dev4+gabcd"), ({}, "1.2+cu121-0-gabcd", "1.2"),
        ({"tool": "versioneer"}, "1.2-alpha2-0-gabcd", "1.2a2"), ({}, "v1.2-dev-0-gabcd", None),
        ({}, "0.0-7-gabcd", "0.1.dev7+gabcd"), ({"local_scheme": "no-local-version"}, "1.2-4-gabcd-dirty", "1.3.dev4"),
        ({"local_scheme": "dirty-tag"}, "1.2-4-gabcd-dirty", "1.3.dev4+dirty"),
        ({"scheme": "post-release"}, "1.2-4-gabcd", "1.2.post4+gabcd"),
        ({"scheme": "no-guess-dev"}, "1.2-4-gabcd", "1.2.post1.dev4+gabcd"),
        ({"scheme": "no-guess-dev"}, "1.2.post1-4-gabcd", None), ({}, "1.2.post1-4-gabcd", "1.2.post2.dev4+gabcd"),
        ({"scheme": "only-version"}, "1.2-4-gabcd", "1.2+gabcd"),
        ({"tool": "versioneer"}, "1.2-0-gabcd", "1.2"), ({"tool": "versioneer"}, "1.2-0-gabcd-dirty", "1.2+0.gabcd.dirty"),
        ({"tool": "versioneer", "tag_prefix": "v"}, "v1.2-4-gabcd", "1.2+4.gabcd"),
        ({"tool": "versioneer", "tag_prefix": "v"}, "1.2-4-gabcd", None),
        ({}, "nightly2-4-gabcd", None), ({}, "", None), ({}, "1.2-4-gabcd\n", None), ({}, "1;x-4-gabcd", None),
    ],
)  # fmt: skip
def test_version(settings: dict[str, str], description: str, text: str | None) -> None:
    assert version(GitVersion(**settings), description, DAY) == text


def git_of(root: Path, **files: str) -> GitVersion | None:
    (root / "src" / "a").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("_", ".")).write_text(text)
    assert git_version.is_used(root)
    metadata = own_package.read(root)
    assert metadata is not None and metadata.package.version == "0+unknown"
    return metadata.package.git


def test_settings_of_the_tools(tmp_path: Path) -> None:
    project = "[project]\nname = 'a'\ndynamic = ['version']\n"
    scm = "[tool.setuptools_scm]\nwrite_to = 'src/a/v.py'\nversion_scheme = 'post-release'\nlocal_scheme = 'own:f'\n"
    assert git_of(tmp_path, pyproject_toml=project + scm) == GitVersion(
        scheme="post-release", file="src/a/v.py"
    )
    simple = "[build-system]\nrequires = ['setuptools', 'setuptools-scm[simple]>=8']\n"
    assert git_of(tmp_path, pyproject_toml=project + simple) == GitVersion()
    hatch = (
        "[build-system]\nrequires = ['hatch-vcs']\nbuild-backend = 'hatchling.build'\n[tool.hatch]\n"
        "version = {source = 'vcs', raw-options = {local_scheme = 'no-local-version'}}\n"
        "build.hooks.vcs = {version-file = 'src/a/v.py', template = 'x = {version!r}'}\n"
    )
    assert git_of(tmp_path, pyproject_toml=project + hatch) == GitVersion(
        local_scheme="no-local-version", file="src/a/v.py", template="x = {version!r}"
    )
    (tmp_path / "pyproject.toml").unlink()
    config = "[versioneer]\nVCS = git\nversionfile_source = src/a/_version.py\ntag_prefix = ''\n"
    setup = "import versioneer\nfrom setuptools import setup\nsetup(name='a', version=versioneer.get_version(), cmdclass=versioneer.get_cmdclass())\n"
    assert git_of(tmp_path, setup_py=setup, setup_cfg=config) == GitVersion(
        "versioneer", file="src/a/_version.py"
    )
    (tmp_path / "setup.cfg").unlink()
    assert git_of(
        tmp_path,
        setup_py="from setuptools import setup\nsetup(name='a', use_scm_version=True, packages=['a'], package_dir={'': 'src'})",
    ) == (GitVersion())


def test_file_with_the_version() -> None:
    values: dict[str, object] = {}
    exec(file_text(GitVersion(file="a/v.py"), "1.2.dev3+gabcd", "1.1-3-gabcd"), values)
    assert (values["version"], values["version_tuple"], values["commit_id"]) == (
        "1.2.dev3+gabcd", (1, 2, "dev3", "gabcd"), "gabcd",
    )  # fmt: skip
    exec(file_text(GitVersion("versioneer", file="a/v.py"), "1.2", "1.2-0-gabcd"), values)
    assert values["get_versions"]()["dirty"] is False  # type: ignore[operator]
    exec(file_text(GitVersion("versioneer", file="a/v.py"), "1.2", "1.2-0-gabcd-dirty"), values)
    assert values["get_versions"]()["dirty"] is True  # type: ignore[operator]
    assert values["get_versions"]()["version"] == "1.2"  # type: ignore[operator]
    assert file_text(GitVersion(file="VERSION"), "1.2", "") == "1.2"
    template = "x = '{version}' {version!r} {version:>999999999} {version.__class__}"
    assert file_text(GitVersion(file="a/v.py", template=template), "1.2", "") == (
        "x = '1.2' '1.2' {version:>999999999} {version.__class__}"
    )


def test_empty_repository_uses_no_tool(tmp_path: Path) -> None:
    subprocess.run(["mkfifo", tmp_path / "setup.py"], check=True)
    (tmp_path / "pyproject.toml").symlink_to("/etc/hostname")
    assert not git_version.is_used(tmp_path)
