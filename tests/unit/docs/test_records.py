"""scripts/prove-host: what its record says; and the tables of docs/hosts.md: they say no more than records and code do."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
HOSTS = (ROOT / "docs/hosts.md").read_text(encoding="utf-8")


def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("prove_host", str(ROOT / "scripts/prove-host"))
    spec = importlib.util.spec_from_loader("prove_host", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


prove = script()


def row(name: str, status: str, message: str = "") -> dict[str, str]:
    return {"name": name, "status": status, "message": message, "hint": ""}


def host(framework: str = "ok", card: str = "ok", ready: bool = True, **more: str) -> dict[str, Any]:
    rows = [row("card", card, "0000:01:00.0 10de:2204 Ampere"), row("gpu-in-framework", framework, "said")]
    return {"ready": ready, "rows": rows + [row(name, status, name) for name, status in more.items()]}


def training(proven: bool = True, exit_code: int = 0, gpus: int = 1) -> dict[str, Any]:
    cards = [{"name": "NVIDIA GeForce RTX 3090", "driver": "550.163.01"}] * gpus
    check = {"mode": "framework", "proven": proven, "detail": "tensorflow 2.17.0: 1 GPU"}
    return {
        "exit_code": exit_code,
        "outcome": "training failed",
        "result": {"gpus": cards, "gpu_check": check},
    }


SEEN = {
    "os": "Debian GNU/Linux 13 (trixie)",
    "id": "debian-13",
    "kernel": "6.12",
    "engine": "26.1",
    "toolkit": "1.18.2-1",
}


@pytest.mark.parametrize(
    ("checked", "trained", "expected"),
    [
        (host(), training(), "proven"),
        (host("not proven"), training(proven=False), "simulated"),
        (host(), training(proven=False), "simulated"),
        (host("not proven"), training(), "simulated"),
        (host(ready=False, driver="fail"), {}, "failed"),
        (host(), training(exit_code=4), "failed"),
        (host(), training(gpus=0), "failed"),
        (host(card="skip"), training(gpus=0), "no GPU"),
        (host(card="skip"), training(), "no GPU"),
    ],
)
def test_only_a_framework_that_saw_the_gpu_twice_proves(
    checked: dict[str, Any], trained: dict[str, Any], expected: str
) -> None:
    assert prove.judge(checked, trained)[0] == expected


def test_record_says_what_was_proven(tmp_path: Path) -> None:
    path = prove.write(tmp_path / "records", prove.record(SEEN, host(), training(), "2026-01-02"))
    assert path.name == "2026-01-02-debian-13-nvidia-geforce-rtx-3090.json"
    written = json.loads(path.read_text())
    assert (written["result"], written["driver"], written["engine"], written["toolkit"], written["framework"]) == (
        "proven", "550.163.01", "26.1", "1.18.2-1", "tensorflow 2.17.0: 1 GPU",
    )  # fmt: skip


def test_without_a_gpu_no_record_is_written(tmp_path: Path) -> None:
    record = prove.record(SEEN, host(card="skip"), training(gpus=0), "2026-01-02")
    with pytest.raises(ValueError, match="Ampere"):
        prove.write(tmp_path / "records", record)
    assert not (tmp_path / "records").exists()


def table(heading: str) -> dict[str, list[str]]:
    """A table of docs/hosts.md by the first cell of its rows."""
    lines = HOSTS[HOSTS.index(heading) :].splitlines()[2:]
    rows = [
        line.strip("|").split(" | ")
        for line in lines[: next((n for n, x in enumerate(lines) if not x), None)]
    ]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_support_table_says_what_the_records_say() -> None:
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "docs/records").glob("*.json"))]
    proven = {record["os_id"]: record["date"] for record in records if record["result"] == "proven"}
    for system, cells in table("| Operating system |").items():
        identity = system.lower().replace(" ", "-")
        rows = [f"proven ({proven[identity]})"] if identity in proven else ["simulated", "untried", "refused"]
        assert cells[1] in rows, system


def names() -> set[str]:
    """The names of all checks: of the worker's, by how it says them, and of the role's."""
    names_of_checks = {"play", "worker"}
    for path in (ROOT / "train_classifier/worker/checks").glob("*_check.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                is_finding = node.func.id in ("ok", "warn", "fail", "skip", "from_error", "tool")
                if is_finding and isinstance(first, ast.Constant):
                    names_of_checks.add(first.value)
            if isinstance(node, ast.Assign):
                # name = "gpu"; name, role = "engine", …; path, name = …, "queue"
                target, value = node.targets[0], node.value
                pairs = (
                    zip(target.elts, value.elts, strict=False)
                    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                    else [(target, value)]
                )
                names_of_checks |= {
                    right.value
                    for left, right in pairs
                    if isinstance(left, ast.Name) and left.id == "name" and isinstance(right, ast.Constant)
                }
            if (
                isinstance(node, ast.Tuple)
                and len(node.elts) in (2, 3)
                and isinstance(node.elts[0], ast.Constant)
            ):
                # for name, how in (("gpu-in-container", …), …); places = [("disk", …)]
                names_of_checks |= {
                    one
                    for one in [node.elts[0].value]
                    if one in ("disk", "engine-disk") or str(one).startswith("gpu-in-")
                }
    filters = (ROOT / "plugins/filter/host_check.py").read_text()
    return names_of_checks | set(re.findall(r'_row\(\s*"([a-z.-]+)"', filters))


def test_each_check_has_a_row_that_says_what_to_do() -> None:
    documented = {name for cell in table("| Check |") for name in re.findall(r"`([^`]+)`", cell)}
    assert documented == names()


def test_steps_for_secure_boot_are_the_roles() -> None:
    steps = yaml.safe_load((ROOT / "roles/nvidia_driver/vars/debian.yml").read_text())[
        "__nvidia_driver_key_steps"
    ]
    request = re.search(r"openssl req.*?mok\.pub", steps)
    assert request
    assert request[0] in re.sub(r"\s*\\\n\s*", " ", HOSTS)


def test_each_shared_variable_names_the_roles_that_heed_it() -> None:
    for name, cells in table("| Variable | Example |").items():
        variable = name.strip("` ")
        heed = {
            path.parts[-3]
            for path in (ROOT / "roles").glob("*/defaults/main.yml")
            if variable in path.read_text()
        }
        assert set(re.findall(r"`(\w+)`", cells[1])) == heed or (cells[1] == "all" and len(heed) >= 5), (
            variable
        )
