"""Make an archive of tiny packages: make.py FOLDER SUITE [ORIGIN], the table on standard input; prints the path of its Release.

With a SUITE it is laid out as a distribution's is: dists/SUITE/COMPONENT, the component by the package's section. Without,
all is in FOLDER. Runs on the test host; the test's machine signs Release.
"""

import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

ARCHITECTURE = subprocess.run(
    ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
).stdout.strip()
#: Every package that was built on this host, by what it is made from.
BUILT = Path("/srv/built-packages")


def unpack(tree, names):
    """Put the files and scripts of packages of the host's own sources into a tree; return what they depend on."""
    depends = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o777)
            subprocess.run(["apt-get", "-qq", "download", name], check=True, cwd=folder)
            deb = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)
            subprocess.run(["dpkg-deb", "-e", deb, tree / "DEBIAN"], check=True)
            command = ["dpkg-deb", "-f", deb, "Depends"]
            words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split(",")
            depends += [word.strip() for word in words]
    (tree / "DEBIAN/md5sums").unlink(missing_ok=True)
    return depends


def build(root, row):
    """Build one package, or take it as built before, and return its component and its stanza of the index."""
    deb = root / f"{row['name']}_{row['version']}.deb"
    built = BUILT / hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    if not built.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        make_package(row, built)
    os.link(built, deb)
    control = built.with_suffix(".control").read_text()
    component = row["section"].rpartition("/")[0] or "main"
    data = deb.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return component, f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n"


def make_package(row, deb):
    """Build a package, with its control fields beside it."""
    tree = BUILT / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "DEBIAN").mkdir(parents=True)
    depends = [word for word in unpack(tree, row["like"]) if word.split()[0] not in row["without"]]
    if depends:
        row["fields"]["Depends"] = ", ".join([*depends, *filter(None, [row["fields"].get("Depends")])])
    fields = {
        "Package": row["name"],
        "Version": row["version"],
        "Architecture": "all",
        "Maintainer": "tests <tests@example.org>",
        "Source": row["source"],
        "Section": row["section"],
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
        target.write_bytes(
            base64.b64decode(text.removeprefix("base64:")) if text.startswith("base64:") else text.encode()
        )
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
    deb.with_suffix(".control").write_text(control)
    part = deb.with_suffix(".part")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, part], check=True, stdout=subprocess.DEVNULL
    )
    part.rename(deb)
    shutil.rmtree(tree)


def main(folder, suite="", origin="Origin: Ubuntu"):
    """Make it."""
    root = Path(folder)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    stanzas = [build(root, row) for row in json.load(sys.stdin)]
    top = root / "dists" / suite if suite else root
    release = f"{origin}\nSuite: {suite}\nCodename: {suite}\nDate: {formatdate(usegmt=True)}\n"
    components = sorted(
        {"main", "restricted", "universe", "multiverse", *(name for name, _ in stanzas)} if suite else {""}
    )
    if suite:
        release += f"Components: {' '.join(components)}\nArchitectures: {ARCHITECTURE}\n"
    release += "SHA256:\n"
    for component in components:
        index = top / component / f"binary-{ARCHITECTURE}" / "Packages" if suite else top / "Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(text for name, text in stanzas if not suite or name == component).encode()
        for path, data in ((index, text), (index.with_suffix(".gz"), gzip.compress(text))):
            path.write_bytes(data)
            release += f" {hashlib.sha256(data).hexdigest()} {len(data)} {path.relative_to(top)}\n"
    (top / "Release").write_text(release)
    print(top / "Release")


main(*sys.argv[1:])
