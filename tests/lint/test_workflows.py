"""Workflow files and the examples in the docs: zizmor finds nothing, and they follow GitHub's schemas."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from test_lint import BIN, REPOSITORY, files, lint

from train_classifier.starter import first_files

WORKFLOWS = files(".github/workflows/*.yml", "examples/classifiers/.github/workflows/*.yml")
#: As strict as for our own, but for names and concurrency: an example shows what matters to it.
EXAMPLES = (BIN / "zizmor", "--offline", "--quiet")
PAGES = (
    "README.md",
    "docs/action.md",
    "docs/from-the-original-action.md",
    "docs/trackers.md",
    "examples/classifiers/README.md",
)
#: What a reader puts around an example that is only steps, or only jobs.
HEAD = "on: push\npermissions: { contents: read }\n"
JOB = "jobs:\n  train:\n    runs-on: [self-hosted, linux, docker, X64]\n    steps:\n"
OUTPUTS = "      - { id: train, run: 'true' }\n"


def examples() -> list[tuple[str, str]]:
    """Return the workflow that each example of the pages makes, with its place for a name."""
    texts = []
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        for block in re.finditer(r"```yaml\n(.*?)```", text, re.DOTALL):
            example = block[1]
            read = yaml.safe_load(example)
            if isinstance(read, list):
                outputs = OUTPUTS if "steps.train.outputs" in example and "id: train" not in example else ""
                example = HEAD + JOB + outputs + example
            elif "jobs" not in read:
                continue
            line = text.count("\n", 0, block.start()) + 1
            texts.append((f"{page.replace('/', '-')}-{line}", example))
    texts.append(("init", first_files.workflow_files(["mnist", "yolo"])[first_files.WORKFLOW]))
    return texts


def schema_of(kind: str, *paths: str | Path) -> None:
    program = Path(BIN / "check-jsonschema")
    if not program.exists():
        pytest.skip("check-jsonschema is not installed")
    lint(program, "--builtin-schema", f"vendor.github-{kind}", *paths)


def test_zizmor() -> None:
    """Our own workflows and the action: strictly, every action pinned by commit."""
    lint(BIN / "zizmor", "--offline", "--quiet", "--pedantic", ".github", "action.yaml")


def test_zizmor_sample() -> None:
    lint(*EXAMPLES, "examples")


@pytest.mark.parametrize(("kind", "paths"), [("workflows", WORKFLOWS), ("actions", ["action.yaml"])])
def test_schema(kind: str, paths: list[str]) -> None:
    schema_of(kind, *paths)


def test_examples_in_the_docs(tmp_path: Path) -> None:
    """Each is a workflow as GitHub wants it, in which zizmor finds nothing."""
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    for name, example in examples():
        (folder / f"{name}.yml").write_text(example)
    paths = sorted(folder.iterdir())
    assert len(paths) >= 8
    schema_of("workflows", *paths)
    lint(*EXAMPLES, tmp_path)


def test_examples_pin_what_our_own_workflows_pin() -> None:
    """A reader copies the commits that we run ourselves, each with its version."""
    own = {}
    for path in files(".github/workflows/*.yml"):
        own.update(re.findall(r"uses: ([\w/-]+)@([0-9a-f]{40} # v[\d.]+)", (REPOSITORY / path).read_text()))
    texts = [example for _, example in examples()]
    texts += [(REPOSITORY / path).read_text() for path in WORKFLOWS if path.startswith("examples")]
    pinned = set()
    for action, at in re.findall(r"uses: ([\w/-]+)@(.*)", "\n".join(texts)):
        if not action.startswith("Incuvers/") and action in own:
            assert at == own[action], action
            pinned.add(action)
    assert pinned == {"actions/checkout", "actions/upload-artifact"}
