"""Workflow files: zizmor finds nothing, and they follow GitHub's schemas."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_lint import BIN, files, lint

WORKFLOWS = files(".github/workflows/*.yml", "examples/classifiers/.github/workflows/*.yml")


def test_zizmor() -> None:
    """Our own workflows and the action: strictly, every action pinned by commit."""
    lint(BIN / "zizmor", "--offline", "--quiet", "--pedantic", ".github", "action.yaml")


def test_zizmor_sample() -> None:
    lint(BIN / "zizmor", "--offline", "--quiet", "--config", ".config/zizmor-examples.yml", "examples")


@pytest.mark.parametrize(("schema", "paths"), [("workflows", WORKFLOWS), ("actions", ["action.yaml"])])
def test_schema(schema: str, paths: list[str]) -> None:
    program = Path(BIN / "check-jsonschema")
    if not program.exists():
        pytest.skip("check-jsonschema is not installed")
    lint(program, "--builtin-schema", f"vendor.github-{schema}", *paths)
