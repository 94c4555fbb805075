"""What programs inside an image print, which may be anything; and the limits that they run under."""

import json
import os
from typing import Any

import pytest

from train_classifier.core import image_reference
from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers import answer, image
from train_classifier.worker.containers.environment_build import EnvironmentPlan, _read
from train_classifier.worker.gpus import visibility
from train_classifier.worker.system.host import Host

SOUND = {
    "python": "/usr/bin/python3", "version": "3.11.2", "site": ["/usr/lib/python3/dist-packages"],
    "search_path": "/usr/bin", "packages": {"six": "1.16.0"}, "frameworks": {}, "distutils": True,
}  # fmt: skip


def test_the_last_marked_line_counts() -> None:
    assert answer.read(b"train-classifier:1\nx\ntrain-classifier:2\nend") == 2
    assert answer.read(b"nothing") is None


@pytest.mark.parametrize(
    "text", [b"{", b"[" * 100_000, b"1" + b"0" * 5000, b"\xff", b'"' + b"x" * (2 << 20) + b'"']
)
def test_an_answer_that_cannot_be_read_is_none(text: bytes) -> None:
    read = answer.read(answer.MARK + text)
    assert read is None or isinstance(read, int)


def test_packages_with_odd_names_or_versions_are_left_out() -> None:
    odd = {"six": "1.0", "a\nb @ http://x": "1", "b": "1\nc @ http://x", "-o": "1", "": "1"}
    assert answer.packages(odd) == {"six": "1.0"}
    assert answer.packages({"six": 1}) is None
    assert answer.packages([]) is None


def test_a_sound_answer_of_a_probe() -> None:
    assert image._checked(SOUND, "i") == SOUND


@pytest.mark.parametrize(
    "change",
    [
        {"python": "python3"}, {"python": None}, {"version": "3"}, {"version": "3.11.2\n"}, {"site": []}, {"site": "/x"},
        {"site": ["relative"]}, {"site": [1]}, {"packages": None}, {"frameworks": {"numpy": 1}}, {"search_path": 1},
    ],
)  # fmt: skip
def test_a_probe_that_makes_no_sense_is_a_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(NoEnvironment, match="makes no sense"):
        image._checked({**SOUND, **change}, "i")
    for other in (None, 5, [], "x", {}):
        with pytest.raises(NoEnvironment, match="makes no sense"):
            image._checked(other, "i")


@pytest.mark.parametrize(
    "value", [None, [], {"packages": {}}, {"packages": 1, "sources": []}, {"sources": []}]
)
def test_a_build_that_prints_something_else_is_a_sentence(value: Any) -> None:
    with pytest.raises(NoEnvironment, match="cannot be read"):
        _read(answer.MARK + json.dumps(value).encode())


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ({}, True),
        ({"torch": {"gpus": 1, "version": "2", "output": ""}}, True),
        ({"torch": {"gpus": None, "version": None, "output": "no"}}, True),
        ({"torch": {"gpus": True, "version": "2", "output": ""}}, False),
        ({"torch": {"gpus": 1, "version": "2"}}, False),
        ({"torch": {"gpus": 1, "output": ""}}, False),
        ({"evil": {"gpus": 1, "version": "2", "output": ""}}, False),
        ({"torch": []}, False),
        (None, False),
    ],
)
def test_answers_of_the_gpu_check(said: Any, good: bool) -> None:
    assert visibility._makes_sense(said) is good


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("train-classifier/packages:x", True),
        ("docker.io/train-classifier/packages:x", True),
        ("index.docker.io/train-classifier/tensorflow", True),
        ("train-classifier", False),
        ("example.org/train-classifier/packages:x", False),
        ("tensorflow/tensorflow:2.17.0", False),
    ],
)
def test_names_that_this_host_gives(name: str, local: bool) -> None:
    assert image_reference.is_local(name) is local


def plan(**changes: Any) -> EnvironmentPlan:
    values: dict[str, Any] = {
        "lines": ("six", "attrs>=1 --hash=sha256:00"), "constraints": ("idna<3",), "frozen": ("numpy==1",),
        "options": ("--require-hashes", "--pre", "--only-binary :all:"), "paths": (), "variables": {}, "source": "",
        "workspace": None,
    }  # fmt: skip
    return EnvironmentPlan(**{**values, **changes})


def test_names_from_the_hosts_indexes_may_share_a_cache() -> None:
    assert plan().may_share()


@pytest.mark.parametrize(
    "change",
    [
        {"paths": ("lib",)}, {"lines": ("x @ https://h/x.whl",)}, {"lines": ("https://h/x.whl",)},
        {"lines": ("x @ file:///x",)}, {"lines": ("${X}",)}, {"constraints": ("x @ git+ssh://h/x",)},
        {"options": ("--index-url https://h",)}, {"options": ("--extra-index-url https://h",)},
        {"options": ("--find-links https://h",)}, {"options": ("--no-index",)}, {"options": ("--no-binary :all:",)},
        {"options": ("--trusted-host h",)},
    ],
)  # fmt: skip
def test_what_a_checkout_names_may_not(change: dict[str, Any]) -> None:
    assert not plan(**change).may_share()


def test_limits_are_those_of_the_host_or_what_it_can_give() -> None:
    limits = Host().limits("a build")
    assert limits.memory_bytes >= 2 << 30 and limits.cpus == os.cpu_count() and limits.pids == 4096
    limits = Host(build_memory_bytes=1 << 30, build_cpus=0.5, build_pids=9, build_timeout_s=7).limits(
        "a build"
    )
    assert (limits.memory_bytes, limits.cpus, limits.pids, limits.timeout_s) == (1 << 30, 0.5, 9, 7)
    assert Host(build_cpus=100_000).limits("a build").cpus == os.cpu_count()
