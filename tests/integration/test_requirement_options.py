"""Options that people have in requirement files: real uv, real engine, indexes on loopback."""

from __future__ import annotations

import dataclasses
import json

import docker
import pytest
from docker.types import Mount
from index_server import BACKEND, PYPROJECT, Index, sdist, serve, wheel
from worker_site import Site, index, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.environments import environment

__all__ = ["index", "site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine


def test_best_version_of_all_indexes_of_the_file(
    site: Site, index: Index, engine: docker.DockerClient
) -> None:
    index.add(wheel("growing", "2.0"), wheel("early", "1.0"), wheel("early", "2.0rc1"))
    with serve(engine) as other:
        other.add(wheel("growing", "1.0"), wheel("special", "1.0"))
        text = (
            f"--pre --trusted-host {other.host}\n--extra-index-url {other.url} ; sys_platform == 'linux'\n"
            "growing\nspecial\nearly\n"
        )
        built = site.prepare(text)
    assert {"growing==2.0", "special==1.0", "early==2.0rc1"} <= set(built.packages)


def test_folder_of_wheels_beside_the_file_and_an_editable_package(site: Site, index: Index) -> None:
    folder = site.workspace / "m" / "wheels"
    folder.mkdir()
    name, content = wheel("offline", "1.0")
    (folder / name).write_bytes(content)
    package = site.workspace / "lib"
    package.mkdir()
    (package / "pyproject.toml").write_text(PYPROJECT)
    (package / "backend.py").write_text(BACKEND.format(name="shapes", version="1.0"))
    built = site.prepare("--find-links wheels\noffline\n-e lib\n")
    assert {"offline==1.0", "shapes==1.0"} <= set(built.packages)
    assert site.run(site.find(), built, "import offline, shapes; print(shapes.seen)") == "None\n"


def test_missing_git_names_the_line_to_add(site: Site, index: Index) -> None:
    with pytest.raises(NoEnvironment) as raised:
        site.prepare(f"-e git+http://{index.address}/a/b.git#egg=b\n")
    assert "requirements.txt names a git repository, and image" in raised.value.reason
    assert raised.value.hint == "add the line git to apt-pkgs.txt"


def test_repository_as_a_package_is_imported_from_the_copy_of_each_job(
    site: Site, index: Index, engine: docker.DockerClient
) -> None:
    index.add(wheel("needed", "1.0"), wheel("wanted", "1.0"))
    with serve(engine) as other:
        # Only one of the two packages is taken from it.
        other.add(wheel("needed", "1.0+cpu"), wheel("wanted", "2.0"))
        _check_own_package(site, other)


def _check_own_package(site: Site, other: Index) -> None:
    module = site.workspace / "src" / "shapes" / "__init__.py"
    module.parent.mkdir(parents=True)
    (site.workspace / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'shapes'\nversion = '1.2'\ndependencies = ['needed']\n"
        "[project.optional-dependencies]\nplots = ['wanted']\n[project.scripts]\ntool = 'shapes:main'\n"
        f"[[tool.uv.index]]\nname = 'other'\nurl = '{other.url}'\nexplicit = true\n"
        "[tool.uv.sources]\nneeded = { index = 'other', marker = \"sys_platform == 'linux'\" }\n"
    )
    program = (
        "import needed, wanted, shapes, subprocess; from importlib.metadata import version; "
        "print(shapes.sides, version('shapes'), flush=True); subprocess.run(['tool'], check=True)"
    )
    workspace = Mount("/workspace", str(site.workspace), "bind", read_only=True)
    for kind in ("image", "isolated"):
        hashes = set()
        for sides in ("3", "4"):
            module.write_text(f"sides = {sides}\ndef main(): print('tool', sides)\n")
            built = site.prepare("-e .[plots]\n", kind=kind)
            hashes.add(built.hash)
            assert {"shapes==1.2", "needed==1.0+cpu", "wanted==1.0"} <= set(built.packages)
            job = dataclasses.replace(built, mounts=(*built.mounts, workspace))
            assert site.run(site.find(), job, program) == f"{sides} 1.2\ntool {sides}\n"
        assert len(hashes) == 1
    assert "package shapes is imported from src of the job's own copy" in site.messages
    # What takes the place of the metadata of one environment is no part of another.
    assert "shapes==1.2" not in site.prepare("needed\nwanted\n").packages


def test_package_of_setup_py_with_a_version_from_git(site: Site, index: Index) -> None:
    index.add(wheel("needed", "1.0", requires=["shapes>=2"]), wheel("shapes", "9.0"))
    folder = site.workspace / "src" / "shapes"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from shapes.made import version\n")
    site.workspace.chmod(0o777)
    folder.chmod(0o777)
    (site.workspace / "setup.py").write_text(
        "from setuptools import setup, find_packages\n"
        "setup(name='shapes', packages=find_packages('src'), package_dir={'': 'src'}, install_requires=['needed'],\n"
        "use_scm_version={'version_file': 'src/shapes/made.py'})\n"
    )
    workspace = Mount("/workspace", str(site.workspace), "bind", read_only=True)
    program = "import shapes, importlib.metadata as m; print(shapes.version, m.version('shapes'), m.version('needed'))"
    for kind in ("image", "isolated"):
        hashes = set()
        for description, version in (("v2.1-0-gabcdef0", "2.1"), ("v2.1-3-gabcdef1", "2.2.dev3+gabcdef1")):
            spec = JobSpec(site.job.id, "m", Repository("r", "0" * 16, description=description))
            (site.job.dir / "spec.json").write_text(json.dumps(spec.to_dict()))
            built = site.prepare("-e .\n", kind=kind)
            hashes.add(built.hash)
            assert {f"shapes=={version}", "needed==1.0"} <= set(built.packages)
            job = dataclasses.replace(built, mounts=(*built.mounts, workspace))
            assert site.run(site.find(), job, program) == f"{version} {version} 1.0\n"
        assert len(hashes) == 1


def test_dependencies_of_poetry_and_of_setup_py_are_installed(
    site: Site, index: Index, engine: docker.DockerClient
) -> None:
    index.add(*(wheel("ranged", version) for version in ("1.1", "1.3", "2.0")))
    index.add(wheel("foreign", "1.0"))
    library = site.workspace / "lib"
    library.mkdir()
    (library / "pyproject.toml").write_text(PYPROJECT)
    (library / "backend.py").write_text(BACKEND.format(name="tools", version="1.0"))
    (site.workspace / "shapes.py").touch()
    project = site.workspace / "pyproject.toml"
    request = environment.EnvironmentRequest("m", "0" * 16)
    with serve(engine) as other:
        other.add(wheel("special", "2.1+cpu"), wheel("ranged", "1.9"))
        project.write_text(
            "[tool.poetry]\nname = 'shapes'\nversion = '3.1'\n[tool.poetry.dependencies]\npython = '^3.9'\nranged = '^1.2'\n"
            "tools = { path = 'lib', develop = true }\n"
            "foreign = { version = '*', python = '<3' }\nspecial = { version = '^2', source = 'other' }\n"
            f"[[tool.poetry.source]]\nname = 'other'\nurl = '{other.url}'\npriority = 'explicit'\n"
            "[build-system]\nrequires = ['poetry-core']\nbuild-backend = 'poetry.core.masonry.api'\n"
        )
        built = environment.prepare(site.context(), site.find(), site.workspace, request)
        assert {"ranged==1.3", "tools==1.0", "shapes==3.1", "special==2.1+cpu"} <= set(built.packages)
        assert not any(line.startswith("foreign") for line in built.packages)
        assert "m/requirements.txt is missing: the packages are those of pyproject.toml" in site.messages
    project.unlink()
    (site.workspace / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='shapes', py_modules=['shapes'], install_requires=['ranged>1.2'])\n"
    )
    built = environment.prepare(site.context(), site.find(), site.workspace, request)
    assert {"ranged==2.0", "shapes==0+unknown"} <= set(built.packages)
    assert "m/requirements.txt is missing: the packages are those of setup.py" in site.messages


def test_build_gets_variables_of_the_model(site: Site, index: Index) -> None:
    seen = "import os\nSEEN = [os.environ.get(name) for name in ('MAX_JOBS', 'EPOCHS')]\n"
    index.add(sdist("compiled", "1.0", seen), wheel("ready", "1.0"))
    for jobs in ("1", "2"):
        variables = {"MAX_JOBS": jobs, "EPOCHS": "3"}
        request = environment.EnvironmentRequest("m", "0" * 16, variables=variables)
        (site.workspace / "m" / "requirements.txt").write_text("compiled\n")
        built = environment.prepare(site.context(), site.find(), site.workspace, request)
        assert site.run(site.find(), built, "import compiled; print(compiled.seen)") == f"['{jobs}', None]\n"
    (site.workspace / "m" / "requirements.txt").write_text("ready\n")
    shared = environment.prepare(site.context(), site.find(), site.workspace, request)
    assert shared.hash == site.prepare("ready\n").hash


def test_package_that_another_requires_is_the_repository(site: Site, index: Index) -> None:
    index.add(wheel("plugin", "1.0", requires=["shapes"]), wheel("shapes", "9.0"))
    (site.workspace / "shapes.py").touch()
    (site.workspace / "pyproject.toml").write_text(
        "[project]\nname = 'shapes'\nversion = '1.2'\ndependencies = ['plugin']\n"
    )
    for kind in ("image", "isolated"):
        assert {"shapes==1.2", "plugin==1.0"} <= set(site.prepare("-e .\n", kind=kind).packages)
    index.add(wheel("strict", "1.0", requires=["shapes>=2"]))
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("-e .\nstrict\n")
    assert "shapes" in str(raised.value.detail)


def test_modules_that_the_build_of_the_repository_made_are_in_the_copy(site: Site, index: Index) -> None:
    (site.workspace / "shapes").mkdir()
    (site.workspace / "shapes" / "__init__.py").write_text("from shapes import made\n")
    for folder in (site.workspace, site.workspace / "shapes"):
        folder.chmod(0o777)
    (site.workspace / "pyproject.toml").write_text(PYPROJECT)
    backend = BACKEND.format(name="shapes/made", version="1.0").replace("shapes/made-1.0", "shapes-1.0")
    (site.workspace / "backend.py").write_text(backend.replace("Name: shapes/made", "Name: shapes"))
    workspace = Mount("/workspace", str(site.workspace), "bind", read_only=True)
    program = "import sys; sys.path.insert(0, '/workspace'); import shapes; print(shapes.made.__file__)"
    for kind in ("image", "isolated"):
        built = site.prepare("-e .\n", kind=kind)
        job = dataclasses.replace(built, mounts=(*built.mounts, workspace))
        assert site.run(site.find(), job, program) == "/workspace/shapes/made.py\n"
        (site.workspace / "shapes" / "made.py").unlink()


def test_build_of_the_repository_gets_a_version_without_git(site: Site, index: Index) -> None:
    (site.workspace / "pyproject.toml").write_text(f"{PYPROJECT}[tool.setuptools_scm]\n")
    backend = BACKEND.format(name="shapes", version="1.0")
    (site.workspace / "backend.py").write_text(
        f"import os\nSEEN = os.environ['SETUPTOOLS_SCM_PRETEND_VERSION']\n{backend}"
    )
    built = site.prepare("-e .\n")
    assert site.run(site.find(), built, "import shapes; print(shapes.seen)") == "0+unknown\n"
