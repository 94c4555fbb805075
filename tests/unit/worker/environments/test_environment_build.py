"""The answer of a build, and which builds share a cache."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers import inside_answer
from train_classifier.worker.environments.build_failures import explain
from train_classifier.worker.environments.environment_build import Builder, _read
from train_classifier.worker.environments.environment_plan import EnvironmentPlan


@pytest.mark.parametrize(
    "value", [None, [], {"packages": {}}, {"packages": 1, "sources": []}, {"sources": []}]
)
def test_invalid_answer_of_build_is_refused(value: Any) -> None:
    with pytest.raises(NoEnvironment, match="cannot be read"):
        _read(inside_answer.MARK + json.dumps(value).encode())


def plan(**changes: Any) -> EnvironmentPlan:
    values: dict[str, Any] = {
        "lines": ("six", "attrs>=1 --hash=sha256:00"), "constraints": ("idna<3",),
        "options": ("--require-hashes", "--pre", "--only-binary :all:"), "paths": (), "variables": {}, "source": "",
        "workspace": None, "paths_digest": "",
    }  # fmt: skip
    return EnvironmentPlan(**{**values, **changes})


def test_packages_of_the_hosts_indexes_share_a_cache() -> None:
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
def test_sources_named_by_checkout_do_not_share_a_cache(change: dict[str, Any]) -> None:
    assert not plan(**change).may_share()


def test_failed_build_names_what_is_missing_in_the_image() -> None:
    output = (
        "Resolved 1 package in 2ms\nerror: Failed to build `demo`\n  x Call to setuptools failed (exit status: 1)\n"
        "      [stderr]\n      error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory\n"
        "      hint: This usually indicates a problem with the package or the build environment.\n"
    )
    with pytest.raises(NoEnvironment) as raised:
        explain(None, plan(), 1, output, model="probe")  # type: ignore[arg-type]
    assert raised.value.reason.startswith(
        "requirements.txt cannot be installed: the program x86_64-linux-gnu-gcc"
    )
    assert raised.value.hint == "add the line gcc to probe/apt-pkgs.txt"
    assert "Failed to build" in (raised.value.detail or "")


def test_forged_answer_asks_for_no_second_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image or build code can print the answer of the program that installs."""
    forged = inside_answer.MARK + json.dumps({"packages": {}, "sources": ["x"], "unisolated": []}).encode()
    monkeypatch.setattr(Builder, "_run_uv", lambda *_: (0, forged, ""))
    monkeypatch.setattr(Builder, "_compile", lambda *_: None)
    context: Any = SimpleNamespace(say=lambda _: None, job=None)
    builder = Builder(context, None, plan(), None)  # type: ignore[arg-type]
    assert builder.install(Path("/none"), None, "0" * 16).packages == {}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ('Traceback (most recent call last):\n  File "<string>"\nOSError: x\n\n', "OSError: x"),
        ("error: " + "x" * 1000, "error: " + "x" * 392 + "…"),
        ("", "exit status 1"),
    ],
)
def test_reason_of_a_failed_build_is_one_short_line(output: str, reason: str) -> None:
    with pytest.raises(NoEnvironment) as raised:
        explain(None, plan(), 1, output)  # type: ignore[arg-type]
    assert raised.value.reason == f"requirements.txt cannot be installed: {reason}"
