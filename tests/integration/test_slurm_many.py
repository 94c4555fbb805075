"""Many jobs on three nodes with two cards each: all finish, and no card has two at a time."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.cluster import Cluster, make_cluster
from loopback.world import tail, wait_until
from test_slurm import SlurmCaller, set_up

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.full]

JOBS = 40
#: Says which card it has, and from when to when; the hosts share this machine's clock.
USE = """
import glob, json, time
start = time.time()
cards = [path for path in glob.glob("/dev/nvidia*") if path[11:].isdigit()]
time.sleep(1)
open("artefacts/used", "w").write("used")
print(json.dumps({"cards": cards, "start": start, "end": time.time()}))
"""


@pytest.fixture
def three(_hosts_possible: None, base_image: str, tmp_path: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path / "cluster", base_image, nodes=3)
    try:
        yield set_up(made)
    finally:
        made.remove()


def test_forty_jobs_share_six_cards(three: Cluster, tmp_path: Path) -> None:
    (tmp_path / "caller").mkdir()
    caller = SlurmCaller(three, tmp_path / "caller", "trainer")
    caller.model("use", USE)
    numbers = ",".join(str(number) for number in range(JOBS))
    done = caller.run(*caller.train("use", "--sweep", f"seed={numbers}", "--detach"))
    assert done.returncode == 0, tail(done.stderr)
    results = f"{caller.state}/jobs/*/result.json"
    wait_until(lambda: int(caller.host.shell(f"ls {results} 2>/dev/null | wc -l")) == JOBS, 1500)
    uses = defaultdict(list)
    for folder in caller.host.shell(f"ls -d {caller.state}/jobs/*").split():
        status, result = (
            json.loads(caller.host.shell(f"cat {folder}/{name}.json")) for name in ("status", "result")
        )
        assert result["exit_code"] == 0, result
        use = json.loads(caller.host.shell(f"cat {folder}/log.txt"))
        (card,) = use["cards"]
        uses[status["node"], card].append((use["start"], use["end"]))
    assert len(uses) == 6
    for times in uses.values():
        times.sort()
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(times))
