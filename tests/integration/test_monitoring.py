"""Role monitoring on a host with two simulated cards: metrics over HTTP, what users plant, a second run, and the teardown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import fleet
from hosts.machine import TestHost
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.full, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).parents[2] / "examples/monitoring"
ROOT = "/var/lib/train-classifier"
#: The jobs of an account: some that ended, one in a build, and what somebody plants who wants more than jobs.
JOBS = r"""
import json, os
jobs = os.path.expanduser("~/.local/state/train-classifier/jobs")
def job(number, **files):
    folder = f"{jobs}/20260101-000000-{number:08x}"
    os.makedirs(folder)
    for name, data in files.items():
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(data, file)
    return folder
seconds = {"queue": 5.0, "gpu-check": 1.0, "training": 99.0}
# Newer than what is planted below: the newest models of an account get a label first.
job(901, result={"model": "mnist", "outcome": "trained", "seconds": seconds, "gpus": [{}, {}]})
job(902, result={"model": "mnist", "outcome": "failed", "seconds": {"training": 1e300, "queue": "5"}, "gpus": 3})
job(3, status={"state": "running", "phase": "environment", "times": {"environment": [1000.0, None]}})
job(4, result={"model": 'x"} 1\nnode_evil 1\n', "outcome": "trained"})
for number in range(100, 200):
    job(number, result={"model": f"model{number}", "outcome": f"outcome{number}"})
folder = job(5)
os.symlink("/etc/shadow", f"{folder}/result.json")
os.mkfifo(f"{folder}/status.json")
os.symlink("/root", f"{jobs}/20260101-000000-00000006")
"""
#: A job that has a card and one that waits; the third's worker is dead.
TICKETS = r"""
import fcntl, json, sys, time
held = []
for number, (state, gpus) in enumerate([("granted", sys.argv[1:]), ("waiting", []), ("waiting", [])]):
    job = f"20260101-000000-{number:08x}"
    file = open(f"/var/lib/train-classifier/queue/{number:012}-{job}.json", "w")
    json.dump({"model": "mnist", "state": state, "gpus": gpus, "since": time.time() - 1000}, file)
    file.flush()
    if number < 2:
        fcntl.flock(file, fcntl.LOCK_EX)
    held.append(file)
held.pop().close()
print("ready", flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def host(
    _hosts_possible: None, tmp_path_factory: pytest.TempPathFactory, base_image: str
) -> Iterator[TestHost]:
    new_host = fleet.gpu_host(tmp_path_factory.mktemp("monitored"), base_image)
    yield new_host
    new_host.remove()


def scrape(host: TestHost) -> str:
    """What Prometheus would get, collected anew."""
    host.shell("systemctl start train-classifier-metrics.service")
    question = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    return host.exec("python3", "-c", question).stdout


def promtool(host: TestHost, arguments: str) -> str:
    """Run promtool of the distribution, without its server."""
    host.shell(
        "mkdir -p /srv/prometheus; cd /srv/prometheus; [ -e usr/bin/promtool ] || { apt-get -q update;"
        " apt-get -q download promtool && dpkg-deb -x promtool_*.deb .; }"
    )
    return host.shell(f"cd /srv/prometheus && {{ usr/bin/promtool {arguments}; }} 2>&1")


def listing(host: TestHost) -> set[str]:
    """Packages, units, and what lies in the folders that the role writes to."""
    script = f"dpkg-query -W -f '${{Package}}\\n'; find {ROOT} /etc/systemd/system /var/lib/prometheus /var/log/prometheus -path '*/queue/*' -prune -o -print"
    return set(host.shell(script, check=False).splitlines())


def test_metrics_over_http_and_teardown(host: TestHost) -> None:
    host.write("/srv/jobs.py", JOBS)
    host.write("/srv/tickets.py", TICKETS)
    host.shell("python3 /srv/jobs.py", user="trainer")
    host.shell(
        f"systemd-run -q --unit tickets --uid trainer python3 -u /srv/tickets.py {host.facts['gpus'][0]}"
    )
    host.shell("until journalctl -q -u tickets -o cat | grep -q ready; do sleep 0.2; done", timeout=60)
    # The folder of another service, whose account could write any metric there.
    host.shell("install -d -o trainer /var/lib/another; install -d -o trainer /var/lib/another/node-exporter")
    host.shell("echo 'node_evil 1' >/var/lib/another/node-exporter/evil.prom", user="trainer")
    before = listing(host)

    assert play(host, "monitoring", check=True).changed > 0
    assert listing(host) == before
    play(host, "monitoring")

    text = scrape(host)
    trainer = [line for line in text.splitlines() if 'user="trainer"' in line]
    assert 'train_classifier_jobs_total{model="mnist",outcome="trained",user="trainer"} 1' in trainer
    assert 'train_classifier_jobs_total{model="mnist",outcome="failed",user="trainer"} 1' in trainer
    assert 'train_classifier_gpu_seconds_total{model="mnist",user="trainer"} 200' in trainer
    assert "node_evil" not in text and "shadow" not in text
    # Twenty models have a label, and one stands for all others; outcomes that do not exist are one.
    assert len({re.search('model="([^"]*)"', line)[1] for line in trainer if "jobs_total" in line}) == 21  # type: ignore[index]
    assert 'train_classifier_jobs{phase="environment",user="trainer"} 1' in text
    assert 'train_classifier_queue_jobs{state="waiting"} 1' in text
    assert (
        f'train_classifier_gpu_job{{model="mnist",user="trainer",uuid="{host.facts["gpus"][0]}"}} 1' in text
    )
    assert "train_classifier_gpus 2" in text
    assert "node_memory_MemTotal_bytes" in text
    assert "node_textfile_scrape_error 0" in text
    # A job is counted once.
    assert [line for line in scrape(host).splitlines() if "jobs_total" in line] == [
        line for line in text.splitlines() if "jobs_total" in line
    ]
    assert host.shell("ss -Hltn 'sport = :9100'").split()[3] == "127.0.0.1:9100"

    file = f"{ROOT}/node-exporter/train_classifier.prom"
    assert host.shell(f"stat -c '%U %a' {file} {ROOT}/monitoring/counters.json").split() == [
        "root",
        "644",
        "root",
        "600",
    ]
    assert promtool(host, f"check metrics <{file}") == ""
    for name in ("alerts.yml", "alerts_test.yml"):
        host.write(f"/srv/prometheus/{name}", (EXAMPLES / name).read_text())
    assert "SUCCESS: 7 rules found" in promtool(host, "check rules alerts.yml")
    assert "SUCCESS" in promtool(host, "test rules alerts_test.yml")

    assert play(host, "monitoring").changed == 0
    assert play(host, "monitoring", check=True).changed == 0
    play(host, "monitoring", tasks_from="uninstall")
    assert listing(host) - {f"{ROOT}/installed"} == before
    assert play(host, "monitoring", tasks_from="uninstall").changed == 0


def test_node_exporter_of_an_administrator_stays_as_it_is(host: TestHost) -> None:
    host.shell(
        "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends prometheus-node-exporter"
    )
    done = play(host, "monitoring")
    assert "had a node-exporter before this role" in done.output
    host.shell("test ! -e /etc/systemd/system/prometheus-node-exporter.service.d")
    assert play(host, "monitoring").changed == 0
    play(host, "monitoring", tasks_from="uninstall")
    assert host.shell("systemctl is-active prometheus-node-exporter") == "active\n"
    assert not host.shell(f"ls {ROOT} | grep -e monitoring -e node-exporter", check=False)
