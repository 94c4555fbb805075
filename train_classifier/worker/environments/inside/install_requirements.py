"""Runs inside an image, by the image's own Python (3.8 on), as the job's user: makes an environment with uv.

Sent as text (`python3 -c`), so it imports nothing of ours. Reads one JSON object from the file that its
argument names. The packages of the image are lent to uv as metadata only: uv then counts them as installed,
prefers them, and downloads only what is missing. The metadata goes away again before the environment is used.

With `shared`, uv's cache is shared between repositories: only wheels are installed, nothing is built, and no
Python starts on what was installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions

LENT = "train-classifier-image"
#: A target folder for resolving once more: it has the metadata that the environment began with.
AGAIN = "/tmp/train-classifier-again"
#: What uv says of each version that it chooses.
CHOSEN = re.compile(r"Selecting: (\S+)==\S+ \[[^]]*\] \((.*)\)")


def normal(name: str) -> str:
    """Return a package's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(site: str) -> "dict[str, str]":
    """Return the packages of a folder, with their versions."""
    return {
        normal(found.metadata["Name"]): found.version
        for found in distributions(path=[site])
        if found.metadata["Name"] and found.version
    }


def lend(site: str) -> None:
    """Write metadata of every package of the image that the environment does not have itself."""
    own = names_in(site)
    seen = set()
    for found in distributions():
        name, version = found.metadata["Name"], found.version
        if not name or not version or normal(name) in seen:
            continue
        seen.add(normal(name))
        if normal(name) in own:
            continue
        # Made anew: Debian's egg-info has another form, and uv refuses to replace it.
        folder = os.path.join(site, "%s-%s.dist-info" % (re.sub(r"[^A-Za-z0-9.]+", "_", name), version))
        os.mkdir(folder)
        lines = ["Metadata-Version: 2.1", "Name: %s" % name, "Version: %s" % version]
        for key in ("Requires-Python",):
            if found.metadata[key]:
                lines.append("%s: %s" % (key, found.metadata[key]))
        for extra in found.metadata.get_all("Provides-Extra") or []:
            lines.append("Provides-Extra: %s" % extra)
        for requirement in found.requires or []:
            lines.append("Requires-Dist: %s" % " ".join(requirement.split()))
        for file, text in (("METADATA", "\n".join(lines) + "\n"), ("INSTALLER", LENT + "\n")):
            with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
                out.write(text)
        with open(os.path.join(folder, "RECORD"), "w", encoding="utf-8") as out:
            for file in ("METADATA", "INSTALLER", "RECORD"):
                out.write("%s/%s,,\n" % (os.path.basename(folder), file))


def take_back(site: str) -> None:
    """Remove the lent metadata that is still there."""
    for name in os.listdir(site):
        try:
            with open(os.path.join(site, name, "INSTALLER"), encoding="utf-8") as file:
                lent = file.read().strip() == LENT
        except OSError:
            continue
        if lent:
            shutil.rmtree(os.path.join(site, name))


def copy_metadata(site: str, target: str) -> None:
    """Copy what uv reads of installed packages."""
    os.makedirs(target)
    for name in os.listdir(site):
        if name.endswith(".dist-info"):
            os.mkdir(os.path.join(target, name))
            for file in ("METADATA", "RECORD", "INSTALLER"):
                path = os.path.join(site, name, file)
                if os.path.isfile(path):
                    shutil.copyfile(path, os.path.join(target, name, file))


def command(plan: "dict[str, str]", target: str, *options: str) -> "list[str]":
    """Return the command line of uv."""
    return [
        plan["uv"], "pip", "install", "--no-progress", "--python", sys.executable, "--target", target,
        # No inode in common with the cache, which others read and write.
        "--link-mode", "copy", "-c", plan["constraints"], "-r", plan["requirements"], *options,
    ]  # fmt: skip


def holds_sources() -> bool:
    """Tell whether uv's cache holds the source of a package."""
    cache = os.environ["UV_CACHE_DIR"]
    for bucket in os.listdir(cache):
        if bucket.startswith("sdists-"):
            for _, _, names in os.walk(os.path.join(cache, bucket)):
                if set(names) - {".lock", ".git", ".gitignore"}:
                    return True
    return False


def must_build(plan: "dict[str, str]") -> "list[str]":
    """Return the packages that uv would build if it might.

    With --no-build uv takes an older version that has a wheel, without a word. So it resolves once more with
    builds allowed, from its cache alone: without the sources nothing can be built.
    """
    if holds_sources():
        return ["a package"]
    again = command(plan, AGAIN, "--dry-run", "--offline", "--verbose")
    done = subprocess.run(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    messages = done.stderr.decode("utf-8", "replace")
    chosen = CHOSEN.findall(messages)
    sources = sorted({name for name, file in chosen if not file.endswith((".whl", "installed"))})
    # Another uv may have other words.
    understood = done.returncode == 0 and (chosen or "Would make no changes" in messages)
    return sources or ([] if understood else ["a package"])


def main() -> None:
    """Build, and print what came of it as the last line."""
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    site = plan["site"]
    lend(site)
    sources: "list[str]" = []
    if plan["shared"]:
        copy_metadata(site, AGAIN)
        status = subprocess.call(command(plan, site, "--no-build", "--no-compile-bytecode"))
        if status == 0:
            sources = must_build(plan)
    else:
        status = subprocess.call(command(plan, site, "--compile-bytecode"), cwd=plan["repository"])
    take_back(site)
    if status == 0:
        print()
        print("train-classifier:" + json.dumps({"packages": names_in(site), "sources": sources}))
    sys.exit(status)


main()
