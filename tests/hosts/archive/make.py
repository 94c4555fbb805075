"""Make an archive of tiny packages and the host's only package source: make.py FOLDER, the table on standard input."""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path


def build(root, row):
    """Build one package, and return its stanza of the index."""
    tree = root / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "DEBIAN").mkdir(parents=True)
    fields = {
        "Package": row["name"],
        "Version": row["version"],
        "Architecture": "all",
        "Maintainer": "tests <tests@example.org>",
        "Source": row["source"],
        **row["fields"],
        "Description": "stand-in for tests",
    }
    control = "".join(
        f"{key}: {value}\n" for key, value in fields.items() if not (key == "Source" and value == row["name"])
    )
    (tree / "DEBIAN/control").write_text(control)
    for path, text in row["files"].items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)
    if row["module"]:
        folder = tree / "lib/modules" / row["kernel"] / "updates"
        folder.mkdir(parents=True)
        (folder / "nvidia.ko").write_bytes(base64.b64decode(row["module"]))
        script = tree / "DEBIAN/postinst"
        script.write_text(
            f"#!/bin/sh\ncd /lib/modules/{row['kernel']} && touch modules.order modules.builtin && /sbin/depmod {row['kernel']}\n"
        )
        script.chmod(0o755)
    deb = root / f"{row['name']}_{row['version']}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb], check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(tree)
    data = deb.read_bytes()
    return f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"


def main(folder):
    """Make it, and have apt read it."""
    root = Path(folder)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    index = "\n".join(build(root, row) for row in json.load(sys.stdin)).encode()
    (root / "Packages").write_bytes(index)
    (root / "Packages.gz").write_bytes(gzip.compress(index))
    apt = Path("/etc/apt")
    (apt / "sources.list").write_text(f"deb [trusted=yes] file:{folder} ./\n")
    for other in (*apt.glob("sources.list.d/*.list"), *apt.glob("sources.list.d/*.sources")):
        other.unlink()
    subprocess.run(["apt-get", "-qq", "update"], check=True)


main(sys.argv[1])
