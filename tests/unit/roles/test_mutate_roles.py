"""scripts/mutate-roles: every kind of break is found and matters, a seed chooses the same ones, the checkout stays as it is."""

from __future__ import annotations

import collections
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts/mutate-roles"


@pytest.fixture(scope="module")
def script() -> object:
    loader = importlib.machinery.SourceFileLoader("mutate_roles", str(SCRIPT))
    spec = importlib.util.spec_from_loader("mutate_roles", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate_roles"] = module
    loader.exec_module(module)
    return module


TASKS = """---
- name: Write
  ansible.builtin.copy:
    dest: /etc/secret
    content: "{{ secret }}"
    owner: root
    mode: "0600"
  no_log: true
  diff: false
  when: secret != ''
  notify: Restart
- name: Ask
  ansible.builtin.command:
    argv: [cat, /etc/secret]
  changed_when: false
  failed_when: answer.rc not in [0, 1]
  when:
    - a
    - b
"""


def test_every_kind_of_break_is_found(script) -> None:
    finder = script.Finder(Path("roles/x/tasks/main.yml"), TASKS)
    finder.file()
    changed = collections.defaultdict(list)
    for mutation in finder.mutations:
        changed[mutation.kind].append(mutation.apply(TASKS))
    for kind, missing in {
        "no_log removed": "  no_log: true\n",
        "notify removed": "  notify: Restart\n",
        "failed_when removed": "  failed_when: answer.rc not in [0, 1]\n",
        "changed_when removed": "  changed_when: false\n",
        "mode loosened": '"0600"',
        "owner changed": "owner: root",
    }.items():
        assert [missing in text for text in changed[kind]] == [False], kind
    assert "  when: \"not (secret != '')\"\n" in changed["when inverted"][0]
    assert '    - "not (a)"\n    - b\n' in changed["when inverted"][1]
    assert "  when:" not in changed["when removed"][1].partition("Ask")[2]
    assert [text.count("- name:") for text in changed["task removed"]] == [1, 1]
    assert ["argv: [cat]" in text for text in changed["list element dropped"]].count(True) == 1
    # no_log, diff, changed_when
    assert len(changed["flag flipped"]) == 3

    finder = script.Finder(Path("roles/x/vars/main.yml"), 'a: 1\nb: [x, y]\nc: /path\nd: "{{ e == f }}"\n')
    finder.file()
    texts = [mutation.apply(finder.text) for mutation in finder.mutations]
    for line in ("a: 2\n", "b: [y]\n", "b: [x]\n", 'c: "/path-changed"\n', 'd: "{{ e != f }}"\n'):
        assert any(line in text for text in texts), line


def test_a_seed_chooses_the_same_breaks_each_of_which_matters(script) -> None:
    candidates = list(script.mutations(ROOT, []))
    chosen = script.choose(candidates, 40, 7)
    assert chosen == script.choose(candidates, 40, 7) != script.choose(candidates, 40, 8)
    assert len(set(chosen)) == 40 and all(mutation.matters() for mutation in chosen)
    assert {mutation.path.parts[1] for mutation in script.mutations(ROOT, ["host_check"])} == {"host_check"}


@pytest.mark.parametrize(
    ("command", "survivors"),
    [("grep -q true roles/{role}/tasks/main.yml", 0), ("test -d roles/{role}", 1)],
)
def test_breaks_are_made_in_a_copy(script, tmp_path: Path, command: str, survivors: int) -> None:
    for path in (SCRIPT, ROOT / "scripts/lib.sh"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        (tmp_path / "scripts" / path.name).write_bytes(path.read_bytes())
    role = tmp_path / "roles/some/tasks/main.yml"
    role.parent.mkdir(parents=True)
    role.write_text("- name: Print\n  ansible.builtin.debug:\n    msg: x\n  no_log: true\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    arguments = ["--seed", "1", "--lines", "1", "--role", "some", "--with", command]
    program = [sys.executable, tmp_path / "scripts/mutate-roles", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == survivors, done.stdout + done.stderr
    assert done.stdout.startswith("seed 1\n") and done.stdout.endswith(f"{survivors} survived\n")
    assert ("SURVIVED" in done.stdout) == bool(survivors)
    assert role.read_text().endswith("no_log: true\n")
