"""Make the stand-in for GitHub's runner archive.

Its config.sh takes exactly the flags that the real one takes, refuses root, reads ACTIONS_RUNNER_INPUT_*, and writes
.runner (with a byte order mark, as the real one does), .credentials and .credentials_rsaparams. Its listener comes
online at the stand-in API and runs "jobs": a shell script put into `.job` of its folder. `.exit` makes it end with
that status. Nothing here is GitHub's own program.
"""

import gzip
import io
import tarfile

CONFIG = """#!/bin/bash
user_id=`id -u`
if [ $user_id -eq 0 -a -z "$RUNNER_ALLOW_RUNASROOT" ]; then
    echo "Must not run with sudo"
    exit 1
fi
cd "$(dirname "$0")" || exit 1
if [ "$1" = remove ]; then
    shift
    exec python3 bin/standin.py remove "$@"
fi
exec python3 bin/standin.py configure "$@"
"""

RUN = """#!/bin/bash
[ "$(id -u)" -ne 0 ] || { echo "Must not run interactively with sudo"; exit 1; }
exec "$(dirname "$0")/bin/Runner.Listener" run "$@"
"""

STANDIN = '''"""What the stand-in's config.sh does."""
import argparse, json, os, pathlib, sys, urllib.error, urllib.parse, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As the real runner does: a proxy named there is used.
if (ROOT / ".env").is_file():
    os.environ.update(line.split("=", 1) for line in (ROOT / ".env").read_text().splitlines() if "=" in line)


def api(url):
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/api/v3"


def post(url, path, body, token=""):
    request = urllib.request.Request(
        api(url) + path, json.dumps(body).encode(), {"Content-Type": "application/json", "Authorization": "RemoteAuth " + token}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        if error.code == 409:
            sys.exit(json.loads(text)["message"])
        print(f"Http response code: {error.reason.replace(' ', '')} from 'POST {api(url)}{path}'")
        print(text)
        sys.exit(f"Response status code does not indicate success: {error.code} ({error.reason}).")


def secret(name, value):
    return value or os.environ.pop("ACTIONS_RUNNER_INPUT_" + name, "")


def write(name, data):
    (ROOT / name).write_text("\\ufeff" + json.dumps(data), encoding="utf-8")


def configure(arguments):
    parser = argparse.ArgumentParser(prog="config.sh", allow_abbrev=False)
    for flag in ("unattended", "no-default-labels", "replace", "disableupdate", "ephemeral"):
        parser.add_argument("--" + flag, action="store_true")
    for option in ("url", "token", "pat", "name", "runnergroup", "labels", "work"):
        parser.add_argument("--" + option, default="")
    a = parser.parse_args(arguments)
    if (ROOT / ".runner").exists():
        sys.exit("Cannot configure the runner because it is already configured. To reconfigure the runner, run 'config.cmd remove' or './config.sh remove' first.")
    token = secret("TOKEN", a.token)
    answer = post(a.url, "/actions/runner-registration", {
        "url": a.url, "runner_event": "register", "name": a.name, "labels": [x for x in a.labels.split(",") if x],
        "arguments": sys.argv, "replace": a.replace, "no_default_labels": a.no_default_labels, "ephemeral": a.ephemeral, "group": a.runnergroup or "Default",
    }, token)
    write(".runner", {"agentId": answer["id"], "agentName": a.name, "poolId": 1, "poolName": "Default", "serverUrl": a.url,
                      "gitHubUrl": a.url, "workFolder": a.work or "_work", "ephemeral": a.ephemeral, "disableUpdate": a.disableupdate})
    write(".credentials", {"scheme": "OAuth"})
    write(".credentials_rsaparams", {"d": "private"})
    print("Runner successfully added")


def remove(arguments):
    parser = argparse.ArgumentParser(prog="config.sh remove", allow_abbrev=False)
    parser.add_argument("--token", default="")
    parser.add_argument("--pat", default="")
    parser.add_argument("--local", action="store_true")
    a = parser.parse_args(arguments)
    runner = json.loads((ROOT / ".runner").read_text(encoding="utf-8-sig"))
    if not a.local:
        post(runner["gitHubUrl"], "/_runner/remove", {"url": runner["gitHubUrl"], "id": runner["agentId"]}, secret("TOKEN", a.token))
    for name in (".runner", ".credentials", ".credentials_rsaparams"):
        (ROOT / name).unlink(missing_ok=True)
    print("Runner removed successfully")


if __name__ == "__main__":
    {"configure": configure, "remove": remove}[sys.argv[1]](sys.argv[2:])
'''

LISTENER = '''#!/usr/bin/python3
"""The stand-in's listener."""
import json, os, pathlib, signal, subprocess, sys, time, urllib.error, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSION = "@VERSION@"
if sys.argv[1:] == ["--version"]:
    print(VERSION)
    sys.exit(0)
if sys.argv[1:2] != ["run"]:
    sys.exit("unknown command")
jit = os.environ.pop("ACTIONS_RUNNER_INPUT_JITCONFIG", "")
base = os.environ.get("STANDIN_API", "")
local = {}
if jit:
    (ROOT / ".runner").write_text("\\ufeff" + json.dumps({"agentId": 0, "agentName": "jit", "gitHubUrl": ""}), encoding="utf-8")
    (ROOT / ".credentials").write_text("{}")
else:
    if not (ROOT / ".runner").exists():
        print("Not configured. Run config.(sh/cmd) to configure the runner.")
        sys.exit(1)
    local = json.loads((ROOT / ".runner").read_text(encoding="utf-8-sig"))
    base = local["gitHubUrl"].split("/", 3)
    base = "/".join(base[:3]) + "/api/v3"
once = bool(jit) or local.get("ephemeral")


def session(status):
    body = {"status": status, "jit": jit, "id": local.get("agentId"), "url": local.get("gitHubUrl")}
    request = urllib.request.Request(base + "/_runner/session", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError as error:
        print(json.load(error)["message"], flush=True)
        sys.exit(1)
    except OSError as error:
        print(error, flush=True)
        sys.exit(2)


def stop(*_):
    session("offline")
    sys.exit(0)


signal.signal(signal.SIGINT, stop)
# A handler, since what is ignored stays ignored in the worker and its job.
signal.signal(signal.SIGTERM, lambda *_: None)
session("online")
print("Listening for Jobs", flush=True)
while True:
    if (ROOT / ".exit").exists():
        status = int((ROOT / ".exit").read_text())
        (ROOT / ".exit").unlink()
        sys.exit(status)
    if (ROOT / ".job").exists():
        subprocess.run([str(ROOT / "bin" / "Runner.Worker"), "spawnclient"], cwd=ROOT)
        if once:
            session("done")
            for name in (".runner", ".credentials", ".credentials_rsaparams"):
                (ROOT / name).unlink(missing_ok=True)
            sys.exit(0)
    time.sleep(0.2)
'''

WORKER = '''#!/usr/bin/python3
"""The stand-in's worker: one job, between the hooks, its output in _diag/job.log."""
import os, pathlib, subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
job = ROOT / ".job"
script = job.read_text()
job.rename(ROOT / ".job-running")
(ROOT / "_diag").mkdir(exist_ok=True)
(ROOT / "_work").mkdir(exist_ok=True)
with open(ROOT / "_diag" / "job.log", "w") as log:
    codes = []
    for command in (
        ["/bin/bash", os.environ["ACTIONS_RUNNER_HOOK_JOB_STARTED"]],
        ["/bin/bash", "-e", "-c", script],
        ["/bin/bash", os.environ["ACTIONS_RUNNER_HOOK_JOB_COMPLETED"]],
    ):
        codes.append(subprocess.run(command, cwd=ROOT / "_work", stdout=log, stderr=subprocess.STDOUT).returncode)
        log.flush()
    log.write("codes %s\\n" % codes)
(ROOT / ".job-running").rename(ROOT / ".job-done")
'''


def make_archive(version: str) -> bytes:
    """The archive's bytes, the same for the same version."""
    files = {
        "config.sh": CONFIG,
        "run.sh": RUN,
        "bin/standin.py": STANDIN,
        "bin/Runner.Listener": LISTENER.replace("@VERSION@", version),
        "bin/Runner.Worker": WORKER,
    }
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        folder = tarfile.TarInfo("./bin")
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
        archive.addfile(folder)
        for name, text in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size, entry.mode, entry.mtime = len(text.encode()), 0o755, 1_700_000_000
            archive.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(plain.getvalue(), mtime=0)
