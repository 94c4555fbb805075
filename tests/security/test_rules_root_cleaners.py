"""The rules of docs/security.md against what root runs on a training host: its cleaner, timers and commands.

Written from the rules and without the code. Whatever a model, the account of root's jobs or a login user puts where it can
write, nothing of root's opens it, and what lies outside is left as it is. The runner's timer, hooks and preparations are
met in test_rules_runner_account.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.caller import Caller
from hosts.machine import TestHost
from rules_support import CANARIES, PLANT, PROOF, TRAP, Site, own_units, swapping

pytestmark = [pytest.mark.host, pytest.mark.engine, pytest.mark.timeout(1500), pytest.mark.full]

STATE = "/var/lib/train-classifier"
#: The model plants in each folder that it can write, as the account does outside.
MODEL = f"""
import json, os
folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith(("/proc", "/sys", "/dev")) and os.access(folder, os.W_OK)]
print(json.dumps(folders), flush=True)
os.makedirs("/var/tmp", exist_ok=True)
open("/tmp/plant.json", "w").write(json.dumps([{PROOF!r}, {TRAP!r}, {CANARIES!r}, folders]))
plant = {PLANT!r}.replace("/var/tmp/", "/tmp/")
exec(compile(plant, "plant", "exec"), {{}})
"""


@pytest.fixture(params=["train-classifier", "trainer"])
def site(request: pytest.FixtureRequest, ssh_host: TestHost) -> Iterator[Site]:
    new_site = Site(ssh_host.container, request.param)
    try:
        yield new_site
    finally:
        new_site.remove_planted()


def test_clean_and_list_change_nothing_outside(site: Site, ssh_host: TestHost, tmp_path: Path) -> None:
    """Two jobs of root's, one that ends and one that fails; then everything of root's that reads and cleans."""
    caller = Caller(ssh_host, tmp_path, "root")
    before = site.canaries()
    own_paths = (f"{STATE}/host.json", f"{STATE}/bin")
    before += site.snapshot(*own_paths)
    writable_before = site.writable_folders()
    caller.model("plants", MODEL)
    caller.model("fails", MODEL + "\nraise SystemExit(3)\n")
    with site.watched() as watched:
        done = caller.run(*caller.train("plants", "--gpus", "0"))
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert "/workspace" in json.loads(done.stdout.splitlines()[0]), done.stdout
        assert caller.run(*caller.train("fails", "--gpus", "0")).returncode == 4
    trained = watched["opened"]
    folders = site.plant()
    # Folders of other tests get planted files, but are not swapped.
    new = [
        folder for folder in folders if folder not in writable_before and folder.startswith((STATE, "/home"))
    ]
    with site.watched() as watched, swapping(site, *(new or ["/var/tmp/evil"])):
        for _ in range(3):
            caller.run("list")
            for unit in own_units(site):
                if "docker" not in unit:
                    site.sh(f"timeout 90 systemctl restart {unit}", check=False)
        assert b"Traceback" not in caller.run("clean", "--older", "0s").stderr
    site.sh("systemctl start systemd-tmpfiles-clean", check=False)
    cleaned = caller.run("clean", "--older", "0s")
    assert cleaned.returncode == 0, cleaned.stderr.decode()
    assert site.sh(f"ls {STATE}/state/jobs") == ""
    assert site.sh(f"cat {PROOF}") == ""
    after = site.snapshot(CANARIES, "/etc", *own_paths)
    assert [line for line in before if line not in after] == []
    assert (trained, watched["opened"]) == ([], [])
