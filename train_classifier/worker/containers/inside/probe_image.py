"""Runs inside an image, by the image's own Python (3.8 on): prints what that Python is and what it has.

Sent as text (`python3 -c`), so it imports nothing of ours. The answer is the last line of its output: JSON.
"""

import json
import os
import subprocess
import sys

FRAMEWORKS = {
    "tensorflow": "tensorflow", "tensorflow-cpu": "tensorflow", "tensorflow-gpu": "tensorflow",
    "tf-nightly": "tensorflow", "torch": "torch", "jax": "jax", "keras": "keras", "numpy": "numpy",
}  # fmt: skip


def main() -> None:
    """Print the answer."""
    if sys.version_info < (3, 8):
        print("python-too-old %d.%d" % sys.version_info[:2])
        sys.exit(65)
    import re
    import site
    import sysconfig
    from importlib.metadata import distributions

    packages: "dict[str, str]" = {}
    frameworks: "dict[str, str]" = {}
    for distribution in distributions():
        name, version = distribution.metadata["Name"], distribution.version
        if not name or not version:
            continue
        name = re.sub(r"[-_.]+", "-", name).lower()
        # The first one on sys.path is the one that is imported.
        packages.setdefault(name, version)
        if name in FRAMEWORKS:
            frameworks.setdefault(FRAMEWORKS[name], version)
    probe = "import distutils.dir_util, sys; sys.exit(0)"
    distutils = subprocess.call(
        [sys.executable, "-W", "ignore", "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    answer = {
        "python": sys.executable,
        "version": "%d.%d.%d" % sys.version_info[:3],
        "implementation": sys.implementation.name,
        "platform": sysconfig.get_platform(),
        "site": site.getsitepackages(),
        "path": sys.path[1:],
        "packages": packages,
        "frameworks": frameworks,
        "distutils": distutils == 0,
        "search_path": os.environ.get("PATH", os.defpath),
    }
    print()
    print("train-classifier:" + json.dumps(answer))


main()
