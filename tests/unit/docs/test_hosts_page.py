"""The commands for an inventory of one's own in docs/hosts.md, cluster.md and runner.md work as they are printed; those that change hosts are checked for their syntax."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

#: In the order in which somebody follows them.
PAGES = [(ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("hosts", "cluster", "runner")]
PAGE = PAGES[0]


def commands() -> list[str]:
    """Every command line of the pages for such an inventory, in order; `…` stands for what the table's first row says."""
    lines = []
    for page in PAGES:
        blocks = re.findall(r"^    (\S.*?)(?: {2,}\S.*)?$", page, re.M)
        cells = re.findall(r"^\| [^|]* \| `([^`]*)` \|$", page, re.M)
        lines += [
            line.replace("… playbooks", "ansible-playbook -i inventory/mylab playbooks")
            for line in [*blocks, *cells]
        ]
    return [line for line in lines if re.search(r"inventory/my(lab|cluster)", line)]


def test_every_play_asks_for_the_password_of_sudo() -> None:
    plays = [line for line in commands() if line.startswith("ansible-playbook")]
    assert len(plays) >= 7
    assert [line for line in plays if " -K" not in line] == []


def test_commands_work_without_runners_and_vault(tmp_path: Path) -> None:
    """In a copy of the checkout; an editor changes nothing, and no password of a vault is asked for."""
    shutil.copytree(ROOT / "inventory", tmp_path / "inventory", ignore=shutil.ignore_patterns("mylab"))
    for name in (
        "site.yml",
        "ansible.cfg",
        "playbooks",
        "roles",
        "plugins",
        "collections",
        "train_classifier",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = ansible_environment(EDITOR="true", ANSIBLE_CONFIG=str(tmp_path / "ansible.cfg"))
    ran = []
    for line in commands():
        program, *arguments = shlex.split(line)
        if program in ("ansible-vault", "scripts/prove-host"):
            continue
        if program == "ansible-playbook":
            line = shlex.join(
                [str(ANSIBLE_PLAYBOOK), *(word for word in arguments if word != "-K"), "--syntax-check"]
            )
        done = subprocess.run(
            line,
            shell=True,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        ran.append(program)
    assert {"cp", "rm", "$EDITOR", "ansible-playbook"} <= set(ran)


def test_who_may_train_is_in_the_example_and_on_the_page() -> None:
    example = yaml.safe_load((ROOT / "inventory/example/group_vars/training/main.yml").read_text())
    assert example["training_host_users"] == [example["ansible_user"]]
    assert "training_host_users: [ada, grace]" in PAGE
