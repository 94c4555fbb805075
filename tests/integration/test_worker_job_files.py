"""The files of real jobs have the keys that docs/manifest.md documents, and no others."""

import base64
import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import json_output
import pytest
from documented import documented, keys_of, matches
from hosts.fleet import uv_binary
from worker_site import CA
from worker_support import Machine, accounts, machine, write_model

pytestmark = pytest.mark.engine
#: Delivers what the manifest has a key for: files old and new, a link, what is left out, metrics, a checkpoint.
GOOD = """
import json, os, time
os.symlink("weights", "artefacts/link")
os.symlink("/etc/passwd", "artefacts/leads-out")
open("artefacts/weights", "w").write("x")
json.dump({"loss": 0.5}, open("artefacts/metrics.json", "w"))
open(os.environ["TRAIN_CHECKPOINT_DIR"] + "/epoch", "w").write("1")
time.sleep(1)
"""
HUNGRY = "import time\ntime.sleep(1)\nblocks = [bytearray(10 << 20) for _ in range(100)]\n"


@pytest.fixture(scope="module", params=accounts()[-1:])
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    settings = {"ca_bundle": str(CA)} if CA.exists() else {}
    with machine(request.param, **settings) as new_host:
        shutil.copy2(uv_binary(), new_host.root / "uv")
        new_host.write_settings(uv=str(new_host.root / "uv"))
        yield new_host


def test_job_files_have_the_documented_keys(host: Machine, tmp_path: Path) -> None:
    write_model(tmp_path, GOOD, requirements="six\n")
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "artefacts" / "README.md").write_text("old")
    data = host.root / "data"
    data.mkdir()
    data.chmod(0o755)
    jobs = [
        host.start_tree(
            tmp_path, {"TOKEN": "hunter2"}, environment={"NAME": "private"},
            data=[{"path": str(data), "name": "d"}], arguments=["--x"],
        )
    ]  # fmt: skip
    assert host.wait(jobs[0])["outcome"] == "trained"
    jobs.append(host.start(HUNGRY, memory_bytes=64 << 20))
    assert host.wait(jobs[1])["out_of_memory"]
    files = {
        "manifest.json": [host.manifest(job) for job in jobs],
        "result.json": [host.stored_result(job) for job in jobs],
    }
    for name, contents in files.items():
        all_keys: set[str] = set()
        for content in contents:
            keys = keys_of(content, name)
            if name == "manifest.json":
                json_output.validate("manifest", content)
            all_keys |= keys
            # Every key is there for every outcome; one without a value is null or empty.
            assert {key.partition(".")[0].removesuffix("[]") for key in documented(name)} == set(content)
        unknown, missing = matches(all_keys, name)
        assert not unknown
        # Jobs with cards are those of the simulated GPU host: test_gpu_jobs compares these; test_slurm those of Slurm.
        assert {key for key in missing if not key.startswith(("gpus[].", "slurm."))} == set()
    trained = files["manifest.json"][0]
    assert trained["environment_variables"] == ["NAME"] and trained["secrets"] == ["TOKEN"]
    assert "private" not in json.dumps(files) and "hunter2" not in json.dumps(files)
    assert check_values(trained)
    with open(host.job_dir(jobs[0]) / "usage.csv", newline="") as file:
        assert set(next(csv.reader(file))) == documented("usage.csv")


def check_values(manifest: dict[str, Any]) -> bool:
    """Check values that the page describes."""
    listed = {line["path"]: line for line in manifest["artefacts"]}
    assert listed["artefacts/README.md"]["new"] is False and listed["artefacts/weights"]["new"] is True
    assert "link" not in listed["artefacts/weights"] and "sha256" not in listed["artefacts/link"]
    assert [line["path"] for line in manifest["left_out"]] == ["artefacts/leads-out"]
    # The manifest is written while the artefacts are packed.
    open_phases = [phase for phase, (_, end) in manifest["times"].items() if end is None]
    assert open_phases == ["artefacts"]
    return True


def test_small_archive_is_sent_with_the_result(host: Machine, tmp_path: Path) -> None:
    """By the call that submits the job; never a large one, and never the target of a link."""
    spec = host.spec()
    host.push(write_model(tmp_path, "print('said')\nopen('artefacts/x', 'w').write('x')\n"), spec)
    options = {"offset": 0, "wait": 10, "for": 60}
    last = host.call("submit", id=spec["id"], secrets={}, follow={**options, "inline": 1 << 20})
    archive = host.job_dir(spec["id"]) / "artefacts.tar.gz"
    assert last["result"]["outcome"] == "trained"
    assert base64.b64decode(last["content"]) == archive.read_bytes()
    size = archive.stat().st_size
    assert "content" in host.call("follow", id=spec["id"], **options, inline=size)
    for limit in (0, size - 1):
        assert "content" not in host.call("follow", id=spec["id"], **options, inline=limit)
    archive.unlink()
    archive.symlink_to("/etc/passwd")
    assert "content" not in host.call("follow", id=spec["id"], **options, inline=1 << 20)


def test_result_of_untrained_job_has_the_documented_keys(host: Machine) -> None:
    _, result = host.train("", image="no-such.invalid/image:1")
    assert result["exit_code"] == 9 and result["archive"] is None
    assert not matches(keys_of(result, "result.json"), "result.json")[0]
    assert {key.partition(".")[0].removesuffix("[]") for key in documented("result.json")} == set(result)
