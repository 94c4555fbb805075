"""The worker's program as a set of files with a hash of their content, and its installation on a host."""

import functools
import hashlib
from pathlib import Path

#: Installs a bundle on a host. Arguments: the state folder and the bundle's name; the files come as JSON on
#: standard input. Of several at once the first installs it. An incomplete installation is replaced.
INSTALLER = """
import fcntl, json, os, shutil, sys, tempfile
state, name = sys.argv[1:]
os.umask(0o022)
if not os.path.isdir(state):
    os.makedirs(os.path.dirname(state), exist_ok=True)
    os.makedirs(state, mode=0o711 if os.getuid() == 0 else 0o700, exist_ok=True)
workers = os.path.join(state, "workers")
os.makedirs(workers, exist_ok=True)
target = os.path.join(workers, name)
folder = tempfile.mkdtemp(prefix="." + name + ".", dir=workers)
try:
    for path, text in json.load(sys.stdin.buffer).items():
        path = os.path.join(folder, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    os.chmod(folder, 0o755)
    # Not core.locks, which is not on the host yet. Released with the process.
    fcntl.flock(os.open(workers, os.O_RDONLY), fcntl.LOCK_EX)
    if not os.path.isfile(os.path.join(target, "__main__.py")):
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)
finally:
    shutil.rmtree(folder, ignore_errors=True)
"""
#: The packages below `train_classifier` that are installed on a host.
PACKAGES = ("core", "worker")


@functools.cache
def bundle() -> tuple[str, dict[str, bytes]]:
    """Return the hash (16 hex digits) and the files, relative path to content."""
    package = Path(__file__).parents[1]
    # `python3 -I FOLDER` runs the folder's `__main__.py`.
    files = {
        "__main__.py": (package / "worker" / "__main__.py").read_bytes(),
        "train_classifier/__init__.py": (package / "__init__.py").read_bytes(),
    }
    for name in PACKAGES:
        for path in sorted((package / name).rglob("*.py")):
            files[f"train_classifier/{path.relative_to(package)}"] = path.read_bytes()
    # The page of the reports, in which the worker puts its data.
    page = package / "core" / "report" / "page.html"
    files[f"train_classifier/{page.relative_to(package)}"] = page.read_bytes()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16], files
