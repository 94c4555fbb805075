"""What uv's messages mean."""

import types
from pathlib import Path

import pytest

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.environments import build_failures
from train_classifier.worker.environments.environment_plan import EnvironmentPlan


@pytest.mark.parametrize(
    ("message", "final"),
    [
        ("error: No solution found when resolving dependencies\n cause: you require six==1 and six==2", True),
        ("error: No solution found when resolving dependencies\n cause: x==1 has no usable wheels", False),
        (
            "hint: Wheels are required for `x` because building from source is disabled\nNo solution found",
            False,
        ),
        ("error: dns error", True),
        ("error: Failed to build x", False),
    ],
)
def test_failure_that_builds_would_not_change_is_final(message: str, final: bool) -> None:
    assert build_failures.is_final(message) is final


@pytest.mark.parametrize(
    ("versions", "text"),
    [(["3.9"], "3.9"), (["3.8", "3.9", "3.10"], "3.8 to 3.10"), (["3.8", "3.12"], "3.8 or 3.12")],
)
def test_versions_of_python_are_written_as_a_span(versions: list[str], text: str) -> None:
    assert build_failures.python_span(versions) == text


def test_variable_that_builds_do_not_have_is_named() -> None:
    options = ("--extra-index-url https://${USER_NAME}:${TOKEN}@h/simple",)
    plan = EnvironmentPlan(("six",), (), options, (), Path("/none"), {"TOKEN": "t"}, "", "")
    image = types.SimpleNamespace(reference="i", packages={}, short_version="3.11")
    with pytest.raises(
        NoEnvironment, match=r"requirements.txt names \$\{USER_NAME\}, which builds"
    ) as raised:
        build_failures.explain(image, plan, 2, "error: dns error")  # type: ignore[arg-type]
    assert "training_host_environment" in str(raised.value.hint)
