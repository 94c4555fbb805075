"""What an environment is to hold, from requirements, the image's packages and the model's code."""

import dataclasses
from pathlib import Path

import pytest

from train_classifier.core.requirements_file import Requirements
from train_classifier.worker.environments import environment_plan, model_imports
from train_classifier.worker.environments.environment_plan import EnvironmentPlan

SETTINGS = {"variables": {}, "source": "", "paths_digest": ""}


def over_image(packages: dict[str, str], *lines: str, options: tuple[str, ...] = ()) -> EnvironmentPlan:
    requirements = Requirements(lines=lines, options=options)
    return environment_plan.over_image(packages, True, Path("/none"), requirements, SETTINGS)


def isolated(
    folder: Path, code: str, *lines: str, gpu: bool = False, distutils: bool = True
) -> tuple[str, ...]:
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m" / "__main__.py").write_text(code)
    requirements = Requirements(lines=lines)
    return environment_plan.isolated("m", distutils, folder, requirements, SETTINGS, gpu).lines


def test_builds_get_the_variables_that_they_read() -> None:
    names = (
        "MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "CMAKE_ARGS", "CFLAGS", "CXX", "FLASH_ATTENTION_SKIP_CUDA_BUILD",
        "DS_BUILD_OPS", "NATTEN_CUDA_ARCH", "FORCE_CUDA",
    )  # fmt: skip
    others = (
        "EPOCHS", "PATH", "LD_PRELOAD", "UV_INSECURE_HOST", "UV_SKIP_WHEEL_FILENAME_CHECK", "PIP_INDEX_URL", "GIT_SSL_NO_VERIFY",
        "PYTHON_BUILD_X", "HTTPS_PROXY", "SSL_CERT_FILE", "HOME", "NETRC", "BUILD", "_BUILD_", "max_jobs", "LD_FORCE_X", "CMAKE_TLS_VERIFY", "CMAKE_TLS_CAINFO",
    )  # fmt: skip
    assert tuple(environment_plan.build_variables(dict.fromkeys((*names, *others), "1"))) == names
    settings = {**SETTINGS, "build_variables": {"MAX_JOBS": "2"}}
    plan = environment_plan.over_image({}, True, Path("/none"), Requirements(lines=("six",)), settings)
    # Wheels alone are the same without them.
    assert "build_variables" not in plan.definition("")
    assert plan.definition("0" * 16)["build_variables"] == {"MAX_JOBS": "2"}


def test_frameworks_of_the_image_are_kept_and_numpy_is_not() -> None:
    plan = over_image({"torch": "2.5.1+cu121", "numpy": "2.1.3", "keras": "3.5.0"})
    assert plan.pins == {"torch": "2.5.1+cu121", "keras": "3.5.0"}
    assert plan.constraints_text() == ""


def test_distributions_of_tensorflow_stand_for_each_other() -> None:
    plan = over_image({"tensorflow-cpu": "2.19.1"})
    assert set(plan.frozen()) == {
        f"{name}==2.19.1" for name in ("tensorflow", "tensorflow-cpu", "tensorflow-gpu")
    }
    assert plan.aliases == {"tensorflow": "tensorflow-cpu", "tensorflow-gpu": "tensorflow-cpu"}
    # A nightly version is another framework than the image's release.
    assert "tf-nightly<0" in plan.constraints_text()
    assert over_image({"tf-nightly": "2.20.0.dev1"}).excluded == ()


@pytest.mark.parametrize(
    ("installed", "aliases"),
    [
        ("opencv-python-headless", {"opencv-python"}),
        (
            "opencv-contrib-python",
            {"opencv-python", "opencv-python-headless", "opencv-contrib-python-headless"},
        ),
    ],
)
def test_opencv_stands_for_distributions_with_no_more_modules(installed: str, aliases: set[str]) -> None:
    assert set(over_image({installed: "4.10"}).aliases) == aliases


def test_file_in_which_all_have_hashes_gets_no_line_more() -> None:
    plan = environment_plan.over_image(
        {"keras": "3.5.0"}, False, Path("/none"),
        Requirements(lines=("six==1 --hash=sha256:00",), options=("--require-hashes",)), SETTINGS,
    )  # fmt: skip
    assert plan.lines == ("six==1 --hash=sha256:00",)
    assert "keras==3.5.0" in plan.constraints_text()


@pytest.mark.parametrize(
    ("code", "lines", "added"),
    [
        ("import tensorflow as tf", ("keras==2.15",), ("tensorflow",)),
        ("import os, torch.nn as nn", ("six",), ("torch",)),
        ("from keras import layers\nimport tensorflow", ("six",), ("tensorflow",)),
        ("import keras", ("six",), ("keras",)),
        ("import tensorflow", ("tensorflow-cpu==2.15",), ()),
        ("# import torch\n'import jax'", ("six",), ()),
    ],
)
def test_framework_that_the_code_imports_is_added(
    tmp_path: Path, code: str, lines: tuple[str, ...], added: tuple[str, ...]
) -> None:
    assert isolated(tmp_path, code, *lines) == (*lines, *added)


def test_frameworks_bring_their_cuda_on_a_gpu(tmp_path: Path) -> None:
    lines = ("TensorFlow==2.15", "jax>=0.4 ; python_version > '3'", "torch", "tensorflow-text")
    assert isolated(tmp_path, "", *lines, gpu=True) == (
        "TensorFlow[and-cuda]==2.15", "jax[cuda12]>=0.4 ; python_version > '3'", "torch", "tensorflow-text",
    )  # fmt: skip
    hashed = "tensorflow==2.15 --hash=sha256:00"
    assert isolated(tmp_path, "", hashed, gpu=True) == (hashed,)


def test_isolated_environment_has_setuptools_as_a_new_virtual_environment_had(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()

    def plan(line: str) -> EnvironmentPlan:
        requirements = Requirements(lines=(line,))
        return environment_plan.isolated("m", True, tmp_path, requirements, SETTINGS, False)

    assert plan("torch==1.10.0").preferred == ("setuptools<82", "setuptools<70 ; python_version < '3.12'")
    assert plan("torch==1.10.0").definition("") != over_image({}, "torch==1.10.0").definition("")
    assert plan("six==1 --hash=sha256:00").preferred == ()


@pytest.mark.parametrize(
    "lines",
    [
        ("jax==0.7.0", "jax-cuda13-plugin==0.7.0"),
        ("jax", "jax_cuda12_pjrt"),
        ("tensorflow==2.15", "nvidia-cudnn-cu12==8.9.4.25"),
    ],
)
def test_file_that_names_its_cuda_is_installed_as_written(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert isolated(tmp_path, "", *lines, gpu=True) == lines


def test_setuptools_is_added_where_distutils_is_missing(tmp_path: Path) -> None:
    assert isolated(tmp_path, "", "six", distutils=False) == ("six", "setuptools")
    assert isolated(tmp_path, "", "setuptools<60", distutils=False) == ("setuptools<60",)


def test_imports_are_followed_through_the_repository_and_not_out_of_it(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "m").mkdir(parents=True)
    (repository / "nets").mkdir()
    (repository / "m" / "__main__.py").write_text("from . import steps\nfrom nets import small\n")
    (repository / "nets" / "small.py").write_text("import common\n\xff".encode("latin-1").decode("latin-1"))
    (repository / "common.py").write_text("  import torch\n")
    (tmp_path / "secret.py").write_text("import jax\n")
    (repository / "m" / "link.py").symlink_to(tmp_path / "secret.py")
    assert model_imports.top_modules(repository, "m") >= {"nets", "common", "torch"}
    assert "jax" not in model_imports.top_modules(repository, "m")


def test_options_of_the_file_that_uv_has_on_its_command_line() -> None:
    plan = over_image(
        {}, "six", options=("--pre", "--trusted-host a.example", "--extra-index-url https://a.example")
    )
    assert plan.command_line() == [
        "--prerelease", "allow", "--allow-insecure-host", "a.example", "--index-strategy", "unsafe-best-match",
    ]  # fmt: skip
    assert plan.requirements_text("/work") == "--extra-index-url https://a.example\nsix\n"


@pytest.mark.parametrize(
    "trusted",
    ["a.example", "A.example:443", "https://a.example", "HTTPS://a.example:443", "*", "user@a.example"],
)
def test_indexes_of_the_host_are_verified_and_come_first(trusted: str) -> None:
    options = (f"--trusted-host {trusted}", "--extra-index-url https://b.example")
    plan = over_image({}, "six", options=options)
    variables = {"UV_INDEX": "https://a.example/simple"}
    assert dataclasses.replace(plan, variables=variables).command_line() == []


def test_packages_are_built_with_the_frameworks_of_image_and_file() -> None:
    lines = ("Torch == 2.1.0+cu121 ; python_version > '3'", "jax>=0.4", "keras==3.*", "torchvision==0.16")
    plan = EnvironmentPlan(lines, (), (), (), Path("/none"), {}, "", "", pins={"tensorflow": "2.19.0"})
    assert plan.framework_lines() == ["torch==2.1.0+cu121"]
    assert plan.build_constraints() == ["tensorflow==2.19.0", "torch==2.1.0+cu121"]
    over_torch = dataclasses.replace(plan, pins={"torch": "2.5.0"})
    assert over_torch.build_constraints() == ["torch==2.5.0"]
    hashed = dataclasses.replace(plan, options=("--require-hashes",))
    assert hashed.build_constraints() == []
