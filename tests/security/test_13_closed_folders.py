"""Row 13: a model that closes /cache or /checkpoints harms no later job."""

from collections.abc import Iterator

import pytest
from worker_support import Machine, accounts, machine

pytestmark = pytest.mark.engine
CLOSES = """
import os
open('artefacts/x', 'w').write('x')
for top in ('/cache', '/checkpoints'):
    os.makedirs(top + '/deep/er')
    open(top + '/deep/er/file', 'w').write('kept')
    for path in (top + '/deep/er/file', top + '/deep/er', top + '/deep', top):
        os.chmod(path, 0)
"""
READS = "print(open('/cache/deep/er/file').read(), open('/checkpoints/deep/er/file').read())\nopen('artefacts/y', 'w')\n"


@pytest.fixture(scope="module", params=accounts())
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with machine(request.param) as made:
        yield made


@pytest.mark.parametrize("resume", ["last", "by its id"])
def test_13_next_job_finds_cache_and_checkpoints_open(host: Machine, resume: str) -> None:
    key = {"last": "a" * 16, "by its id": "b" * 16}[resume]
    repository = {"name": "repo", "key": key, "commit": None, "dirty": None}
    closed, result = host.train(CLOSES, repository=repository)
    assert result["outcome"] == "trained", (result, host.log(closed))
    again = closed if resume == "by its id" else "last"
    job, result = host.train(READS, repository=repository, resume=again)
    assert result["outcome"] == "trained" and host.log(job) == b"kept kept\n", (result, host.log(job))
    host.assert_clean(job)
