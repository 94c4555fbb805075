"""roles/monitoring/files/collector.py counts each job once, and what a user writes becomes neither a line nor a label too many."""

from __future__ import annotations

import fcntl
import fnmatch
import importlib.util
import json
import os
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
NOW = 1_800_000_000.0


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "collector", ROOT / "roles/monitoring/files/collector.py"
    )
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


collector = _load()
#: One line of the format: a name, labels whose values have no quote, newline or backslash that is not escaped, a number.
LINE = re.compile(
    r'train_classifier_[a-z_]+(\{[a-z_]+="([^"\\\n]|\\["\\])*"(,[a-z_]+="([^"\\\n]|\\["\\])*")*\})? [0-9.e+-]+\Z'
)


def job_id(number: int) -> str:
    return f"20260101-000000-{number:08x}"


def plant(state: Path, number: int, **files: object) -> Path:
    folder = state / "jobs" / job_id(number)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def metrics_of(counters: dict[str, Any], answer: dict[str, Any] | None) -> list[str]:
    metrics = collector.Metrics()
    collector.add_account(metrics, "ann", answer, NOW)
    collector.add_counters(metrics, "ann", counters)
    return [line for line in metrics.text().splitlines() if not line.startswith("#")]


def test_job_is_counted_once_and_stays_counted_after_clean(tmp_path: Path) -> None:
    seconds = {"queue": 5.0, "gpu-check": 1.0, "training": 99.0}
    plant(tmp_path, 1, result={"model": "mnist", "outcome": "trained", "seconds": seconds, "gpus": [{}, {}]})
    folder = plant(
        tmp_path,
        2,
        status={"state": "running", "phase": "queue", "times": {"queue": [NOW - 60, None]}, "model": "mnist"},
    )
    counters = collector.empty_counters()
    for _ in range(2):
        answer = collector.list_jobs(tmp_path, set(counters["counted"]))
        collector.count(counters, answer)
        lines = metrics_of(counters, answer)
    assert 'train_classifier_jobs_total{user="ann",model="mnist",outcome="trained"} 1' in lines
    assert 'train_classifier_gpu_seconds_total{user="ann",model="mnist"} 200' in lines
    assert 'train_classifier_job_phase_seconds_sum{user="ann",phase="queue"} 5' in lines
    assert 'train_classifier_job_phase_age_seconds{user="ann",phase="queue"} 60' in lines
    # The second job ends, and the first one is cleaned.
    (folder / "result.json").write_text(
        json.dumps({"model": "mnist", "outcome": "failed", "seconds": seconds, "gpus": []})
    )
    (tmp_path / "jobs" / job_id(1) / "result.json").unlink()
    (tmp_path / "jobs" / job_id(1)).rmdir()
    answer = collector.list_jobs(tmp_path, set(counters["counted"]))
    collector.count(counters, answer)
    lines = metrics_of(counters, answer)
    assert [line.rpartition(" ")[2] for line in lines if "jobs_total" in line] == ["1", "1"]
    assert 'train_classifier_job_phase_seconds_count{user="ann",phase="queue"} 2' in lines
    assert counters["counted"] == [job_id(2)]


def test_links_fifos_and_large_files_are_passed_over(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"model": "secret", "outcome": "trained"}))
    linked = plant(tmp_path, 1)
    (linked / "result.json").symlink_to(secret)
    os.mkfifo(linked / "status.json")
    (tmp_path / "jobs" / job_id(2)).symlink_to(linked)
    large = plant(tmp_path, 3)
    (large / "result.json").write_text(
        json.dumps({"outcome": "trained", "model": "m" * collector.MOST_BYTES})
    )
    deep = plant(tmp_path, 4)
    (deep / "result.json").write_text("[" * 100_000)
    answer = collector.list_jobs(tmp_path, set())
    assert (answer["finished"], answer["unfinished"]) == ([], [])


def test_models_of_an_account_are_bounded() -> None:
    counters = collector.empty_counters()
    for start in range(0, 3000, 300):
        jobs = [{"id": job_id(n), "model": f"m{n}", "outcome": f"o{n}"} for n in range(start, start + 300)]
        collector.count(counters, {"ids": [], "finished": jobs})
    lines = [line for line in metrics_of(counters, {}) if "jobs_total" in line]
    assert len(lines) == collector.MOST_MODELS + 1
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == 3000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    | st.sampled_from(["running", "waiting", "granted", "training", "queue", "GPU-a", job_id(1), "mnist", 'x"} 1\nevil 1']),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["id", "model", "outcome", "seconds", "gpus", "phase", "since", "queue", "training", "uid", "state"]), inner),
    max_leaves=12,
)  # fmt: skip
ENTRIES = st.lists(JSON, max_size=4) | JSON


@settings(max_examples=300, deadline=None)
@given(ENTRIES, ENTRIES, ENTRIES, ENTRIES, JSON)
def test_what_a_child_prints_never_becomes_another_line(
    finished: Any, unfinished: Any, tickets: Any, ids: Any, free: Any
) -> None:
    counters = collector.empty_counters()
    answer = {"finished": finished, "unfinished": unfinished, "ids": ids, "free": free, "size": free}
    answer["tickets"] = tickets
    collector.count(counters, answer)
    json.dumps(counters)
    metrics = collector.Metrics()
    collector.add_account(metrics, 'a"\\\nb', answer, NOW)
    collector.add_counters(metrics, 'a"\\\nb', counters)
    collector.add_queue(metrics, answer, ["GPU-a"], NOW, {"root": counters})
    for line in metrics.text().splitlines():
        assert line.startswith("# ") or LINE.match(line), line
    assert "\nevil" not in metrics.text()


def test_queue_has_tickets_whose_worker_lives(tmp_path: Path) -> None:
    def ticket(number: int, **data: object) -> int:
        file = tmp_path / f"{number:012}-{job_id(number)}.json"
        file.write_text(json.dumps({"model": "mnist", **data}))
        return os.open(file, os.O_RDONLY)

    held = [
        ticket(1, state="granted", gpus=["GPU-a", "GPU-unknown"], since=NOW),
        ticket(2, state="waiting", gpus=[], since=NOW - 100),
        ticket(3, state="waiting", gpus=[], since=NOW - 5000),
    ]
    for descriptor in held[:2]:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    metrics = collector.Metrics()
    user = collector.account_name(os.geteuid())
    accounts = {user: collector.empty_counters()}
    collector.add_queue(metrics, collector.list_tickets(tmp_path), ["GPU-a"], NOW, accounts)
    for descriptor in held:
        os.close(descriptor)
    text = metrics.text()
    assert 'train_classifier_queue_jobs{state="waiting"} 1' in text
    assert "train_classifier_queue_wait_seconds 100" in text
    assert f'train_classifier_gpu_job{{uuid="GPU-a",user="{user}",model="mnist"}} 1' in text
    assert text.count("train_classifier_gpu_job{") == 1


def test_models_of_jobs_that_hold_a_card_are_bounded_over_time() -> None:
    """Each label that was ever shown stays in Prometheus."""
    accounts = {"root": collector.empty_counters()}
    shown = set()
    for number in range(100):
        ticket = {"model": f"m{number}", "state": "granted", "gpus": ["GPU-a"], "uid": 0}
        metrics = collector.Metrics()
        collector.add_queue(metrics, {"tickets": [ticket]}, ["GPU-a"], NOW, accounts)
        shown |= set(re.findall(r'gpu_job\{.*model="([^"]+)"', metrics.text()))
    assert len(shown) == collector.MOST_MODELS + 1 and collector.OTHER in shown
    metrics = collector.Metrics()
    collector.add_queue(metrics, {"tickets": [{**ticket, "uid": 65533}]}, ["GPU-a"], NOW, accounts)
    assert f'user="65533",model="{collector.OTHER}"' in metrics.text()


def test_node_exporter_reads_no_folder_of_another_service() -> None:
    values = yaml.safe_load((ROOT / "roles/monitoring/vars/main.yml").read_text())
    pattern = values["__monitoring_metrics_pattern"]
    for name, is_read in (
        ("prometheus", True), ("train-classifier", True), ("github-runner", False), ("postgresql", False),
        ("jenkins", False), ("redis", False), ("tomcat9", False), ("private", False), ("tftpboot", False),
        ("pgadmin", False), ("plexmediaserver", False), ("tor", False), ("grafana", False),
    ):  # fmt: skip
        assert fnmatch.fnmatchcase(f"/var/lib/{name}/node-exporter", pattern) is is_read, name


@pytest.mark.parametrize("program", ["while True: print('x' * 65536)", "import time; time.sleep(600)"])
def test_child_that_prints_too_much_or_nothing_is_not_waited_for(program: str) -> None:
    reader, writer = os.pipe()
    pid = os.posix_spawn(
        "/usr/bin/python3", ["python3", "-c", program], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)]
    )
    os.close(writer)
    try:
        seconds = 0.1 if "sleep" in program else 60
        assert collector.read_all(reader, time.monotonic() + seconds) == b""
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(reader)


def test_words_are_those_of_the_package() -> None:
    from train_classifier.core import errors, job
    from train_classifier.worker.gpus import tickets

    assert set(collector.OUTCOMES) == set(errors.OUTCOMES.values())
    assert collector.PHASES == job.PHASES
    assert collector.TICKET_STATES == tickets.STATES
    assert collector.MODEL.pattern == job.MODEL.pattern and collector.JOB_ID.pattern == job.JOB_ID.pattern


def test_rules_dashboard_and_page_name_metrics_that_exist() -> None:
    names = set()
    for family, (kind, _) in collector.FAMILIES.items():
        name = f"train_classifier_{family}"
        names |= {f"{name}_sum", f"{name}_count"} if kind == "summary" else {name}
        assert (kind == "counter") == family.endswith("_total"), family
    rules = yaml.safe_load((ROOT / "examples/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    dashboard = json.loads((ROOT / "examples/monitoring/dashboard.json").read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    page = (ROOT / "docs/monitoring.md").read_text()
    for text in [*(rule["expr"] for rule in rules), *targets]:
        assert set(re.findall(r"train_classifier_\w+", text)) <= names, text
    documented = set(re.findall(r"`train_classifier_(\w+)", page))
    assert documented == set(collector.FAMILIES)
    assert {rule["alert"] for rule in rules} == set(re.findall(r"`(TrainClassifier\w+)`", page))
