"""Every command block of the docs is run by a test, or says here why not; blocks in other languages can be read as such.

A block that is indented holds commands; anything else stands between fences that name its language.
"""

from __future__ import annotations

import configparser
import json
import re
import tomllib

import pytest
import yaml
from hosts.play import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "examples/classifiers/README.md",
    )
}
#: How a command begins, and which test runs it; or after "not run" why none does.
COMMANDS = {
    "train-classifier ": "tests/unit/cli/test_use.py",
    "export TRAIN_CLASSIFIER_": "tests/unit/cli/test_use.py",
    'eval "$(_TRAIN_CLASSIFIER_COMPLETE': "tests/unit/cli/test_app.py, the completion itself",
    "cp -r inventory/": "tests/unit/docs/test_hosts_page.py",
    "rm inventory/": "tests/unit/docs/test_hosts_page.py",
    "$EDITOR inventory/": "tests/unit/docs/test_hosts_page.py",
    "ansible-playbook -i inventory/my": "tests/unit/docs/test_hosts_page.py, with --syntax-check",
    "ansible-playbook -i inventory incuvers.": "tests/lint/test_collection.py",
    "ansible-galaxy collection install": "tests/lint/test_collection.py, from the tarball",
    "scripts/demo": "tests/integration/test_demo.py",
    "touch ": "tests/integration/test_train_documented_model.py",
    "tar -": "tests/integration/test_train_documented_model.py reads the archive",
    "scripts/test": "not run: it runs this",
    "scripts/bench": "not run: its figures need a quiet machine, and minutes",
    "git clone ": "not run: the checkout is there",
    "cd train-classifier": "not run: goes with git clone",
    "uv tool install .": "not run: tests/integration/test_wheel.py installs the same wheel",
    "pipx install .": "not run: as uv tool install",
    "pip install .": "not run: as uv tool install",
    "python3 -m venv .venv": "not run: scripts/test makes the same environment by uv",
    ". .venv/bin/activate": "not run: goes with python3 -m venv",
    "sudo apt-get install": "not run: changes this machine; scripts/lib.sh installs the same packages",
    "apt-get install dkms": "not run: Secure Boot needs a real machine",
    "test -e /var/lib/dkms/mok.pub": "not run: Secure Boot needs a real machine",
    "mokutil ": "not run: Secure Boot needs a real machine",
    "reboot ": "not run: Secure Boot needs a real machine",
    "ansible-vault ": "not run: asks for a password",
    "ssh login ": "not run: needs a cluster; tests/integration/test_cluster.py asks Slurm by the same programs",
    "journalctl ": "not run: only looks at a host",
    "systemctl status ": "not run: only looks at a host",
}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the content of each block; commands have the language `sh`."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
    rest = re.sub(r"^ *```\w*\n.*?^ *```$", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:^|\n\n)((?:    .*\n(?:\n(?=    ))?)+)", rest)
    return [*fenced, *(("sh", block) for block in indented)]


def command_lines(text: str) -> list[str]:
    """Return the lines of the command blocks, without comments and what continues a line."""
    commands = []
    for language, block in blocks(text):
        lines = re.sub(r"\\\n\s*", "", block).splitlines() if language == "sh" else []
        # Variables of one command stand before it.
        lines = [re.sub(r"^\s*([A-Z][A-Z_]*=\S+ )*", "", line) for line in lines]
        commands += [line for line in lines if line and not line.startswith("#")]
    return commands


def test_each_command_is_run_or_says_why_not() -> None:
    unknown, used = [], set()
    for page, text in PAGES.items():
        for line in command_lines(text):
            begins = [begin for begin in COMMANDS if line.startswith(begin)]
            used |= set(begins)
            unknown += [f"{page}: {line}"] if not begins else []
    assert unknown == []
    assert sorted(set(COMMANDS) - used) == []


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_what_their_language_says(page: str) -> None:
    for language, block in blocks(PAGES[page]):
        if language == "yaml":
            assert yaml.safe_load(block) is not None
        elif language == "toml":
            assert tomllib.loads(block)
        elif language == "python":
            compile(block, page, "exec")
        elif language == "json":
            json.loads(block)
        elif language == "ini":
            configparser.ConfigParser(interpolation=None).read_string(
                block if "[" in block.lstrip()[:1] or "\n[" in block else f"[defaults]\n{block}"
            )
        else:
            assert language in ("sh", "text", "mermaid"), f"{page}: {block}"


def test_tests_that_are_named_are_there() -> None:
    named = {path for reason in COMMANDS.values() for path in re.findall(r"tests/\S+\.py", reason)}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
