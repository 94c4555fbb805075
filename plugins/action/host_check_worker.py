"""Ask the worker's verb `check` on the host, over Ansible's own connection; nothing of it stays there."""

from __future__ import annotations

import base64
import json
import shlex
import sys
import time
from pathlib import Path

from ansible.plugins.action import ActionBase

# The collection's root, or that of the checkout, has the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train_classifier.controller.worker_bundle import bundle

# Runs on the host: unpacks the worker, asks it, removes it.
BOOTSTRAP = """
import base64, json, os, shutil, subprocess, sys, tempfile, time
order = json.load(sys.stdin)
now = time.time()
os.umask(0o022)
folder = tempfile.mkdtemp(prefix="train-classifier-check-")
try:
    os.chmod(folder, 0o755)
    for name, data in order["files"].items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
    environment = dict(os.environ, **order["environment"])
    done = subprocess.run([sys.executable, "-I", folder], input=json.dumps(order["request"]).encode(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
finally:
    shutil.rmtree(folder)
print(json.dumps({"time": now, "status": done.returncode, "out": done.stdout.decode("utf-8", "replace"),
                  "err": done.stderr.decode("utf-8", "replace")[-4000:]}))
"""


class ActionModule(ActionBase):
    """`host_check_worker: request={…} environment={…}`: `answer` and `clock_offset_s` (host - controller)."""

    TRANSFERS_FILES = False
    _requires_connection = True

    def run(self, tmp=None, task_vars=None):
        """Ask, and give the worker's answer as the task's result."""
        result = super().run(tmp, task_vars)
        result["changed"] = False
        _, files = bundle()
        order = {
            "files": {name: base64.b64encode(data).decode("ascii") for name, data in files.items()},
            "request": {"verb": "check", **self._task.args.get("request", {})},
            "environment": self._task.args.get("environment", {}),
        }
        python = (task_vars or {}).get("ansible_python_interpreter") or "python3"
        if python.startswith("auto"):
            python = "python3"
        program = base64.b64encode(BOOTSTRAP.encode()).decode("ascii")
        line = f"{shlex.quote(python)} -I -c 'import base64; exec(base64.b64decode(\"{program}\"))'"
        # Else a local connection with a password for sudo passes no input on, and the program waits for it.
        if self._connection.has_pipelining:
            self._connection.set_option("pipelining", True)
        before = time.time()
        outcome = self._low_level_execute_command(line, in_data=json.dumps(order).encode("ascii"))
        after = time.time()
        try:
            reply = json.loads(outcome["stdout"].strip().splitlines()[-1])
        except (ValueError, IndexError):
            result.update(
                failed=True,
                msg=f"{python} on the host did not run the worker: "
                + (outcome["stderr"] or outcome["stdout"]).strip(),
            )
            return result
        offset = min(0.0, reply["time"] - before) or max(0.0, reply["time"] - after)
        result["clock_offset_s"] = round(offset, 3)
        try:
            result["answer"] = json.loads(reply["out"].strip().splitlines()[-1])
        except (ValueError, IndexError):
            result.update(
                failed=True,
                msg=f"the worker gave no answer (exit status {reply['status']}): {reply['err'].strip()}",
            )
        return result
