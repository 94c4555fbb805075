"""The runner role's parts that need no host: documented options, GPU labels, ownership of `_work`."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles/github_runner"


def load(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("entry", ["main", "uninstall", "sweep"])
def test_every_default_is_documented_as_it_is(entry: str) -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    documented = {name: option["default"] for name, option in specs[entry]["options"].items()}
    assert documented == defaults


HEADER = "| NVIDIA-SMI 550.163.01   Driver Version: 550.163.01   CUDA Version: 12.4 |"


@pytest.mark.parametrize(
    ("query", "header", "labels"),
    [
        ("", "", []),
        (
            "NVIDIA GeForce RTX 3090, 24576, 550.163.01\nNVIDIA GeForce RTX 3090, 24576, 550.163.01\n",
            HEADER,
            ["gpu", "gpu-rtx-3090", "vram-24g", "driver-550", "cuda-12.4"],
        ),
        ("NVIDIA GeForce GTX 970, 4041, 535.1", "", ["gpu", "gpu-gtx-970", "vram-4g", "driver-535"]),
        ("NVIDIA A100-SXM4-80GB, [N/A], [N/A]", HEADER, ["gpu", "gpu-a100-sxm4-80gb", "cuda-12.4"]),
        ("[N/A], 1, 2", HEADER, []),
        ("no, such answer, at, all", HEADER, []),
    ],
)
def test_labels_from_what_nvidia_smi_says(query: str, header: str, labels: list[str]) -> None:
    module = load("github_runner_gpu_labels", ROLE / "library/github_runner_gpu_labels.py")
    assert module.from_answers(query, header) == labels


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROLE / "module_utils"), *sys.path])
    return load("prepare", ROLE / "files/prepare.py")


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
def test_work_is_given_back_without_leaving_it(prepare: ModuleType, tmp_path: Path) -> None:
    work, outside = tmp_path / "_work", tmp_path / "outside"
    (work / "deep").mkdir(parents=True)
    (work / "deep/file").write_text("x")
    outside.mkdir()
    (outside / "precious").write_text("x")
    (work / "to-folder").symlink_to(outside)
    (work / "dangling").symlink_to("/nowhere")
    os.link(outside / "precious", work / "hard")
    given, left = prepare.repair_ownership(work, 12345, 12345)
    assert (given, left) == (5, 1)
    owners = {p.relative_to(tmp_path).as_posix(): p.lstat().st_uid for p in tmp_path.rglob("*")}
    assert owners == {
        "_work": 12345,
        "_work/deep": 12345,
        "_work/deep/file": 12345,
        "_work/to-folder": 12345,
        "_work/dangling": 12345,
        "_work/hard": 0,
        "outside": 0,
        "outside/precious": 0,
    }
    assert prepare.repair_ownership(work, 12345, 12345) == (0, 1)


def test_work_that_is_a_link_is_refused(prepare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "_work").symlink_to("/etc")
    with pytest.raises(OSError):
        prepare.repair_ownership(tmp_path / "_work", 12345, 12345)
    assert prepare.repair_ownership(tmp_path / "none", 12345, 12345) == (0, 0)
